"""The text that explainers read: the documents of the split "explain", as one line of token ids with gaps between texts."""

import numpy as np

from saefast.errors import check
from saefast.interp.records import Records

REACH = 8  # tokens between two texts, and how far a sign of one token may look from it
NO_TOKEN = -1


class ExplainSplit:
    """A text here is a part of a document that is in one context. No window of `REACH` tokens around a token meets another.

    Attributes:
        tokens: [N] int64 ids, -1 in the gaps.
        has_row: [N] bool, False in gaps and where the token has no row of activations.
        document: [N] int64, -1 in the gaps.
        n_rows: how many have a row.
    """

    def __init__(self, records: Records) -> None:
        self.records, text = records, records.text
        before = text.ends.cumsum(axis=1) - text.ends  # documents that ended earlier in the same context
        documents = (text.first_document[:, None] + before).ravel()
        slots = (text.splits(documents, records.config) == 0).nonzero()[0]
        of_slot, context = documents[slots], slots // text.length
        is_new = np.ones(len(slots), bool)
        is_new[1:] = (of_slot[1:] != of_slot[:-1]) | (context[1:] != context[:-1])
        places = np.arange(len(slots)) + REACH * is_new.cumsum()
        size = int(places[-1]) + 1 + REACH if len(places) else REACH
        self.tokens = np.full(size, NO_TOKEN, np.int64)
        self.tokens[places] = text.contexts.ravel()[slots]
        self.document = np.full(size, -1, np.int64)
        self.document[places] = of_slot
        self.has_row = np.zeros(size, bool)
        self.has_row[places] = text.encoded.ravel()[slots].astype(bool)
        self.n_rows = int(self.has_row.sum())
        self._place = np.full(text.n_slots, -1, np.int64)
        self._place[slots] = places

    def entries(self, latent: int) -> tuple[np.ndarray, np.ndarray]:
        """The activations of a latent in these documents: places [n] int64 in `tokens`, ascending, and acts [n] float64.

        Raises:
            InputError: no such latent.
        """
        slots, acts = self.records.entries(latent)
        places = self._place[slots]
        return places[places >= 0], acts[places >= 0].astype(np.float64)

    def before(self, place: int, longest: int) -> np.ndarray:
        """The ids of a token and of those before it in its text, at most `longest` in all."""
        ids = self.tokens[max(0, place + 1 - longest) : place + 1]
        gaps = (ids == NO_TOKEN).nonzero()[0]
        return ids[gaps[-1] + 1 :] if len(gaps) else ids


def checked_windows(tokens: np.ndarray, n_tokens: int) -> np.ndarray:
    """Windows of ids as int64.

    Raises:
        InputError: they are not [n, L] integers from -1 to n_tokens - 1.
    """
    tokens = np.asarray(tokens)
    ok = tokens.ndim == 2 and (np.issubdtype(tokens.dtype, np.integer) or not tokens.size)
    check(ok, f"tokens: expected ids [n, L] of windows, got {tokens.dtype} {list(tokens.shape)}")
    least, most = (int(tokens.min()), int(tokens.max())) if tokens.size else (0, 0)
    ok = least >= NO_TOKEN and most < n_tokens
    check(ok, f"tokens: expected ids from -1 (padding) to {n_tokens - 1}, got {least} to {most}")
    return tokens.astype(np.int64)
