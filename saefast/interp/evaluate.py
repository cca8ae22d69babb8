"""How good a trained SAE is, on held-out activations. The evaluation inside the language model is in `splice.py`."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from saefast.activations.sources import as_source
from saefast.backend import load_backend
from saefast.errors import check
from saefast.sae import SAE
from saefast.sae.inference import decode, encode

MAX_PRE_ACTS = 2**25  # entries of the dense [rows, d_sae] block: 128 MiB in fp32, whatever d_sae is


class Evaluation(NamedTuple):
    """Over all rows of a source; every sum in fp64, so that every figure is finite.

    One row, or equal rows, have no variance: it is taken as their number of entries (as by `reference.total_variance`), so
    that `fvu` is the mean square error of an entry. Rows of zeros have no direction, and are left out of the means of
    `normalized_mse` and `cosine`; where all rows are zeros, these are the mean square error of an entry, and 0.
    """

    n_tokens: int
    fvu: float  # sum ||x_hat - x||^2 / sum ||x - mean(x)||^2
    explained_variance: float  # 1 - variance of (x_hat - x) / variance of x: forgives a constant offset
    normalized_mse: float  # mean of ||x_hat - x||^2 / ||x||^2 (OpenAI's)
    cosine: float  # mean cosine similarity of x and x_hat; 0 where x_hat is 0
    l0: float  # mean active latents per token
    dead_frac: float  # share of latents active on none of the rows
    density: list[float]  # share of rows on which each latent is active, [d_sae]
    rows_skipped: int  # rows with NaN or Inf in the dtype of the SAE, left out of everything above
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
        self.n_tokens = self.rows_skipped = self.n_active = self.n_zero = 0
        self.normalized_mse = self.cosine = 0.0
        self.origin: Tensor | None = None  # the first row: differences from it are exactly 0 in equal rows
        self.sum_x = torch.zeros(sae.config.width_out, dtype=torch.float64, device="cpu")
        self.sum_error, self.squared_error, self.squares = (torch.zeros_like(self.sum_x) for _ in range(3))
        self.count = torch.zeros(sae.config.d_sae, dtype=torch.int64, device="cpu")

    @torch.no_grad()
    def add(self, chunk: Tensor) -> None:
        """chunk: rows [n, row_width], any dtype and device."""
        chunk = chunk.to(self.sae.params.b_dec)
        finite = chunk.isfinite().all(dim=1)
        self.rows_skipped += int((~finite).sum())
        if not finite.any():
            return
        with torch.autocast(chunk.device.type, enabled=False):
            self._add(chunk[finite])

    def _add(self, chunk: Tensor) -> None:
        params, config, extra = self.sae.params, self.sae.config, self.sae.extra
        for rows in chunk.split(max(1, MAX_PRE_ACTS // config.d_sae)):
            given, x = rows[:, : config.d_in].contiguous(), rows[:, -config.width_out :].contiguous()
            acts, indices = encode(self.ops, params, extra, config, given)
            x_hat = decode(self.ops, params, extra, config, acts, indices, given)
            x, x_hat = x.double(), x_hat.double()
            if self.origin is None:
                self.origin = x[0].clone()
            error, off = x_hat - x, x - self.origin
            squares, norms = error.square().sum(dim=1), x.norm(dim=1)
            some = norms > 0
            self.n_tokens += len(x)
            self.n_zero += int((~some).sum())
            self.n_active += int((acts > 0).sum())
            self.squared_error += error.square().sum(dim=0).cpu()
            self.squares += off.square().sum(dim=0).cpu()
            self.normalized_mse += float((squares / norms.square())[some].sum())
            product = norms * x_hat.norm(dim=1)
            self.cosine += float(((x * x_hat).sum(dim=1) / torch.where(product > 0, product, 1)).sum())
            self.sum_x += off.sum(dim=0).cpu()
            self.sum_error += error.sum(dim=0).cpu()
            self.count += torch.bincount(indices[acts > 0], minlength=config.d_sae).cpu()

    def result(self) -> Evaluation:
        n = self.n_tokens
        check(n > 0, "source: expected at least one finite row, got none")
        variance = self.squares - self.sum_x.square() / n
        error_variance = self.squared_error - self.sum_error.square() / n
        n_directed, layers = n - self.n_zero, self.sae.config.layers

        def over_variance(error: Tensor, variance: Tensor) -> float:
            total = float(variance.sum())
            return float(error.sum()) / (total if total > 0 else n * len(error))

        parts = zip(self.squared_error.chunk(layers), variance.chunk(layers), strict=True)
        no_direction = float(self.squared_error.mean()) / n
        return Evaluation(
            n_tokens=n,
            fvu=over_variance(self.squared_error, variance),
            explained_variance=1 - over_variance(error_variance, variance),
            normalized_mse=self.normalized_mse / n_directed if n_directed else no_direction,
            cosine=self.cosine / max(n_directed, 1),
            l0=self.n_active / n,
            dead_frac=float((self.count == 0).double().mean()),
            density=(self.count.double() / n).tolist(),
            rows_skipped=self.rows_skipped,
            layer_fvu=[over_variance(*part) for part in parts],
        )
