"""Two dictionaries side by side, over the same text: which latents of the one are latents of the other.

    comparison = compare(records_a, records_b, sae_a, sae_b)
    comparison.similarity.nanmedian()      # "universality": 0.72 for two one-layer models, 0.46 for their neurons
    comparison.pairs()                     # latents that are each other's best match
    comparison.without_partner(0.3)        # latents of a that b has not

The measures are those of "Towards Monosemanticity" (2023): the Pearson correlation of activations over all tokens, and for
feature splitting the masked cosine (see `split_links`).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from saefast.errors import check
from saefast.files import digest, load_tensors, save_tensors
from saefast.interp.effects import Neighbours
from saefast.interp.records import Records
from saefast.interp.together import CELLS, Sparse, check_same_text, products, sparse
from saefast.sae import SAE

Scores = Iterator[np.ndarray]  # some rows of [F_a, F_b] at a time, float64
FORMAT = {"format": "saefast-comparison", "version": 1}


class Comparison(NamedTuple):
    """The nearest latents of b for each latent of a, and the other way round.

    A latent that is never active, or is the same on all tokens, has no correlation, a zero row of W_dec no cosine: it is
    nobody's neighbour and has none (index -1, value 0). Of equal ones the smaller index comes first.
    """

    decoder: Neighbours  # [F_a, n] in b, by cosine of rows of W_dec
    activation: Neighbours  # [F_a, n] in b, by Pearson correlation of activations over all tokens
    decoder_back: Neighbours  # [F_b, n] in a
    activation_back: Neighbours  # [F_b, n] in a

    @property
    def similarity(self) -> Tensor:
        """The correlation of each latent of a with its best match in b, [F_a] float32; NaN for those that have none."""
        return _best(self.activation)

    @property
    def similarity_back(self) -> Tensor:
        """The same for the latents of b, [F_b]."""
        return _best(self.activation_back)

    def pairs(self) -> Tensor:
        """[m, 2] int32: (latent of a, latent of b) that are each other's best match by activation."""
        there, back = self.activation.indices[:, 0], self.activation_back.indices[:, 0]
        latents = torch.arange(len(there), dtype=torch.int32, device="cpu")
        mutual = (there >= 0) & (back[there.clamp_min(0).long()] == latents)
        return torch.stack([latents[mutual], there[mutual]], dim=1)

    def without_partner(self, threshold: float = 0.3) -> Tensor:
        """[m] int32: latents of a that are active and correlate with none of b by more than `threshold`."""
        return (self.similarity <= threshold).nonzero()[:, 0].to(torch.int32)

    def save(self, path: str | Path) -> None:
        """As one safetensors file, each field under "table.field"."""
        tensors = {
            f"{name}.{key}": tensor
            for name, near in self._asdict().items()
            for key, tensor in near._asdict().items()
        }
        save_tensors(Path(path), tensors, FORMAT)

    @classmethod
    def load(cls, path: str | Path) -> "Comparison":
        """
        Raises:
            InputError: the file is missing, damaged or holds something else.
        """
        tensors, meta, _ = load_tensors(Path(path))
        check(meta == FORMAT, f"{path}: expected a saefast-comparison, version 1, got {meta}")
        return cls(
            *(Neighbours(tensors[f"{name}.indices"], tensors[f"{name}.values"]) for name in cls._fields)
        )


def _best(near: Neighbours) -> Tensor:
    return near.values[:, 0].masked_fill(near.indices[:, 0] < 0, torch.nan)


class Links(NamedTuple):
    """How latents of a small dictionary split into those of a large one: a graph in which both can have several links."""

    small: Tensor  # [m] int32, ascending
    large: Tensor  # [m] int32
    cosine: Tensor  # [m] float32


def compare(records_a: Records, records_b: Records, sae_a: SAE, sae_b: SAE, n: int = 5) -> Comparison:
    """Find the nearest latents, exactly, in both directions.

    Args:
        records_a, records_b: of the same text, with a row for the same tokens.
        sae_a, sae_b: the SAEs that they are of, of the same width.
        n: neighbours of each latent.

    Raises:
        InputError: another text, SAEs that are not those of the records, or whose decoders differ in width.
    """
    check(type(n) is int and n > 0, f"n: expected a positive integer, got {n!r}")
    for name, records, sae in (("sae_a", records_a, sae_a), ("sae_b", records_b, sae_b)):
        same = records.index["sae"]["digest"] == digest(sae.tensors)
        check(same, f"{name}: expected the SAE of the records in {records.folder}, got other weights")
    check_same_text(records_a, records_b)
    W_a, W_b = (sae.params.W_dec.detach().to("cpu", torch.float32) for sae in (sae_a, sae_b))
    widths = W_a.shape[1], W_b.shape[1]
    check(widths[0] == widths[1], f"sae_b: expected a decoder of width {widths[0]}, got {widths[1]}")
    decoder = _both_ways(_cosines(W_a, W_b), len(W_b), n)
    a, b = sparse(records_a), sparse(records_b)
    activation = _both_ways(_correlations(a, b, records_a.n_rows), len(W_b), n)
    return Comparison(decoder[0], activation[0], decoder[1], activation[1])


def split_links(small: Records, large: Records, threshold: float = 0.4, min_count: int = 10) -> Links:
    """Links of the masked cosine: that of the activations over the tokens on which the one is active, or over those on which
    the other is, the larger of both.

    Args:
        small, large: of the same text, with a row for the same tokens.
        threshold: links are those above it.
        min_count: latents that are active on fewer tokens have none.

    Raises:
        InputError: another text.
    """
    check_same_text(small, large)
    a, b = sparse(small), sparse(large)
    norm_a, norm_b = (np.sqrt(one.square_sum) for one in (a, b))
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for part in products(a, b, masked=True):
        these = slice(part.first, part.first + len(part.both))
        over_a = norm_a[these, None] * np.sqrt(part.b_where_a)
        over_b = norm_b * np.sqrt(part.a_where_b)
        least = np.minimum(over_a, over_b)  # the larger cosine
        cosine = np.divide(part.both, least, out=np.zeros_like(least), where=least > 0)
        often = (a.n_active[these, None] >= min_count) & (b.n_active >= min_count)
        one, other = ((cosine > threshold) & often).nonzero()
        found.append((one + part.first, other, cosine[one, other]))
    columns = [np.concatenate(column) for column in zip(*found, strict=True)]
    dtypes = (torch.int32, torch.int32, torch.float32)
    return Links(*(torch.from_numpy(column).to(dtype) for column, dtype in zip(columns, dtypes, strict=True)))


def _cosines(W_a: Tensor, W_b: Tensor) -> Scores:
    a, b = (torch.nn.functional.normalize(W.double()) for W in (W_a, W_b))
    nowhere_b = ~b.any(dim=1)
    for some in a.split(max(1, CELLS // max(len(b), 1))):
        cosines = some @ b.T
        yield cosines.masked_fill_(~some.any(dim=1)[:, None] | nowhere_b, -torch.inf).numpy()


def _correlations(a: Sparse, b: Sparse, n_rows: int) -> Scores:
    for part in products(a, b):
        these = slice(part.first, part.first + len(part.both))
        stds = a.std[these, None] * b.std
        covariance = part.both / n_rows - a.mean[these, None] * b.mean
        yield np.divide(covariance, stds, out=np.full_like(stds, -np.inf), where=stds > 0)


def _both_ways(scores: Scores, n_b: int, n: int) -> tuple[Neighbours, Neighbours]:
    """The n largest of each row of [F_a, F_b], which comes some rows at a time, and of each column; -inf is none."""
    there: list[tuple[np.ndarray, np.ndarray]] = []
    values, indices = np.full((n_b, n), -np.inf), np.full((n_b, n), -1)
    first = 0
    for some in scores:
        there.append(_top(some, n))
        new_values, new_indices = _top(np.ascontiguousarray(some.T), n)
        values = np.concatenate([values, new_values], axis=1)
        indices = np.concatenate([indices, np.where(new_indices < 0, -1, new_indices + first)], axis=1)
        order = np.argsort(-values, axis=1, kind="stable")[:, :n]
        values, indices = np.take_along_axis(values, order, 1), np.take_along_axis(indices, order, 1)
        first += len(some)
    ours = (np.concatenate(column) for column in zip(*there, strict=True))
    return _neighbours(*ours), _neighbours(values, indices)


def _top(scores: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """[m, F] -> the n largest of each row and where they are, of equal ones the earlier; -inf and -1: there are fewer."""
    least = torch.from_numpy(scores).topk(min(n, scores.shape[1]), dim=1).values[:, -1:].numpy()
    row, column = ((scores >= least) & (scores > -np.inf)).nonzero()
    found = scores[row, column]
    order = np.lexsort((column, -found, row))
    row, column, found = row[order], column[order], found[order]
    rank = np.arange(len(row)) - np.searchsorted(row, row)
    row, column, found, rank = (one[rank < n] for one in (row, column, found, rank))
    values, indices = np.full((len(scores), n), -np.inf), np.full((len(scores), n), -1)
    values[row, rank], indices[row, rank] = found, column
    return values, indices


def _neighbours(values: np.ndarray, indices: np.ndarray) -> Neighbours:
    return Neighbours(
        torch.from_numpy(indices).to(torch.int32),
        torch.from_numpy(np.where(indices < 0, 0, values)).to(torch.float32),
    )
