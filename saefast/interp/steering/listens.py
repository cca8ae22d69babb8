"""Does the model listen to its latents? Its loss with a latent scaled, beside as large a change in other directions.

"Scaling Monosemanticity" and the notes before it: a latent is taken away (0) or doubled (2) wherever it is active; the loss grows by
more than with a change of the same norm in a random direction, and more than in directions that are as the activations are.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saefast.activations.hooks import blocks_skipped, capture_all, capture_and_record, earlier_blocks
from saefast.errors import check
from saefast.interp.effects.checks import check_same
from saefast.interp.places import Places
from saefast.interp.records import Records
from saefast.interp.splice import blocks_can_be_skipped
from saefast.interp.steering.controls import random_directions
from saefast.interp.steering.intervals import Interval, Share, mean_interval, wilson
from saefast.sae import SAE
from saefast.sae.inference import in_data_units

POOL = 32  # contexts whose rows give the covariance


class Heard(NamedTuple):
    """Of one latent, how much the loss grows, in nats per token on which it is active; one figure for each factor."""

    latent: int
    n_tokens: int  # on which it is active, in the contexts that were read
    scaled: list[float]
    random: list[float]  # as large a change in random directions: the mean of the draws
    covariance: list[float]  # in directions with the covariance of the activations


class Compared(NamedTuple):
    """Of one factor, over latents."""

    factor: float
    scaled: Interval  # mean of the latents, with a bootstrap interval over them
    random: Interval
    covariance: Interval
    above_random: Interval  # of scaled - random
    above_covariance: Interval
    share_above_random: Share  # of the latents for which scaled > random
    share_above_covariance: Share


class Listens(NamedTuple):
    latents: list[Heard]
    factors: list[Compared]


@torch.no_grad()
def listens(
    records: Records,
    sae: SAE,
    model: nn.Module,
    hook: str | Sequence[str],
    latents: Sequence[int],
    factors: Sequence[float] = (0.0, 2.0),
    n_contexts: int = 4,
    draws: int = 3,
    seed: int = 0,
    *,
    max_norm: float | Sequence[float] = float("inf"),
    drop_ids: Iterable[int] = (),
    output_hook: str | Sequence[str] | None = None,
) -> Listens:
    """Scale each latent in n_contexts random contexts of the records in which it is active, with the error of the SAE kept.

    Latents that are active in none of the contexts (as with another `max_norm`) are left out. A latent takes a pass for each factor and
    2 * draws for each distinct |factor - 1|; the blocks before the hook point run once where the model allows that.

    Args:
        latents: of the records; those without an activation are left out.
        hook, max_norm, drop_ids, output_hook: as in `saefast.interp.splice.evaluate_in_model`; `Cached.described` knows them
            of `records.index["source"]`.

    Raises:
        InputError: records of another SAE, latents that there are not or none that is active, a factor of 1, numbers out of
            range; hook points of other widths.
    """
    check_same(records, sae)
    for name, value in (("n_contexts", n_contexts), ("draws", draws), ("factors", len(factors))):
        check(value > 0, f"{name}: expected at least 1, got {value}")
    check(1 not in factors, f"factors: expected others than 1, which changes nothing, got {list(factors)}")
    model.eval()
    rng, contexts = np.random.default_rng(seed), records.text.contexts
    pool = rng.permutation(len(contexts))[:POOL]
    places = Places([sae], model, hook, output_hook, _tokens(contexts[pool[:2]]))
    places.set_limits(max_norm, drop_ids)
    listener = _Listener(places, sae, _tokens(contexts[pool]))
    heard = []
    for number, latent in enumerate(latents):
        slots, _ = records.entries(int(latent))
        having = np.unique(slots // records.text.length)
        if not len(having):
            continue
        tokens = _tokens(contexts[np.sort(rng.permutation(having)[:n_contexts])])
        one = listener.heard(int(latent), tokens, factors, draws, seed + number * draws)
        heard += [] if one is None else [one]
    check(bool(heard), "latents: expected some that are active in the records, got none")
    return Listens(heard, [_compared(heard, i, factor, seed) for i, factor in enumerate(factors)])


def _tokens(contexts: np.ndarray) -> Tensor:
    return torch.from_numpy(contexts.astype(np.int64))


class _Listener:
    def __init__(self, places: Places, sae: SAE, pool: Tensor) -> None:
        self.places, self.sae = places, sae
        inputs = places.reader.inputs(pool[:1])
        blocks = earlier_blocks(places.points)
        self.blocks = blocks if blocks_can_be_skipped(places, blocks, inputs) else []
        found = []
        for tokens in pool.split(4):
            inputs = places.reader.inputs(tokens)
            captured = capture_all(places.points, *inputs.args, **inputs.kwargs, **places.kwargs)
            found.append(places.rows(inputs, captured).target.float().cpu())
        self.rows = torch.cat(found)

    def heard(
        self, latent: int, tokens: Tensor, factors: Sequence[float], draws: int, seed: int
    ) -> Heard | None:
        places, sae = self.places, self.sae
        inputs = places.reader.inputs(tokens)
        captured, output = capture_and_record(
            places.points, self.blocks, *inputs.args, **inputs.kwargs, **places.kwargs
        )
        read = places.rows(inputs, captured)
        x = read.x.to(sae.b_dec)
        acts, indices = sae.encode(x)
        of_latent = (acts * (indices == latent)).sum(dim=1, keepdim=True)
        n_tokens = int((of_latent > 0).sum())
        if not n_tokens:
            return None
        target = inputs.texts[places.reader.place].tokens[:, 1:]

        def loss(new: Tensor) -> float:
            with blocks_skipped(self.blocks, output), places.replaced(inputs, read, new):
                logits = places.logits(inputs)[:, :-1].float()
            return float(F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="sum").double())

        old = read.target.to(sae.b_dec)
        clean = loss(old)

        def grows(directions: Tensor, factor: float) -> float:
            """The mean over directions [n, d_out]."""
            changes = ((factor - 1) * of_latent * direction for direction in directions)
            losses = [loss(old + in_data_units(sae.config, change, x)) for change in changes]
            return (sum(losses) / len(losses) - clean) / n_tokens

        others = [random_directions(sae, [latent] * draws, seed, rows).to(old) for rows in (None, self.rows)]
        sizes = {abs(factor - 1): factor for factor in factors}
        controls = {size: [grows(each, factor) for each in others] for size, factor in sizes.items()}
        own = sae.W_dec.detach()[latent : latent + 1].to(old)
        random, covariance = zip(*(controls[abs(factor - 1)] for factor in factors), strict=True)
        return Heard(
            latent, n_tokens, [grows(own, factor) for factor in factors], list(random), list(covariance)
        )


def _compared(heard: Sequence[Heard], i: int, factor: float, seed: int) -> Compared:
    def figures(get: Callable[[Heard], float]) -> Interval:
        return mean_interval([get(one) for one in heard], seed)

    def above(get: Callable[[Heard], float]) -> Share:
        return wilson(sum(one.scaled[i] > get(one) for one in heard), len(heard))

    return Compared(
        factor=float(factor),
        scaled=figures(lambda one: one.scaled[i]),
        random=figures(lambda one: one.random[i]),
        covariance=figures(lambda one: one.covariance[i]),
        above_random=figures(lambda one: one.scaled[i] - one.random[i]),
        above_covariance=figures(lambda one: one.scaled[i] - one.covariance[i]),
        share_above_random=above(lambda one: one.random[i]),
        share_above_covariance=above(lambda one: one.covariance[i]),
    )
