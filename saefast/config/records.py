"""What is recorded of each latent."""

from dataclasses import dataclass, fields

from saefast.errors import check

GROUPS = ("top", "interval", "quantile", "random", "inactive")
SPLITS = ("explain", "score")


@dataclass(frozen=True, kw_only=True)
class RecordsConfig:
    """How many examples of each group a latent has, and how much text surrounds them.

    An example is one token. No two examples of a group (of one interval, of one quantile group) are from one context.
    """

    n_top: int = 20
    """Contexts with the largest activations; of equal ones, the earlier."""
    n_intervals: int = 11
    """Parts of equal width of (0, max]."""
    per_interval: int = 5
    """Random tokens on which the activation is in that interval."""
    n_quantiles: int = 5
    """Groups of equal size of the contexts in which the latent is active, in the order of their largest activations."""
    per_quantile: int = 5
    """Random contexts of each group."""
    n_random: int = 10
    """Random tokens on which the latent is active."""
    n_inactive: int = 10
    """Random tokens in whose whole window it is not active; fewer if they are hard to find."""
    n_bins: int = 44
    """Bins of equal width of the histogram of activations over (0, max]."""
    before: int = 48
    """Tokens of the window before that of the example, in the same document and context."""
    after: int = 15
    """Tokens of the window after it."""
    score_fraction: float = 0.5
    """Share of documents whose examples are for scoring; those of the others are for explaining."""
    seed: int = 0
    """Of everything that is random."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value, least = getattr(self, field.name), int(field.name == "n_bins")
            if field.name != "score_fraction":
                ok = type(value) is int and least <= value < 2**15
                check(ok, f"{field.name}: expected an integer from {least} to 32767, got {value!r}")
        fraction = self.score_fraction
        ok = isinstance(fraction, int | float) and 0 <= fraction <= 1
        check(ok, f"score_fraction: expected a number from 0 to 1, got {fraction!r}")

    @property
    def places(self) -> list[tuple[str, int, int]]:
        """(group, bin, rank) of each of the examples of a latent, in the order in which they are recorded."""
        sizes = [
            (1, self.n_top),
            (self.n_intervals, self.per_interval),
            (self.n_quantiles, self.per_quantile),
            (1, self.n_random),
            (1, self.n_inactive),
        ]
        return [
            (group, part, rank)
            for group, (n_parts, each) in zip(GROUPS, sizes, strict=True)
            for part in range(n_parts)
            for rank in range(each)
        ]
