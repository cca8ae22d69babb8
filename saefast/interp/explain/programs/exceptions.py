"""Revision of explanations that are programs: on what they predict much and the unit does little, said as exceptions.

The idea is that of Bills et al. (2023): an explanation is corrected by being shown where it is wrong. Here what is wrong is fitted:

    revised = Exceptions(Rules(records, vocabulary)).revise(LookUp(records, vocabulary).explain(17))
    revised.sentence                     # 'Active on the token " court" (2.1); not on tokens after " basketball" (1.9 less).'
    revised.predict(tokens)              # max(0, what it was - the exceptions that hold)

An exception is a conjunction of signs as in a rule, and how much less the unit does there than was predicted. All is done on documents
for explaining; a quarter of them is held out, and an exception is taken only if on those it lowers the squared error by enough and
raises the correlation on windows like those of scores: the strongest ones and random ones.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from saefast.errors import check
from saefast.interp.explain import Explanation
from saefast.interp.explain.examples import Examples, Tiles
from saefast.interp.explain.programs.classes import TokenClasses
from saefast.interp.explain.programs.rules import BETTER, LEAST_GAIN, Rules, conjunctions, learned
from saefast.interp.explain.programs.sample import LEAST_SHARE, Sample
from saefast.interp.explain.programs.signs import Reading, Sign
from saefast.interp.explain.programs.split import NO_TOKEN, REACH, checked_windows
from saefast.interp.explain.programs.wording import phrase
from saefast.interp.explain.programs.words import number
from saefast.interp.trial.scores import pearson

WINDOWS = 20  # of each kind, for choosing
LENGTH = 64  # tokens of one
LEAST_RAISE = 0.005  # of the correlation


class Exception_(NamedTuple):
    signs: tuple[Sign, ...]  # it is where all of them hold
    only: bool  # no: it is everywhere else
    less: float  # by how much the unit does less there than was predicted, above 0


@dataclass(frozen=True)
class Revised:
    latent: int
    sentence: str
    original: Explanation
    exceptions: tuple[Exception_, ...]
    classes: TokenClasses = field(repr=False)

    def predict(self, tokens: np.ndarray) -> np.ndarray:
        """See `saefast.interp.explain.Explanation.predict`."""
        windows = checked_windows(tokens, len(self.classes.table) - 1)
        apart = np.pad(windows, ((0, 0), (REACH, REACH)), constant_values=NO_TOKEN)
        reading = Reading(self.classes, apart.ravel())
        less = np.zeros(apart.size)
        for one in self.exceptions:
            holds = np.logical_and.reduce([reading.column(sign) for sign in one.signs])
            less += one.less * (holds != one.only)
        less = less.reshape(apart.shape)[:, REACH : apart.shape[1] - REACH]
        predicted = self.original.predict(windows)
        return np.where(less > 0, np.maximum(predicted - less, 0.0), predicted)


class Exceptions:
    """Args:
        rules: of which the signs and the documents are used.
        n_exceptions: at most.

    Raises:
        InputError: fewer than one.
    """

    def __init__(self, rules: Rules, n_exceptions: int = 3) -> None:
        check(n_exceptions > 0, f"n_exceptions: expected at least 1, got {n_exceptions}")
        self.rules, self.n_exceptions, self.population = rules, n_exceptions, rules.population
        self.tiles = Tiles(self.population.split.records, "explain", LENGTH)
        documents = self.population.split.records.text.documents(self.tiles.first)
        self.is_held_out = self.population.holds_out(documents)

    def revise(self, explanation: Explanation) -> Revised:
        """An explanation by a program, with the exceptions that hold on held-out documents; without any it says what it said."""
        revised = Revised(explanation.latent, explanation.sentence, explanation, (), self.rules.classes)
        drawn = self._sample(explanation)
        windows = self._windows(explanation.latent)
        if drawn is None or windows is None:
            return revised
        sample, predicted = drawn
        score = pearson(windows.acts.ravel(), revised.predict(windows.tokens).ravel())
        held = sample.held_out
        mean = np.average(sample.acts[held], weights=sample.weights[held])
        spread = _error(sample, np.full(len(held), mean))
        while len(revised.exceptions) < self.n_exceptions:
            tries = self._tries(sample, predicted)
            before = _error(sample, predicted)
            gains = [before - _error(sample, _less(predicted, one, holds)) for one, holds in tries]
            if not tries or max(gains) <= LEAST_GAIN * spread:
                break
            one, holds = tries[next(i for i, gain in enumerate(gains) if gain >= max(gains) / BETTER)]
            candidate = self._with(revised, one)
            now = pearson(windows.acts.ravel(), candidate.predict(windows.tokens).ravel())
            if now < score + LEAST_RAISE:
                break
            revised, score, predicted = candidate, now, _less(predicted, one, holds)
        return revised

    def _sample(self, explanation: Explanation) -> tuple[Sample, np.ndarray] | None:
        """Tokens with their true activations, and what was predicted on each: more of those on which either is large. None where
        there is nothing to choose on."""
        population, split = self.population, self.population.split
        predicted = explanation.predict(split.tokens[None])[0, population.places]
        places, acts = split.entries(explanation.latent)
        rows = population.row_of_place[places]
        true = np.zeros(len(population.places))
        true[rows[rows >= 0]] = acts[rows >= 0]
        p, energy = np.full(len(true), population.size / len(true)), float((true**2).sum())
        share = float((true[population.held_out] ** 2).sum()) / max(energy, 1e-300)
        if not predicted.any() or min(share, 1 - share) < LEAST_SHARE:
            return None
        for values in (predicted, true):
            p += population.size * values**2 / float((values**2).sum())
        chosen = (population.uniform < p).nonzero()[0]
        weights, held = 1 / np.minimum(p[chosen], 1), population.held_out[chosen]
        return population.read(chosen, true[chosen], weights, held), predicted[chosen]

    def _windows(self, latent: int) -> Examples | None:
        """Of held-out documents; None where the unit is active in none."""
        active, peaks = self.tiles.peaks(latent)
        held = self.is_held_out[active]
        top = active[held][np.argsort(-peaks[held], kind="stable")[:WINDOWS]]
        others = self.tiles.random(latent, WINDOWS, self.population.seed, top, self.is_held_out)
        return self.tiles.examples(latent, [("top", -1, top), ("random", -1, others)]) if len(top) else None

    def _tries(self, sample: Sample, predicted: np.ndarray) -> list[tuple[Exception_, np.ndarray]]:
        """Where too much is predicted, and where that holds in the sample: on what is looked for, and on all but that; of either
        the plainest first."""
        excess = predicted - sample.acts
        left = (predicted > 0) & ~sample.held_out
        found = []
        for only in (False, True):
            looked = sample._replace(acts=-excess if only else excess)
            sets, columns = learned(looked, left)
            signs, table = self.rules.signs + sets, np.concatenate([sample.signs, columns], axis=1)
            for chosen, where in conjunctions(looked, left, signs, table, self.rules.n_signs):
                holds = where != only
                weights = sample.weights[left & holds]
                less = float((weights * excess[left & holds]).sum()) / max(float(weights.sum()), 1e-300)
                found += [(Exception_(chosen, only, less), holds)] if less > 0 else []
        return found

    def _with(self, revised: Revised, one: Exception_) -> Revised:
        exceptions = (*revised.exceptions, one)
        of = self.rules.vocabulary
        parts = [
            f"only on {phrase(e.signs, of)} (elsewhere {number(e.less)} less)"
            if e.only
            else f"not on {phrase(e.signs, of)} ({number(e.less)} less)"
            for e in exceptions
        ]
        sentence = f"{revised.original.sentence.removesuffix('.')}; {'; '.join(parts)}."
        return Revised(revised.latent, sentence, revised.original, exceptions, revised.classes)


def _less(predicted: np.ndarray, one: Exception_, holds: np.ndarray) -> np.ndarray:
    return np.maximum(predicted - one.less * holds, 0.0)


def _error(sample: Sample, predicted: np.ndarray) -> float:
    """Squared error on the held-out tokens."""
    return float((sample.weights * (predicted - sample.acts) ** 2)[sample.held_out].sum())
