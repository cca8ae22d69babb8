"""How good a trained SAE is, on held-out activations. The evaluation inside the language model is in `splice.py`."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from saefast import reference
from saefast.activations.sources import as_source
from saefast.backend import load_backend
from saefast.errors import check
from saefast.sae import SAE
from saefast.sae.inference import decode, encode

MAX_PRE_ACTS = 2**25  # entries of the dense [rows, d_sae] block: 128 MiB in fp32, whatever d_sae is


class Evaluation(NamedTuple):
    """Over all rows of a source; every sum in fp64."""

    n_tokens: int
    fvu: float  # sum ||x_hat - x||^2 / sum ||x - mean(x)||^2
    explained_variance: float  # 1 - variance of (x_hat - x) / variance of x: forgives a constant offset
    normalized_mse: float  # mean of ||x_hat - x||^2 / ||x||^2
    cosine: float  # mean cosine similarity of x and x_hat
    l0: float  # mean active latents per token
    dead_frac: float  # share of latents active on none of the rows
    density: list[float]  # share of rows on which each latent is active, [d_sae]
    rows_skipped: int  # rows with NaN or Inf, left out of everything above
    layer_fvu: list[
        float
    ]  # fvu of each layer of a crosscoder, [layers]; the fvu above is mostly that of the largest


def evaluate(sae: SAE, source: Iterable[Tensor] | Tensor, backend: str = "auto") -> Evaluation:
    """Evaluate `sae` on one pass over a source of tensors [n, d_in] (of a transcoder: [n, d_in + d_out], with x below
    the target), in memory bounded at any d_sae.

    Raises:
        InputError: the source has another width or no finite rows.
    """
    sums = Sums(sae, backend)
    for chunk in as_source(source, sae.config.row_width):
        sums.add(chunk)
    return sums.result()


class Sums:
    """The sums over rows that `evaluate` needs: `add` chunks of rows, then ask for the `result`."""

    def __init__(self, sae: SAE, backend: str = "auto") -> None:
        self.sae, self.ops = sae, load_backend(backend, sae.W_enc.device.type)
        self.n_tokens = self.rows_skipped = self.n_active = 0
        self.normalized_mse = self.cosine = 0.0
        self.sum_x = torch.zeros(sae.config.width_out, dtype=torch.float64)
        self.sum_error = torch.zeros_like(self.sum_x)
        self.squared_error, self.squared_norm = torch.zeros_like(self.sum_x), torch.zeros_like(self.sum_x)
        self.count = torch.zeros(sae.config.d_sae, dtype=torch.int64)

    @torch.no_grad()
    def add(self, chunk: Tensor) -> None:
        """chunk: rows [n, row_width], any dtype and device."""
        params, config, extra = self.sae.params, self.sae.config, self.sae.extra
        finite = chunk.isfinite().all(dim=1)
        self.rows_skipped += int((~finite).sum())
        for rows in chunk[finite].to(params.b_dec).split(max(1, MAX_PRE_ACTS // config.d_sae)):
            given, x = rows[:, : config.d_in].contiguous(), rows[:, -config.width_out :].contiguous()
            acts, indices = encode(self.ops, params, extra, config, given)
            x_hat = decode(self.ops, params, extra, config, acts, indices, given)
            error = (x_hat - x).double()
            self.n_tokens += len(x)
            self.n_active += int((acts > 0).sum())
            self.squared_error += error.square().sum(dim=0).cpu()
            self.squared_norm += x.double().square().sum(dim=0).cpu()
            self.normalized_mse += float(reference.normalized_mse(x_hat, x)) * len(x)
            self.cosine += float(torch.cosine_similarity(x, x_hat, dim=1).double().sum())
            self.sum_x += x.double().sum(dim=0).cpu()
            self.sum_error += error.sum(dim=0).cpu()
            self.count += torch.bincount(indices[acts > 0], minlength=config.d_sae).cpu()

    def result(self) -> Evaluation:
        n = self.n_tokens
        check(n > 0, "source: expected at least one finite row, got none")
        variance = self.squared_norm - self.sum_x.square() / n
        error_variance = self.squared_error - self.sum_error.square() / n
        layers = self.sae.config.layers

        def fvu(error: Tensor, variance: Tensor, squares: Tensor = self.squared_norm) -> float:
            # one row, or equal rows, have no FVU: what is left of their variance is rounding
            return (
                float(error.sum() / variance.sum())
                if variance.sum() > 1e-12 * squares.sum()
                else float("nan")
            )

        parts = zip(
            *(t.chunk(layers) for t in (self.squared_error, variance, self.squared_norm)), strict=True
        )
        return Evaluation(
            n_tokens=n,
            fvu=fvu(self.squared_error, variance),
            explained_variance=1 - fvu(error_variance, variance),
            normalized_mse=self.normalized_mse / n,
            cosine=self.cosine / n,
            l0=self.n_active / n,
            dead_frac=float((self.count == 0).double().mean()),
            density=(self.count / n).tolist(),
            rows_skipped=self.rows_skipped,
            layer_fvu=[fvu(*part) for part in parts],
        )
