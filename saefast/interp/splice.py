"""Evaluation inside the language model: its loss with the SAE's reconstruction spliced in at the hook point."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from saefast.activations.hooks import HookPoint
from saefast.errors import check
from saefast.sae import SAE

ROWS_AT_ONCE = 64  # of the log-probabilities: 12 MiB for a vocabulary of 49,152 tokens


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
    The blocks before the hook point run once for each batch, where this gives the same logits; memory holds their
    output for all of `batches`.

    Raises:
        InputError: unknown hook point, another width, or no batches.
    """
    point = HookPoint(model, hook)
    batches = list(batches)
    check(bool(batches), "batches: expected at least one batch of tokens, got none")
    if not _blocks_can_be_skipped(point, batches[0][:1, :32]):
        point.earlier_blocks = []
    total, n_rows = torch.zeros(saes[0].config.d_in, dtype=torch.float64), 0
    outputs = []  # of the blocks before the hook point, for each batch: all passes over it share them
    for batch in batches:
        activations, output = point.capture_and_record(batch, use_cache=False)
        outputs.append(output)
        rows = activations.flatten(0, -2)
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
    kl: dict[str | int, float] = dict.fromkeys(variants, 0.0)
    for batch, output in zip(batches, outputs, strict=True):
        with point.earlier_blocks_skipped(output):
            clean = model(batch, use_cache=False).logits
            ce["clean"] += _cross_entropy_and_kl(clean, batch)[0]
            for name, function in variants.items():
                spliced = point.replace(on_rows(function), batch, use_cache=False).logits
                of_clean = clean if isinstance(name, int) else None
                losses = _cross_entropy_and_kl(spliced, batch, of_clean)
                ce[name], kl[name] = ce[name] + losses[0], kl[name] + losses[1]
    n_tokens = sum(batch[:, 1:].numel() for batch in batches)
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


def _blocks_can_be_skipped(point: HookPoint, batch: Tensor) -> bool:
    """Whether the model's logits stay the same bits, twice. They do not if later blocks use more of the earlier ones
    than their output (such as shared keys and values), or change that output in place."""
    clean = point.model(batch, use_cache=False).logits
    _, output = point.capture_and_record(batch, use_cache=False)
    try:
        with point.earlier_blocks_skipped(output):
            return all(torch.equal(point.model(batch, use_cache=False).logits, clean) for _ in range(2))
    except Exception:  # noqa: BLE001 (whatever a model raises that misses something of its blocks)
        return False


def _cross_entropy_and_kl(logits: Tensor, batch: Tensor, clean: Tensor | None = None) -> tuple[float, float]:
    """Sums over the next-token predictions: the loss, and KL(clean || logits), which is 0 without `clean`.

    logits, clean: [m, L, vocab]; batch: token ids [m, L]. A few rows at a time stay in the processor's cache; the
    log-probabilities of a whole batch would be hundreds of megabytes.
    """
    ce, kl = torch.zeros(2, dtype=torch.float64, device=logits.device)
    for context, target in enumerate(batch[:, 1:]):
        for start in range(0, len(target), ROWS_AT_ONCE):
            rows = slice(start, min(start + ROWS_AT_ONCE, len(target)))
            log_probs = logits[context, rows].float().log_softmax(dim=1)
            ce += F.nll_loss(log_probs, target[rows], reduction="sum")
            if clean is not None:
                of_clean = clean[context, rows].float().log_softmax(dim=1)
                kl += F.kl_div(log_probs, of_clean, reduction="sum", log_target=True)
    return float(ce), float(kl)
