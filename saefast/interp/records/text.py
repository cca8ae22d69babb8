"""The text that was recorded: contexts of token ids, documents in them, and windows around a token.

A slot is the number of a token: context * context_length + position. A token has a row of activations or was left out when
they were made (attention sinks, special tokens).
"""

from collections.abc import Sequence

import numpy as np

from saefast.config.records import RecordsConfig

Ints = np.ndarray


def mix(bits: Ints) -> Ints:
    """uint32 -> uint32, as `saefast.storage.mix`."""
    bits = np.asarray(bits, np.uint32)
    with np.errstate(over="ignore"):  # of a single number numpy says that it overflows
        bits = bits ^ (bits >> np.uint32(16))
        bits = bits * np.uint32(0x7FEB352D)
        bits = bits ^ (bits >> np.uint32(15))
        bits = bits * np.uint32(0x846CA68B)
        return bits ^ (bits >> np.uint32(16))


class Text:
    """Contexts in memory.

    Args:
        contexts: [m, L] int32 token ids.
        encoded: [m, L] bool, which tokens have a row.
        separators: token ids that end a document. Without any, each context is a document.
    """

    def __init__(self, contexts: Ints, encoded: Ints, separators: Sequence[int]) -> None:
        self.contexts, self.encoded, self.separators = contexts, encoded, list(separators)
        self.ends = np.isin(contexts, np.asarray(self.separators, np.int64))
        """Where a document ends before its context does, [m, L] bool."""
        before = np.cumsum(self.ends.sum(axis=1)) if self.separators else np.arange(1, len(contexts) + 1)
        self.first_document = np.concatenate([[0], before])[:-1].astype(np.int64)  # of each context
        """The number of the document in which each context begins, [m] int64."""

    @property
    def length(self) -> int:
        """L, tokens per context."""
        return self.contexts.shape[1]

    @property
    def n_slots(self) -> int:
        return self.contexts.size

    @property
    def n_rows(self) -> int:
        """Tokens with a row: what a density is a share of."""
        return int(self.encoded.sum())

    def documents(self, slots: Ints) -> Ints:
        """[n] -> the number of the document of each, [n] int64. A separator belongs to the document that it ends."""
        context, position = np.divmod(slots, self.length)
        pairs = zip(context.tolist(), position.tolist(), strict=True)
        counts = [self.ends[c, :p].sum() for c, p in pairs]
        return self.first_document[context] + np.asarray(counts, np.int64).reshape(-1)

    def window(self, slot: int, config: RecordsConfig) -> tuple[int, int]:
        """The first position of the window around a token, and the end: in its context and its document."""
        context, position = divmod(slot, self.length)
        first = max(0, position - config.before)
        end = min(self.length, position + config.after + 1)
        ends = self.ends[context, first:end].nonzero()[0] + first
        earlier, later = ends[ends < position], ends[ends >= position]
        first = int(earlier[-1]) + 1 if len(earlier) else first
        end = int(later[0]) + 1 if len(later) else end
        return first, end

    def splits(self, documents: Ints, config: RecordsConfig) -> Ints:
        """[n] -> 0 (explain) or 1 (score) for each document, [n] int8."""
        key = mix(np.uint32(8 * config.seed + 7))
        share = mix(documents.astype(np.uint32) ^ key) / 2.0**32
        return (share < config.score_fraction).astype(np.int8)
