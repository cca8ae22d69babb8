"""What steering is compared with: other directions; and that it changes nothing where it should not."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from saefast.activations.hooks import capture_all
from saefast.errors import check
from saefast.interp.places import Places
from saefast.sae import SAE


def random_directions(sae: SAE, latents: Sequence[int], seed: int = 0, rows: Tensor | None = None) -> Tensor:
    """Random directions, each with the norm of a latent's row of W_dec -> [latents, d_out].

    Args:
        rows: activations [n, d_out]; the directions are then those of a normal distribution with their covariance, where a random
            direction often lies in parts of the space in which the model has nothing. Default: all directions alike.

    Raises:
        InputError: rows of another width, or fewer than two.
    """
    latents, width = list(latents), sae.config.width_out
    generator = torch.Generator("cpu").manual_seed(seed)
    if rows is None:
        drawn = torch.randn(len(latents), width, generator=generator, dtype=torch.float32, device="cpu")
    else:
        ok = rows.ndim == 2 and rows.shape[1] == width and len(rows) > 1
        check(ok, f"rows: expected at least two [n, {width}], got {list(rows.shape)}")
        centred = (rows.double() - rows.double().mean(dim=0)).cpu()
        # a random sum of rows is normal, with their covariance
        weights = torch.randn(len(latents), len(rows), generator=generator, dtype=torch.float64, device="cpu")
        drawn = (weights @ centred).float()
    norms = sae.W_dec.detach()[latents].float().norm(dim=1, keepdim=True)
    drawn = drawn.to(norms.device)
    return (drawn / drawn.norm(dim=1, keepdim=True).clamp_min(1e-30) * norms).to(sae.b_dec)


class SpliceCheck(NamedTuple):
    """How far the logits are from those of the model as it is, with SAE(x) + (x - SAE(x)) in place of x."""

    n_tokens: int
    relative: float  # ||difference|| / ||logits||, over all tokens
    worst: float  # the same of the token where it is largest


@torch.no_grad()
def splice_check(
    sae: SAE,
    model: nn.Module,
    hook: str | Sequence[str],
    batches: Iterable[Any],
    *,
    max_norm: float | Sequence[float] = float("inf"),
    drop_ids: Iterable[int] = (),
    output_hook: str | Sequence[str] | None = None,
) -> SpliceCheck:
    """With the error of the SAE kept, its reconstruction changes nothing but the rounding.

    Arguments and errors as in `saefast.interp.splice.evaluate_in_model`.
    """
    model.eval()
    batches = list(batches)
    check(bool(batches), "batches: expected at least one batch of tokens, got none")
    places = Places([sae], model, hook, output_hook, batches[0])
    places.set_limits(max_norm, drop_ids)
    n_tokens, square, total, worst = 0, 0.0, 0.0, 0.0
    for batch in batches:
        inputs = places.reader.inputs(batch)
        read = places.rows(inputs, capture_all(places.points, *inputs.args, **inputs.kwargs, **places.kwargs))
        clean = places.logits(inputs)
        x_hat = sae(read.x.to(sae.b_dec)).x_hat
        with places.replaced(inputs, read, x_hat + (read.target.to(x_hat) - x_hat)):
            spliced = places.logits(inputs)
        real = torch.ones(clean.shape[:2], dtype=torch.bool, device=clean.device)
        text = inputs.texts[places.reader.place]
        if text.is_real is not None and text.is_real.shape == real.shape:
            real = text.is_real.to(clean.device)
        difference = (spliced.double() - clean.double())[real].norm(dim=1)
        norms = clean.double()[real].norm(dim=1)
        n_tokens += len(norms)
        square, total = square + float(difference.square().sum()), total + float(norms.square().sum())
        worst = max(worst, float((difference / norms.clamp_min(1e-30)).amax()))
    return SpliceCheck(n_tokens, (square / max(total, 1e-300)) ** 0.5, worst)
