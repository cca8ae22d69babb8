"""Evaluation inside the language model: its loss with the SAE's reconstruction spliced in at the hook point."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from saefast.activations.hooks import HookPoint
from saefast.errors import check
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


def evaluate_in_model(
    sae: SAE, model: Any, hook: str, batches: Iterable[Tensor], max_norm: float = float("inf")
) -> Splice:
    """`evaluate_all_in_model` of one SAE: how good it is at its place in the model."""
    return evaluate_all_in_model([sae], model, hook, batches, max_norm)[0]


@torch.no_grad()
def evaluate_all_in_model(
    saes: Sequence[SAE], model: Any, hook: str, batches: Iterable[Tensor], max_norm: float = float("inf")
) -> list[Splice]:
    """Splice each of `saes` into `model` at `hook`, over batches of token ids [m, L].

    Rows with a norm above `max_norm` (attention sinks: the SAE was not trained on them) stay as they are in all
    passes, so every figure is about the rows the SAE is meant for. The mean is that of the rows of `batches`.

    Raises:
        InputError: unknown hook point, another width, or no batches.
    """
    point = HookPoint(model, hook)
    total, n_rows = torch.zeros(saes[0].config.d_in, dtype=torch.float64), 0
    batches = list(batches)
    check(bool(batches), "batches: expected at least one batch of tokens, got none")
    for batch in batches:
        rows = point.capture(batch, use_cache=False).flatten(0, -2)
        for sae in saes:
            sae.check_input(rows)
        rows = rows[rows.norm(dim=1) <= max_norm]
        total, n_rows = total + rows.double().sum(dim=0).cpu(), n_rows + len(rows)
    mean = (total / n_rows).to(saes[0].b_dec)

    def on_rows(function: Any) -> Any:
        def replace(activations: Tensor) -> Tensor:
            rows = activations.flatten(0, -2)
            keep = rows.norm(dim=1, keepdim=True) > max_norm
            return torch.where(keep, rows, function(rows)).view_as(activations)

        return replace

    variants: dict[str | int, Any] = {"zero": torch.zeros_like, "mean": lambda rows: mean.expand_as(rows)}
    variants |= {i: lambda rows, sae=sae: sae(rows).x_hat for i, sae in enumerate(saes)}
    ce: dict[str | int, float] = dict.fromkeys(("clean", *variants), 0.0)
    kl = [0.0] * len(saes)
    n_tokens = 0
    for batch in batches:
        target = batch[:, 1:].flatten()
        n_tokens += len(target)

        def log_probs(output: Any) -> Tensor:
            return output.logits[:, :-1].flatten(0, 1).float().log_softmax(dim=1)

        clean = log_probs(model(batch, use_cache=False))
        ce["clean"] += float(F.nll_loss(clean, target, reduction="sum"))
        for name, function in variants.items():
            spliced = log_probs(point.replace(on_rows(function), batch, use_cache=False))
            ce[name] += float(F.nll_loss(spliced, target, reduction="sum"))
            if isinstance(name, int):
                kl[name] += float(F.kl_div(spliced, clean, reduction="sum", log_target=True))
    check(n_tokens > 0, "batches: expected contexts of at least two tokens, got one")
    ce = {name: value / n_tokens for name, value in ce.items()}

    def recovered(ablated: float, with_sae: float) -> float:
        gap = ablated - ce["clean"]
        return (ablated - with_sae) / gap if gap else float("nan")  # nothing lost, nothing to recover

    return [
        Splice(
            n_tokens=n_tokens,
            ce=ce["clean"],
            ce_sae=ce[i],
            ce_zero=ce["zero"],
            ce_mean=ce["mean"],
            loss_recovered=recovered(ce["zero"], ce[i]),
            loss_recovered_mean=recovered(ce["mean"], ce[i]),
            kl=kl[i] / n_tokens,
        )
        for i in range(len(saes))
    ]
