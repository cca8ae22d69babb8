"""The Triton storage formats against `saefast.storage`: the same random bits, and what they round to.

The bits are integers and exact, and so are rounding to bf16, stochastic or not, and the split forms. A code of 8 bits may
be one off in one place of a hundred, because square roots and divisions round otherwise.
"""

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from saefast import storage
from saefast.triton_kernels.rows import load_row, pieces_of, store_row
from saefast.triton_kernels.storage import (
    load_moments,
    load_weight,
    pointers,
    random_bits,
    row_seed,
    state_bytes,
    store_moments,
    store_weight,
)
from tests.helpers.kernels import DEVICE

FORMATS = {  # param_dtype, state_dtype, compute_dtype
    "fp32": ("fp32", "fp32", torch.float32),
    "fp32 with a bf16 copy": ("fp32", "fp32", torch.bfloat16),
    "fp32 with an fp16 copy": ("fp32", "fp32", torch.float16),
    "fp32, bf16 moments": ("fp32", "bf16", torch.float32),
    "fp32, int8 moments": ("fp32", "int8", torch.bfloat16),
    "split": ("split", "fp32", torch.bfloat16),
    "split, int8 moments": ("split", "int8", torch.bfloat16),
    "split24": ("split24", "fp32", torch.bfloat16),
    "split24, bf16 moments": ("split24", "bf16", torch.bfloat16),
    "split24, int8 moments": ("split24", "int8", torch.bfloat16),
    "bf16, bf16 moments": ("bf16", "bf16", torch.bfloat16),
    "bf16, int8 moments": ("bf16", "int8", torch.bfloat16),
}
formats = pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS.keys())


@triton.jit
def bits_kernel(out_ptr, rows_ptr, step_ptr, D, SALT: tl.constexpr, PIECES: tl.constexpr):
    j = tl.program_id(0).to(tl.int64)
    seed = row_seed(tl.load(rows_ptr + j), tl.load(step_ptr), SALT)
    for i in tl.static_range(len(PIECES)):
        d = PIECES[i][0] + tl.arange(0, PIECES[i][1])
        bits = random_bits(seed, PIECES[i][0], PIECES[i][1])
        tl.store(out_ptr + j * D + d, bits.to(tl.int64), mask=d < D)


@triton.jit
def store_kernel(
    weight,
    low,
    shadow,
    m,
    v,
    scales,
    value_ptr,
    exp_avg_ptr,
    exp_avg_sq_ptr,
    step_ptr,
    SALT: tl.constexpr,
    D: tl.constexpr,
    PIECES: tl.constexpr,
):
    matrix = (weight, low, shadow, m, v, scales)
    j = tl.program_id(0).to(tl.int64)
    seed = row_seed(j, tl.load(step_ptr), SALT)
    store_weight(matrix, j, load_row(value_ptr, j * D, D, PIECES), seed, D, PIECES)
    moments = load_row(exp_avg_ptr, j * D, D, PIECES), load_row(exp_avg_sq_ptr, j * D, D, PIECES)
    store_moments(matrix, j, moments[0], moments[1], seed, D, PIECES)


@triton.jit
def load_kernel(
    weight,
    low,
    shadow,
    m,
    v,
    scales,
    value_ptr,
    exp_avg_ptr,
    exp_avg_sq_ptr,
    D: tl.constexpr,
    PIECES: tl.constexpr,
):
    matrix = (weight, low, shadow, m, v, scales)
    j = tl.program_id(0).to(tl.int64)
    store_row(value_ptr, j * D, load_weight(matrix, j, D, PIECES), D, PIECES)
    moments = load_moments(matrix, j, D, PIECES)
    store_row(exp_avg_ptr, j * D, moments[0], D, PIECES)
    store_row(exp_avg_sq_ptr, j * D, moments[1], D, PIECES)


def random_values(F: int, D: int) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, exp_avg and exp_avg_sq over six orders of magnitude within a row, with zeros, and a row of zeros."""
    rng = torch.Generator().manual_seed(0)
    value, m, v = (
        torch.randn(F, D, generator=rng) * 10 ** (-6 * torch.rand(F, D, generator=rng)) for _ in range(3)
    )
    v = v.square()
    for moment in (m, v):
        moment[:, 3] = 0
        moment[1] = 0
    return value.to(DEVICE), m.to(DEVICE), v.to(DEVICE)


def step_of(n: int) -> Tensor:
    return torch.tensor(n, device=DEVICE)


@pytest.mark.each_value
@pytest.mark.parametrize("step", [1, 12345, 2**31 + 7])
@pytest.mark.parametrize("salt", [0, 1])
def test_random_bits(salt: int, step: int) -> None:
    rows, D = torch.tensor([0, 1, 77, 2**20 + 3], device=DEVICE), 300
    got = torch.empty(len(rows), D, dtype=torch.int64, device=DEVICE)
    bits_kernel[(len(rows),)](got, rows, step_of(step), D, SALT=salt, PIECES=pieces_of(D, 1))
    assert torch.equal(got, storage.random_bits(rows, D, step, salt))


@formats
def test_store(format: tuple[str, str, torch.dtype]) -> None:
    """Every tensor of the matrix equals the reference's."""
    F, D = 3, 75  # in pieces of 64 and 16
    value, m, v = random_values(F, D)
    got, want = (storage.allocate(torch.zeros(F, D, device=DEVICE), *format) for _ in range(2))
    store_kernel[(F,)](*pointers(got), value, m, v, step_of(9), SALT=1, D=D, PIECES=pieces_of(D, 1))
    bits = storage.random_bits(torch.arange(F, device=DEVICE), D, 9, 1)
    storage.store_weight_(want, value, bits)
    storage.store_moments_(want, m, v, bits)
    for name, one, other in zip(want._fields, got, want):
        if one is None:
            assert other is None, name
        elif name == "scales":
            torch.testing.assert_close(one, other, rtol=1e-6, atol=0)
        elif one.dtype in (torch.int8, torch.uint8):
            off = (one.int() - other.int()).abs()
            assert off.max() <= 1 and off.sum() <= 0.01 * off.numel(), name
        else:
            assert torch.equal(one, other), name
    if got.scales is not None:
        assert not got.exp_avg_sq[v == 0].any() and (got.exp_avg_sq[v > 0] > 0).all()
    assert (got.shadow is got.weight) == (want.shadow is want.weight)


@formats
def test_load(format: tuple[str, str, torch.dtype]) -> None:
    F, D = 3, 75
    matrix = storage.allocate(torch.zeros(F, D, device=DEVICE), *format)
    value, m, v = random_values(F, D)
    bits = storage.random_bits(torch.arange(F, device=DEVICE), D, 1, 0)
    storage.store_weight_(matrix, value, bits)
    storage.store_moments_(matrix, m, v, bits)
    got = [torch.empty(F, D, device=DEVICE) for _ in range(3)]
    load_kernel[(F,)](*pointers(matrix), *got, D=D, PIECES=pieces_of(D, 1))
    assert torch.equal(got[0], storage.load_weight(matrix))
    for one, other in zip(got[1:], storage.load_moments(matrix)):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=0)


def test_split_keeps_every_bit() -> None:
    """Values halfway between two bf16, infinities and denormals come back as they were."""
    halves = torch.tensor([0x3F808000, 0x3F818000, 0x00008000, 0x7F7F7FFF, 0x7F800000, 0x00000001])
    value = torch.cat([halves, -halves]).to(torch.int32).view(torch.float32).repeat(2, 1).to(DEVICE)
    matrix = storage.allocate(torch.zeros_like(value), "split", "fp32", torch.bfloat16)
    F, D = value.shape
    zeros = torch.zeros_like(value)
    store_kernel[(F,)](
        *pointers(matrix), value, zeros, zeros, step_of(1), SALT=0, D=D, PIECES=pieces_of(D, 1)
    )
    got = [torch.empty_like(value) for _ in range(3)]
    load_kernel[(F,)](*pointers(matrix), *got, D=D, PIECES=pieces_of(D, 1))
    assert torch.equal(got[0].view(torch.int32), value.view(torch.int32))


def test_24_bits_at_all_borders() -> None:
    """Denormals, powers of two, carries up to Inf, Inf and NaN of every payload: the bits of the reference."""
    high = torch.tensor([0, 1, 0x7F, 0x80, 0xFF, 0x3F7F, 0x3F80, 0x3F81, 0x7F7F, 0x7F80, 0x7FFF])
    low = torch.tensor(
        [0, 1, 0x7F, 0x80, 0xFF, 0x100, 0x7EFF, 0x7F00, 0x7F81, 0x7FFF, 0x8000, 0x80FF, 0xFF00, 0xFFFF]
    )
    patterns = (high[:, None] << 16) + low
    patterns = torch.cat([patterns, patterns - 2**31], dim=1).repeat(1, 4).to(torch.int32)
    value = patterns.view(torch.float32).to(DEVICE)
    got, want = (
        storage.allocate(torch.zeros_like(value), "split24", "fp32", torch.bfloat16) for _ in range(2)
    )
    (F, D), zeros = value.shape, torch.zeros_like(value)
    for step in (1, 2):
        store_kernel[(F,)](
            *pointers(got), value, zeros, zeros, step_of(step), SALT=0, D=D, PIECES=pieces_of(D, 1)
        )
        bits = storage.random_bits(torch.arange(F, device=DEVICE), D, step, 0)
        storage.store_weight_(want, value, bits)
        for one, other in zip(got[:2], want[:2]):
            assert one is not None and other is not None
            kind = torch.int16 if one.dtype == torch.bfloat16 else torch.int8
            assert torch.equal(one.view(kind), other.view(kind))
        loaded = [torch.empty_like(value) for _ in range(3)]
        load_kernel[(F,)](*pointers(got), *loaded, D=D, PIECES=pieces_of(D, 1))
        assert torch.equal(loaded[0].view(torch.int32), storage.load_weight(want).view(torch.int32))
        assert torch.equal(loaded[0].isnan(), value.isnan())


def test_state_bytes() -> None:
    weight = torch.zeros(2, 4)
    kept = {name: state_bytes(storage.allocate(weight.clone(), *format)) for name, format in FORMATS.items()}
    assert kept["fp32"] == 24 and kept["fp32 with a bf16 copy"] == 26
    assert (
        kept["split, int8 moments"] == 12
        and kept["split24, int8 moments"] == 10
        and kept["bf16, int8 moments"] == 8
    )
