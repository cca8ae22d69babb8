"""Two dictionaries side by side, over the same text: which latents of the one are latents of the other.

    comparison = compare(records_a, records_b, sae_a, sae_b)
    comparison.similarity.nanmedian()      # "universality": 0.72 for two one-layer models, 0.46 for their neurons
    comparison.pairs()                     # latents that are each other's best match
    comparison.without_partner(0.3)        # latents of a that b has not

The measures are those of "Towards Monosemanticity" (2023): the Pearson correlation of activations over all tokens, and for
feature splitting the masked cosine (see `split_links`).
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from saefast.errors import check
from saefast.files import digest, load_tensors, save_tensors
from saefast.interp.effects import Neighbours, correlated, neighbours
from saefast.interp.records import Records
from saefast.interp.together import Coded, check_same_text, products, sums
from saefast.sae import SAE

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
    return Comparison(
        neighbours(sae_a, sae_b, n),
        correlated(records_a, records_b, n),
        neighbours(sae_b, sae_a, n),
        correlated(records_b, records_a, n),
    )


def split_links(small: Coded, large: Coded, threshold: float = 0.4, min_count: int = 10) -> Links:
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
    (count_a, _, square_a), (count_b, _, square_b) = sums(small), sums(large)
    norm_a, norm_b = np.sqrt(square_a), np.sqrt(square_b)
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for part in products(small, large, masked=True):
        these = slice(part.first, part.first + len(part.both))
        over_a = norm_a[these, None] * np.sqrt(part.b_where_a)
        over_b = norm_b * np.sqrt(part.a_where_b)
        least = np.minimum(over_a, over_b)  # the larger cosine
        cosine = np.divide(part.both, least, out=np.zeros_like(least), where=least > 0)
        often = (count_a[these, None] >= min_count) & (count_b >= min_count)
        one, other = ((cosine > threshold) & often).nonzero()
        found.append((one + part.first, other, cosine[one, other]))
    columns = [np.concatenate(column) for column in zip(*found, strict=True)]
    dtypes = (torch.int32, torch.int32, torch.float32)
    return Links(*(torch.from_numpy(column).to(dtype) for column, dtype in zip(columns, dtypes, strict=True)))
