"""The Triton tally against `saefast.reference.tally_`: on a GPU where there is one, else in Triton's interpreter."""

import pytest
import torch
from torch import Tensor

from saefast import reference
from saefast.triton_kernels.tally import BLOCK, tally_
from tests.helpers.kernels import DEVICE

DEAD = 1000  # tokens


def counts(F: int, dtype: torch.dtype = torch.int32) -> tuple[Tensor, Tensor, Tensor]:
    """silent_for around the threshold, fired_before beyond 32 bits, fired with many zeros."""
    rng = torch.Generator().manual_seed(F)
    silent_for = torch.randint(2 * DEAD, (F,), generator=rng)
    silent_for[: F // 4] = DEAD - torch.arange(F // 4) % 3  # on the threshold, and next to it
    before = torch.randint(2**40, (F,), generator=rng)
    fired = torch.randint(5, (F,), generator=rng) * torch.randint(2, (F,), generator=rng)
    return silent_for.to(DEVICE), before.to(DEVICE), fired.to(DEVICE, dtype)


def found(**names: float) -> dict[str, Tensor]:
    return {name: torch.tensor(value, device=DEVICE) for name, value in names.items()}


STEP = {"loss": 0.25, "fvu": 0.5, "squared": 9.0}
ALSO = {"auxk_loss": 0.7, "penalty": 1e-3, "code_size": 77}


@pytest.mark.parametrize("also", [(), *[(name,) for name in ALSO], tuple(ALSO)], ids="-".join)
@pytest.mark.parametrize("F", [1, 7, BLOCK, BLOCK + 1, 3 * BLOCK + 5])
def test_matches_reference(F: int, also: tuple[str, ...]) -> None:
    ours, theirs = counts(F), counts(F)
    values = found(**STEP, **{name: ALSO[name] for name in also})
    got, want = (op(*c, DEAD, 64, **values) for op, c in ((tally_, ours), (reference.tally_, theirs)))
    assert all(value.shape == () for value in got)
    torch.testing.assert_close([float(v) for v in got], [float(v) for v in want], rtol=1e-6, atol=0)
    assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])
    assert float(got[3]) > 0 or F < 8  # some were dead: the threshold itself counts
    assert torch.equal(ours[0] == 0, ours[2] > 0)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=["int32", "int64"])
def test_integers_of_both_widths(dtype: torch.dtype) -> None:
    ours, theirs = counts(50, dtype), counts(50, dtype)
    tally_(*ours, DEAD, 3, **found(**STEP))
    reference.tally_(*theirs, DEAD, 3, **found(**STEP))
    assert torch.equal(ours[1], theirs[1])


def test_more_latents_than_programs_are_added_at_once() -> None:
    F = 1030 * BLOCK  # 1030 programs, 1024 at a time
    silent_for, before, fired = (torch.zeros(F, dtype=torch.int64, device=DEVICE) for _ in range(3))
    fired[-1], silent_for[-2] = 5, DEAD
    metrics = tally_(silent_for, before, fired, DEAD, 10, **found(**STEP))
    assert float(metrics[2]) == 0.5 and float(metrics[3]) == pytest.approx(1 / F)


def test_no_tokens_and_a_threshold_beyond_32_bits() -> None:
    silent_for, before, fired = counts(9)
    metrics = tally_(silent_for.fill_(2**33), before, fired.fill_(0), 2**33, 0, **found(**STEP))
    assert float(metrics[2]) == 0 and float(metrics[3]) == 1 and (silent_for == 2**33).all()


def test_rejects_what_the_kernel_cannot_read() -> None:
    silent_for, before, fired = counts(9)
    with pytest.raises(AssertionError, match="silent_for: expected"):
        tally_(silent_for[:3], before, fired, DEAD, 1, **found(**STEP))
