"""How good a trained SAE is, on held-out activations. The evaluation inside the language model is in `lm.py`."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from saefast import reference
from saefast.architectures.inference import encode
from saefast.backend import load_backend
from saefast.errors import check
from saefast.sae import SAE
from saefast.sources import as_source

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


def evaluate(sae: SAE, source: Iterable[Tensor] | Tensor, backend: str = "auto") -> Evaluation:
    """Evaluate `sae` on one pass over a source of tensors [n, d_in] (of a transcoder: [n, d_in + d_out], with x below
    the target), in memory bounded at any d_sae.

    Raises:
        InputError: the source has another width or no finite rows.
    """
    params, config, extra, d_sae = sae.params, sae.config, sae.extra, sae.config.d_sae
    ops = load_backend(backend, params.W_enc.device.type)
    rows_at_once = max(1, MAX_PRE_ACTS // d_sae)
    n_tokens = rows_skipped = n_active = 0
    squared_error = squared_norm = normalized_mse = cosine = 0.0
    sum_x = torch.zeros(config.width_out, dtype=torch.float64)
    sum_error = torch.zeros_like(sum_x)
    count = torch.zeros(d_sae, dtype=torch.int64)
    with torch.no_grad():
        for chunk in as_source(source, config.row_width):
            finite = chunk.isfinite().all(dim=1)
            rows_skipped += int((~finite).sum())
            for rows in chunk[finite].to(params.b_dec).split(rows_at_once):
                given, x = rows[:, : config.d_in].contiguous(), rows[:, -config.width_out :].contiguous()
                acts, indices = encode(ops, params, extra, config, given)
                x_hat = ops.decode(acts, indices, params.W_dec, params.b_dec)
                if config.skip:
                    x_hat = x_hat + given @ extra["W_skip"].T
                error = (x_hat - x).double()
                n_tokens += len(x)
                n_active += int((acts > 0).sum())
                squared_error += float(error.square().sum())
                squared_norm += float(x.double().square().sum())
                normalized_mse += float(reference.normalized_mse(x_hat, x)) * len(x)
                cosine += float(torch.cosine_similarity(x, x_hat, dim=1).double().sum())
                sum_x += x.double().sum(dim=0).cpu()
                sum_error += error.sum(dim=0).cpu()
                count += torch.bincount(indices[acts > 0], minlength=d_sae).cpu()
    check(n_tokens > 0, "source: expected at least one finite row, got none")
    variance = squared_norm - float(sum_x.square().sum()) / n_tokens
    error_variance = squared_error - float(sum_error.square().sum()) / n_tokens
    # one row, or equal rows, have no FVU: what is left of their variance is rounding
    scale = variance if variance > 1e-12 * squared_norm else float("nan")
    return Evaluation(
        n_tokens=n_tokens,
        fvu=squared_error / scale,
        explained_variance=1 - error_variance / scale,
        normalized_mse=normalized_mse / n_tokens,
        cosine=cosine / n_tokens,
        l0=n_active / n_tokens,
        dead_frac=float((count == 0).double().mean()),
        density=(count / n_tokens).tolist(),
        rows_skipped=rows_skipped,
    )
