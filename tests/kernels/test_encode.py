"""The Triton encoder against `saefast.reference`: both routes of the product, chunks of latents, the selections, rescore.

Most operands are small integers: pre-activations are exact whatever the order of their sums, with ties everywhere, and
the selection must be the same.
"""

import pytest
import torch
from torch import Tensor

from saefast import reference
from saefast.reference import rounded_pre_acts
from saefast.triton_kernels import encode
from saefast.triton_kernels.encode import (
    encode_batch_topk,
    encode_dense,
    encode_group_max,
    encode_threshold,
    encode_topk,
    latents_per_chunk,
)
from tests.helpers.encoder_cases import integers, normals
from tests.helpers.kernels import DEVICE, dtypes

routes = pytest.mark.parametrize("route", ["triton", "cublas"])
Case = tuple[Tensor, Tensor, Tensor]


def by_index(code: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """In ascending order of index: backends may order the entries of a row otherwise."""
    acts, indices = code
    order = indices.argsort(dim=1)
    return acts.gather(1, order), indices.gather(1, order)


def assert_same_code(got: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    assert got[0].dtype == torch.float32 and got[1].dtype == torch.int32
    if len(got) == 2:
        got, expected = by_index(got), by_index(expected)
    for ours, theirs in zip(got, expected, strict=True):
        assert torch.equal(ours, theirs)


SHAPES = {  # B, D, F, k
    "plain": (6, 24, 300, 5),
    "one token": (1, 16, 200, 3),
    "one of one": (2, 3, 1, 1),
    "k 1": (4, 7, 130, 1),
    "k all": (3, 8, 65, 65),
    "fewer groups than k": (3, 8, 100, 10),
}


@pytest.mark.each_value
@routes
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_topk(shape: tuple[int, int, int, int], route: str) -> None:
    *sizes, k = shape
    case = integers(*sizes)
    assert_same_code(encode_topk(*case, k, route=route), reference.encode_topk(*case, k))


@pytest.mark.each_value
@dtypes
@routes
def test_topk_with_scale(route: str, dtype: torch.dtype) -> None:
    centred, W_enc, b_enc = integers(4, 20, 200, dtype)
    scale = (torch.arange(200, device=DEVICE) % 7) / 3
    expected = reference.encode_topk(centred, W_enc, b_enc, 6, scale)
    assert_same_code(encode_topk(centred, W_enc, b_enc, 6, scale, route=route), expected)


@pytest.mark.parametrize(
    ("F", "chunk"), [(9, 1), (20, 3), (200, 64), (200, 100), (200, 199), (200, 200)], ids=lambda n: str(n)
)
def test_chunks_of_latents(F: int, chunk: int) -> None:
    """Ties within and across chunks; chunks of fewer latents than k."""
    centred, W_enc, b_enc = integers(4, 8, F)
    scale = None if chunk == 100 else (torch.arange(F, device=DEVICE) % 5) / 4
    expected = reference.encode_topk(centred, W_enc, b_enc, 7, scale)
    assert_same_code(encode_topk(centred, W_enc, b_enc, 7, scale, chunk=chunk), expected)


def test_chunks_choose_the_smaller_index_among_equals_below_zero() -> None:
    centred, W_enc, b_enc = integers(3, 8, 200)
    W_enc[:], b_enc[:] = 0, -1  # nothing is active, everything ties
    b_enc[150] = -0.5
    acts, indices = encode_topk(centred, W_enc, b_enc, 4, chunk=64)
    assert torch.equal(by_index((acts, indices))[1][0].cpu(), torch.tensor([0, 1, 2, 150], dtype=torch.int32))
    assert (acts == 0).all()


def test_pre_acts_stay_under_their_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    case = integers(3, 16, 700)
    monkeypatch.setattr(encode, "MAX_PRE_ACTS_BYTES", 3 * 128 * 2 + 100)
    sizes = []
    inner = encode.pre_acts_and_maxima

    def spy(*args: object) -> tuple[Tensor, Tensor]:
        results = inner(*args)  # type: ignore[arg-type]
        sizes.append(results[0].nbytes)
        return results

    monkeypatch.setattr(encode, "pre_acts_and_maxima", spy)
    assert_same_code(encode_topk(*case, 9), reference.encode_topk(*case, 9))
    assert sizes == [3 * 128 * 2] * 5 + [3 * 60 * 2]


def test_limit_admits_case_c_whole() -> None:
    assert latents_per_chunk(8192, 262144, 2) == 262144
    assert latents_per_chunk(8192, 262144, 4) == 262144
    assert latents_per_chunk(32768, 262144, 2) == 131072
    assert latents_per_chunk(2**28, 100, 4) == 64  # never less than a group


@dtypes
def test_rescore(dtype: torch.dtype) -> None:
    case = normals(4, 64, 400, dtype)
    expected, got = (
        by_index(reference.encode_topk(*case, 6, None, 8)),
        by_index(encode_topk(*case, 6, None, 8)),
    )
    assert torch.equal(got[1], expected[1])
    torch.testing.assert_close(got[0], expected[0], rtol=1e-5, atol=1e-5)


def test_rescore_in_chunks_and_with_scale() -> None:
    case = normals(4, 64, 400)
    scale = torch.rand(400, generator=torch.Generator().manual_seed(5)).to(DEVICE) + 0.5
    expected = by_index(reference.encode_topk(*case, 6, scale, 4))
    for chunk in (None, 128):
        got = by_index(encode_topk(*case, 6, scale, 4, chunk=chunk))
        assert torch.equal(got[1], expected[1])
        torch.testing.assert_close(got[0], expected[0], rtol=1e-5, atol=1e-5)


def test_rescore_selects_as_fp32_where_the_margin_says_so() -> None:
    """The statement of the docstring, on pre-activations with few bits: near 2048 fp16 has only integers."""
    centred, W_enc, b_enc = normals(12, 32, 500)
    b_enc += 2000
    k, extra = 8, 16
    exact = rounded_pre_acts(centred.double(), W_enc.double(), b_enc.double())
    rounded = exact.half().double()
    error = 2.0**-11 * exact.abs().amax(dim=1)  # half an ulp at most
    kth = exact.topk(k, dim=1).values[:, -1]
    certain = kth > rounded.topk(k + extra, dim=1).values[:, -1] + error
    want = exact.topk(k, dim=1).indices.sort(dim=1).values
    got = by_index(encode_topk(centred, W_enc, b_enc, k, None, extra))[1]
    plain = by_index(encode_topk(centred, W_enc, b_enc, k))[1]
    assert certain.any() and torch.equal(got[certain].long(), want[certain])
    assert not torch.equal(plain[certain].long(), want[certain])  # rounded values alone do not suffice here


def test_nan_is_selected() -> None:
    centred, W_enc, b_enc = integers(3, 16, 200)
    W_enc[77] = torch.nan
    for route in ("triton", "cublas"):
        acts, indices = encode_topk(centred, W_enc, b_enc, 2, route=route)
        assert (indices == 77).any(dim=1).all() and torch.isinf(acts[indices == 77]).all()


@pytest.mark.each_value
@dtypes
@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "scaled"])
def test_batch_topk(scaled: bool, dtype: torch.dtype) -> None:
    case = integers(6, 24, 300, dtype)
    scale = (torch.arange(300, device=DEVICE) % 7) / 3 if scaled else None
    assert_same_code(encode_batch_topk(*case, 5, scale), reference.encode_batch_topk(*case, 5, scale))


@pytest.mark.each_value
@dtypes
@pytest.mark.parametrize("B", [0, 1, 6])
def test_dense(B: int, dtype: torch.dtype) -> None:
    """NaN comes out as +inf: no comparison with a threshold may lose it."""
    case = integers(B, 24, 300, dtype)
    got = encode_dense(*case)
    assert got.dtype == dtype and torch.equal(got, reference.encode_dense(*case))
    case[2][9] = torch.nan
    assert (encode_dense(*case)[:, 9] == torch.inf).all()


@pytest.mark.each_value
@pytest.mark.parametrize("capacity", [None, 150])
@pytest.mark.parametrize("per_latent", [False, True], ids=["one", "per latent"])
def test_threshold(per_latent: bool, capacity: int | None) -> None:
    case = integers(6, 24, 300)
    thresholds = 20 + torch.arange(300, device=DEVICE) % 3
    threshold = thresholds.float() if per_latent else torch.full((), 20.0, device=DEVICE)
    expected = reference.encode_threshold(*case, threshold, capacity)
    assert_same_code(encode_threshold(*case, threshold, capacity), expected)


def test_what_is_not_chunked_says_how_much_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    case = integers(4, 8, 100)
    monkeypatch.setattr(encode, "MAX_PRE_ACTS_BYTES", 799)
    with pytest.raises(ValueError, match="encode_batch_topk: .* at most 799 bytes, got 800"):
        encode_batch_topk(*case, 2)
    with pytest.raises(ValueError, match="encode_threshold: .* got 800"):
        encode_threshold(*case, torch.zeros((), device=DEVICE))


@dtypes
def test_no_tokens(dtype: torch.dtype) -> None:
    case = integers(0, 16, 100, dtype)
    for route in ("triton", "cublas"):
        acts, indices = encode_topk(*case, 3, route=route)
        assert acts.shape == indices.shape == (0, 3) and acts.dtype == torch.float32
    acts, indices = encode_topk(*case, 3, None, 2, chunk=64)
    assert acts.shape == indices.shape == (0, 3)
    assert [len(t) for t in encode_batch_topk(*case, 3)] == [0, 0, 1]


@dtypes
def test_the_largest_of_each_group(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of equal ones the first, in all tokens at once and in pieces."""
    case = integers(7, 6, 120, dtype)
    monkeypatch.setattr(encode, "GROUP_MAX_BYTES", 3 * 120 * case[0].element_size())
    for k in (1, 8, 120):
        got, want = encode_group_max(*case, k), reference.encode_group_max(*case, k)
        assert torch.equal(got[1], want[1]) and torch.equal(got[0], want[0])
    assert [len(t) for t in encode_group_max(case[0][:0], *case[1:], 8)] == [0, 0]


def test_same_bits_every_time() -> None:
    case = normals(4, 50, 200, torch.float32)
    for route in ("triton", "cublas"):
        first, second = (encode_topk(*case, 4, route=route) for _ in range(2))
        assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


def test_rejects_what_the_kernels_cannot_read() -> None:
    centred, W_enc, b_enc = integers(3, 8, 100)
    with pytest.raises(AssertionError, match="W_enc: expected contiguous"):
        encode_topk(centred, W_enc.T.contiguous().T, b_enc, 2)
    with pytest.raises(AssertionError, match="k: expected 1 to 100, got 101"):
        encode_topk(centred, W_enc, b_enc, 101)
    with pytest.raises(AssertionError, match="scale: expected"):
        encode_topk(centred, W_enc, b_enc, 2, b_enc[:50])
    with pytest.raises(AssertionError, match="route: expected"):
        encode_topk(centred, W_enc, b_enc, 2, route="cutlass")
