"""The windows of hot latents: sums of a latent do not depend on how many programs there are, nor on where windows begin.

Against `saefast.reference`, with the tolerances of test_update.py.
"""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from saefast import reference
from saefast.triton_kernels import hot_latents, update
from saefast.triton_kernels.update import UpdateConfig, update_
from tests.helpers.update_cases import (
    DEVICE,
    SMALL,
    Case,
    assert_same,
    case_of,
    check,
    clone,
    given_of,
    random,
    step_of,
    tensors,
    weights_of,
)

COUNTS = {  # active entries of each latent, in windows of 4; a latent is hot with 5 and more
    "ends and begins with a window": (8, 4, 8),
    "begins inside a window": (3, 8, 1),
    "begins just after one": (1, 12, 3),
    "one window": (2, 5, 1),  # of which it has the last entry
    "one window, and all of it": (3, 5),
    "hot ones share a window": (6, 6, 6, 6),
    "not hot, but all of a window": (4, 4, 4),
    "in all tokens": (13, 13, 13),
    "in all and in none": (0, 13, 0, 13, 0),
    "the last window is not full": (2, 0, 13),
}


def counted_case(counts: tuple[int, ...], D: int = 20, rows: int = 13, **kwargs: object) -> Case:
    """Latent f is active in counts[f] of the tokens, and listed in all."""
    F, order = len(counts), [torch.randperm(rows, generator=torch.Generator().manual_seed(n)) for n in counts]
    active = torch.stack([place < n for place, n in zip(order, counts)], 1).to(DEVICE)
    indices = torch.arange(F, dtype=torch.int32, device=DEVICE).repeat(rows, 1)
    case = case_of((random(rows, F, seed=7).abs() + 0.1) * active, indices, F, D, **kwargs)
    assert case.groups[0].diff().tolist() == list(counts)
    return case


@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS.keys())
def test_borders(counts: tuple[int, ...]) -> None:
    check(counted_case(counts), len(counts), 20, steps=1)


@pytest.mark.parametrize("chunk", [1, 2, 3, 64])
def test_any_chunk(chunk: int) -> None:
    """With 1 every latent of more entries than one is hot; no window divides the number of entries."""
    counts = (1, 2, 3, 5, 13)
    case = counted_case(counts)
    check(case, len(counts), 20, replace(SMALL, chunk=chunk), steps=1)


def test_parts_of_given() -> None:
    """Of a code of three parts, whose rows share centred."""
    counts = (15, 4, 0, 11)
    case = counted_case(counts, rows=15, D_out=28, parts=3, tied=0.0)
    check(case, len(counts), 20, steps=1, given=given_of(case, len(counts), 2))


def run(case: Case, F: int, config: UpdateConfig) -> dict[str, Tensor]:
    weights = weights_of(F, 20)
    update_(weights, *case, step_of(3), config=config)
    return tensors(weights)


def test_same_bits_with_any_number_of_programs() -> None:
    """But those of b_dec, which each program adds to. One program has more windows than it looks at together."""
    counts = (13, 13, 9, 12, 13, 11)
    case = counted_case(counts)
    assert -(-case.acts.numel() // 2) > hot_latents.AT_ONCE.value
    want = run(case, 6, replace(SMALL, chunk=2, programs=1))
    for programs in (2, 5):
        got = run(case, 6, replace(SMALL, chunk=2, programs=programs))
        for name in want:
            assert name.startswith("b_dec") or torch.equal(got[name], want[name]), name


def test_windows_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more programs than run at once or than there are windows; none where no latent can be hot."""
    grids = []

    class Recorded:
        def __getitem__(self, grid: tuple[int, ...]) -> object:
            grids.append(grid[0])
            return hot_latents.chunk_kernel[grid]

    monkeypatch.setattr(update, "chunk_kernel", Recorded())
    case = counted_case((13, 4, 0, 0, 0))  # 65 entries with those that are not active
    for chunk, programs in ((64, 3), (64, 1), (16, 3), (16, 9), (65, 3), (100, 3)):
        run(case, 5, replace(SMALL, chunk=chunk, programs=programs))
    assert grids == [2, 1, 3, 5]


def test_reads_only_what_is_active() -> None:
    """Behind the last active entry lists name no entry, token or latent that there is."""
    counts = (13, 2, 9, 0)
    case = counted_case(counts)
    offsets, pairs, tokens = case.groups
    used = int(offsets[-1])
    assert used % 4 == 0 or used // 4 < -(-len(pairs) // 4) - 1
    pairs[used:] = tokens[used:] = 10**6
    want = weights_of(4, 20)
    got = clone(want)
    update_(got, *case, step_of(3), config=SMALL)
    listed = pairs.clone(), tokens.clone()
    listed[0][used:] = listed[1][used:] = 0
    reference.update_(want, *case._replace(groups=(offsets, *listed)), step_of(3))
    assert_same(got, want)
