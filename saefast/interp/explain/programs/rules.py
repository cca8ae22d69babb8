"""Rules (seeds: E2): what a person can see at the tokens of a latent, said in a sentence.

A rule is a conjunction of signs, "digits after a line break", and an explanation a list of rules: a token has the mean activation of the
first rule that holds for it, or that of the rest. Each rule is searched for on what the rules before it left, a sign at a
time with a few of the best kept, to explain as much of the variance as it can. Sets of tokens ('after " the" or " a"') are
found in the same way: the first k of the tokens in the order of their means. A quarter of the documents for explaining is held out;
how many signs a rule has, and how many rules there are, is chosen on them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from saefast.errors import check
from saefast.interp.explain.programs.classes import TokenClasses
from saefast.interp.explain.programs.sample import KEYS, Population, Sample
from saefast.interp.explain.programs.signs import Reading, Sign, fixed_signs
from saefast.interp.explain.programs.split import NO_TOKEN, REACH, ExplainSplit, checked_windows
from saefast.interp.explain.programs.wording import phrase
from saefast.interp.explain.programs.words import NEVER, number
from saefast.interp.records import Records
from saefast.interp.vocabulary import Vocabulary

SET_SIZES = (1, 2, 4, 8)  # as many as a sentence names
BEAM = 4  # conjunctions that are kept
LEAST_ACTIVE = 5  # tokens of the sample on which it is active where a rule holds
PRICE = 0.01  # of what a rule explains, for each of its signs and each doubling of a set: of equal ones the plainer is taken
BETTER = 1.03  # times what a conjunction with one sign less explains
LEAST_GAIN = 0.002  # of the variance of the held-out part, for a further rule


class Rule(NamedTuple):
    signs: tuple[Sign, ...]  # all of them must hold
    mean: float  # activation where it holds and none before it does
    share: float  # of the tokens


@dataclass(frozen=True)
class RuleList:
    latent: int
    sentence: str
    rules: tuple[Rule, ...]
    rest: float  # mean activation where no rule holds
    classes: TokenClasses = field(repr=False)

    def predict(self, tokens: np.ndarray) -> np.ndarray:
        """See `saefast.interp.explain.Explanation.predict`."""
        windows = checked_windows(tokens, len(self.classes.table) - 1)
        apart = np.pad(windows, ((0, 0), (REACH, REACH)), constant_values=NO_TOKEN)
        reading = Reading(self.classes, apart.ravel())
        acts = np.full(apart.size, self.rest)
        for rule in reversed(self.rules):
            acts[np.logical_and.reduce([reading.column(sign) for sign in rule.signs])] = rule.mean
        acts[reading.tokens == NO_TOKEN] = 0
        return acts.reshape(apart.shape)[:, REACH : apart.shape[1] - REACH]


class Rules:
    """Args:
        n_rules: at most. Eight describe a unit that mixes a few things nearly as well as one that stands for one: of planted units
            two tell best which is which (AUC 0.99; one 0.93, eight 0.97).
        n_signs: of a rule, at most.
        size: tokens that are looked at for a latent; a sample has up to three times as many.
        max_tokens: of the documents for explaining so many tokens are used.
        seed: of the sample and the held-out documents.
        name: of the explainer, where several are used beside one another.

    Raises:
        InputError: a number below 1.
    """

    def __init__(
        self,
        records: Records,
        vocabulary: Vocabulary,
        *,
        n_rules: int = 8,
        n_signs: int = 2,
        size: int = 5000,
        max_tokens: int = 2**20,
        seed: int = 0,
        split: ExplainSplit | None = None,
        name: str = "rules",
    ) -> None:
        self.name = name
        sizes = {"n_rules": n_rules, "n_signs": n_signs, "size": size, "max_tokens": max_tokens}
        for what, value in sizes.items():
            check(value > 0, f"{what}: expected at least 1, got {value}")
        split = split or ExplainSplit(records)
        checked_windows(split.tokens[None], len(vocabulary))
        self.vocabulary, self.n_rules, self.n_signs = vocabulary, n_rules, n_signs
        self.classes = TokenClasses(vocabulary)
        self.signs = fixed_signs(self.classes)
        reading = Reading(self.classes, split.tokens)
        self.population = Population(split, reading, self.signs, size, max_tokens, seed)

    def explain(self, latent: int) -> RuleList:
        """Raises InputError if there is no such latent."""
        sample = self.population.sample(latent)
        if sample is None:
            return RuleList(latent, NEVER, (), 0.0, self.classes)
        found = self._fitted(sample)
        rules, left = [], np.ones(len(sample.acts), bool)
        for signs, holds in found:
            here, left = left & holds, left & ~holds
            mean, share = _mean(sample, here), sample.weights[here].sum() / sample.weights.sum()
            rules.append(Rule(signs, mean, float(share)))
        rest = _mean(sample, left)
        return RuleList(latent, self._sentence(rules, rest), tuple(rules), rest, self.classes)

    def _fitted(self, sample: Sample) -> list[tuple[tuple[Sign, ...], np.ndarray]]:
        """Rules with where each holds in the sample, whatever those before it say."""
        found: list[tuple[tuple[Sign, ...], np.ndarray]] = []
        left, held = np.ones(len(sample.acts), bool), sample.held_out
        start = _mean(sample, held)
        variance = float((sample.weights * (sample.acts - start) ** 2)[held].sum())
        while len(found) < self.n_rules:
            sets, columns = learned(sample, left & ~held)
            signs, table = self.signs + sets, np.concatenate([sample.signs, columns], axis=1)
            tries = conjunctions(sample, left & ~held, signs, table, self.n_signs)
            if not tries:
                break
            gains = [held_out_gain(sample, left, holds) for _, holds in tries]
            best = next(
                i for i, gain in enumerate(gains) if gain >= max(gains) / BETTER or gain == max(gains)
            )
            if gains[best] <= LEAST_GAIN * variance:
                break
            found.append(tries[best])
            left = left & ~tries[best][1]
        return found

    def _sentence(self, rules: Sequence[Rule], rest: float) -> str:
        if not rules:
            return f"No rule tells where it is active: predicted to be {number(rest)} everywhere."
        parts = [f"{phrase(rule.signs, self.vocabulary)} ({number(rule.mean)})" for rule in rules]
        return f"Active on {'; on '.join(parts)}; elsewhere {number(rest)}."


def learned(sample: Sample, left: np.ndarray) -> tuple[list[Sign], np.ndarray]:
    """Sets of tokens, and whether each holds on all tokens of the sample, [n, K] float32, from those where `left` is true."""
    signs: list[Sign] = []
    columns: list[np.ndarray] = []
    weights, acts = sample.weights * left, sample.acts
    for kind in (*KEYS, "near"):
        keys = sample.near if kind == "near" else sample.keys[kind][:, None]
        order = _by_mean(keys + 1, weights, acts)
        table = np.zeros(int(keys.max(initial=0)) + 2, bool)
        for n in SET_SIZES:
            if len(order) < n:
                break
            table[order[:n]] = True
            signs.append(Sign(kind, tokens=tuple((order[:n] - 1).tolist())))
            columns.append(table[keys + 1].any(axis=1))
    return signs, np.array(columns, np.float32).reshape(len(columns), len(acts)).T


def _by_mean(keys: np.ndarray, weights: np.ndarray, acts: np.ndarray) -> np.ndarray:
    """Keys [n, c] from 1 on, the one with the largest mean first; means of few tokens are drawn towards that of all."""
    ids, size = keys.ravel(), int(keys.max(initial=0)) + 1
    each = keys.shape[1]
    counts = np.bincount(ids, np.repeat(weights, each), size)
    sums = np.bincount(ids, np.repeat(weights * acts, each), size)
    active = np.bincount(ids, np.repeat((weights > 0) & (acts > 0), each), size)
    mean = float((weights * acts).sum()) / max(float(weights.sum()), 1e-300)
    means = (sums + LEAST_ACTIVE * mean) / (counts + LEAST_ACTIVE)
    means[0], means[active < 2] = -1, -1
    order = np.argsort(-means, kind="stable")[: SET_SIZES[-1]]
    return order[means[order] > mean]


def conjunctions(
    sample: Sample, left: np.ndarray, signs: list[Sign], table: np.ndarray, n_signs: int
) -> list[tuple[tuple[Sign, ...], np.ndarray]]:
    """The best of one sign, of two, and so on while it is better, with where it holds: found where `left` is true."""
    x, w, y = table[left], sample.weights[left], sample.acts[left]
    rows = np.stack([w, w * y, y > 0]).astype(np.float32)
    total, of_acts = float(w.sum()), float((w * y).sum())
    price = np.array([PRICE * (1 + np.log2(max(len(sign.tokens), 1))) for sign in signs])
    found: list[tuple[tuple[Sign, ...], np.ndarray]] = []
    beam: list[tuple[tuple[int, ...], np.ndarray]] = [((), np.ones(len(w), np.float32))]
    best = 0.0
    while len(found) < n_signs and beam:
        masked = np.concatenate([rows * mask for _, mask in beam])
        weight, acts, active = (masked @ x).astype(np.float64).reshape(len(beam), 3, -1).transpose(1, 0, 2)
        gain = _gain(weight, acts, total, of_acts)
        paid = np.array([price[list(chosen)].sum() for chosen, _ in beam])[:, None] + price
        score = np.where(active >= LEAST_ACTIVE, gain * (1 - paid), -1.0)
        score[acts * total <= of_acts * weight] = -1.0  # where it is less active than elsewhere
        following: list[tuple[tuple[int, ...], np.ndarray]] = []
        seen: set[tuple[float, float]] = set()
        for flat in np.argsort(-score, axis=None)[: 8 * BEAM].tolist():
            b, a = divmod(flat, len(signs))
            key = round(float(weight[b, a]), 2), round(float(acts[b, a]), 2)
            if score[b, a] > 0 and key not in seen and len(following) < BEAM:
                seen.add(key)
                following.append(((*beam[b][0], a), beam[b][1] * x[:, a]))
                if len(following) == 1:
                    top = score[b, a]
        if not following or top <= best * BETTER:
            break
        best, beam = top, following
        chosen = beam[0][0]
        holds: np.ndarray = np.all(table[:, list(chosen)] > 0, axis=1)
        found.append((tuple(signs[i] for i in chosen), holds))
    return found


def _gain(weight: np.ndarray, acts: np.ndarray, total: float, of_acts: float) -> np.ndarray:
    """By how much the squared error falls if where a rule holds, and where it does not, each have a mean of their own."""
    other, of_other = total - weight, of_acts - acts
    inside = acts**2 / np.maximum(weight, 1e-12)
    outside = of_other**2 / np.maximum(other, 1e-12)
    return np.where((weight > 0) & (other > 1e-6 * total), inside + outside - of_acts**2 / total, 0.0)


def held_out_gain(sample: Sample, left: np.ndarray, holds: np.ndarray) -> float:
    """By how much the squared error falls on the held-out tokens that are left, with the means of the others."""
    fit, held = left & ~sample.held_out, left & sample.held_out
    before = sample.acts - _mean(sample, fit)
    means = np.where(holds, _mean(sample, fit & holds), _mean(sample, fit & ~holds))
    return float((sample.weights * (before**2 - (sample.acts - means) ** 2))[held].sum())


def _mean(sample: Sample, where: np.ndarray) -> float:
    weights = sample.weights[where]
    return float((weights * sample.acts[where]).sum() / weights.sum()) if len(weights) else 0.0
