"""Judging what a unit does to the output by its explanation."""

import numpy as np
import pytest
import torch

from saefast.config.records import RecordsConfig
from saefast.errors import InputError
from saefast.interp.trial import Following, Judged, choose_tokens, logit_score
from saefast.interp.trial.logit_test import accuracy
from tests.helpers.trial_cases import Means, Table, random_logits, text_of


@pytest.fixture(scope="module")
def following(ground):
    return Following(ground.records.text, ground.records.config, least=8)


def test_accuracy_by_hand():
    positive = np.array([True, True, True, False, False, False])
    assert accuracy(np.array([6.0, 5, 4, 3, 2, 1]), positive) == 1
    assert accuracy(np.array([1.0, 2, 3, 4, 5, 6]), positive) == 0
    # the upper half is 6, 4, 3: two positive ones of three, and two of three others below
    assert accuracy(np.array([6.0, 1, 4, 3, 2, 0]), positive) == pytest.approx(4 / 6)
    # 2 is in, 0 is not, and each of the four 1s is half of it
    assert accuracy(np.array([2.0, 1, 1, 1, 1, 0]), positive) == pytest.approx((1 + 4 / 2 + 1) / 6)
    assert accuracy(np.zeros(6), positive) == 0.5


def test_ties_are_what_random_order_gives():
    rng = np.random.default_rng(0)
    judgements = rng.integers(0, 3, 40).astype(float)
    positive = np.arange(40) < 20
    drawn = [accuracy(judgements + 1e-6 * rng.random(40), positive) for _ in range(4000)]
    assert accuracy(judgements, positive) == pytest.approx(np.mean(drawn), abs=0.01)


def test_score_by_hand():
    judged = Judged(np.array([0, 1, 2]), np.array([3, 4, 5]), np.array([3, 6, 7]))
    judgements = np.array([6.0, 1, 4, 3, 2, 0, 9, 8])
    # of 6 1 4 and 3 2 0: see above; 6 beats three, 1 one, 4 three. Of 6 1 4 and 3 9 8: 9 8 6 are above
    assert logit_score(judgements, judged) == (
        pytest.approx(4 / 6),
        pytest.approx(7 / 9),
        pytest.approx(2 / 6),
        3,
    )
    none = np.zeros(0, np.int64)
    assert logit_score(judgements, Judged(none, none, none)) == (0.5, 0.5, 0.5, 0)


@pytest.mark.parametrize("most", [10**6, 800])
@pytest.mark.parametrize("separators", [(), (0,)])
def test_a_judgement_is_the_mean_before_the_token(most, separators):
    """Token by token, in documents for explaining."""
    rng = np.random.default_rng(2)
    contexts = rng.choice(8, (60, 40), p=[0.03, *[0.161] * 6, 0.004])
    text, config = text_of(contexts, separators, rng.choice(2400, 50, replace=False)), RecordsConfig()
    following = Following(text, config, most, least=5)
    assert len(following.windows) == min(60, most // 40)
    flat, documents = contexts.ravel(), text.documents(np.arange(contexts.size))
    explain = text.splits(documents, config) == 0
    read = [
        i
        for i in range(60)
        if any((np.where(explain, flat, -1)[40 * i : 40 * i + 40] == one).all() for one in following.windows)
    ]
    assert len(read) >= len(following.windows)
    table = Table(rng.random(8))
    sums, counts = np.zeros(8), np.zeros(8)
    for i in read:
        for place in range(40 * i, 40 * i + 39):
            if explain[place] and documents[place] == documents[place + 1] and text.encoded.ravel()[place]:
                sums[flat[place + 1]] += table.means[flat[place]]
                counts[flat[place + 1]] += 1
    if most == 10**6:
        assert following.counts.tolist() == counts.tolist()
        assert following.judge(table).tolist() == pytest.approx((sums / np.maximum(counts, 1)).tolist())
        known = [token for token in range(8) if counts[token] >= 5 and token not in separators]
        assert following.known.tolist() == known and 0 in known or separators
    assert (following.windows[following.windows >= 0] < 8).all() and (following.windows == -1).any()


def test_contexts_are_those_of_the_seed(ground):
    text, config = ground.records.text, ground.records.config
    one, same, other = (Following(text, config, 2000, least=2, seed=seed).windows for seed in (0, 0, 1))
    assert (one == same).all() and not (one == other).all()
    with pytest.raises(InputError, match="got too little text"):
        Following(text, config, least=10**5)


def test_tokens_are_50_and_50_and_50(ground, following):
    logits = random_logits(3, len(ground.vocabulary))
    known = set(following.known.tolist())
    for latent in range(3):
        chosen = choose_tokens(logits, latent, following, seed=1)
        first = logits.positive_tokens[latent].tolist()
        assert chosen.positive.tolist() == [token for token in first[10:60] if token in known]
        for others in (chosen.random.tolist(), chosen.matched.tolist()):
            assert len(others) == len(chosen.positive) == len(set(others)) > 35
            assert not set(others) & set(first) and set(others) <= known
        counts = following.counts
        apart = [
            np.abs(np.log(counts[one] / counts[chosen.positive])).mean()
            for one in (chosen.random, chosen.matched)
        ]
        assert apart[1] < 0.3 * apart[0]
    again, other = (choose_tokens(logits, 0, following, seed=seed) for seed in (1, 2))
    same = choose_tokens(logits, 0, following, seed=1)
    assert all((a == b).all() for a, b in zip(again, same)) and set(again.random) != set(other.random)
    with pytest.raises(InputError, match="expected 60 of each latent"):
        choose_tokens(logits._replace(positive_tokens=logits.positive_tokens[:, :20]), 0, following)


def test_predictions_that_are_no_numbers(ground, following):
    with pytest.raises(InputError, match="NaN or Inf"):
        following.judge(Table(np.full(len(ground.vocabulary), np.nan)))


def scores(ground, following, logits, latents, explanations):
    return [
        logit_score(following.judge(one), choose_tokens(logits, int(latent), following))
        for one, latent in zip(explanations, latents)
    ]


def test_units_that_promote_what_follows_them(ground, following):
    """Even a table of means sees which tokens come after its own; and of random logits nobody sees any."""
    explainer = Means(ground.records)
    kinds = np.asarray(ground.kinds)
    for kind in ("run", "script", "topic", "token class"):
        latents = np.flatnonzero((kinds == kind) & ground.promotes)
        explanations = [explainer.explain(latent) for latent in latents.tolist()]
        found = scores(ground, following, ground.logits, latents, explanations)
        assert len(latents) and np.mean([one.accuracy for one in found]) > 0.75, kind
        assert np.mean([one.matched_accuracy for one in found]) > 0.75, kind
    latents = range(ground.records.d_sae)
    explanations = [explainer.explain(latent) for latent in latents]
    logits = random_logits(len(kinds), len(ground.vocabulary), seed=9)
    found = scores(ground, following, logits, latents, explanations)
    assert np.abs(np.mean(found, axis=0)[:3] - 0.5).max() < 0.05
    same = [Table(np.ones(len(ground.vocabulary)))] * len(kinds)
    assert {one[:3] for one in scores(ground, following, ground.logits, latents, same)} == {(0.5, 0.5, 0.5)}


def test_logits_that_sort_by_frequency_win_nothing_against_matched_tokens():
    """Explanations that say active before frequent tokens, and logits that are larger for frequent ones."""
    rng = np.random.default_rng(0)
    usual = 1 / np.arange(5.0, 305)
    contexts = rng.choice(300, (800, 64), p=usual / usual.sum())
    following = Following(text_of(contexts), RecordsConfig(), least=8)
    counts = np.zeros(300)
    counts[: len(following.counts)] = following.counts
    noisy = torch.from_numpy(np.log(counts + 1) + rng.normal(0, 1, (40, 300)))
    order = noisy.topk(60).indices.int()
    logits = random_logits(40, 300)._replace(positive_tokens=order)
    judgements = np.log(counts + 1) + rng.normal(0, 1, (40, 300))
    found = [logit_score(judgements[i], choose_tokens(logits, i, following)) for i in range(40)]
    plain, matched = (
        np.mean([getattr(one, name) for one in found]) for name in ("accuracy", "matched_accuracy")
    )
    assert plain > 0.6 and abs(matched - 0.5) < min(0.08, plain - 0.5 - 0.04)
