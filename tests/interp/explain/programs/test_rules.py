"""Rules find what was planted, say it, and predict it."""

import numpy as np
import pytest

from saefast.errors import InputError
from saefast.interp.explain.programs.classes import TokenClasses
from saefast.interp.explain.programs.rules import Rules
from saefast.interp.explain.programs.signs import REACH, Reading, Sign
from tests.helpers.explained import ID, VOCABULARY, ids, planted, text

CONTEXTS = text(150, 64, 0)


def holds(classes, contexts, *signs):
    """[m, L] bool."""
    line = np.pad(contexts.astype(np.int64), ((0, 0), (REACH, REACH)), constant_values=-1)
    reading = Reading(classes, line.ravel())
    found = np.logical_and.reduce([reading.column(sign) for sign in signs])
    return found.reshape(line.shape)[:, REACH:-REACH]


PLANTED = {
    "digits": ([Sign("is", "digits")], "digits"),
    "script": ([Sign("is", "Hebrew letters")], "Hebrew letters"),
    "previous": ([Sign("previous", tokens=(ID[" the"],))], 'tokens after " the"'),
    "run": ([Sign("run", "letters A, C, G and T", 2)], "letters A, C, G and T in a run of at least 2"),
    "line": ([Sign("state", "line")], "tokens at the start of a line"),
    "brackets": ([Sign("state", "round brackets")], "tokens inside round brackets"),
    "one": ([Sign("token", tokens=(ID[" law"],))], 'the token " law"'),
    "near": ([Sign("near", tokens=(ID[" court"],))], f'tokens within {REACH} tokens of " court"'),
    "both": (
        [Sign("is", "letters"), Sign("previous", tokens=(ID[" of"],))],
        'letters after " of"',
    ),
}


@pytest.fixture(scope="module")
def explainer(tmp_path_factory):
    """One latent for each of PLANTED, with noise in where it is active; then digits or what comes after " the", weaker; one
    that is random; one that is never active; and one that is active everywhere, on Hebrew more."""
    classes, rng = TokenClasses(VOCABULARY), np.random.default_rng(0)
    where = [holds(classes, CONTEXTS, *signs) for signs, _ in PLANTED.values()]
    acts = [2 * one * rng.uniform(0.8, 1.2, one.shape) * (rng.random(one.shape) < 0.95) for one in where]
    acts.append(np.where(where[0], 4.0, 2.0 * where[2]))
    acts.append(rng.random(CONTEXTS.shape) * (rng.random(CONTEXTS.shape) < 0.1))
    acts.append(np.zeros(CONTEXTS.shape))
    acts.append(rng.uniform(0.9, 1.1, CONTEXTS.shape) + 2 * where[1])
    return Rules(planted(tmp_path_factory.mktemp("rules"), CONTEXTS, np.stack(acts, axis=2)), VOCABULARY)


@pytest.mark.parametrize("i, name", list(enumerate(PLANTED)))
def test_what_was_planted_is_found_and_said(explainer, i, name):
    signs, said = PLANTED[name]
    found = explainer.explain(i)
    # what comes after " of" is often a run of letters: then that is as good a rule
    said = (
        said
        if name != "both" or "in a run" not in found.sentence
        else f"letters in a run of at least 2{said[7:]}"
    )
    assert len(found.rules) == 1 and found.sentence.startswith(f"Active on {said} ("), found.sentence
    assert abs(found.rules[0].mean - 1.9) < 0.2
    assert found.sentence.endswith("; elsewhere 0.") or "; elsewhere 0.0" in found.sentence
    fresh = text(30, 64, 99)
    want = holds(explainer.classes, fresh, *signs)
    got = found.predict(fresh)
    assert got[want].min() > 1.7 and got[~want].max(initial=0) < 0.1
    assert want.any() and abs(found.rules[0].share - want.mean()) < 0.12  # of another text


def test_a_second_rule_for_what_the_first_leaves(explainer):
    found = explainer.explain(len(PLANTED))
    want = [tuple(PLANTED[name][0]) for name in ("digits", "previous")]
    assert [rule.signs for rule in found.rules] == want
    assert found.sentence == 'Active on digits (4); on tokens after " the" (2); elsewhere 0.'
    assert found.predict(np.array([ids(" the", "7", " the", " cat", " cat")])).tolist() == [[0, 4, 0, 2, 0]]


def test_what_does_not_hold_on_held_out_documents_is_no_rule(explainer):
    found = explainer.explain(len(PLANTED) + 1)
    assert found.rules == () and found.sentence.startswith(
        "No rule tells where it is active: predicted to be 0.0"
    )
    assert set(found.predict(text(3, 9)).ravel().tolist()) == {found.rest}


def test_never_active(explainer):
    found = explainer.explain(len(PLANTED) + 2)
    assert "Never active" in found.sentence and not found.predict(text(3, 9)).any()


def test_a_dense_one(explainer):
    found = explainer.explain(len(PLANTED) + 3)
    assert found.sentence.startswith("Active on Hebrew letters (") and len(found.rules) == 1
    assert abs(found.rules[0].mean - 3) < 0.05 and abs(found.rest - 1) < 0.01


def test_the_same_for_the_same_seed(tmp_path):
    acts = (CONTEXTS[:60, :, None] == ID[" the"]) * 1.0
    records = planted(tmp_path, CONTEXTS[:60], acts)
    one, two, other = (Rules(records, VOCABULARY, seed=seed, size=300).explain(0) for seed in (0, 0, 1))
    assert (one.rules, one.sentence) == (two.rules, two.sentence) and other.sentence == one.sentence


def test_a_part_of_the_text_is_enough(tmp_path):
    contexts = text(200, 64, 3)
    acts = np.isin(contexts, ids("0", "7", "42", " 19"))[..., None] * 2.0
    explainer = Rules(planted(tmp_path, contexts, acts), VOCABULARY, max_tokens=2000, size=500)
    assert 1000 < len(explainer.population.places) <= 2000
    assert explainer.explain(0).sentence == "Active on digits (2); elsewhere 0."


def test_bad_input(tmp_path):
    records = planted(tmp_path, CONTEXTS[:3], np.ones((3, 64, 1)))
    with pytest.raises(InputError, match="n_rules: expected at least 1, got 0"):
        Rules(records, VOCABULARY, n_rules=0)
    with pytest.raises(InputError, match="latent: expected 0 to 0, got 1"):
        Rules(records, VOCABULARY).explain(1)
