"""Judging what a unit does to the output by its explanation."""

import numpy as np
import pytest

from saefast.config.records import RecordsConfig
from saefast.errors import InputError
from saefast.interp.trial import Before, choose_tokens, judge, logit_score
from tests.helpers.trial_cases import Means, Table, planted, random_logits, text_of


@pytest.fixture(scope="module")
def before(ground):
    return Before(ground.records.text, ground.records.config, per_token=8)


def test_score_by_hand():
    positive = np.array([True, True, True, False, False, False])
    assert logit_score(np.array([6.0, 5, 4, 3, 2, 1]), positive) == (1.0, 1.0, 6)
    assert logit_score(np.array([1.0, 2, 3, 4, 5, 6]), positive) == (0.0, 0.0, 6)
    # the upper half is 6, 4, 3: two positive ones of three, and two of three others below
    accuracy, area, _ = logit_score(np.array([6.0, 1, 4, 3, 2, 0]), positive)
    assert accuracy == pytest.approx(4 / 6) and area == pytest.approx((3 + 1 + 3) / 9)
    # 2 is in, 0 is not, and each of the four 1s is half of it
    assert logit_score(np.array([2.0, 1, 1, 1, 1, 0]), positive).accuracy == pytest.approx((1 + 4 / 2 + 1) / 6)
    assert logit_score(np.zeros(6), positive) == (0.5, 0.5, 6)
    assert logit_score(np.zeros(0), np.zeros(0, bool)) == (0.5, 0.5, 0)


def test_ties_are_what_random_order_gives():
    rng = np.random.default_rng(0)
    judgements = rng.integers(0, 3, 40).astype(float)
    positive = np.arange(40) < 20
    exact = logit_score(judgements, positive).accuracy
    drawn = [logit_score(judgements + 1e-6 * rng.random(40), positive).accuracy for _ in range(4000)]
    assert exact == pytest.approx(np.mean(drawn), abs=0.01)


def test_places_before_tokens():
    """Every window ends just before the token, in one document of the split "explain"."""
    rng = np.random.default_rng(2)
    contexts = rng.choice(8, (60, 40), p=[0.03, *[0.161] * 6, 0.004])
    text, config = text_of(contexts, [0]), RecordsConfig()
    before = Before(text, config, per_token=5)
    flat, documents = contexts.ravel(), text.documents(np.arange(contexts.size))
    explain = text.splits(documents, config) == 0
    windows = {}
    for end in range(9, contexts.size):
        inside = np.arange(end - 9, end + 1)
        one_context = inside[0] // 40 == end // 40
        if one_context and len(set(documents[inside].tolist())) == 1 and explain[end]:
            windows.setdefault(int(flat[end]), set()).add(tuple(flat[end - 9 : end].tolist()))
    assert before.known.tolist() == [1, 2, 3, 4, 5, 6]  # no separator, and not the rare one
    for token in before.known.tolist():
        found = before.of(np.array([token]))[0]
        assert found.shape == (5, 9) and {tuple(one) for one in found.tolist()} <= windows[token]
    same, other = (Before(text, config, per_token=5, seed=seed).windows for seed in (0, 1))
    assert (same == before.windows).all() and not (other == before.windows).all()
    with pytest.raises(InputError, match="got too little text"):
        Before(text, config, per_token=2000)


def test_tokens_are_50_and_50(ground, before):
    logits = random_logits(3, len(ground.vocabulary))
    for latent in range(3):
        chosen = choose_tokens(logits, latent, before, seed=1)
        first = logits.positive_tokens[latent].tolist()
        positive, others = chosen.tokens[chosen.is_positive].tolist(), chosen.tokens[~chosen.is_positive].tolist()
        assert positive == [token for token in first[10:60] if token in before.known]
        assert len(others) == len(positive) == len(set(others)) > 35
        assert not set(others) & set(first) and set(others) <= set(before.known.tolist())
    again, other = (choose_tokens(logits, 0, before, seed=seed) for seed in (1, 2))
    assert set(again.tokens) == set(choose_tokens(logits, 0, before, seed=1).tokens) != set(other.tokens)
    with pytest.raises(InputError, match="expected 60 of each latent"):
        choose_tokens(logits._replace(positive_tokens=logits.positive_tokens[:, :20]), 0, before)


def test_a_judgement_is_the_mean_before_the_token(ground, before):
    table = Table(np.arange(float(len(ground.vocabulary))))
    tokens = before.known[[3, 0]]
    expected = [before.of(np.array([token]))[0][:, -1].mean() for token in tokens]
    assert judge(table, tokens, before).tolist() == pytest.approx(expected)
    with pytest.raises(InputError, match="NaN or Inf"):
        judge(Table(np.full(len(ground.vocabulary), np.nan)), tokens, before)


def accuracies(ground, before, logits, latents, explanations):
    judged = [choose_tokens(logits, latent, before) for latent in latents]
    return [
        logit_score(judge(one, chosen.tokens, before), chosen.is_positive).accuracy
        for one, chosen in zip(explanations, judged)
    ]


def test_units_that_promote_what_follows_them(ground, before):
    """Even a table of means sees which tokens come after its own; and of random logits nobody sees any."""
    explainer = Means(ground.records)
    kinds = np.asarray(ground.kinds)
    for kind in ("run", "script", "topic", "token class"):
        latents = np.flatnonzero((kinds == kind) & ground.promotes)
        explanations = [explainer.explain(latent) for latent in latents.tolist()]
        assert len(latents) and np.mean(accuracies(ground, before, ground.logits, latents, explanations)) > 0.75, kind
    latents = range(ground.records.d_sae)
    explanations = [explainer.explain(latent) for latent in latents]
    logits = random_logits(len(kinds), len(ground.vocabulary), seed=9)
    assert abs(np.mean(accuracies(ground, before, logits, latents, explanations)) - 0.5) < 0.05
    same = [Table(np.ones(len(ground.vocabulary)))] * len(kinds)
    assert accuracies(ground, before, ground.logits, latents, same) == [0.5] * len(kinds)
