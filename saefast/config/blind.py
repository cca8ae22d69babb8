"""What a card of the blind evaluation shows."""

from dataclasses import dataclass
from typing import Literal

from saefast.errors import check, check_choices


@dataclass(frozen=True, kw_only=True)
class BlindConfig:
    """How many units are dealt, and the shape of their cards, which is the same for all: nothing but text differs."""

    units: int = 40
    """Units of each set of records."""
    n_intervals: int = 11
    """Parts of equal width of (0, max]."""
    per_interval: int = 3
    """Examples of each interval, all from different contexts. A unit without so many in all is not dealt."""
    borrow: bool = True
    """Fill an interval that has too few examples with those of the nearest activations. Without, a unit that cannot fill all
    its intervals is not dealt: at a few hundred thousand tokens those are nearly all features that are not dense."""
    rated: int = 3
    """Intervals of each card, drawn at random, that are rated one by one without being named; 0: none."""
    before: int = 16
    """Tokens before that of an example. A token with fewer in its document and context is not shown."""
    after: int = 8
    """Tokens after it, likewise."""
    n_logits: int = 10
    """Tokens whose logits the unit raises most."""
    shade: Literal["drawn", "all"] = "drawn"
    """Tokens that are shaded: the one that was drawn, or all on which the unit is active, as in the paper. The latter shows
    how dense a unit is, by which features and neurons can be told apart."""

    def __post_init__(self) -> None:
        check_choices(self)
        least = {"units": 1, "n_intervals": 1, "per_interval": 1, "rated": 0, "before": 0, "after": 0}
        for name, lowest in (least | {"n_logits": 1}).items():
            value = getattr(self, name)
            ok = type(value) is int and lowest <= value < 2**15
            check(ok, f"{name}: expected an integer from {lowest} to 32767, got {value!r}")
        most = self.n_intervals
        check(self.rated <= most, f"rated: expected at most n_intervals = {most}, got {self.rated}")
