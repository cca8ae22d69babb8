"""Pinned sampling: what a model writes with a latent pinned, and how much of it is what the latent stands for.

"Towards Monosemanticity": a feature is fixed at its largest observed value on all tokens, the model writes on after
1,2,3,4,5,6,7,8,9,10, and what it writes is of the feature's context: DNA, base64, Arabic. Here a judge says so of each sample,
with the model as it is beside, and a random direction pushed as hard.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import nn

from saefast.errors import check
from saefast.interp.steering.controls import random_directions
from saefast.interp.steering.edits import Edit
from saefast.interp.steering.intervals import Share, wilson
from saefast.interp.steering.sampling import COUNTING, Sample, sample
from saefast.interp.steering.steered import steered
from saefast.sae import SAE


class Arm(NamedTuple):
    """The samples of one way to run the model."""

    share: Share  # of those that passed
    samples: list[Sample]
    passed: list[bool]


class PinnedSampling(NamedTuple):
    """Samples of the same draws in three ways."""

    edits: list[Edit]
    pinned: Arm
    unpinned: Arm  # the model as it is
    random: Arm | None  # each change of a row as large, in a random direction in place of the latent's

    def figures(self) -> dict[str, Any]:
        """Without the samples, as plain values."""
        arms = {name: getattr(self, name) for name in ("pinned", "unpinned", "random")}
        shares = {name: None if arm is None else arm.share._asdict() for name, arm in arms.items()}
        return {"edits": [edit._asdict() for edit in self.edits]} | shares


def pinned_sampling(
    model: nn.Module,
    tokenizer: Any,
    sae: SAE,
    hook: str | Sequence[str],
    edits: Sequence[Edit],
    judge: Callable[[Sample], bool],
    prompts: Sequence[str | Sequence[int]] = (COUNTING,),
    n: int = 20,
    max_new_tokens: int = 60,
    temperature: float = 1.0,
    seed: int = 0,
    batch_size: int = 16,
    control: bool = True,
    confidence: float = 0.95,
    **place: Any,
) -> PinnedSampling:
    """n samples of each prompt with the edits, without, and with the control, all judged.

    Args:
        edits: usually one, `pin(records, latent)`.
        judge: whether a sample is of the context, by its text or its tokens.
        control: also with random directions; False saves a third of the time.
        place: max_norm, drop_ids and output_hook, as `steered` takes them.
        Others as in `sample`; the intervals are Wilson's.

    Raises:
        InputError: as `steered` and `sample`, or no edits.
    """
    check(bool(edits), "edits: expected at least one, got none")

    def arm() -> Arm:
        samples = sample(model, tokenizer, prompts, n, max_new_tokens, temperature, seed, batch_size)
        passed = [bool(judge(one)) for one in samples]
        return Arm(wilson(sum(passed), len(passed), confidence), samples, passed)

    unpinned = arm()
    with steered(model, sae, hook, edits, **place):
        pinned = arm()
    random = None
    if control:
        directions = random_directions(sae, [edit.latent for edit in edits], seed)
        with steered(model, sae, hook, edits, directions=directions, **place):
            random = arm()
    return PinnedSampling([Edit(*edit) for edit in edits], pinned, unpinned, random)
