"""The Triton rescore against scores in fp64 and `saefast.reference`: on a GPU where there is one, else interpreted.

Whole-number inputs are summed without rounding in any order, so that there the selection must be exact, ties included.
"""

import pytest
import torch
from torch import Tensor

from saefast import reference
from saefast.triton_kernels.rescore import rescore, rescore_config
from tests.helpers.kernels import DEVICE, dtypes

Case = tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor]


def make(
    B: int, D: int, F: int, N: int, dtype: torch.dtype, whole: bool = False, scaled: bool = True
) -> Case:
    """centred, W_enc, b_enc, scale and N distinct candidates for each token, in no order."""
    rng = torch.Generator().manual_seed(0)
    centred, W_enc, b_enc = (torch.randn(size, generator=rng) for size in ((B, D), (F, D), (F,)))
    scale = torch.rand(F, generator=rng) + 0.5
    if whole:
        centred, W_enc, b_enc, scale = (
            (centred > 1).float(),
            W_enc.round(),
            b_enc.round(),
            scale.mul(2).round() / 2,
        )
    candidates = torch.rand(B, F, generator=rng).argsort(dim=1)[:, :N].to(torch.int32).contiguous()
    case = centred.to(dtype), W_enc.to(dtype), b_enc, scale if scaled else None, candidates
    return tuple(None if t is None else t.to(DEVICE) for t in case)


def scores(case: Case) -> Tensor:
    """[B, F] in fp64, -inf where not a candidate."""
    centred, W_enc, b_enc, scale, candidates = case
    every = centred.double() @ W_enc.double().T + b_enc.double()
    every = every if scale is None else every * scale.double()
    return torch.full_like(every, -torch.inf).scatter(
        1, candidates.long(), every.gather(1, candidates.long())
    )


def check_exact(case: Case, k: int) -> None:
    acts, indices = rescore(*case, k)
    want_acts, want_indices = reference.topk(scores(case), k)
    assert acts.dtype == torch.float32 and indices.dtype == torch.int32
    assert torch.equal(indices, want_indices) and torch.equal(acts, want_acts.float())


SHAPES = {  # B, D, F, N, k
    "one": (1, 1, 1, 1, 1),
    "demo": (2, 576, 90, 40, 32),
    "odd": (3, 130, 51, 7, 3),
    "k 1": (2, 64, 33, 16, 1),
    "k all": (2, 48, 37, 37, 37),
    "64 candidates": (2, 100, 80, 64, 50),
    "65 candidates": (2, 100, 80, 65, 50),
    "256 candidates": (1, 70, 300, 256, 200),
}


@pytest.mark.each_value
@dtypes
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_whole_numbers_exactly(shape: tuple[int, int, int, int, int], dtype: torch.dtype) -> None:
    *sizes, k = shape
    check_exact(make(*sizes, dtype, whole=True, scaled=sizes[0] > 1), k)


@pytest.mark.each_value
@dtypes
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_real_numbers(shape: tuple[int, int, int, int, int], dtype: torch.dtype) -> None:
    """Each activation is the score of its latent, and they are the k largest, to the rounding of a sum in fp32."""
    *sizes, k = shape
    case = make(*sizes, dtype)
    acts, indices = rescore(*case, k)
    assert (indices.sort(dim=1).values.diff(dim=1) > 0).all(), "a latent twice"
    exact = scores(case)
    tolerance = {"rtol": 1e-5, "atol": 1e-6 * sizes[1] ** 0.5}
    torch.testing.assert_close(acts.double(), exact.gather(1, indices.long()).relu(), **tolerance)
    torch.testing.assert_close(acts.double(), exact.topk(k, dim=1).values.relu(), **tolerance)


def test_of_reference_encode_topk() -> None:
    """The candidates that `encode_topk` would rescore give what it returns."""
    centred, W_enc, b_enc, scale, _ = make(4, 96, 200, 1, torch.float16)
    pre_acts = (reference.rounded_pre_acts(centred, W_enc, b_enc) * scale).to(torch.float16)
    acts, indices = rescore(centred, W_enc, b_enc, scale, reference.topk(pre_acts, 24)[1], 16)
    want_acts, want_indices = reference.encode_topk(centred, W_enc, b_enc, 16, scale, rescore=8)
    assert torch.equal(indices, want_indices)
    torch.testing.assert_close(acts, want_acts, rtol=1e-5, atol=1e-5)


def test_smaller_latent_first_among_equals() -> None:
    centred, W_enc, b_enc, _, candidates = make(3, 20, 50, 30, torch.float32)
    W_enc[:], b_enc[:] = 0, 1
    acts, indices = rescore(centred, W_enc, b_enc, None, candidates, 12)
    assert torch.equal(indices, candidates.sort(dim=1).values[:, :12]) and (acts == 1).all()


def test_negative_scores_become_zero() -> None:
    centred, W_enc, b_enc, _, candidates = make(3, 20, 50, 30, torch.float32, whole=True)
    check_exact((centred, W_enc, b_enc - 1000, None, candidates), 12)
    assert (rescore(centred, W_enc, b_enc - 1000, None, candidates, 12)[0] == 0).all()


def test_nan_is_selected_as_infinity() -> None:
    centred, W_enc, b_enc, _, candidates = make(2, 20, 50, 30, torch.float32)
    b_enc[candidates[0, 17].long()] = torch.nan
    acts, indices = rescore(
        centred, W_enc, b_enc, None, candidates[:1].contiguous().expand(2, -1).contiguous(), 3
    )
    assert (
        (acts[:, 0] == torch.inf).all()
        and (indices[:, 0] == candidates[0, 17]).all()
        and acts[:, 1:].isfinite().all()
    )


def test_same_bits_every_time() -> None:
    case = make(3, 300, 80, 40, torch.float32)
    first, second = rescore(*case, 32), rescore(*case, 32)
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


def test_no_tokens() -> None:
    centred, W_enc, b_enc, scale, candidates = make(2, 20, 50, 30, torch.float16)
    acts, indices = rescore(centred[:0], W_enc, b_enc, scale, candidates[:0], 12)
    assert (
        acts.shape == indices.shape == (0, 12)
        and acts.dtype == torch.float32
        and indices.dtype == torch.int32
    )


@pytest.mark.parametrize("D", [1, 7, 64, 100, 576, 768, 2304, 4096, 5000])
@pytest.mark.parametrize("N", [1, 8, 40, 80, 256])
def test_config_covers_every_column_with_little_padding(N: int, D: int) -> None:
    config = rescore_config(N, D)
    assert config.BLOCK_N >= N and config.BLOCK_N * config.BLOCK_D <= 8192
    padding = -D % config.BLOCK_D
    assert padding <= max(D // 8, 31)


def test_rejects_what_the_kernel_cannot_read() -> None:
    centred, W_enc, b_enc, scale, candidates = make(2, 20, 300, 270, torch.float32)
    with pytest.raises(AssertionError, match="indices: expected 12 to 256 candidates, got 270"):
        rescore(centred, W_enc, b_enc, scale, candidates, 12)
    candidates = candidates[:, :30].contiguous()
    with pytest.raises(AssertionError, match="indices: expected 31 to 256 candidates, got 30"):
        rescore(centred, W_enc, b_enc, scale, candidates, 31)
    with pytest.raises(AssertionError, match="W_enc: expected contiguous"):
        rescore(centred, W_enc.T.contiguous().T, b_enc, scale, candidates, 12)
    with pytest.raises(AssertionError, match=r"centred: expected \(2, 20\), got \(1, 20\)"):
        rescore(centred[:1], W_enc, b_enc, scale, candidates, 12)
