"""Dense ReLU steps: the reference, plain PyTorch in 16 bits, and the fused Triton products where there is a GPU.

    pytest benchmarks/bench_dense.py -k smoke

Each result is compared with the reference before it is timed.
"""

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from saefast import reference

ON_GPU = torch.cuda.is_available()
DEVICE, DTYPE = ("cuda", torch.bfloat16) if ON_GPU else ("cpu", torch.float32)
SHAPES = {"smoke": (256, 64, 1024), "A": (8192, 768, 24576), "B": (8192, 2304, 65536)}  # B, D, F


def plain_relu(centred: Tensor, W_enc: Tensor, b_enc: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    acts = torch.addmm(b_enc.to(centred.dtype), centred, W_enc.T).relu_()
    return acts, acts.sum(dtype=torch.float32), (acts > 0).sum(dim=0, dtype=torch.int32)


def plain_error(acts: Tensor, W_dec: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    error = acts @ W_dec - target
    return error, error.square().sum(dim=1, dtype=torch.float32)


def plain_grad(error: Tensor, W_dec: Tensor, acts: Tensor, addend: Tensor) -> Tensor:
    return (error @ W_dec.T + addend.to(error.dtype)) * (acts > 0)


PLAIN = {"relu_encode": plain_relu, "dense_error": plain_error, "dense_grad_acts": plain_grad}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("op", PLAIN)
@pytest.mark.parametrize("backend", ["reference", "plain", "triton"])
def bench_dense(benchmark: BenchmarkFixture, backend: str, op: str, shape: tuple[int, int, int]) -> None:
    B, D, F = shape
    if not ON_GPU and (backend == "triton" or B > 256):
        pytest.skip("the interpreter says nothing about speed, and the shape is for GPUs")
    from saefast.triton_kernels import dense

    run = PLAIN[op] if backend == "plain" else getattr(dense if backend == "triton" else reference, op)
    torch.manual_seed(0)
    x, acts = torch.randn(B, D, device=DEVICE).to(DTYPE), torch.randn(B, F, device=DEVICE).relu_().to(DTYPE)
    W = reference.normalize_rows_(torch.randn(F, D, device=DEVICE)).to(DTYPE)
    bias, addend = torch.randn(F, device=DEVICE) / 10, torch.ones((), device=DEVICE)
    inputs = {"relu_encode": (x, W, bias), "dense_error": (acts, W, x)}.get(op, (x, W, acts, addend))
    got, expected = (f(*inputs) for f in (run, getattr(reference, op)))
    got, expected = (torch.as_tensor(r if op == "dense_grad_acts" else r[0]).float() for r in (got, expected))
    assert (got - expected).norm() <= 4 * torch.finfo(DTYPE).eps * expected.norm()

    def timed() -> None:
        run(*inputs)
        if ON_GPU:
            torch.cuda.synchronize()

    benchmark(timed)
