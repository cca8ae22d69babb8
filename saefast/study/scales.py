"""How large a study is: a minute's worth for CI, an evening's for a laptop, the paper's for a GPU."""

from dataclasses import dataclass, replace
from typing import Literal

from saefast.errors import check

Name = Literal["ci", "laptop", "gpu"]


@dataclass(frozen=True)
class Schedule:
    """How a dictionary by the recipe of 2023 is trained. BatchTopK has the same batch."""

    batch: int
    lr: float
    resampled_at: tuple[float, ...]
    """Shares of the steps after which dead latents are resampled."""
    dead_after: float
    """Without activity over this share of the steps a latent is dead."""
    grad_clip: float | None
    """Largest norm of the gradient, for rows of E||x||^2 = 1; None: any."""


PAPER = Schedule(8192, 1e-4, (0.025, 0.05, 0.075, 0.1), 0.0125, None)
"""A million steps. lr is that of Nanda's replication: the paper has none."""
SHORT = Schedule(512, 1e-3, (0.2, 0.3, 0.4, 0.5, 0.6), 0.02, 3e-4)
"""Of a few thousand steps. In the first tenth of them nothing dies. At this lr the gradient after resampling is 25,000 times that of other
steps; without a limit Adam's second moments do not forget it for a thousand steps, and half of the latents die: benchmarks/LOG.md."""


@dataclass(frozen=True)
class Scale:
    """Tokens, sizes and units. Every size is one that the pass conditions can be met at, but for those of `ci`."""

    name: Name
    subject_tokens: int
    """Training text of each subject."""
    subject_batch: int
    """Contexts of 256 tokens in a step of its training."""
    pace: int
    """Tokens/s at which subjects are trained where the time that is promised holds. On a slower machine dictionaries and records have
    fewer tokens, in proportion; 0: never."""
    ladder: tuple[int, ...]
    """Sizes of the dictionaries of subject A: A/0, A/1, A/2."""
    dictionary_tokens: tuple[int, ...]
    """Activations that each of the ladder is trained on, each once."""
    today_tokens: tuple[int, ...]
    """The same of those of BatchTopK."""
    schedule: Schedule
    other_tokens: int
    """The same of the dictionaries of subject B and of the shuffled model, of the size of A/1."""
    resample_tokens: int
    """The same of the two that show what resampling is good for."""
    record_tokens: int
    """Held-out text on which everything is looked at."""
    contexts: int
    """Held-out contexts for the losses inside the model."""
    units: int
    """Of each kind (features, neurons, latents of the shuffled model) in the trial without people."""
    cards: int
    """Of each kind in the blind evaluation by people."""
    samples: int
    """Of pinned sampling, with and without."""
    recovery_tokens: int
    """Rows of planted directions."""


def cut(scale: Scale, share: float) -> Scale:
    """With this share of the tokens of dictionaries and records. The tokens of subjects and all pass conditions stay."""

    def some(tokens: int) -> int:
        return round(tokens * share)

    return replace(
        scale,
        dictionary_tokens=tuple(map(some, scale.dictionary_tokens)),
        today_tokens=tuple(map(some, scale.today_tokens)),
        other_tokens=some(scale.other_tokens),
        resample_tokens=some(scale.resample_tokens),
        record_tokens=some(scale.record_tokens),
    )


SCALES = {
    "ci": Scale(
        name="ci",
        subject_tokens=300_000,
        subject_batch=8,
        pace=0,
        ladder=(256, 512, 1024),
        dictionary_tokens=(100_000, 100_000, 60_000),
        today_tokens=(60_000, 60_000, 30_000),
        schedule=SHORT,
        other_tokens=60_000,
        resample_tokens=60_000,
        record_tokens=60_000,
        contexts=8,
        units=12,
        cards=6,
        samples=8,
        recovery_tokens=200_000,
    ),
    "laptop": Scale(
        name="laptop",
        subject_tokens=12_000_000,
        subject_batch=32,
        pace=20_000,
        ladder=(512, 4096, 16_384),
        dictionary_tokens=(2_000_000, 3_000_000, 2_000_000),
        today_tokens=(1_500_000, 3_000_000, 300_000),
        schedule=SHORT,
        other_tokens=2_000_000,
        resample_tokens=1_000_000,
        record_tokens=1_000_000,
        contexts=64,
        units=300,
        cards=60,
        samples=20,
        recovery_tokens=2_000_000,
    ),
    "gpu": Scale(
        name="gpu",
        subject_tokens=1_000_000_000,
        subject_batch=256,
        pace=0,
        ladder=(512, 4096, 16_384),
        dictionary_tokens=(8_192_000_000, 8_192_000_000, 8_192_000_000),
        today_tokens=(1_000_000_000, 1_000_000_000, 1_000_000_000),
        schedule=PAPER,
        other_tokens=8_192_000_000,
        resample_tokens=100_000_000,
        record_tokens=40_960_000,
        contexts=512,
        units=300,
        cards=162,
        samples=20,
        recovery_tokens=10_000_000,
    ),
}


def scale_of(name: str) -> Scale:
    """
    Raises:
        InputError: there is none of this name.
    """
    check(name in SCALES, f"scale: expected one of {list(SCALES)}, got {name!r}")
    return SCALES[name]
