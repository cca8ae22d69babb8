"""What the tests of Triton kernels share: the device, the formats, and how exact a result has to be.

Kernels run on a GPU where there is one, else in Triton's interpreter. conftest.py imports this file before any kernel is imported.
"""

import os
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

ON_GPU = torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1"
if not ON_GPU:
    os.environ["TRITON_INTERPRET"] = "1"  # @triton.jit reads it where it decorates a kernel
DEVICE = "cuda" if ON_GPU else "cpu"
INF, NAN = float("inf"), float("nan")
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
dtypes = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())


def needs_gpu(test: Callable[..., None]) -> Callable[..., None]:
    """Marks a test that the interpreter cannot run."""
    return pytest.mark.gpu(pytest.mark.skipif(not ON_GPU, reason="needs a CUDA GPU")(test))


def assert_as_exact_as_torch(got: Tensor, torch_result: Tensor, exact: Tensor, tiny: float = 1e-6) -> None:
    """The error against `exact` (fp64) is at most twice that of torch in the same dtype."""
    assert got.dtype == torch_result.dtype and got.shape == torch_result.shape
    error, torch_error = ((result.double() - exact).norm() for result in (got, torch_result))
    bound = 2 * torch_error + tiny * exact.norm()
    assert error <= bound, f"error {error:.3e} > {bound:.3e}"  # NaN is not <= anything


def assert_fp32_sum(got: Tensor, exact: Tensor, tiny: float = 1e-6) -> Tensor:
    """Returns `got`, whose error against `exact` (fp64) must be that of a sum in fp32."""
    assert got.dtype == torch.float32 and got.shape == exact.shape
    error, bound = (got.double() - exact).norm(), tiny * exact.norm()
    assert error <= bound, f"error {error:.3e} > {bound:.3e}"  # NaN is not <= anything
    return got
