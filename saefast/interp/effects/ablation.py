"""Ablation: what the model's predictions lose without one latent.

"Towards Monosemanticity": its part of the reconstruction, act * W_dec[latent], is subtracted from the activations at every
token of the context where it is active, and the pass finished; the rest of the activations, with the error of the SAE, stays.

    effect of a token = log p(token | context, without the latent) - log p(token | context),  in nats
"""

import logging
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from saefast.activations.hooks import (
    blocks_skipped,
    capture_and_record,
    earlier_blocks,
    first_of,
    with_first,
)
from saefast.activations.inputs import Inputs
from saefast.config.records import GROUPS
from saefast.errors import check
from saefast.interp.effects.ablation_file import read_ablations, write_ablations
from saefast.interp.effects.checks import check_same
from saefast.interp.places import Places, Read
from saefast.interp.records import Records
from saefast.interp.splice import blocks_can_be_skipped
from saefast.sae import SAE
from saefast.sae.inference import in_data_units

LOGITS = 2**26  # of a pass at a time: 256 MiB in fp32
LATENTS_PER_WRITE = 64
log = logging.getLogger("saefast")


class Window(NamedTuple):
    """An example whose window is shown."""

    latent: int
    group: str
    bin: int
    rank: int
    context: int
    start: int
    length: int

    @property
    def key(self) -> tuple[int, str, int, int]:
        return self.latent, self.group, self.bin, self.rank


class Cost(NamedTuple):
    """What it takes to ablate."""

    windows: int
    contexts: int  # passes of the model as it is, of each write
    passes: int  # of a context each, without a latent
    tokens: int  # in all passes: of each context those up to the end of its last window


def shown_windows(
    records: Records, latents: Sequence[int] | None = None, groups: Sequence[str] = ("top",), n: int = 5
) -> list[Window]:
    """The first n examples of each group, and of each interval or quantile.

    Raises:
        InputError: a latent or group that there is not, or n < 1.
    """
    unknown = [group for group in groups if group not in GROUPS]
    check(not unknown, f"groups: expected some of {', '.join(GROUPS)}, got {', '.join(map(repr, unknown))}")
    check(n > 0, f"n: expected at least 1, got {n}")
    chosen = list(range(records.d_sae)) if latents is None else sorted({int(latent) for latent in latents})
    for latent in chosen[:1] + chosen[-1:]:
        check(0 <= latent < records.d_sae, f"latents: expected 0 to {records.d_sae - 1}, got {latent}")
    found = []
    for latent in chosen:
        for examples in records.latent(latent).examples.values():
            found += [
                Window(latent, e.group, e.bin, e.rank, e.context, e.start, len(e.tokens))
                for e in examples
                if e.group in groups and e.rank < n
            ]
    return found


def ablation_cost(windows: Sequence[Window]) -> Cost:
    """Passes and tokens of `ablation_effects` for these windows. A latent's windows in one context share a pass."""
    pairs, ends = {(window.latent, window.context) for window in windows}, _ends(windows)
    tokens = sum(ends.values()) + sum(ends[context] for _, context in pairs)
    return Cost(len(windows), len(ends), len(pairs), tokens)


def _ends(windows: Sequence[Window]) -> dict[int, int]:
    """Of each context, as much as its windows need: no prediction depends on a later token."""
    ends: dict[int, int] = {}
    for window in windows:
        ends[window.context] = max(ends.get(window.context, 0), window.start + window.length)
    return ends


@torch.no_grad()
def ablation_effects(
    records: Records,
    sae: SAE,
    model: nn.Module,
    hook: str | Sequence[str],
    latents: Sequence[int] | None = None,
    groups: Sequence[str] = ("top",),
    n: int = 5,
    *,
    output_hook: str | Sequence[str] | None = None,
    contexts_at_once: int | None = None,
) -> Cost:
    """Write the effects of the windows of `shown_windows` to ablations.parquet, and say first what it costs.

    Each latent takes a pass for each context in which a window is, from the blocks after the hook point on where the model
    allows that (a causal language model); `ablation_cost` counts the passes. The file is written anew after every 64
    latents; windows that are in it are not computed again, so that a call that was interrupted goes on. The activations are those of the records, so that sinks and special tokens stay as they are.

    Args:
        hook, output_hook: as in `saefast.interp.splice.evaluate_in_model`. What is subtracted is read in the pass of the model
            as it is: of several places, each is given its part.
        latents: default: all.
        n: examples of each group, interval or quantile.
        contexts_at_once: default: as many as have 2^26 logits (256 MiB in fp32).

    Raises:
        InputError: records of another SAE; ablations of another hook point in the folder; tokens that the model does not
            have, hook points of other widths, or more than one row of a token.
    """
    check_same(records, sae)
    hooks = [[names] if isinstance(names, str) else list(names or []) for names in (hook, output_hook)]
    made_from = {"sae": records.index["sae"]["digest"], "hook": hooks[0], "output_hook": hooks[1]}
    made = read_ablations(records.folder, made_from)
    windows = [one for one in shown_windows(records, latents, groups, n) if one.key not in made]
    cost = ablation_cost(windows)
    said = "ablation: %d windows, %d passes without a latent and %d with all, %d tokens of the model"
    log.info(said, cost.windows, cost.passes, cost.contexts, cost.tokens)
    model.eval()
    ablation = Ablation(records, sae, model, hook, output_hook, contexts_at_once)
    numbers = sorted({window.latent for window in windows})
    for first in range(0, max(len(numbers), 1), LATENTS_PER_WRITE):
        among = set(numbers[first : first + LATENTS_PER_WRITE])
        some = [window for window in windows if window.latent in among]
        made |= {window.key: effects for window, effects in ablation.effects(some)}
        names = ("latent", "group", "bin", "rank", "effects")
        rows = [dict(zip(names, (*key, effects), strict=True)) for key, effects in made.items()]
        write_ablations(records.folder, rows, made_from)
    return cost


class Ablation:
    """A model, and the records whose latents are taken out of it."""

    def __init__(
        self,
        records: Records,
        sae: SAE,
        model: nn.Module,
        hook: str | Sequence[str],
        output_hook: str | Sequence[str] | None,
        at_once: int | None,
    ) -> None:
        self.records, self.sae = records, sae
        first = self._tokens([0])
        self.places = places = Places([sae], model, hook, output_hook, first)
        inputs = places.reader.inputs(first)
        blocks = earlier_blocks(places.points)
        self.blocks = blocks if blocks_can_be_skipped(places, blocks, inputs) else []
        vocabulary = places.logits(Inputs(first[:, :1].to(inputs.args[0].device))).shape[-1]
        check(at_once is None or at_once > 0, f"contexts_at_once: expected at least 1, got {at_once}")
        self.at_once = at_once or max(1, LOGITS // (records.text.length * vocabulary))

    def _tokens(self, contexts: Sequence[int], length: int | None = None) -> Tensor:
        return torch.from_numpy(self.records.text.contexts[list(contexts), :length].astype(np.int64))

    def effects(self, windows: Sequence[Window]) -> Iterator[tuple[Window, list[float | None]]]:
        """Of each window, one for each of its tokens."""
        by_context = sorted(windows, key=lambda window: (window.context, window.latent))
        ends = _ends(by_context)
        contexts = sorted(
            ends, key=ends.__getitem__
        )  # those of which about as much is needed are read together
        for first in range(0, len(contexts), self.at_once):
            some = contexts[first : first + self.at_once]
            inputs = self.places.reader.inputs(self._tokens(some, ends[some[-1]]))
            captured, output = capture_and_record(
                self.places.points, self.blocks, *inputs.args, **inputs.kwargs, **self.places.kwargs
            )
            read = self.places.rows(inputs, captured)
            check(
                read.chosen.shape[2] == 1,
                f"hook: expected one row for each token, got {read.chosen.shape[2]}",
            )
            with blocks_skipped(self.blocks, output):
                clean = _log_likelihoods(
                    self.places.logits(inputs), inputs.texts[self.places.reader.place].tokens
                )
            here = [window for window in by_context if window.context in set(some)]
            pairs = [
                (key, list(of)) for key, of in groupby(here, lambda window: (window.context, window.latent))
            ]
            for begin in range(0, len(pairs), self.at_once):
                yield from self._without(pairs[begin : begin + self.at_once], some, read, output, clean)

    def _without(
        self,
        pairs: list[tuple[tuple[int, int], list[Window]]],
        contexts: list[int],
        read: Read,
        output: Any,
        clean: Tensor,
    ) -> Iterator[tuple[Window, list[float | None]]]:
        """One pass for several latents, each taken out of its own context."""
        at = torch.tensor(
            [contexts.index(context) for (context, _), _ in pairs], dtype=torch.int64, device="cpu"
        )
        n, length = clean.shape
        x = read.x.unflatten(0, (n, length))[at.to(read.x.device)].flatten(0, 1)
        target = read.target.unflatten(0, (n, length))[at.to(read.x.device)].flatten(0, 1)
        rows, acts, latents = self._active([key for key, _ in pairs], length)
        first_active = torch.full((len(pairs),), length, dtype=torch.int64, device=rows.device)
        first_active.scatter_reduce_(0, rows // length, rows % length, "amin")
        new = target.to(self.sae.b_dec).clone()
        new[rows] -= self._part(acts, latents, x[rows].to(self.sae.b_dec))
        tokens = self._tokens([context for (context, _), _ in pairs], length)
        inputs = self.places.reader.inputs(tokens)
        chosen = read.chosen[at.to(read.chosen.device)]
        if output is not None:
            hidden = first_of(output)
            output = with_first(output, hidden[at.to(hidden.device)])
        with (
            blocks_skipped(self.blocks, output),
            self.places.replaced(inputs, Read(x, target, chosen), new),
        ):
            without = _log_likelihoods(
                self.places.logits(inputs), inputs.texts[self.places.reader.place].tokens
            )
        change = (without - clean[at]).float()
        for i, (first, (_, windows)) in enumerate(zip(first_active.tolist(), pairs, strict=True)):
            change[i, : first + 1] = 0  # what is predicted from tokens before is the same
            for window in windows:
                end = window.start + window.length
                effects: list[float | None] = list(change[i, window.start : end].tolist())
                if window.start == 0:
                    effects[0] = None
                yield window, effects

    def _active(self, pairs: list[tuple[int, int]], length: int) -> tuple[Tensor, Tensor, Tensor]:
        """Of the first tokens of (context, latent) pairs, one after another: rows, activations there, latents."""
        rows, acts, latents = [], [], []
        for i, (context, latent) in enumerate(pairs):
            slots, values = self.records.entries(latent)
            begin = context * self.records.text.length
            part = slice(*np.searchsorted(slots, [begin, begin + length]).tolist())
            rows.append(slots[part] - begin + i * length)
            acts.append(values[part])
            latents.append(np.full(len(rows[-1]), latent))
        device = self.sae.W_dec.device
        found = (torch.from_numpy(np.concatenate(each)).to(device) for each in (rows, acts, latents))
        return next(found), next(found), next(found)

    def _part(self, acts: Tensor, latents: Tensor, x: Tensor) -> Tensor:
        """act * W_dec[latent] in the units of the activations x: with the normalisation undone."""
        part = acts[:, None].to(self.sae.b_dec) * self.sae.W_dec[latents].to(self.sae.b_dec)
        return in_data_units(self.sae.config, part, x)


def _log_likelihoods(logits: Tensor, tokens: Tensor) -> Tensor:
    """log p of each token given those before it, [m, L] fp64 on the CPU; 0 for the first. A context at a time."""
    found = torch.zeros(tokens.shape, dtype=torch.float64, device="cpu")
    for i, (row, target) in enumerate(zip(logits, tokens.to(logits.device), strict=True)):
        row = row[:-1].float()
        chosen = row.gather(1, target[1:, None]).squeeze(1).double()
        found[i, 1:] = (chosen - row.logsumexp(dim=1).double()).cpu()
    return found
