"""The encoder's product in Triton, by either of its routes, against `saefast.reference`. Small tiles: test_gemm.py."""

import pytest
import torch
from torch import Tensor

from saefast.reference import rounded_pre_acts
from saefast.triton_kernels.pre_acts import encode_route, pre_acts_and_maxima, products_and_maxima
from saefast.triton_kernels.topk import select_topk
from tests.helpers.encoder_cases import integers, normals
from tests.helpers.kernels import DEVICE, INF, NAN, dtypes


@dtypes
def test_routes_agree_on_pre_acts(dtype: torch.dtype) -> None:
    """One rounding of the product in fp64 and its bias, or two, and the maxima of what was rounded."""
    case = normals(33, 100, 300, dtype)
    exact = rounded_pre_acts(*(t.double() for t in case))
    product = exact - case[2].double()
    size = case[0].double().abs() @ case[1].double().abs().T + 1
    for route in ("triton", "cublas"):
        got, maxima = pre_acts_and_maxima(*case, None, route)
        rounded = exact.abs() + (1.01 * product.abs() if route == "cublas" else 0)
        bound = torch.finfo(dtype).eps / 2 * 1.01 * rounded + 2**-20 * size
        assert ((got.double() - exact).abs() <= bound).all()
        assert torch.equal(maxima[:, :4], got[:, :256].view(33, 4, 64).amax(dim=2))
        assert torch.equal(maxima[:, 4], got[:, 256:].amax(dim=1))


SHAPES = {  # B, D, F, k
    "odd": (9, 20, 301, 5),
    "whole groups": (8, 16, 256, 4),
    "one token": (1, 16, 200, 3),
    "k 1": (17, 7, 130, 1),
    "k all": (3, 8, 65, 65),
    "one of one": (2, 3, 1, 1),
    "fewer groups than k": (3, 8, 100, 10),
    "no token": (0, 8, 100, 3),
}


def expected_of(products: Tensor, b_enc: Tensor, scale: Tensor | None) -> Tensor:
    """The rounding rule of the "cublas" route in plain torch, from the library's rounded product."""
    z = (products.float() + b_enc).to(products.dtype)
    return z if scale is None else (z.float() * scale).to(products.dtype)


@pytest.mark.each_value
@dtypes
@pytest.mark.parametrize("kind", ["plain", "scaled", "ties", "nan"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_library_product_with_bias_added_by_whoever_reads(
    shape: tuple[int, int, int, int], kind: str, dtype: torch.dtype
) -> None:
    """Bit for bit: the same roundings, once written back and once added in both readings of the selection."""
    B, D, F, k = shape
    centred, W_enc, b_enc = (integers if kind == "ties" else normals)(B, D, F, dtype)
    scale = (torch.arange(F, device=DEVICE) % 7 + 1) / 3 if kind == "scaled" else None
    if kind == "nan":
        b_enc[F // 2] = NAN
    products, maxima = products_and_maxima(centred, W_enc, b_enc, scale)
    assert torch.equal(products, torch.mm(centred, W_enc.T))
    want = expected_of(products, b_enc, scale).nan_to_num(nan=INF, posinf=INF, neginf=-INF)
    padded = torch.nn.functional.pad(want, (0, -F % 64), value=-INF)
    assert torch.equal(maxima, padded.view(B, -(-F // 64), 64).amax(dim=2))

    written, same = products_and_maxima(centred, W_enc, b_enc, scale, write=True)
    assert torch.equal(written, want) and torch.equal(same, maxima)

    acts, indices = select_topk(products, maxima, k, b_enc, scale)
    by_value = want.float().sort(dim=1, descending=True, stable=True).indices[:, :k].sort(dim=1).values
    assert torch.equal(indices.long(), by_value)
    assert torch.equal(acts, want.gather(1, by_value).relu()) and acts.dtype == dtype


ROUTES = {  # dtype, capability -> route
    "bf16": ((torch.bfloat16, (9, 0)), "triton"),
    "fp16": ((torch.float16, (9, 0)), "triton"),
    "fp32": ((torch.float32, (9, 0)), "cublas"),
    "sm_80": ((torch.bfloat16, (8, 0)), "triton"),
    "sm_100": ((torch.bfloat16, (10, 0)), "triton"),
    "sm_120": ((torch.bfloat16, (12, 0)), "triton"),
}


@pytest.mark.parametrize(("arguments", "expected"), ROUTES.values(), ids=ROUTES.keys())
def test_route(arguments: tuple[torch.dtype, tuple[int, int]], expected: str) -> None:
    """Of the dtype alone: every width goes through the fused kernel."""
    for D in (1, 768, 4096, 16384):
        assert encode_route(8192, D, 24576, *arguments) == expected


def test_what_a_bias_must_be() -> None:
    centred, W_enc, b_enc = integers(3, 8, 100)
    products, maxima = products_and_maxima(centred, W_enc, b_enc)
    with pytest.raises(AssertionError, match=r"bias: expected \(100,\), got \(99,\)"):
        select_topk(products, maxima, 2, b_enc[:99])
    with pytest.raises(AssertionError, match="b_enc: expected contiguous memory"):
        products_and_maxima(centred, W_enc, b_enc.repeat(2)[::2])
