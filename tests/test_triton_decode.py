"""The Triton decode against `saefast.reference.decode`: on a GPU where there is one, else in Triton's interpreter.

bf16 needs a GPU: the interpreter (Triton 3.6.0) computes wrong values in it. Fresh memory is NaN (conftest.py), so
what a kernel leaves unwritten cannot look like a result.
"""

import os

import pytest
import torch
from torch import Tensor

ON_GPU = torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1"
if not ON_GPU:
    os.environ["TRITON_INTERPRET"] = "1"  # read where @triton.jit decorates, so before the import below

from saefast import reference
from saefast.triton_kernels import decode
from saefast.triton_kernels.decode import decode_config

pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")  # in Triton
DEVICE = "cuda" if ON_GPU else "cpu"
Case = tuple[Tensor, Tensor, Tensor, Tensor]
needs_gpu = pytest.mark.skipif(not ON_GPU, reason="needs a CUDA GPU")
dtypes = pytest.mark.parametrize(
    "dtype",
    [
        pytest.param(torch.float32, id="fp32"),
        pytest.param(torch.float16, id="fp16"),
        pytest.param(torch.bfloat16, id="bf16", marks=[pytest.mark.gpu, needs_gpu]),
    ],
)


def random_case(B: int, D: int, F: int, K: int, dtype: torch.dtype, seed: int = 0) -> Case:
    """top_acts >= 0, distinct indices within a token, unit-norm rows."""
    rng = torch.Generator().manual_seed(seed)
    top_acts = torch.randn(B, K, generator=rng).abs()
    top_indices = torch.rand(B, F, generator=rng).argsort(dim=1)[:, :K].to(torch.int32).contiguous()
    W_dec = reference.normalize_rows_(torch.randn(F, D, generator=rng))
    b_dec = torch.randn(D, generator=rng)
    top_acts, W_dec, b_dec = (t.to(dtype).to(DEVICE) for t in (top_acts, W_dec, b_dec))
    return top_acts, top_indices.to(DEVICE), W_dec, b_dec


def check(case: Case, tiny: float = 1e-6) -> None:
    """The error against fp64 is at most twice that of torch in the same dtype."""
    top_acts, top_indices, W_dec, b_dec = case
    got, torch_result = decode(*case), reference.decode(*case)
    exact = reference.decode(top_acts.double(), top_indices, W_dec.double(), b_dec.double())
    assert got.dtype == torch_result.dtype and got.shape == torch_result.shape
    error, torch_error = ((result.double() - exact).norm() for result in (got, torch_result))
    bound = 2 * torch_error + tiny * exact.norm()
    assert error <= bound, f"error {error:.3e} > {bound:.3e}"  # NaN is not <= anything


SHAPES = {  # B, D, F, K; on the right the tiles of decode_config in fp32
    "576": (5, 576, 64, 32),  # 4 x 128, five of them, the last half padding
    "768": (3, 768, 100, 32),  # 4 x 256, three of them
    "2304": (2, 2304, 40, 5),  # 4 x 512, padded; one slot in the second round
    "odd": (7, 130, 51, 7),  # 4 x 128; all but two columns of the second are padding
    "one column": (4, 1, 9, 3),
    "seven columns": (9, 7, 33, 4),
    "eight columns": (9, 8, 32, 5),
    "k 1": (6, 64, 17, 1),
    "k all": (4, 48, 37, 37),  # 8 x 64
    "one token": (1, 96, 40, 8),
}


@dtypes
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_matches_reference(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    check(random_case(*shape, dtype))


@dtypes
def test_no_tokens(dtype: torch.dtype) -> None:
    top_acts, top_indices, W_dec, b_dec = random_case(3, 24, 16, 4, dtype)
    x_hat = decode(top_acts[:0], top_indices[:0], W_dec, b_dec)
    assert x_hat.shape == (0, 24) and x_hat.dtype == dtype


@dtypes
def test_latent_active_in_every_token(dtype: torch.dtype) -> None:
    top_acts, top_indices, W_dec, b_dec = random_case(20, 64, 32, 4, dtype)
    top_indices[:, 1] = 31
    check((top_acts, top_indices, W_dec, b_dec))


@dtypes
def test_zero_activations(dtype: torch.dtype) -> None:
    """Some inactive slots; one token with none active, which is b_dec exactly."""
    top_acts, top_indices, W_dec, b_dec = random_case(6, 200, 32, 8, dtype)
    top_acts[:, 5:] = 0
    top_acts[2] = 0
    check((top_acts, top_indices, W_dec, b_dec))
    assert torch.equal(decode(top_acts, top_indices, W_dec, b_dec)[2], b_dec)


def test_same_bits_every_time() -> None:
    case = random_case(8, 300, 64, 12, torch.float32)
    assert torch.equal(decode(*case), decode(*case))


def test_wider_dtype_of_weights_and_bias() -> None:
    top_acts, top_indices, W_dec, b_dec = random_case(3, 40, 16, 4, torch.float16)
    x_hat = decode(top_acts.float(), top_indices, W_dec, b_dec.float())
    assert x_hat.dtype == torch.float32
    expected = reference.decode(top_acts.float(), top_indices, W_dec.float(), b_dec.float())
    torch.testing.assert_close(x_hat, expected)


@pytest.mark.gpu
@needs_gpu
def test_addresses_beyond_int32() -> None:
    """The last rows of a W_dec (4 GB) of more than 2^31 elements, with the first ones as bait for a wrapped address."""
    D, F = 4096, 2**19 + 8
    W_dec = torch.zeros(F, D, dtype=torch.bfloat16, device=DEVICE)
    W_dec[-4:] = torch.arange(1, 5, device=DEVICE)[:, None]
    top_indices = torch.arange(F - 4, F, dtype=torch.int32, device=DEVICE)[None]
    x_hat = decode(torch.ones(1, 4, device=DEVICE), top_indices, W_dec, torch.zeros(D, device=DEVICE))
    assert (x_hat == 10).all()


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("D", [1, 7, 64, 100, 130, 200, 576, 600, 768, 1000, 2304, 4096, 5000])
def test_config_covers_every_column_with_little_padding(D: int, itemsize: int) -> None:
    config = decode_config(32, D, itemsize)
    padded = -(-D // config.BLOCK_D) * config.BLOCK_D
    assert D <= padded <= max(D + D // 8, D + 127)
    assert config.BLOCK_K * config.BLOCK_D * itemsize <= config.num_warps * 32 * 16 * 4


def test_rejects_what_the_kernel_cannot_read() -> None:
    top_acts, top_indices, W_dec, b_dec = random_case(3, 24, 16, 4, torch.float32)
    with pytest.raises(AssertionError, match="W_dec: expected contiguous"):
        decode(top_acts, top_indices, W_dec.T.contiguous().T, b_dec)
    with pytest.raises(AssertionError, match="top_indices: expected"):
        decode(top_acts, top_indices[:, :3].contiguous(), W_dec, b_dec)
