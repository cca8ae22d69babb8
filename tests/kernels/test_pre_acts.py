"""The encoder's product in Triton, by either of its routes, against `saefast.reference`. Small tiles: test_gemm.py."""

import pytest
import torch

from saefast.reference import rounded_pre_acts
from saefast.triton_kernels import pre_acts
from saefast.triton_kernels.pre_acts import columns_per_round, encode_route, pre_acts_and_maxima
from tests.helpers.encoder_cases import integers, normals
from tests.helpers.kernels import dtypes


@dtypes
def test_routes_agree_on_pre_acts(dtype: torch.dtype) -> None:
    """Both within an ulp of the product in fp64, and equal to the maxima of what they give."""
    case = normals(33, 100, 300, dtype)
    exact = rounded_pre_acts(*(t.double() for t in case))
    size = case[0].double().abs() @ case[1].double().abs().T + 1
    for route in ("triton", "cublas"):
        got, maxima = pre_acts_and_maxima(*case, None, route)
        bound = torch.finfo(dtype).eps / 2 * exact.abs() + 2**-20 * size
        assert ((got.double() - exact).abs() <= bound).all()
        assert torch.equal(maxima[:, :4], got[:, :256].view(33, 4, 64).amax(dim=2))
        assert torch.equal(maxima[:, 4], got[:, 256:].amax(dim=1))


def test_rounds_of_the_library_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pre_acts, "L2_BYTES", 4 * 20 * 256)
    assert columns_per_round(20) == 256
    case = integers(20, 24, 600)  # 256 + 256 + 88
    got, maxima = pre_acts_and_maxima(*case, None, "cublas")
    expected = rounded_pre_acts(*case)
    assert torch.equal(got, expected)
    padded = torch.nn.functional.pad(expected, (0, 40), value=-torch.inf)
    assert torch.equal(maxima, padded.view(20, 10, 64).amax(dim=2))


ROUTES = {  # D, dtype, capability -> route
    "short": ((768, torch.bfloat16, (9, 0)), "triton"),
    "longest of the short": ((1536, torch.float16, (9, 0)), "triton"),
    "long": ((1537, torch.bfloat16, (9, 0)), "cublas"),
    "fp32": ((768, torch.float32, (9, 0)), "cublas"),
    "sm_80": ((768, torch.bfloat16, (8, 0)), "cublas"),
    "sm_100": ((768, torch.bfloat16, (10, 0)), "triton"),
    "sm_120": ((768, torch.bfloat16, (12, 0)), "cublas"),
}


@pytest.mark.parametrize(("arguments", "expected"), ROUTES.values(), ids=ROUTES.keys())
def test_route(arguments: tuple[int, torch.dtype, tuple[int, int]], expected: str) -> None:
    D, dtype, capability = arguments
    assert encode_route(8192, D, 24576, dtype, capability) == expected
