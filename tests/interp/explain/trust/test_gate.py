"""The gate: who reads explanations passes, and nobody else does, however well they know the texts."""

import json
import re

import numpy as np
import pytest

from saefast.errors import InputError
from saefast.interp.explain.trust import RuleJudge, load_bank, trust
from saefast.interp.explain.trust.gate import WAYS, marks_of


@pytest.fixture(scope="module")
def bank():
    return load_bank()


class Judge:
    """Gives the same number for everything."""

    name = "constant"

    def simulate(self, explanation, tokens):
        return np.full(tokens.shape, 0.3)

    def detect(self, explanation, tokens):
        return self.simulate(explanation, tokens).max(axis=1).clip(0, 1)

    def fuzz(self, explanation, tokens, marked):
        return self.detect(explanation, tokens)


class Guesses(Judge):
    name = "random"

    def __init__(self):
        self.rng = np.random.default_rng(0)

    def simulate(self, explanation, tokens):
        return self.rng.random(tokens.shape)


class WrongSign(RuleJudge):
    """Reads all that the rules say the other way round."""

    def simulate(self, explanation, tokens):
        return -super().simulate(explanation, tokens)

    def detect(self, explanation, tokens):
        return 1 - super().detect(explanation, tokens)

    def fuzz(self, explanation, tokens, marked):
        return 1 - super().fuzz(explanation, tokens, marked)


class Overlap(RuleJudge):
    """Expects a unit to be active on the words of its explanation."""

    def __init__(self, bank):
        self.strings = bank[0].vocabulary.strings

    def predict(self, explanation, tokens):
        said = set(re.findall(r"\w+", explanation.sentence.lower()))
        word_of = np.array([text.strip().lower() in said for text in self.strings] + [False])
        return word_of[tokens].astype(float)

    def simulate(self, explanation, tokens):
        return self.predict(explanation, tokens)

    def detect(self, explanation, tokens):
        return self.predict(explanation, tokens).max(axis=1)

    def fuzz(self, explanation, tokens, marked):
        return (self.predict(explanation, tokens) * marked).max(axis=1)


class Knows(Judge):
    """Knows every mark, and does not read the explanation."""

    def __init__(self, bank):
        self.acts = {unit.tokens.tobytes(): unit.acts for unit in bank}
        self.bank = bank

    def simulate(self, explanation, tokens):
        return self.acts[tokens.tobytes()]

    def detect(self, explanation, tokens):
        return self.simulate(explanation, tokens).max(axis=1) / 10

    def fuzz(self, explanation, tokens, marked):
        return marks_of(self.bank[explanation.latent]).right.astype(float)


def test_rules_pass_every_way(bank):
    found = trust(RuleJudge(), bank)
    assert set(found.ways) == set(WAYS)
    for way in found.ways.values():
        assert way.usable and way.share.share >= 0.8 and way.share.n == len(bank) and way.margin > 0.05
        assert way.share.low < way.share.share


@pytest.mark.parametrize("name", ["constant", "random", "wrong sign", "overlap of words", "knows the marks"])
def test_who_does_not_read_the_explanations_fails_every_way(bank, name):
    judges = {"constant": Judge, "random": Guesses, "wrong sign": WrongSign}
    judge = judges[name]() if name in judges else (Overlap if name.startswith("over") else Knows)(bank)
    found = trust(judge, bank)
    for way in found.ways.values():
        assert not way.usable and way.share.share < 0.6
    if name == "random":
        share = found.ways["simulate"].share
        deviation = (found.chance * (1 - found.chance) / share.n) ** 0.5
        assert abs(share.share - found.chance) < 4 * deviation
    if name in ("constant", "knows the marks"):  # all explanations are as good: a tie is no success
        assert [way.share.hits for way in found.ways.values()] == [0, 0, 0]
        assert [way.margin for way in found.ways.values()] == [0, 0, 0]


def test_scores_of_one_unit_by_hand(bank):
    unit = next(unit for unit in bank if unit.name == "colours")
    asked = {}

    class Once(RuleJudge):
        def detect(self, explanation, tokens):
            asked[explanation.sentence] = tokens
            return np.linspace(1, 0, len(tokens))

    row = trust(Once(), [unit], ["detect"]).ways["detect"].rows[0]
    active = (unit.acts > 0).any(axis=1)
    pairs = [
        a < b for a in np.flatnonzero(active) for b in np.flatnonzero(~active)
    ]  # the first are more probable
    assert row.true == pytest.approx(np.mean(pairs)) and not row.first
    assert list(asked) == [one.sentence for one in unit.explanations]
    row = trust(RuleJudge(), [unit], ["simulate"]).ways["simulate"].rows[0]
    there = unit.tokens >= 0
    predicted = [one.predict(unit.tokens)[there] for one in unit.explanations]
    scores = [np.corrcoef(unit.acts[there], one)[0, 1] for one in predicted]
    assert row.true == pytest.approx(scores[0]) and row.best_false == pytest.approx(max(scores[1:]))
    assert row.rival == unit.explanations[1 + int(np.argmax(scores[1:]))].sentence


def test_marks_are_right_or_wholly_wrong(bank):
    for unit in bank:
        marks, active = marks_of(unit), unit.acts > 0
        assert marks.marked.any(axis=1).all() and not marks.marked[unit.tokens[marks.rows] < 0].any()
        assert sorted(marks.rows[marks.right]) == np.flatnonzero(active.any(axis=1)).tolist()
        np.testing.assert_array_equal(marks.marked[marks.right], active[marks.rows[marks.right]])
        assert not (marks.marked & active[marks.rows])[~marks.right].any()
        keys = {(row, marked.tobytes()) for row, marked in zip(marks.rows.tolist(), marks.marked)}
        assert len(keys) == len(marks.rows)
        tempting = [one.predict(unit.tokens) > 0 for one in unit.explanations[1:]]
        some = [(row, (t[row] & ~active[row]).tobytes()) for t in tempting for row in range(len(active))]
        nothing = np.zeros(active.shape[1], bool).tobytes()
        assert {one for one in some if one[1] != nothing} <= keys
        np.testing.assert_array_equal(marks.marked, marks_of(unit).marked)


def test_few_units_are_not_enough(bank):
    found = trust(RuleJudge(), bank[:19], ["simulate"]).ways["simulate"]
    assert found.share.share == 1 and not found.usable
    assert trust(RuleJudge(), bank[:20], ["simulate"]).ways["simulate"].usable


def test_the_report_is_json(bank):
    found = trust(RuleJudge(), bank, ["fuzz", "detect"])
    again = json.loads(json.dumps(found.report(), allow_nan=False))
    assert again["judge"] == "rules" and list(again["ways"]) == ["fuzz", "detect"]
    assert again["chance"] == pytest.approx(np.mean([1 / len(unit.explanations) for unit in bank]))
    way = again["ways"]["detect"]
    assert way["usable"] is True and way["n"] == len(way["rows"]) == len(bank)
    assert way["hits"] == sum(row["first"] for row in way["rows"])


@pytest.mark.parametrize(
    ("way", "answer"),
    [
        ("simulate", lambda tokens: np.zeros(tokens.shape[0])),
        ("simulate", lambda tokens: np.full(tokens.shape, np.nan)),
        ("detect", lambda tokens: np.full(len(tokens), 1.5)),
        ("detect", lambda tokens: np.full(len(tokens), np.nan)),
        ("detect", lambda tokens: np.zeros(tokens.shape)),
        ("fuzz", lambda tokens: np.full(len(tokens), -0.1)),
    ],
)
def test_answers_that_cannot_be_scored_are_refused(bank, way, answer):
    class Bad(Judge):
        name = "bad"

        def simulate(self, explanation, tokens):
            return answer(tokens)

        def detect(self, explanation, tokens):
            return answer(tokens)

    with pytest.raises(InputError, match="bad: expected"):
        trust(Bad(), bank[:1], [way])


def test_what_is_asked_for_must_be_there(bank):
    with pytest.raises(InputError, match="how: expected some of simulate, detect, fuzz, got guess"):
        trust(RuleJudge(), bank, ["guess"])
    with pytest.raises(InputError, match="how: .*none"):
        trust(RuleJudge(), bank, [])
    with pytest.raises(InputError, match="bank: expected at least one"):
        trust(RuleJudge(), [])
