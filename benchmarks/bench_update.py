"""Update: backward, Adam and unit norm by the reference, and by the Triton kernels where there is a GPU.

    pytest benchmarks/bench_update.py -k smoke

Each is compared with fp64 before it is timed.
"""

from collections.abc import Callable, Sequence

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from saefast import reference, storage
from saefast.reference_update import Numbers
from saefast.storage import Vector, Weights

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = {"smoke": (256, 64, 1024, 8), "demo": (1024, 576, 4608, 32)}  # B, D, F, K


def triton(*inputs: object) -> Tensor:
    from saefast.triton_kernels.update import update_

    return update_(*inputs)


def state(params: Sequence[Tensor]) -> Weights:
    W_enc, W_dec, *biases = (p.clone() for p in params)
    matrices = (storage.allocate(W, "fp32", "fp32", W.dtype) for W in (W_enc, W_dec))
    return Weights(*matrices, *(Vector(b, *b.new_zeros(2, len(b))) for b in biases))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("update", [reference.update_, triton], ids=["reference", "triton"])
def bench_update(
    benchmark: BenchmarkFixture, update: Callable[..., Tensor], shape: tuple[int, int, int, int]
) -> None:
    if update is triton and DEVICE == "cpu":
        pytest.skip("the interpreter says nothing about speed")
    B, D, F, K = shape
    torch.manual_seed(0)
    acts, indices = reference.topk(torch.randn(B, F, device=DEVICE), K)
    groups = reference.group_by_latent(acts, indices, F)
    W_enc, W_dec = (reference.normalize_rows_(torch.randn(F, D, device=DEVICE)) for _ in range(2))
    params = W_enc, W_dec, torch.randn(F, device=DEVICE), torch.randn(D, device=DEVICE)
    centred, error = (torch.randn(B, D, device=DEVICE) for _ in range(2))
    step, scale = torch.ones((), dtype=torch.int64, device=DEVICE), torch.tensor(1e-4, device=DEVICE)
    numbers = torch.tensor(
        Numbers(1e-3, 1e-3, 1e-3, 1e-3, 0.9, 0.1, 0.999, 1e-3, 10, 1000, 0, 1, 1e-3, 1e-3, 1, 1),
        device=DEVICE,
    )
    got, exact = state(params), state([p.double() for p in params])
    inputs = centred, error, acts, indices, None, groups, scale, None, numbers, step
    update(got, *inputs)
    reference.update_(
        exact, *(t.double() if t is not indices and torch.is_tensor(t) else t for t in inputs[:-1]), step
    )
    for one, other in ((got.enc.weight, exact.enc.weight), (got.dec.weight, exact.dec.weight)):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5)

    def timed() -> None:
        update(got, *inputs)
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    benchmark(timed)
