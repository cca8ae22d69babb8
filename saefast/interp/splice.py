"""Evaluation inside the language model: its loss with the SAE's reconstruction spliced in at the hook point.

An SAE is read and put at one hook point. A crosscoder is read at several and its reconstruction put at all of them. A
transcoder is read at its input (`model.layers.12.mlp:in`) and what it gives is put at its output (`model.layers.12.mlp`).
All of them read the model as it is: what is put at one place does not change what was read at a later one.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saefast.activations.hooks import blocks_skipped, capture_and_record, earlier_blocks
from saefast.activations.inputs import Inputs
from saefast.errors import check
from saefast.interp.places import Places
from saefast.sae import SAE

ROWS_AT_ONCE = 64  # of the log-probabilities: 12 MiB for a vocabulary of 49,152 tokens
INFINITE = float("inf")


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
    sae: SAE,
    model: Any,
    hook: str | Sequence[str],
    batches: Iterable[Any],
    max_norm: float | Sequence[float] = INFINITE,
    output_hook: str | Sequence[str] | None = None,
    drop_ids: Iterable[int] = (),
) -> Splice:
    """`evaluate_all_in_model` of one SAE: how good it is at its place in the model."""
    return evaluate_all_in_model([sae], model, hook, batches, max_norm, output_hook, drop_ids)[0]


@torch.no_grad()
def evaluate_all_in_model(
    saes: Sequence[SAE],
    model: Any,
    hook: str | Sequence[str],
    batches: Iterable[Any],
    max_norm: float | Sequence[float] = INFINITE,
    output_hook: str | Sequence[str] | None = None,
    drop_ids: Iterable[int] = (),
) -> list[Splice]:
    """Splice each of `saes` into `model`, over batches of token ids [m, L], or dicts with "input_ids" and, where there is
    padding, "attention_mask" (see `saefast.activations.inputs`). The model is put in eval mode.

    Rows that the SAE was not trained on stay as they are in all passes, so every figure is about the rows it is meant
    for: padding, special tokens (`drop_ids`) and attention sinks, whose norm at any of the hook points is above its
    `max_norm`. The mean of mean ablation is that of the other rows. The losses are over all predictions of a token from a
    token, so without padding. Activations in another dtype than the SAE's are converted, and converted back.

    The blocks before the hook points run once for each batch, where this gives the same logits; memory holds their output
    and the rows for all of `batches`.

    Args:
        saes: of the same widths.
        hook: where they are read: one hook point, or several in the order of the columns of their rows. The hook points
            of a cache (`ShardSource.hooks`) do for all kinds: those of a transcoder are its inputs and then its outputs.
        max_norm: of the hook points that `hook` and `output_hook` name: one number for those of `hook`, or one for each.
        output_hook: where what a transcoder gives is put. Default: where `hook` ends in ":in", the output of that module.
        drop_ids: token ids whose rows stay as they are.

    Raises:
        InputError: unknown hook points, or of other widths than the SAE; a transcoder without a place for its output; rows
            that are not those of tokens (see `saefast.activations.token_rows`); inputs that the model cannot take, or no
            batches; a model without next-token logits.
    """
    model.eval()
    batches = list(batches)
    check(bool(batches), "batches: expected at least one batch of tokens, got none")
    places = Places(saes, model, hook, output_hook, batches[0])
    places.set_limits(max_norm, drop_ids)
    inputs = [places.reader.inputs(batch) for batch in batches]
    blocks = earlier_blocks(places.points)
    if not blocks_can_be_skipped(places, blocks, inputs[0]):
        blocks = []
    rows, outputs = (
        [],
        [],
    )  # what is read of each batch, and what the blocks before gave: all passes share them
    total, n_rows = torch.zeros(saes[0].config.width_out, dtype=torch.float64, device="cpu"), 0
    for given in inputs:
        captured, output = capture_and_record(
            places.points, blocks, *given.args, **given.kwargs, **places.kwargs
        )
        found = places.rows(given, captured)
        rows.append(found)
        outputs.append(output)
        total, n_rows = total + found.target.double().sum(dim=0).cpu(), n_rows + len(found.target)
    mean = (total / n_rows).to(saes[0].b_dec)

    variants: dict[str | int, Callable[[Tensor], Tensor]] = {
        "zero": lambda x: x.new_zeros(len(x), len(mean)),
        "mean": lambda x: mean.expand(len(x), -1),
    }
    variants |= {i: partial(_reconstruct, sae) for i, sae in enumerate(saes)}
    ce: dict[str | int, float] = dict.fromkeys(("clean", *variants), 0.0)
    kl: dict[str | int, float] = dict.fromkeys(variants, 0.0)
    n_tokens = 0
    for given, found, output in zip(inputs, rows, outputs, strict=True):
        with blocks_skipped(blocks, output):
            clean = places.logits(given)
            tokens, is_predicted = _predictions(given, clean)
            n_tokens += int(is_predicted.sum())
            ce["clean"] += _cross_entropy_and_kl(clean, tokens, is_predicted)[0]
            for name, function in variants.items():
                with places.replaced(given, found, function(found.x.to(saes[0].b_dec))):
                    spliced = places.logits(given)
                of_clean = clean if isinstance(name, int) else None
                losses = _cross_entropy_and_kl(spliced, tokens, is_predicted, of_clean)
                ce[name], kl[name] = ce[name] + losses[0], kl[name] + losses[1]
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


def _reconstruct(sae: SAE, x: Tensor) -> Tensor:
    return sae(x).x_hat


def _predictions(inputs: Inputs, logits: Tensor) -> tuple[Tensor, Tensor]:
    """The token ids [m, L] that the logits are about, those of the decoder if there is one, and which of them [m, L - 1]
    are predicted from a token: not in padding, and not from it."""
    shape = logits.shape[:2]
    texts = [text for text in inputs.texts if text.is_ids and text.tokens.shape == shape]
    wants = [list(text.tokens.shape) for text in inputs.texts if text.is_ids]
    check(
        bool(texts),
        f"model: expected a next-token prediction for each of the tokens {wants}, got logits {list(logits.shape)}",
    )
    text = texts[-1]
    real = torch.ones(shape, dtype=torch.bool, device="cpu") if text.is_real is None else text.is_real.cpu()
    return text.tokens, real[:, 1:] & real[:, :-1]


def blocks_can_be_skipped(places: Places, blocks: Sequence[nn.Module], inputs: Inputs) -> bool:
    """Whether the model's logits stay the same bits, twice. They do not if later blocks use more of the earlier ones
    than their output (such as shared keys and values), or change that output in place."""
    part = inputs.part(1, [min(text.length or 1, 32) for text in inputs.texts])
    try:
        clean = places.logits(part)
        _, output = capture_and_record(places.points, blocks, *part.args, **part.kwargs, **places.kwargs)
        with blocks_skipped(blocks, output):
            return all(torch.equal(places.logits(part), clean) for _ in range(2))
    except Exception:  # noqa: BLE001 (whatever a model raises that misses something of its blocks)
        return False


def _cross_entropy_and_kl(
    logits: Tensor, tokens: Tensor, is_predicted: Tensor, clean: Tensor | None = None
) -> tuple[float, float]:
    """Sums over the next-token predictions: the loss, and KL(clean || logits), which is 0 without `clean`.

    logits, clean: [m, L, vocab]; tokens: ids [m, L]; is_predicted: [m, L - 1]. A few rows at a time stay in the processor's
    cache; the log-probabilities of a whole batch would be hundreds of megabytes.
    """
    ce, kl = torch.zeros(2, dtype=torch.float64, device=logits.device)
    for context, target in enumerate(tokens[:, 1:]):
        for rows in is_predicted[context].nonzero().squeeze(1).split(ROWS_AT_ONCE):
            rows = rows.to(logits.device)
            log_probs = logits[context, rows].float().log_softmax(dim=1)
            ce += F.nll_loss(log_probs, target[rows], reduction="sum")
            if clean is not None:
                of_clean = clean[context, rows].float().log_softmax(dim=1)
                kl += F.kl_div(log_probs, of_clean, reduction="sum", log_target=True)
    return float(ce), float(kl)
