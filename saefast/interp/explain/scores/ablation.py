"""Does the model go on as before with what an explanation predicts in place of the real activations? (OpenAI 2023, "Language models
can explain neurons in language models", scoring by ablation.)

    score = 1 - JSD(simulated, real) / JSD(mean, real)

JSD is the Jensen-Shannon divergence between what the model predicts after a token with the substitute and as it is, averaged over
the tokens of the windows. 1: nothing is lost; 0: no better than the mean activation of the unit at each token; less than 0: worse. The
rest of the activations, with the error of the SAE, stays:

    x  ->  x + (substitute - act) * W_dec[latent]
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from saefast.activations.hooks import blocks_skipped, capture_and_record
from saefast.errors import check
from saefast.interp.effects.ablation import Ablation
from saefast.interp.effects.checks import check_same
from saefast.interp.explain import Explanation, Judge
from saefast.interp.explain.examples import Examples
from saefast.interp.explain.scores.calibration import calibration
from saefast.interp.explain.scores.held_out import check_held_out
from saefast.interp.explain.scores.statistics import Interval, interval
from saefast.interp.places import Read
from saefast.interp.records import Records
from saefast.sae import SAE

NOTHING = 1e-12  # nats per token: below the noise of logits in fp32, whose errors enter as their square
TINY = torch.finfo(torch.float64).tiny
ROWS_AT_ONCE = 64  # of the probabilities in fp64


class AblationScore(NamedTuple):
    score: Interval  # NaN if it is not defined
    simulated: float  # JSD in nats per token
    mean: float  # the same, of the mean
    why_undefined: str = ""


class AblationOverUnits(NamedTuple):
    """A score has no least value: where the unit hardly matters in its windows and an explanation predicts it where it would, it may
    be -100, and the mean over units is that of a few. So here are the ratio of sums, in which units count by how much they matter, and the median."""

    pooled: (
        Interval  # 1 - sum of JSD(simulated) / sum of JSD(mean), with an interval from a bootstrap over units
    )
    median: float
    n_units: int  # for which it is defined: the others are left out


def over_units(scores: Sequence[AblationScore], seed: int = 0) -> AblationOverUnits:
    """Raises InputError if it is defined for none."""
    kept = [one for one in scores if not math.isnan(one.score.value)]
    check(
        bool(kept), f"scores: expected units for which it is defined, got {len(scores)} for which it is not"
    )
    simulated, mean = (np.asarray([getattr(one, name) for one in kept]) for name in ("simulated", "mean"))
    pooled = interval(_one_minus_ratio, (simulated, mean), seed=seed)
    return AblationOverUnits(pooled, float(np.median([one.score.value for one in kept])), len(kept))


def ablation(
    scorer: "AblationScorer",
    judge: Judge,
    explanations: Sequence[Explanation],
    examples: Examples,
    others: Examples,
) -> list[AblationScore]:
    """Of several explanations of one unit, or of others for a control: what the judge predicts from each, on the scale of the unit.

    Args:
        examples: windows of the split "score" that are scored.
        others: of the same unit, none of them the same, to which predictions are fitted linearly. Choose them as the scored ones are
            chosen: a line that is fitted to more active ones adds something at every token.

    Raises:
        InputError: see `calibration` and `AblationScorer.score`.
    """
    simulated = [
        calibration(judge, one, others, examples)(judge.simulate(one, examples.tokens))
        for one in explanations
    ]
    return scorer.score(examples, simulated)


class AblationScorer(Ablation):
    """The model that the records were made in. Of each window it reads the context up to the window's end.

    Args:
        hook, output_hook: as in `saefast.interp.splice.evaluate_in_model`.
        at_once: windows of a pass. Default: as many as have 2^26 logits (256 MiB in fp32).

    Raises:
        InputError: records of another SAE; hook points of other widths; more than one row of a token.
    """

    def __init__(
        self,
        records: Records,
        sae: SAE,
        model: nn.Module,
        hook: str | Sequence[str],
        *,
        output_hook: str | Sequence[str] | None = None,
        at_once: int | None = None,
    ) -> None:
        check_same(records, sae)
        model.eval()
        super().__init__(records, sae, model, hook, output_hook, at_once)

    def score(
        self, examples: Examples, simulated: Sequence[np.ndarray], *, mean: float | None = None
    ) -> list[AblationScore]:
        """Of several explanations of one unit: the model as it is and with the mean is read once for all of them.

        Args:
            examples: n windows of L tokens, of which the calibration knows nothing.
            simulated: of each explanation [n, L], in the unit of the real ones: see `calibration.calibration`.
            mean: activation with which a simulation is compared. Default: that of the unit over all tokens of the records.

        Returns:
            of each explanation its score, with the interval of a bootstrap over windows. Not defined where the mean
            changes nothing (less than 1e-12 nats per token).

        Raises:
            InputError: no windows, windows of the split "explain", other shapes, or numbers that are not finite.
        """
        check_held_out(examples)
        shape = examples.acts.shape
        check(len(examples) > 0, "examples: expected at least one window, got none")
        given = [np.asarray(one, np.float64) for one in simulated]
        for one in given:
            check(one.shape == shape, f"simulated: expected {list(shape)}, got {list(one.shape)}")
            check(bool(np.isfinite(one).all()), "simulated: expected finite numbers, got NaN or Inf")
        if mean is None:
            mean = float(self.records.entries(examples.latent)[1].sum(dtype=np.float64)) / self.records.n_rows
        check(math.isfinite(mean), f"mean: expected a finite number, got {mean}")
        found = self.divergences(examples, [*given, np.full(shape, mean)]).mean(axis=2)
        return [_score(of_one, found[-1], examples.group) for of_one in found[:-1]]

    @torch.no_grad()
    def divergences(self, examples: Examples, substitutes: Sequence[np.ndarray]) -> np.ndarray:
        """Of each substitute [n, L] for the activations, the Jensen-Shannon divergence after each token: [substitutes, n, L] float64, nats."""
        context, start = np.divmod(examples.slots, self.records.text.length)
        width = examples.tokens.shape[1]
        found = np.zeros((len(substitutes), *examples.tokens.shape))
        order = np.argsort(start, kind="stable")  # those of which about as much is needed are read together
        for first in range(0, len(order), self.at_once):
            rows = order[first : first + self.at_once]
            changes = [np.asarray(one)[rows] - examples.acts[rows] for one in substitutes]
            passes = self._passes(examples.latent, context[rows], start[rows], width, changes)
            clean = next(passes)
            for place, changed in enumerate(passes):
                found[place, rows] = jensen_shannon(clean, changed).numpy()
        return found

    def _passes(
        self, latent: int, context: np.ndarray, start: np.ndarray, width: int, changes: list[np.ndarray]
    ) -> Iterator[Tensor]:
        """Logits [m, width, V] in windows of the model as it is, and then with each of these changes [m, width] of the activations."""
        inputs = self.places.reader.inputs(self._tokens(context.tolist(), int(start.max()) + width))
        args: dict[str, Any] = inputs.kwargs | self.places.kwargs
        captured, output = capture_and_record(self.places.points, self.blocks, *inputs.args, **args)
        read = self.places.rows(inputs, captured)
        n_rows = read.chosen.shape[2]
        check(n_rows == 1, f"hook: expected one row for each token, got {n_rows}")
        x, target = read.x.to(self.sae.b_dec), read.target.to(self.sae.b_dec)
        length = read.chosen.shape[1]
        at = torch.from_numpy(start[:, None] + np.arange(width))
        rows = (
            (torch.arange(len(at), dtype=torch.int64, device="cpu")[:, None] * length + at)
            .flatten()
            .to(x.device)
        )
        window = torch.arange(len(at), dtype=torch.int64, device="cpu")[:, None]
        with blocks_skipped(self.blocks, output):
            yield self.places.logits(inputs)[window, at]
            for change in changes:
                new = target.clone()
                acts = torch.from_numpy(change.ravel()).to(x)
                latents = torch.full((len(rows),), latent, dtype=torch.int64, device=x.device)
                new[rows] += self._part(acts, latents, x[rows])
                with self.places.replaced(inputs, Read(read.x, read.target, read.chosen), new):
                    yield self.places.logits(inputs)[window, at]


def jensen_shannon(a: Tensor, b: Tensor) -> Tensor:
    """The divergence of softmax(a) and softmax(b): [..., V] logits each -> [...] float64 on the CPU, in nats: 0 to log 2."""
    shape = a.shape[:-1]
    found = torch.zeros(a[..., 0].numel(), dtype=torch.float64, device="cpu")
    for part in range(0, len(found), ROWS_AT_ONCE):
        rows = slice(part, part + ROWS_AT_ONCE)
        p, q = (each.reshape(len(found), -1)[rows].double().log_softmax(dim=1) for each in (a, b))
        both = [p.exp(), q.exp()]
        middle = ((both[0] + both[1]) / 2).clamp(min=TINY).log()
        sums = (both[0] * (p - middle) + both[1] * (q - middle)).sum(dim=1)
        found[rows] = (sums / 2).clamp(min=0).cpu()
    return found.view(shape)


def _score(simulated: np.ndarray, mean: np.ndarray, groups: np.ndarray) -> AblationScore:
    """From the divergences of each window, [n]: the ratio of their means."""
    whole = float(simulated.mean()), float(mean.mean())
    if whole[1] <= NOTHING:
        return AblationScore(
            Interval(math.nan, -math.inf, 1.0), *whole, "the mean in its place changes nothing"
        )
    return AblationScore(interval(_one_minus_ratio, (simulated, mean), groups=groups), *whole)


def _one_minus_ratio(counts: np.ndarray, simulated: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Of samples in which each window is so many times; 0 for one in which the mean changes nothing."""
    below = counts @ mean
    return 1 - np.divide(counts @ simulated, below, out=np.ones_like(below), where=below > 0)
