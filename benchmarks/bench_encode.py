"""Encode: product and top-k in plain PyTorch, the reference, the CPU engine, and both Triton routes on a GPU.

    pytest benchmarks/bench_encode.py -k smoke

The selection must be that of the reference up to equal rounded values before anything is timed. Compare "triton" with
"cublas" over d_in to set `pre_acts.MAX_FUSED_D`.
"""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from saefast import reference
from saefast.backend import load_backend, unavailable

ON_GPU = torch.cuda.is_available()
DEVICE, DTYPE = ("cuda", torch.bfloat16) if ON_GPU else ("cpu", torch.float32)
SMOKE = (256, 64, 1024, 8)  # B, D, F, K
SHAPES = {"smoke": SMOKE, "A": (8192, 768, 24576, 32), "B": (8192, 2304, 65536, 64)}
if not ON_GPU:
    SHAPES = {"smoke": SMOKE, "residual": (4096, 576, 9216, 32)}


def torch_topk(centred: Tensor, W_enc: Tensor, b_enc: Tensor, k: int) -> tuple[Tensor, Tensor]:
    values, indices = torch.addmm(b_enc.to(centred.dtype), centred, W_enc.T).topk(k, dim=1, sorted=False)
    return values.relu().to(b_enc.dtype), indices


def triton(*inputs: Tensor, route: str) -> tuple[Tensor, Tensor]:
    from saefast.triton_kernels.encode import encode_topk

    return encode_topk(*inputs, route=route)


def native(*inputs: Tensor) -> tuple[Tensor, Tensor]:
    return load_backend("native", "cpu").encode_topk(*inputs)


ROUTES = {route: partial(triton, route=route) for route in ("triton", "cublas")}
ENCODERS = {"torch": torch_topk, "reference": reference.encode_topk, "native": native, **ROUTES}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("name", ENCODERS)
def bench_encode(benchmark: BenchmarkFixture, name: str, shape: tuple[int, int, int, int]) -> None:
    if not ON_GPU and name in ROUTES:
        pytest.skip("the interpreter says nothing about speed")
    if name == "native" and (ON_GPU or unavailable("native")):
        pytest.skip("the CPU engine is not for this device, or not built")
    encode: Callable[..., tuple[Tensor, Tensor]] = ENCODERS[name]
    B, D, F, K = shape
    torch.manual_seed(0)
    centred = torch.randn(B, D, device=DEVICE).to(DTYPE)
    W_enc = reference.normalize_rows_(torch.randn(F, D, device=DEVICE)).to(DTYPE)
    inputs = centred, W_enc, torch.randn(F, device=DEVICE) / 10, K

    expected, got = (run(*inputs)[0].sort(dim=1).values for run in (reference.encode_topk, encode))
    torch.testing.assert_close(got, expected, rtol=4 * torch.finfo(DTYPE).eps, atol=1e-5)

    def timed() -> None:
        encode(*inputs)
        if ON_GPU:
            torch.cuda.synchronize()

    benchmark(timed)
