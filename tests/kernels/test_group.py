"""The Triton grouping against `saefast.reference.group_by_latent`: on a GPU where there is one, else in Triton's
interpreter. Fresh memory is not zero, so what a kernel leaves unwritten cannot look like a result."""

import pytest
import torch
from torch import Tensor

from saefast import reference
from saefast.triton_kernels.group import BLOCK, BLOCK_ORDER, BLOCK_SCAN, TILE, group_by_latent, in_order
from tests.helpers.kernels import DEVICE, ON_GPU
from tests.helpers.sparse_codes import Code, code_to, fixed_code, ragged_code


@pytest.fixture(autouse=True)
def junk_in_fresh_integers(monkeypatch: pytest.MonkeyPatch) -> None:
    """conftest's NaN for integers: a latent, position or token that there is, but not the right one."""
    empty = torch.empty

    def filled(*args, **kwargs) -> Tensor:
        out = empty(*args, **kwargs)
        return out if out.is_floating_point() else out.fill_(1)

    monkeypatch.setattr(torch, "empty", filled)


def check(code: Code, F: int) -> None:
    acts, indices, row_offsets = code_to(code, DEVICE)
    got = group_by_latent(acts, indices, F, row_offsets)
    offsets, *expected = reference.group_by_latent(acts, indices, F, row_offsets)
    assert all(t.dtype == torch.int32 for t in got)
    assert torch.equal(got[0], offsets)
    used = int(offsets[-1])
    for name, result, wanted in zip(("pairs", "tokens"), got[1:], expected):
        assert result.shape == (acts.numel(),), name
        assert torch.equal(result[:used], wanted[:used]), name
        assert not result[used:].any(), name


SHAPES = {  # B, F, K
    "typical": (40, 64, 8),
    "k 1": (33, 7, 1),
    "k all": (20, 37, 37),
    "one token": (1, 40, 8),
    "one entry": (1, 1, 1),
    "one latent": (50, 1, 1),
    "more latents than entries": (3, 500, 4),
    "latents of three programs": (60, 2 * BLOCK_SCAN + 5, 8),
}
SHAPES |= {f"{B} entries": (B, 300, 1) for n in (TILE, BLOCK_ORDER, BLOCK) for B in (n - 1, n, n + 1)}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_matches_reference(shape: tuple[int, int, int]) -> None:
    check(fixed_code(*shape), shape[1])


@pytest.mark.parametrize("B", [TILE - 1, TILE, TILE + 1, BLOCK_ORDER, 3 * BLOCK_ORDER + 5])
def test_latent_active_in_every_token(B: int) -> None:
    acts, indices, _ = fixed_code(B, 30, 3)
    indices[:, 1] = 11
    check((acts, indices, None), 40)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_inactive_entries_are_left_out(share: float) -> None:
    """Wherever they stand, and whatever latent they name; negative ones too."""
    acts, indices, _ = fixed_code(70, 20, 4)
    inactive = torch.rand(acts.shape, generator=torch.Generator().manual_seed(2)) < share
    acts[inactive] = 0
    acts[inactive & (indices % 2 == 0)] = -1
    indices[inactive & (indices % 3 == 0)] = 19
    check((acts, indices, None), 20)


def test_latents_never_active() -> None:
    acts, indices, _ = fixed_code(30, 10, 3)
    check((acts, indices * 7 + 5, None), 100)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_activations_of_16_bits(dtype: torch.dtype) -> None:
    acts, indices, _ = fixed_code(30, 10, 3)
    acts[::2, 1] = 0
    check((acts.to(dtype), indices, None), 10)


COUNTS = {
    "typical": [3, 5, 1, 7, 2],
    "some without entries": [0, 0, 3, 0, 9, 0],
    "one token": [6],
    "no entry": [0, 0, 0],
    "all latents": [12, 0, 12],
    "two tokens": [1, 4],
    "four tokens": [0, 2, 0, 3],
    "nine tokens": [2] * 9,
    "many": [b % 5 for b in range(200)],
}


@pytest.mark.each_value
@pytest.mark.parametrize("unused", [0, 150], ids=["full", "with room"])
@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS.keys())
def test_ragged(counts: list[int], unused: int) -> None:
    check(ragged_code(counts, 12, unused), 12)


def test_ragged_inactive_entries() -> None:
    acts, indices, row_offsets = ragged_code([4, 0, 7, 5], 12)
    acts[1::3] = 0
    check((acts, indices, row_offsets), 12)


def test_more_entries_found_than_there_is_room_for() -> None:
    acts, indices, row_offsets = ragged_code([4, 6, 5], 12, unused=0)
    whole = row_offsets.clamp_max(8)
    got = group_by_latent(*(t.to(DEVICE) for t in (acts[:8], indices[:8])), 12, row_offsets.to(DEVICE))
    expected = reference.group_by_latent(acts[:8], indices[:8], 12, whole)
    assert all(torch.equal(g.cpu(), e) for g, e in zip(got, expected))


@pytest.mark.parametrize("B", [0, 3])
def test_nothing(B: int) -> None:
    code = torch.ones(B, 0), torch.ones(B, 0, dtype=torch.int32), None
    offsets, pairs, tokens = group_by_latent(*code_to(code, DEVICE)[:2], 5)
    assert offsets.tolist() == [0] * 6 and len(pairs) == len(tokens) == 0


def test_order_does_not_depend_on_the_scatter() -> None:
    """The interpreter runs atomics in order and so scatters in order; a GPU does not."""
    acts, indices, _ = code_to(fixed_code(400, 9, 2), DEVICE)
    indices[:, 0], indices[:, 1] = 4, indices[:, 1] % 4  # one large group after four
    offsets, pairs, tokens = group_by_latent(acts, indices, 9)
    of_latent = indices.flatten()[pairs]
    mixed = pairs[torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0)).to(DEVICE)]
    mixed = mixed[indices.flatten()[mixed].argsort(stable=True)]
    assert torch.equal(indices.flatten()[mixed], of_latent) and not torch.equal(mixed, pairs)
    padded = torch.cat([mixed, mixed.new_zeros(-len(mixed) % TILE)])
    ordered = in_order(padded, indices, offsets, None)
    assert torch.equal(ordered[0], pairs) and torch.equal(ordered[1], tokens)


@pytest.mark.gpu
@pytest.mark.skipif(not ON_GPU, reason="needs a CUDA GPU")
def test_large_and_the_same_every_time() -> None:
    acts, indices, _ = code_to(fixed_code(8192, 3000, 32), DEVICE)
    indices[:, 3] = 17
    check((acts, indices, None), 3000)
    first, second = (group_by_latent(acts, indices, 3000) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second))


def test_rejects_what_the_kernel_cannot_read() -> None:
    acts, indices, _ = fixed_code(4, 9, 3)
    with pytest.raises(AssertionError, match="acts: expected contiguous"):
        group_by_latent(acts.T.contiguous().T, indices, 9)
    with pytest.raises(AssertionError, match="indices: expected"):
        group_by_latent(acts, indices[:, :2].contiguous(), 9)
