"""The judgement of all proxies about all tokens of a text."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from saefast.config.records import SPLITS
from saefast.errors import check
from saefast.interp.contexts.proxy import Proxy
from saefast.interp.records import Records
from saefast.interp.records.text import Text
from saefast.interp.vocabulary import Vocabulary


class Judged(NamedTuple):
    """Of K contexts that are in the text."""

    names: list[str]
    descriptions: list[str]
    labels: np.ndarray  # [K, m, L] bool, false where a token has no row
    scores: np.ndarray  # [K, m, L] float32, of the proxies, at least 0
    skipped: dict[str, int]  # contexts of which the text has too little, with the number of their tokens

    def labels_of(self, name: str) -> np.ndarray:
        """[m, L] bool.

        Raises:
            InputError: no such context.
        """
        check(name in self.names, f"context: expected one of {', '.join(self.names)}, got {name!r}")
        return self.labels[self.names.index(name)]


def judge(text: Text, vocabulary: Vocabulary, proxies: Sequence[Proxy], least: float = 1e-4) -> Judged:
    """Ask all proxies.

    Args:
        least: share of the tokens with a row below which a context is skipped. Row 11 of the acceptance table: 0.01 %.

    Raises:
        InputError: two proxies of one name, or the tokens of another vocabulary.
    """
    names = [proxy.name for proxy in proxies]
    check(len(set(names)) == len(names), f"proxies: expected one of each name, got {', '.join(names)}")
    kept, labels, scores, skipped = [], [], [], {}
    for proxy in proxies:
        here = proxy.labels(text, vocabulary) & text.encoded
        count = int(here.sum())
        if count < max(least * text.n_rows, 1):
            skipped[proxy.name] = count
            continue
        kept.append(proxy)
        labels.append(here)
        scores.append(np.maximum(proxy.scores(text, vocabulary), 0))
    shape = (0, *text.contexts.shape)
    return Judged(
        [proxy.name for proxy in kept],
        [proxy.description for proxy in kept],
        np.stack(labels) if kept else np.zeros(shape, bool),
        np.stack(scores) if kept else np.zeros(shape, np.float32),
        skipped,
    )


def documents_of(text: Text) -> np.ndarray:
    """The number of the document of every token, [m, L] int64, as `Text.documents`."""
    before: np.ndarray = np.cumsum(text.ends, axis=1) - text.ends
    return text.first_document[:, None] + before


def rows_of(records: Records, split: str) -> np.ndarray:
    """Tokens with a row in the documents of a split, [m, L] bool.

    Raises:
        InputError: no such split.
    """
    check(split in SPLITS, f"split: expected one of {', '.join(SPLITS)}, got {split!r}")
    text = records.text
    splits = text.splits(documents_of(text).ravel(), records.config).reshape(text.contexts.shape)
    return text.encoded & (splits == SPLITS.index(split))
