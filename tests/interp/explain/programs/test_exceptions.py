"""Exceptions: what an explanation predicts and the unit does not do is said and taken off, if it holds on other documents."""

import numpy as np
import pytest

from saefast.errors import InputError
from saefast.interp.explain.examples import Tiles, top_and_random
from saefast.interp.explain.programs.exceptions import Exceptions
from saefast.interp.explain.programs.lookup import LookUp
from saefast.interp.explain.programs.ngrams import NGrams
from saefast.interp.explain.programs.rules import Rules
from saefast.interp.explain.programs.words import NEVER
from saefast.interp.trial.scores import pearson
from tests.helpers.explained import ID, VOCABULARY, ids, planted, text

LAW, CAT, NOISE, DEAD, ONE_DOCUMENT = range(5)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Units on " law" but not after " of"; on " cat" after " the" only; on random tokens; never; in one document."""
    rng = np.random.default_rng(1)
    contexts = text(200, 64, 7)
    places = rng.random(contexts.shape)
    contexts[places < 0.05], contexts[places > 0.95] = ID[" law"], ID[" cat"]
    back = np.pad(contexts, ((0, 0), (1, 0)))[:, :-1]
    for piece, of in ((" law", " of"), (" cat", " the")):
        row, at = ((contexts == ID[piece]) & (rng.random(contexts.shape) < 0.4)).nonzero()
        keep = at > 0
        contexts[row[keep], at[keep] - 1] = ID[of]
    back = np.pad(contexts, ((0, 0), (1, 0)))[:, :-1]
    acts = np.zeros((*contexts.shape, 5))
    acts[..., LAW] = 2.0 * ((contexts == ID[" law"]) & (back != ID[" of"]))
    acts[..., CAT] = 3.0 * ((contexts == ID[" cat"]) & (back == ID[" the"]))
    acts[..., NOISE] = rng.random(contexts.shape) * (rng.random(contexts.shape) < 0.2)
    acts[3, :, ONE_DOCUMENT] = contexts[3] == contexts[3, 5]
    records = planted(tmp_path_factory.mktemp("exceptions"), contexts, acts)
    rules = Rules(records, VOCABULARY, n_rules=2)
    return records, LookUp(records, VOCABULARY), rules, Exceptions(rules)


def score(records, explanation):
    windows = top_and_random(Tiles(records, "score", 64), explanation.latent)
    return pearson(windows.acts.ravel(), explanation.predict(windows.tokens).ravel())


def test_an_exception_is_found_said_and_taken_off(made):
    records, lookup, _, exceptions = made
    original = lookup.explain(LAW)
    revised = exceptions.revise(original)
    assert len(revised.exceptions) == 1 and 'after " of"' in revised.sentence
    assert revised.sentence.startswith(f"{original.sentence.removesuffix('.')}; not on ")
    law, of, cat = ids(" law", " of", " cat")
    before, after = (one.predict(np.array([[law, of, law, cat, -1]]))[0] for one in (original, revised))
    assert after[0] == before[0] and after[1] == before[1] and after[4] == 0
    assert after[2] == max(0, before[2] - revised.exceptions[0].less) < 0.1 * before[2]
    assert score(records, revised) > score(records, original) + 0.1


def test_where_alone_it_holds_is_an_exception_too(made):
    records, lookup, _, exceptions = made
    original = lookup.explain(CAT)
    revised = exceptions.revise(original)
    assert 'after " the"' in revised.sentence and "; only on " in revised.sentence
    found = revised.predict(np.array([ids(" the", " cat", " cat", " law")]))[0]
    assert found[1] == original.predict(np.array([ids(" cat")]))[0, 0] > 0 and found[2] < 0.1 * found[1]
    assert score(records, revised) > score(records, original) + 0.1


@pytest.mark.parametrize("latent", [NOISE, DEAD, ONE_DOCUMENT])
def test_what_does_not_hold_on_other_documents_is_no_exception(made, latent):
    _, lookup, rules, exceptions = made
    for explainer in (lookup, rules):
        original = explainer.explain(latent)
        revised = exceptions.revise(original)
        assert revised.exceptions == () and revised.sentence == original.sentence
        windows = text(4, 32, 9)
        np.testing.assert_array_equal(revised.predict(windows), original.predict(windows))
    assert lookup.explain(DEAD).sentence == NEVER


def test_on_average_no_worse_on_documents_for_scoring(made):
    records, lookup, rules, exceptions = made
    for explainer in (lookup, rules):
        originals = [explainer.explain(latent) for latent in (LAW, CAT, NOISE)]
        before = [score(records, one) for one in originals]
        after = [score(records, exceptions.revise(one)) for one in originals]
        assert np.mean(after) >= np.mean(before)


def test_documents_for_scoring_are_not_read(made, tmp_path):
    records, lookup, _, exceptions = made
    contexts = records.text.contexts.copy()
    slots = np.arange(contexts.size)
    scored = records.text.splits(records.text.documents(slots), records.config).reshape(contexts.shape) == 1
    acts = np.zeros((contexts.size, 5))
    for latent in range(5):
        at, values = records.entries(latent)
        acts[at, latent] = values
    acts = np.where(
        scored[..., None], 7 * acts.reshape(*contexts.shape, 5)[..., ::-1], acts.reshape(*contexts.shape, 5)
    )
    contexts = np.where(scored, np.roll(contexts, 3, axis=1), contexts)
    other = planted(tmp_path, contexts, acts)
    again = Exceptions(Rules(other, VOCABULARY, n_rules=2)).revise(LookUp(other, VOCABULARY).explain(LAW))
    assert again.exceptions == exceptions.revise(lookup.explain(LAW)).exceptions != ()


def test_bad_input(made):
    _, lookup, rules, exceptions = made
    with pytest.raises(InputError, match="n_exceptions: expected at least 1, got 0"):
        Exceptions(rules, 0)
    revised = exceptions.revise(lookup.explain(LAW))
    assert revised.predict(np.zeros((0, 9), np.int64)).shape == (0, 9)
    with pytest.raises(InputError, match="tokens: expected ids"):
        revised.predict(np.zeros(3, np.int64))


def test_patterns_have_exceptions_too(made):
    """Of a pattern that was found too wide: the unit is active on " law" behind a padding token, and not behind " of"."""
    records, _, _, exceptions = made
    everywhere = NGrams(
        records, VOCABULARY, lambda texts, at, latent: 2.0 * (texts[np.arange(len(at)), at] == ID[" law"])
    )
    original = everywhere.explain(LAW)
    revised = exceptions.revise(original)
    assert 'after " of"' in revised.sentence and score(records, revised) > score(records, original) + 0.1
