"""Texts as vectors, whose cosine says how alike they are: by a sentence encoder, or without any model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from saefast.errors import InputError, check, line
from saefast.interp.records.text import mix

TINY = np.finfo(np.float32).tiny


class Embedder(Protocol):
    @property
    def name(self) -> str:
        """What goes into results beside the method."""
        ...

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """[n, d] float32, rows of norm 1; 0 for a text of which nothing is known."""
        ...


class HashedNgrams:
    """Counts of character n-grams (seeds: E4): where there is no encoder. It knows what is written alike, not what means the same.

    Each n-gram adds or takes away 1 + log(count) at one of d places; both are by a hash, so that n-grams which share a place cancel
    on average (Weinberger et al. 2009, "Feature Hashing for Large Scale Multitask Learning"). The same everywhere: no seed, no vocabulary.

    Args:
        d: places.
        longest: characters of an n-gram; those of 1 to so many are counted.

    Raises:
        InputError: a number below 1.
    """

    def __init__(self, d: int = 2048, longest: int = 4) -> None:
        for what, value in (("d", d), ("longest", longest)):
            check(value > 0, f"{what}: expected at least 1, got {value}")
        self.d, self.longest = d, longest
        self.name = f"hashed {longest}-grams"

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """See `Embedder.embed`; an empty text is 0."""
        found = np.zeros((len(texts), self.d))
        for row, text in zip(found, texts, strict=True):
            hashes, counts = np.unique(self._ngrams(text), return_counts=True)
            sign = 1.0 - 2.0 * (hashes >> np.uint32(31))
            np.add.at(row, hashes % np.uint32(2**31) % np.uint32(self.d), sign * (1 + np.log(counts)))
        return of_norm_1(found)

    def _ngrams(self, text: str) -> np.ndarray:
        """A hash of each n-gram there, uint32."""
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
        hashes, every = mix(points + np.uint32(1)), []
        for n in range(1, self.longest + 1):
            every.append(hashes)
            hashes = mix(hashes[:-1] * np.uint32(31) + points[n:])
        return np.concatenate(every)


class SentenceEmbedder:
    """A sentence encoder in the layout of the library sentence-transformers, such as all-MiniLM-L6-v2, which delphi uses.

    What is longer than its context is cut off. Explanations and windows are encoded alike: a prompt that an encoder has for
    queries is not put before them.

    Args:
        model: a folder, or a name on the Hub.
        batch: texts at once.
        device: default: what the library finds.

    Raises:
        InputError: the library is not installed, or there is no such encoder.
    """

    def __init__(self, model: str | Path, *, batch: int = 32, device: str | None = None) -> None:
        check(batch > 0, f"batch: expected at least 1, got {batch}")
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError:
            raise InputError("embedder: a sentence encoder needs `pip install 'saefast[embed]'`") from None
        try:
            self.encoder = SentenceTransformer(str(model), device=device)
        except Exception as error:  # noqa: BLE001 (whatever the Hub and damaged files raise)
            raise InputError(
                f"embedder: expected a sentence encoder, got {str(model)!r} ({line(error)})"
            ) from None
        self.name, self.batch = Path(model).name, batch

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """See `Embedder.embed`."""
        if not len(texts):
            return np.zeros((0, 0), np.float32)
        found = np.asarray(self.encoder.encode(list(texts), batch_size=self.batch, show_progress_bar=False))
        check(
            bool(np.isfinite(found).all()),
            f"embedder: expected finite numbers of {self.name}, got NaN or Inf",
        )
        return of_norm_1(found)


def of_norm_1(rows: np.ndarray) -> np.ndarray:
    """[n, d] -> [n, d] float32 with rows of norm 1; those of 0 stay."""
    rows = rows.astype(np.float64)
    return (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), TINY)).astype(np.float32)
