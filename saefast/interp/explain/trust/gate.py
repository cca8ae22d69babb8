"""The gate: a judge must know true explanations from false ones that are nearly right before its numbers are shown.

    bank = load_bank()
    judge = ModelJudge(model, bank[0].vocabulary)       # the bank has tokens of its own
    trust(judge, bank).ways["detect"].usable

Each explanation of a unit, the true one and the false ones, is scored on the unit's texts as explanations of latents are: by simulation
(Pearson over all tokens, as OpenAI defines it), by detection (AUC of texts with and without activations) and by fuzzing (AUC of right and
wrong marks). The true one counts as first only if it is better than all others; a tie is no success.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from saefast.errors import check
from saefast.interp.explain import Explanation, Judge
from saefast.interp.explain.trust.bank import PuzzleUnit
from saefast.interp.records.text import mix
from saefast.interp.steering.intervals import Share, wilson
from saefast.interp.trial.scores import auc, pearson

WAYS = ("simulate", "detect", "fuzz")
USABLE = 0.8  # of the units
LEAST_UNITS = 20  # of fewer, 80 % say little
TIE = 1e-9  # scores that differ by less are the same


class Row(NamedTuple):
    """One unit, read one way."""

    unit: str
    true: float  # score of the true explanation
    best_false: float
    rival: str  # the false explanation that has it
    first: bool  # whether the true one is better than all others


class Way(NamedTuple):
    share: Share  # of units in which the true explanation is first, with Wilson's 95 % interval
    margin: float  # mean of true - best_false
    rows: tuple[Row, ...]

    @property
    def usable(self) -> bool:
        """At least 80 %, of at least 20 units."""
        return self.share.share >= USABLE and self.share.n >= LEAST_UNITS


class Trust(NamedTuple):
    judge: str
    chance: float  # mean of 1 / explanations of a unit: the share of a judge that guesses
    ways: dict[str, Way]  # by "simulate", "detect", "fuzz"

    def report(self) -> dict[str, Any]:
        """As JSON."""
        ways = {
            name: {
                **way.share._asdict(),
                "margin": way.margin,
                "usable": way.usable,
                "rows": [row._asdict() for row in way.rows],
            }
            for name, way in self.ways.items()
        }
        return {"judge": self.judge, "chance": self.chance, "needed": USABLE, "ways": ways}


def trust(judge: Judge, bank: Sequence[PuzzleUnit], how: Sequence[str] = WAYS) -> Trust:
    """Try a judge on the bank. Its answers are not kept: cache them by the judge's name and the version of its prompts.

    Raises:
        InputError: no units, an unknown way, or a judge whose answers are not of the asked shape, finite, and in [0, 1] where they
            are probabilities.
        CannotAnswer: from the judge, if its model cannot be asked that way.
    """
    check(len(bank) > 0, "bank: expected at least one unit, got none")
    unknown = [name for name in how if name not in WAYS]
    ok = len(how) > 0 and not unknown
    check(ok, f"how: expected some of {', '.join(WAYS)}, got {', '.join(unknown) or 'none'}")
    score_by = {"simulate": simulation, "detect": detection, "fuzz": fuzzing}
    ways = {name: _way(judge, bank, score_by[name]) for name in how}
    chance = float(np.mean([1 / len(unit.explanations) for unit in bank]))
    return Trust(judge.name, chance, ways)


def _way(
    judge: Judge, bank: Sequence[PuzzleUnit], score: Callable[[Judge, PuzzleUnit, Explanation], float]
) -> Way:
    rows = []
    for unit in bank:
        true, *false = [score(judge, unit, one) for one in unit.explanations]
        best = int(np.argmax(false))
        rival = unit.explanations[1 + best].sentence
        rows.append(Row(unit.name, true, false[best], rival, true > false[best] + TIE))
    share = wilson(sum(row.first for row in rows), len(rows))
    return Way(share, float(np.mean([row.true - row.best_false for row in rows])), tuple(rows))


def simulation(judge: Judge, unit: PuzzleUnit, explanation: Explanation) -> float:
    """Pearson of marks and predictions over the tokens of all texts; 0 if all predictions are equal."""
    found = _answers(judge, judge.simulate(explanation, unit.tokens), unit.tokens.shape)
    there = unit.tokens >= 0
    return pearson(unit.acts[there], found[there])


def detection(judge: Judge, unit: PuzzleUnit, explanation: Explanation) -> float:
    """AUC of the texts in which the unit is active against the others, ties half."""
    found = _answers(judge, judge.detect(explanation, unit.tokens), unit.tokens.shape[:1], is_share=True)
    return auc(np.asarray((unit.acts > 0).any(axis=1)), found)


def fuzzing(judge: Judge, unit: PuzzleUnit, explanation: Explanation) -> float:
    """AUC of right against wrong marks, ties half."""
    marks = marks_of(unit)
    found = judge.fuzz(explanation, unit.tokens[marks.rows], marks.marked)
    return auc(marks.right, _answers(judge, found, marks.right.shape, is_share=True))


class Marks(NamedTuple):
    rows: np.ndarray  # [m] int64, texts of the unit
    marked: np.ndarray  # [m, L] bool
    right: np.ndarray  # [m] bool


def marks_of(unit: PuzzleUnit) -> Marks:
    """What a judge is shown for fuzzing.

    Right: the tokens with an activation, of each text that has some. Wrong: in the same text as many tokens without one, drawn by hashes;
    and in each text the tokens on which a false explanation, not the unit, would have it active. The latter tell explanations that are
    too broad, or beside it, from the true one.
    """
    there, active = unit.tokens >= 0, unit.acts > 0
    found: dict[tuple[int, bytes], tuple[int, np.ndarray, bool]] = {}

    def add(row: int, marked: np.ndarray, right: bool) -> None:
        if marked.any():
            found.setdefault((row, marked.tobytes()), (row, marked, right))

    held = [one.predict(unit.tokens) > 0 for one in unit.explanations[1:]]
    for row in range(len(unit.tokens)):
        add(row, active[row], True)
        others = (there[row] & ~active[row]).nonzero()[0]
        keys = mix(others.astype(np.uint32) ^ mix(np.uint32(64 * unit.explanations[0].latent + row)))
        drawn = np.zeros(len(there[row]), bool)
        drawn[others[np.argsort(keys, kind="stable")[: active[row].sum()]]] = True
        add(row, drawn, False)
        for holds in held:
            add(row, holds[row] & ~active[row], False)
    rows, marked, right = zip(*found.values(), strict=True)
    return Marks(np.asarray(rows, np.int64), np.stack(marked), np.asarray(right))


def _answers(judge: Judge, found: object, shape: tuple[int, ...], is_share: bool = False) -> np.ndarray:
    numbers = np.asarray(found, np.float64)
    ok = numbers.shape == shape and bool(np.isfinite(numbers).all())
    ok = ok and not (is_share and bool(((numbers < 0) | (numbers > 1)).any()))
    want = f"probabilities {list(shape)}" if is_share else f"finite activations {list(shape)}"
    check(ok, f"{judge.name}: expected {want}, got {list(numbers.shape)} that are not")
    return numbers


class RuleJudge:
    """Reads the rule of an explanation of the bank, which is 0 or 1, in place of its sentence."""

    name = "rules"

    def simulate(self, explanation: Explanation, tokens: np.ndarray) -> np.ndarray:
        return explanation.predict(tokens)

    def detect(self, explanation: Explanation, tokens: np.ndarray) -> np.ndarray:
        found: np.ndarray = explanation.predict(tokens).max(axis=1, initial=0.0)
        return found

    def fuzz(self, explanation: Explanation, tokens: np.ndarray, marked: np.ndarray) -> np.ndarray:
        """The share that marked and predicted tokens have in common of all that are one of both (Jaccard)."""
        held = explanation.predict(tokens) > 0
        either = (held | marked).sum(axis=1)
        return (held & marked).sum(axis=1) / np.maximum(either, 1)
