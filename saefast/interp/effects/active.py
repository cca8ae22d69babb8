"""Which latents are active on each token of any text."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from saefast.activations.hooks import capture_all
from saefast.activations.tokens import encode
from saefast.backend import load_backend
from saefast.errors import check
from saefast.interp.places import Cached, Places
from saefast.sae import SAE
from saefast.sae.inference import encode as encode_rows


class Active(NamedTuple):
    """A latent and how strongly it is active on a token."""

    latent: int
    act: float


@torch.no_grad()
def active_latents(
    sae: SAE,
    model: nn.Module,
    hook: str | Sequence[str],
    text: str | Sequence[int] | Tensor,
    tokenizer: Any = None,
    n: int | None = None,
    *,
    output_hook: str | Sequence[str] | None = None,
    max_norm: float | Sequence[float] = float("inf"),
    drop_ids: Iterable[int] = (),
    cached: Cached | None = None,
) -> list[list[Active]]:
    """For each token the active latents, the strongest first, of equal ones the smaller; one pass of the model.

    Tokens that have no row in a cache have none here: special tokens, and attention sinks, by the same limits. The model is
    put in eval mode. Memory: the rows [L, d_in] and their code.

    Args:
        hook: where the SAE is read, as in `saefast.interp.splice.evaluate_in_model`; likewise output_hook.
        text: token ids [L], or a text, which takes a tokenizer; nothing is put around it. Without tokens the list is empty.
        n: at most so many latents of each token; default: all.
        max_norm, drop_ids: which rows are left out; `Cached.of(source, sae.config, "cached")` knows them of a cache.
        cached: its hooks, limits and ids, in place of these two.

    Raises:
        InputError: a text without tokenizer; token ids that the model does not have, or more than it has positions for; hook
            points of other widths than the SAE; n < 1.
    """
    check(n is None or n > 0, f"n: expected at least 1, got {n}")
    if isinstance(text, str):
        check(
            tokenizer is not None, "tokenizer: expected that of the model, since a text was given, got None"
        )
        text = encode(tokenizer, text)
    if not isinstance(text, Tensor):
        is_ids = all(hasattr(token, "__index__") for token in text)
        check(is_ids, "text: expected a text or integer token ids [L], got other numbers")
        text = torch.tensor([int(token) for token in text], dtype=torch.int64, device="cpu")
    tokens = text.cpu()
    ok = tokens.ndim == 1 and not (tokens.is_floating_point() or tokens.is_complex())
    check(ok, f"text: expected token ids [L], got {list(tokens.shape)} in {tokens.dtype}")
    if not len(tokens):
        return []
    model.eval()
    batch = tokens.long()[None]
    places = Places([sae], model, hook, output_hook, batch)
    if cached is not None:
        hooks = tuple(point.name for point in places.points)
        check(hooks == cached.hooks, f"cached: expected limits of {hooks}, got those of {cached.hooks}")
        max_norm, drop_ids = cached.limits, cached.drop_ids
    places.set_limits(max_norm, drop_ids)
    inputs = places.reader.inputs(batch)
    read = places.rows(inputs, capture_all(places.points, *inputs.args, **inputs.kwargs, **places.kwargs))
    one = read.chosen.shape[2] == 1
    check(one, f"hook: expected one row for each token, got {read.chosen.shape[2]}")
    found: list[list[Active]] = [[] for _ in range(len(tokens))]
    if not len(read.x):
        return found
    ops = load_backend("auto", sae.W_enc.device.type)
    acts, indices = encode_rows(ops, sae.params, sae.extra, sae.config, read.x.to(sae.b_dec))
    at = read.chosen.flatten().nonzero().squeeze(1)
    for token, of_token, latents in zip(at.tolist(), acts.tolist(), indices.tolist(), strict=True):
        pairs = [Active(latent, act) for latent, act in zip(latents, of_token, strict=True) if act > 0]
        found[token] = sorted(pairs, key=lambda pair: (-pair.act, pair.latent))[:n]
    return found
