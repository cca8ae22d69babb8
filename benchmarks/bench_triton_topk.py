"""Top-k: torch.topk (ties in any order, no ReLU), and the Triton kernels as a whole and from the maxima on.

    pytest benchmarks/bench_triton_topk.py -k smoke

Each is compared with the reference before it is timed. Triton needs a GPU.
"""

from collections.abc import Callable

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from saefast import reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPE = torch.bfloat16 if DEVICE == "cuda" else torch.float32
SHAPES = {  # B, F, K
    "smoke": (256, 4096, 8), "A": (8192, 24576, 32), "B": (8192, 65536, 64), "C": (8192, 262144, 64),
    "AuxK": (8192, 8192, 256),
}  # fmt: skip
Call = Callable[[], tuple[Tensor, Tensor]]


def torch_topk(pre_acts: Tensor, k: int) -> Call:
    return lambda: torch.topk(pre_acts, k, dim=1, sorted=False)


def triton_topk(pre_acts: Tensor, k: int) -> Call:
    from saefast.triton_kernels.topk import topk

    return lambda: topk(pre_acts, k)


def triton_select(pre_acts: Tensor, k: int) -> Call:
    from saefast.triton_kernels.topk import group_maxima, select_topk

    maxima = group_maxima(pre_acts)
    return lambda: select_topk(pre_acts, maxima, k)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("prepare", [torch_topk, triton_topk, triton_select])
def bench_topk(benchmark: BenchmarkFixture, prepare: Callable[[Tensor, int], Call], shape: str) -> None:
    if DEVICE == "cpu" and (prepare is not torch_topk or shape != "smoke"):
        pytest.skip("the interpreter says nothing about speed, and the shapes are a GPU's")
    B, F, k = SHAPES[shape]
    torch.manual_seed(0)
    pre_acts = torch.randn(B, F, device=DEVICE, dtype=DTYPE)
    call = prepare(pre_acts, k)
    want, got = (values.relu().sort(dim=1).values for values in (reference.topk(pre_acts, k)[0], call()[0]))
    assert torch.equal(got, want)

    def timed() -> None:
        call()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    benchmark(timed)
