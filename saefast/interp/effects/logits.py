"""Logit weights: what a unit of activation adds to the logit of each token on the direct path to the output."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from saefast.errors import check
from saefast.interp.effects.direct_path import direct_path
from saefast.interp.effects.ranking import top_of
from saefast.interp.effects.types import LogitWeights
from saefast.sae import SAE

AT_ONCE = 2**24  # logits: 64 MiB, and about four times that while they are counted


@torch.no_grad()
def logit_weights(
    sae: SAE,
    model: nn.Module,
    n: int = 10,
    n_bins: int = 50,
    *,
    hook: str | Sequence[str] | None = None,
    n_vocab: int | None = None,
    norm: str | nn.Module | None = None,
    unembedding: str | nn.Module | None = None,
) -> LogitWeights:
    """W_dec through the final norm and the unembedding, minus the median over the vocabulary (of an even number the lower
    of the two in the middle). The n largest and smallest of each latent, of equal ones the smaller token id.

    The scale that the final norm divides by is left out, so that logits are in units of that scale, as are bias, logit
    scaling and soft-capping, and all that later blocks make of the direction. 2 F V d FLOP and a few passes over F x V
    numbers; memory besides the unembedding in fp32: about 2^24 logits at a time, and their copies (300 MB).

    Args:
        hook: where the decoder writes: the hook point of an SAE; of a transcoder its output, or the input whose name ends
            in ":in", then that module's output; of several side by side their names, of which the last one's part of W_dec
            is taken. Default: the SAE's metadata.
        n_vocab: how many tokens there are, where the unembedding has rows of padding after them; default: all its rows.
        norm, unembedding: modules or their paths, for models where they are not found; see `direct_path`.

    Raises:
        InputError: no hook point is known, there is no direct path from it, other widths, or numbers below 1.
    """
    check(n > 0 and n_bins > 0, f"n, n_bins: expected at least 1, got {n} and {n_bins}")
    parts = []
    for logits in _in_blocks(sae, model, hook, n_vocab, norm, unembedding):
        positive, of_positive = top_of(logits, n)
        negative, of_negative = top_of(-logits, n)
        lowest, highest = logits.aminmax(dim=1)
        counts = torch.stack([torch.histc(row, n_bins) for row in logits]).int()
        counts[lowest == highest] = 0
        counts[lowest == highest, 0] = logits.shape[1]
        parts.append((of_positive.int(), positive, of_negative.int(), -negative, counts, lowest, highest))
    return LogitWeights(*(torch.cat(part).cpu() for part in zip(*parts, strict=True)))


@torch.no_grad()
def logit_matrix(
    sae: SAE,
    model: nn.Module,
    *,
    hook: str | Sequence[str] | None = None,
    n_vocab: int | None = None,
    norm: str | nn.Module | None = None,
    unembedding: str | nn.Module | None = None,
) -> Tensor:
    """The logit weights of which `logit_weights` keeps the largest: all, [F, V] float32 on the CPU (4 F V bytes).

    Raises:
        InputError: as `logit_weights`.
    """
    return torch.cat([block.cpu() for block in _in_blocks(sae, model, hook, n_vocab, norm, unembedding)])


def _in_blocks(
    sae: SAE,
    model: nn.Module,
    hook: str | Sequence[str] | None,
    n_vocab: int | None,
    norm: str | nn.Module | None,
    unembedding: str | nn.Module | None,
) -> Iterator[Tensor]:
    """[some latents, V] at a time, minus the median of each row."""
    config, given = sae.config, hook or sae.metadata.get("hook_name")
    check(bool(given), "hook: expected the hook point of the SAE, which its metadata does not have, got None")
    names = [given] if isinstance(given, str) else [str(one) for one in given or ()]
    name = names[-1]
    if config.d_out is not None and len(names) == 1 and name.endswith(":in"):
        name = name.removesuffix(":in")
    width = config.width_out // config.layers
    path = direct_path(model, name, width, norm, unembedding)
    n_rows = len(path.unembedding)
    vocabulary = n_rows if n_vocab is None else n_vocab
    check(
        0 < vocabulary <= n_rows,
        f"n_vocab: expected 1 to {n_rows}, rows of the unembedding, got {vocabulary}",
    )
    path = path._replace(unembedding=path.unembedding[:vocabulary])
    scale = 1.0 if config.scales is None else 1 / config.scales[-1]
    for rows in sae.W_dec.detach()[:, -width:].split(max(1, AT_ONCE // vocabulary)):
        logits = path(rows.to(path.unembedding) * scale)
        yield logits - logits.median(dim=1, keepdim=True).values
