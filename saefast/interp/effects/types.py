"""The tables of effects, and their file.

effects.safetensors in the folder of the records holds the tables that were made, each field under "table.field".
"""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saefast.files import load_tensors, save_tensors

EFFECTS = "effects.safetensors"


class LogitWeights(NamedTuple):
    """How far a unit of activation moves the logit of each token directly: W_dec through the final norm and the unembedding,
    minus the median over the vocabulary."""

    positive_tokens: Tensor  # [F, n] int32, the largest first
    positive: Tensor  # [F, n] float32
    negative_tokens: Tensor  # [F, n] int32, the most negative first
    negative: Tensor  # [F, n] float32
    histogram: Tensor  # [F, n_bins] int32, over the vocabulary, bins of equal width from lowest to highest
    lowest: Tensor  # [F] float32
    highest: Tensor  # [F] float32


class Neighbours(NamedTuple):
    """The most similar ones, the most similar first; never the latent itself."""

    indices: Tensor  # [F, n] int32; -1 where there are fewer
    values: Tensor  # [F, n] float32: cosine, or Pearson correlation of activations over all tokens


class Alignment(NamedTuple):
    """The coordinates of the activations (neurons, at an MLP) with the largest |W_dec| of each latent."""

    indices: Tensor  # [F, n] int32
    values: Tensor  # [F, n] float32, with sign
    l1: Tensor  # [F, n] float32, share of the sum of |W_dec| of that latent


class Effects(NamedTuple):
    """All of them; None is what was not made."""

    logits: LogitWeights | None = None
    decoder: Neighbours | None = None  # by cosine of rows of W_dec
    encoder: Neighbours | None = None  # by cosine of rows of W_enc
    correlated: Neighbours | None = None  # latents by Pearson correlation of their activations
    correlated_neurons: Neighbours | None = None  # coordinates of the activations, likewise
    alignment: Alignment | None = None

    def save(self, folder: Path) -> None:
        tables = {name: table for name, table in self._asdict().items() if table is not None}
        tensors = {f"{name}.{key}": t for name, table in tables.items() for key, t in table._asdict().items()}
        save_tensors(folder / EFFECTS, tensors, {"tables": list(tables)})

    @classmethod
    def load(cls, folder: Path) -> "Effects":
        """Those in a folder of records; without a file, none.

        Raises:
            InputError: the file is damaged.
        """
        if not (folder / EFFECTS).exists():
            return cls()
        tensors, _, _ = load_tensors(folder / EFFECTS)
        kinds: dict[str, Any] = {"logits": LogitWeights, "alignment": Alignment}
        found: dict[str, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            table, _, field = name.partition(".")
            found.setdefault(table, {})[field] = tensor
        return cls(**{table: kinds.get(table, Neighbours)(**fields) for table, fields in found.items()})
