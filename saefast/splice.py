"""Evaluation inside the language model: its loss with the SAE's reconstruction spliced in at the hook point."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from saefast.errors import check
from saefast.hooks import HookPoint
from saefast.sae import SAE


class Splice(NamedTuple):
    """Mean over next-token predictions; losses in nats per token."""

    n_tokens: int
    ce: float  # the model as it is
    ce_sae: float  # with the reconstruction spliced in
    ce_zero: float  # with zeros instead (zero ablation)
    ce_mean: float  # with the mean activation instead (mean ablation)
    loss_recovered: float  # (ce_zero - ce_sae) / (ce_zero - ce)
    loss_recovered_mean: float  # (ce_mean - ce_sae) / (ce_mean - ce)
    kl: float  # KL(model || model with the SAE), nats per token


@torch.no_grad()
def evaluate_in_model(
    sae: SAE, model: Any, hook: str, batches: Iterable[Tensor], max_norm: float = float("inf")
) -> Splice:
    """Splice `sae` into `model` at `hook`, over batches of token ids [m, L].

    Rows with a norm above `max_norm` (attention sinks: the SAE was not trained on them) stay as they are in all
    four passes, so every figure is about the rows the SAE is meant for. The mean is that of the rows of `batches`.

    Raises:
        InputError: unknown hook point, another width, or no batches.
    """
    point = HookPoint(model, hook)
    total, n_rows = torch.zeros(sae.config.d_in, dtype=torch.float64), 0
    batches = list(batches)
    check(bool(batches), "batches: expected at least one batch of tokens, got none")
    for batch in batches:
        rows = point.capture(batch, use_cache=False).flatten(0, -2)
        sae.check_input(rows)
        rows = rows[rows.norm(dim=1) <= max_norm]
        total, n_rows = total + rows.double().sum(dim=0).cpu(), n_rows + len(rows)
    mean = (total / n_rows).to(sae.b_dec)

    def on_rows(function: Any) -> Any:
        def replace(activations: Tensor) -> Tensor:
            rows = activations.flatten(0, -2)
            keep = rows.norm(dim=1, keepdim=True) > max_norm
            return torch.where(keep, rows, function(rows)).view_as(activations)

        return replace

    variants = {
        "ce_sae": on_rows(lambda rows: sae(rows).x_hat),
        "ce_zero": on_rows(torch.zeros_like),
        "ce_mean": on_rows(lambda rows: mean.expand_as(rows)),
    }
    sums = dict.fromkeys(("ce", *variants, "kl"), 0.0)
    n_tokens = 0
    for batch in batches:
        target = batch[:, 1:].flatten()
        n_tokens += len(target)

        def log_probs(output: Any) -> Tensor:
            return output.logits[:, :-1].flatten(0, 1).float().log_softmax(dim=1)

        clean = log_probs(model(batch, use_cache=False))
        sums["ce"] += float(F.nll_loss(clean, target, reduction="sum"))
        for name, function in variants.items():
            spliced = log_probs(point.replace(function, batch, use_cache=False))
            sums[name] += float(F.nll_loss(spliced, target, reduction="sum"))
            if name == "ce_sae":
                sums["kl"] += float(F.kl_div(spliced, clean, reduction="sum", log_target=True))
    check(n_tokens > 0, "batches: expected contexts of at least two tokens, got one")
    means = {name: value / n_tokens for name, value in sums.items()}

    def recovered(ablated: float) -> float:
        gap = ablated - means["ce"]
        return (ablated - means["ce_sae"]) / gap if gap else float("nan")  # nothing lost, nothing to recover

    return Splice(
        n_tokens=n_tokens,
        **means,
        loss_recovered=recovered(means["ce_zero"]),
        loss_recovered_mean=recovered(means["ce_mean"]),
    )
