"""The text of records as bytes: what proxies read.

A passage is the part of a document that lies in one context: a string never goes beyond it.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from saefast.errors import check
from saefast.interp.records.text import Text
from saefast.interp.vocabulary import Vocabulary

BETWEEN = (
    3  # bytes that `Written.page` has between two passages: the end of a line, NUL and the end of a line
)


class Written(NamedTuple):
    """The bytes of m contexts of L tokens, n bytes in all, in their order."""

    data: np.ndarray  # [n] uint8
    starts: np.ndarray  # [m * L + 1] int64: token i has the bytes starts[i] to starts[i + 1] - 1
    begins: np.ndarray  # [m, L] bool: the first token of a passage

    @property
    def lengths(self) -> np.ndarray:
        """[m * L] int64, bytes of each token; 0 of special ones."""
        return np.diff(self.starts)

    @property
    def token_of_byte(self) -> np.ndarray:
        """[n] int64."""
        return np.repeat(np.arange(len(self.starts) - 1), self.lengths)

    @property
    def passage_of_byte(self) -> np.ndarray:
        """[n] int64."""
        return np.repeat(np.cumsum(self.begins.ravel()) - 1, self.lengths)

    def page(self) -> tuple[bytes, np.ndarray]:
        """All passages as one text in which lines begin with each and no pattern goes on to the next one: between them are the
        end of a line, NUL and the end of a line. And where in it each byte is, [n] int64."""
        passage = self.passage_of_byte
        place = np.arange(len(self.data)) + BETWEEN * passage
        page = np.zeros(int(place[-1]) + 2 if len(place) else 0, np.uint8)
        for there in (
            place[1:][np.diff(passage) > 0] - 1,
            place[:-1][np.diff(passage) > 0] + 1,
            place[-1:] + 1,
        ):
            page[there] = ord("\n")
        page[place] = self.data
        return page.tobytes(), place

    def of_tokens(self, of_bytes: np.ndarray) -> np.ndarray:
        """What is true of bytes [n], of each token [m, L]: what its middle byte has; 0 where it has none."""
        middle = self.starts[:-1] + self.lengths // 2
        found = np.zeros(len(middle), of_bytes.dtype)
        some = self.lengths > 0
        found[some] = of_bytes[middle[some]]
        return found.reshape(self.begins.shape)

    def counts(self, of_bytes: np.ndarray) -> np.ndarray:
        """For how many bytes of each token `of_bytes` [n] bool holds, [m * L] int64."""
        return np.diff(np.concatenate([[0], np.cumsum(of_bytes)])[self.starts])


@lru_cache(maxsize=2)  # all proxies read the same text
def written(text: Text, vocabulary: Vocabulary) -> Written:
    """The bytes of a text. Special tokens and separators have none and end a passage; so does -1, which is no token.

    Raises:
        InputError: a token that the vocabulary does not have.
    """
    tokens = text.contexts
    check(tokens.size > 0, "text: expected at least one context with a token, got none")
    largest, n = int(tokens.max()), len(vocabulary)
    check(largest < n, f"vocabulary: expected the one of the text, which has token {largest}, got {n} tokens")
    raw = [b"" if i in vocabulary.special else one for i, one in enumerate(vocabulary.raw)]
    lengths = np.array([len(one) for one in raw], np.int64)
    first = np.cumsum(lengths) - lengths
    bytes_of = np.frombuffer(b"".join(raw), np.uint8)
    flat = tokens.ravel().astype(np.int64)
    ends = np.isin(flat, [*vocabulary.special, *text.separators, -1])
    of_token = np.where(ends, 0, lengths[flat])
    starts = np.concatenate([[0], np.cumsum(of_token)])
    data = bytes_of[np.repeat(first[flat] - starts[:-1], of_token) + np.arange(starts[-1])]
    begins = np.zeros(tokens.shape, bool)
    begins[:, 0] = True
    begins[:, 1:] |= ends.reshape(tokens.shape)[:, :-1]
    return Written(data, starts, begins)


class Characters(NamedTuple):
    """The UTF-8 characters of n bytes."""

    code: (
        np.ndarray
    )  # [n] int32, the code point of the character that a byte is part of; -1: of none that is whole
    first: np.ndarray  # [n] int64, where that character begins; the byte itself where there is none
    is_last: np.ndarray  # [n] bool, whether a character ends with that byte


@lru_cache(maxsize=2)
def characters(text: Text, vocabulary: Vocabulary) -> Characters:
    """The characters of a text; one that two passages share is not whole."""
    page = written(text, vocabulary)
    data, passage, n = page.data.astype(np.int32), page.passage_of_byte, len(page.data)
    at = np.arange(n)
    size = np.select([data < 0x80, data < 0xC2, data < 0xE0, data < 0xF0, data < 0xF5], [1, 0, 2, 3, 4], 0)
    code = np.select([size == 1, size == 2, size == 3, size == 4], [data, data & 31, data & 15, data & 7], -1)
    whole = size > 0
    for k in (1, 2, 3):
        more = size > k
        there = np.minimum(at + k, n - 1)
        follows = (at + k < n) & (data[there] & 0xC0 == 0x80) & (passage[there] == passage)
        whole &= ~more | follows
        code = np.where(more, (code << 6) | (data[there] & 63), code)
    first = np.maximum.accumulate(np.where(whole, at, -1))
    inside = (first >= 0) & (at < first + size[first])
    of_byte = np.where(inside, code[first], -1).astype(np.int32)
    first = np.where(inside, first, at)
    return Characters(of_byte, first, inside & (at == first + size[first] - 1))
