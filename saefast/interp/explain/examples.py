"""The windows of text in which a unit is looked at: who explains it and who scores it never see the same document.

    tiles = Tiles(records, "score", length=64)
    examples = top_and_random(tiles, 17, n_top=5, n_random=5)
    examples.tokens, examples.acts                   # [10, 64]

The text of a split is cut into tiles: `length` tokens one after another, all with a row and of one document. What is left at the end
of a document is in none. So no two windows overlap, and a random one is any of them with the same probability.
"""

from typing import NamedTuple

import numpy as np

from saefast.errors import check
from saefast.interp.records import Records
from saefast.interp.records.text import Text, mix

SPLITS = ("explain", "score")
GROUPS = ("top", "quantile", "random", "inactive", "near")
CONTEXTS = 4096  # at once


class Examples(NamedTuple):
    """n windows of a unit."""

    latent: int
    split: str
    tokens: np.ndarray  # [n, L] int32
    acts: np.ndarray  # [n, L] float64, of the unit, 0 where it is not active
    slots: np.ndarray  # [n] int64, of the first token of each
    group: np.ndarray  # [n] int8, in GROUPS
    part: np.ndarray  # [n] int8, the quantile, 0 the weakest; else -1
    largest: float  # activation of the unit on any token of the split; 0: it never is active there

    @property
    def active(self) -> np.ndarray:
        """[n] bool, whether the unit is active anywhere in the window: by what it does, whatever the group is called."""
        return (self.acts > 0).any(axis=1)

    def of(self, *groups: str) -> "Examples":
        return self[np.isin(self.group, [GROUPS.index(name) for name in groups])]

    def __getitem__(self, rows: np.ndarray) -> "Examples":  # type: ignore[override]
        """Some of them: a mask or their numbers."""
        columns = ("tokens", "acts", "slots", "group", "part")
        return self._replace(**{name: getattr(self, name)[rows] for name in columns})
