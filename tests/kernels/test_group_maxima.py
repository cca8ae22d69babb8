"""The Triton maxima of groups of latents. With a bias and a scale, and written back: test_pre_acts.py; slices: test_topk.py."""

import pytest
import torch

from saefast.triton_kernels.group_maxima import group_maxima
from tests.helpers.kernels import DEVICE, INF, NAN, dtypes


@dtypes
@pytest.mark.parametrize("F, group", [(1, 64), (64, 64), (1000, 64), (5000, 64), (300, 8), (300, 100)])
def test_group_maxima(F: int, group: int, dtype: torch.dtype) -> None:
    pre_acts = torch.randn(3, F, generator=torch.Generator().manual_seed(0)).to(dtype)
    padded = torch.nn.functional.pad(pre_acts, (0, -F % group), value=-INF)
    want = padded.unflatten(1, (-1, group)).amax(dim=2)
    got = group_maxima(pre_acts.to(DEVICE), group)
    assert got.dtype == dtype and torch.equal(got.cpu(), want)


@dtypes
def test_nan_and_infinities(dtype: torch.dtype) -> None:
    pre_acts = torch.full((2, 256), -INF, dtype=dtype)
    pre_acts[0, 70], pre_acts[0, 130], pre_acts[1, 3] = NAN, INF, -NAN
    want = torch.tensor([[-INF, INF, INF, -INF], [INF, -INF, -INF, -INF]], dtype=dtype)
    assert torch.equal(group_maxima(pre_acts.to(DEVICE)).cpu(), want)


@pytest.mark.parametrize("write", [False, True])
def test_only_a_write_changes_what_is_read(write: bool) -> None:
    """9 tokens are more than one program takes at a time."""
    rng = torch.Generator().manual_seed(0)
    products, bias = torch.randn(9, 130, generator=rng).to(DEVICE), torch.randn(130, generator=rng).to(DEVICE)
    before = products.clone()
    group_maxima(products, bias=bias, write=write)
    assert torch.equal(products, before + bias if write else before)


def test_a_scale_needs_a_bias() -> None:
    rows = torch.zeros(2, 70, device=DEVICE)
    with pytest.raises(AssertionError, match="bias: expected one with scale or write"):
        group_maxima(rows, scale=rows[0])
