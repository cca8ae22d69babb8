"""The tokens that a site shows, numbered anew from 0 on in the order of their ids, so that two bytes are often enough."""

from collections.abc import Iterable

import numpy as np

from saefast.interp.vocabulary import Vocabulary


class Shown:
    """
    Args:
        ids: arrays of token ids that are shown somewhere; negative ones stand for none.
    """

    def __init__(self, vocabulary: Vocabulary, ids: Iterable[np.ndarray]) -> None:
        size = len(vocabulary)
        used = np.zeros(size, bool)
        for some in ids:
            flat = some.ravel()
            largest = int(flat.max(initial=0))
            if largest >= len(used):  # ids that the tokenizer does not know are shown by their number
                used = np.concatenate([used, np.zeros(largest + 1 - len(used), bool)])
            used[flat[flat >= 0]] = True
        self.ids = used.nonzero()[0]
        raw = [vocabulary.raw[i] if i < size else b"" for i in self.ids.tolist()]
        self.bytes = np.frombuffer(b"".join(raw), np.uint8)
        self.lengths = np.asarray([len(one) for one in raw], np.uint32)
        self.special = np.isin(self.ids, np.asarray(sorted(vocabulary.special), np.int64))
        self.renumbered = np.cumsum(used) - 1
        self.none = len(self.ids)  # the number that stands for no token

    def __call__(self, ids: np.ndarray) -> np.ndarray:
        """Token ids -> their numbers here, u2 or u4; `none` for negative ones."""
        numbers = np.where(ids < 0, self.none, self.renumbered[np.maximum(ids, 0)])
        return numbers.astype(np.uint16 if self.none < 2**16 else np.uint32)

    def arrays(self) -> dict[str, np.ndarray]:
        return {
            "ids": self.ids.astype(np.uint32),
            "lengths": self.lengths,
            "bytes": self.bytes,
            "special": self.special.astype(np.uint8),
        }
