"""Each fault of a GPU that `strict_interpreter` is to notice, planted in a kernel; and its bf16 against torch's."""

import os

os.environ["TRITON_INTERPRET"] = "1"  # read where @triton.jit decorates, so before the imports below

import pytest
import torch
import triton
import triton.language as tl
from triton.runtime.errors import InterpreterError
from triton.runtime.interpreter import InterpretedFunction


@triton.jit
def copy_kernel(source, target, shift, n, BLOCK: tl.constexpr):
    """Each program copies BLOCK elements, from `shift` further right."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(source + at + shift, mask=at < n, other=0.0)
    tl.store(target + at, value, mask=at < n)


@triton.jit
def one_place_kernel(source, target, BLOCK: tl.constexpr):
    tl.store(target + tl.arange(0, BLOCK) // 2, tl.load(source + tl.arange(0, BLOCK)))


@triton.jit
def reread_kernel(target):
    tl.store(target, 1.0)
    tl.store(target + 1, tl.load(target) + 1)


@triton.jit
def hint_kernel(source, target, stride, BLOCK: tl.constexpr):
    at = tl.multiple_of(tl.program_id(0) * stride + tl.arange(0, BLOCK), 4)
    tl.store(target + at, tl.load(source + at))


@triton.jit
def order_kernel(counter, order, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(order + at, tl.atomic_add(counter + at * 0, 1))


@triton.jit
def count_and_read_kernel(counter, out):
    tl.atomic_add(counter, 1)
    tl.store(out + tl.program_id(0), tl.load(counter))


@triton.jit
def bf16_kernel(left, right, out, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    a, b = tl.load(left + at), tl.load(right + at)
    tl.store(out + at, tl.where(a > b, a * b + a, -b))


@triton.jit
def round_kernel(source, target, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(target + at, tl.load(source + at))


@triton.jit
def product_kernel(left, right, out, PRECISION: tl.constexpr):
    at = tl.arange(0, 16)[:, None] * 16 + tl.arange(0, 16)[None, :]
    tl.store(out + at, tl.dot(tl.load(left + at), tl.load(right + at), input_precision=PRECISION))


pytestmark = pytest.mark.skipif(not isinstance(copy_kernel, InterpretedFunction), reason="no interpreter")


def numbers(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed))


def test_what_is_right_passes() -> None:
    source, target = numbers(20), torch.zeros(20)
    copy_kernel[(3,)](source, target, 0, 20, BLOCK=8)
    assert torch.equal(source, target)


@pytest.mark.parametrize("shift", [4, -1])
def test_an_access_outside_of_a_tensor(shift: int) -> None:
    """In memory that is there: what is read belongs to another tensor of the same allocation."""
    memory = numbers(64)
    with pytest.raises(InterpreterError, match=r"copy_kernel, program \d: an access outside"):
        copy_kernel[(3,)](memory[8:28], memory[40:60], shift, 20, BLOCK=8)


def test_a_program_that_reads_what_another_writes() -> None:
    memory = numbers(40)
    with pytest.raises(InterpreterError, match=r"another program \w+ in the same launch"):
        copy_kernel[(3,)](memory, memory, 8, 20, BLOCK=8)


def test_two_programs_that_write_one_place() -> None:
    with pytest.raises(InterpreterError, match="it writes what another program writes"):
        one_place_kernel[(2,)](torch.ones(8), torch.zeros(4), BLOCK=8)


def test_two_values_for_one_place() -> None:
    one_place_kernel[(1,)](torch.ones(8), torch.zeros(4), BLOCK=8)
    with pytest.raises(InterpreterError, match="different values to one place"):
        one_place_kernel[(1,)](numbers(8), torch.zeros(4), BLOCK=8)


def test_a_program_that_reads_back_what_it_wrote() -> None:
    with pytest.raises(InterpreterError, match="it reads back what it wrote"):
        reread_kernel[(1,)](torch.zeros(2))


@pytest.mark.parametrize("stride", [8, 12, 10, 7])
def test_a_hint_that_is_not_so(stride: int) -> None:
    source, target = numbers(40), torch.zeros(40)
    if stride % 4 == 0:
        hint_kernel[(3,)](source, target, stride, BLOCK=4)
    else:
        with pytest.raises(InterpreterError, match="multiple_of"):
            hint_kernel[(3,)](source, target, stride, BLOCK=4)


def test_programs_and_lanes_come_in_any_order() -> None:
    counter, order = torch.zeros(1, dtype=torch.int32), torch.zeros(64, dtype=torch.int32)
    order_kernel[(8,)](counter, order, BLOCK=8)
    assert order.sort().values.tolist() == list(range(64))
    by_program = order.view(8, 8)
    assert by_program[:, 0].sort().indices.tolist() != list(range(8))
    assert not torch.equal(by_program, by_program.sort(dim=1).values)


def test_atomics_and_reads_of_one_place() -> None:
    with pytest.raises(InterpreterError, match="count_and_read_kernel"):
        count_and_read_kernel[(2,)](torch.zeros(1, dtype=torch.int32), torch.zeros(2, dtype=torch.int32))


def test_bf16_rounds_to_nearest() -> None:
    """Halves between two bf16 of either parity, the largest numbers, denormals, infinities."""
    bits = torch.tensor([0x3F808000, 0x3F818000, 0x3F808001, 0x7F7F7FFF, 0x7F7F8000, 0x00000001, 0x00018000])
    source = torch.cat(
        [bits.to(torch.int32).view(torch.float32), torch.tensor([torch.inf, -0.0]), numbers(247)]
    )
    target = torch.empty(256, dtype=torch.bfloat16)
    round_kernel[(1,)](source, target, BLOCK=256)
    assert torch.equal(target.view(torch.int16), source.bfloat16().view(torch.int16))
    round_kernel[(1,)](torch.full((256,), torch.nan), target, BLOCK=256)
    assert target.isnan().all()
    back = torch.empty(256)
    round_kernel[(1,)](source.bfloat16(), back, BLOCK=256)
    assert torch.equal(back, source.bfloat16().float())


def test_bf16_arithmetic_and_products() -> None:
    left, right, out = (
        numbers(256).bfloat16(),
        numbers(256, 1).bfloat16(),
        torch.empty(256, dtype=torch.bfloat16),
    )
    bf16_kernel[(1,)](left, right, out, BLOCK=256)
    assert torch.equal(out, torch.where(left > right, left * right + left, -right))
    left, right, product = left.view(16, 16), right.view(16, 16), torch.empty(16, 16)
    product_kernel[(1,)](left, right, product, PRECISION="tf32")  # not of fp32, so it does not matter
    torch.testing.assert_close(product.double(), left.double() @ right.double(), rtol=1e-6, atol=1e-6)


def test_tf32_has_10_bits_of_mantissa() -> None:
    left, right, out = numbers(256).view(16, 16), numbers(256, 1).view(16, 16), torch.empty(16, 16)
    exact = left.double() @ right.double()
    product_kernel[(1,)](left, right, out, PRECISION="ieee")
    assert (out - exact).norm() < 1e-6 * exact.norm()
    product_kernel[(1,)](left, right, out, PRECISION="tf32")
    assert 2e-4 * exact.norm() < (out - exact).norm() < 2e-3 * exact.norm()
    ones = torch.full((16, 16), 1 + 2**-10)
    product_kernel[(1,)](ones, ones.T.contiguous(), out, PRECISION="tf32")
    assert torch.equal(out, ones @ ones)
