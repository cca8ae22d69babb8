"""Whether explanations make texts less surprising."""

from types import SimpleNamespace

import numpy as np
import pytest

from saefast.errors import InputError
from saefast.interp.explain.examples import Examples
from saefast.interp.explain.scores.separation import separation, sides
from saefast.interp.explain.scores.surprisal import of_gains, surprisal_score
from saefast.interp.trial.scores import auc


def examples(active, split="score"):
    acts = np.zeros((len(active), 4))
    acts[active, 2] = 1.5
    n = len(active)
    tokens = np.arange(4 * n, dtype=np.int32).reshape(n, 4)
    return Examples(7, split, tokens, acts, 4 * np.arange(n), np.zeros(n, np.int8), np.zeros(n, np.int8), 1.5)


def test_the_score_is_about_gains_of_active_windows_beside_the_others():
    rng = np.random.default_rng(0)
    active = np.arange(50) % 3 == 0
    gains = rng.normal(size=50).round(1) + 0.8 * active  # with ties
    explanation = object()

    def surprisal(said, tokens):
        assert said is explanation and tokens.shape == (50, 4)
        return gains[tokens[:, 0] // 4]

    found = surprisal_score(SimpleNamespace(surprisal=surprisal), explanation, examples(active))
    assert found == of_gains(active, gains)
    assert found.auc.value == pytest.approx(auc(active, gains)) and found.auc.low > 0.5
    want = gains[active].mean() - gains[~active].mean()
    assert found.difference.value == pytest.approx(want) == pytest.approx(found.active - found.inactive)
    assert 0 < found.difference.low < want < found.difference.high
    assert (found.n_active, found.n_inactive) == (17, 33)


def test_the_interval_of_the_difference_is_that_of_two_means():
    """Of many windows it is as wide as theory says, and draws do not change how many there are of each kind."""
    rng = np.random.default_rng(1)
    active = np.arange(800) % 4 == 0
    gains = rng.normal(size=800) * np.where(active, 2.0, 0.5)
    found = of_gains(active, gains).difference
    error = np.sqrt(gains[active].var() / active.sum() + gains[~active].var() / (~active).sum())
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_what_helps_with_every_text_alike_earns_nothing():
    active = np.arange(20) < 10
    found = of_gains(active, np.full(20, 3.0))
    assert found.auc == (0.5, 0.5, 0.5)
    np.testing.assert_allclose(found.difference, 0, atol=1e-12)
    assert found.active == found.inactive == 3


@pytest.mark.parametrize("share", [0, 1])
def test_where_one_kind_is_missing_nothing_is_known(share):
    found = of_gains(np.full(5, bool(share)), np.arange(5.0))
    assert found.auc == (0.5, 0, 1) and found.difference == (0, -np.inf, np.inf)
    assert {found.active, found.inactive} == {2.0, 0.0}
    assert {found.n_active, found.n_inactive} == {5, 0}


def test_what_is_wrong_is_refused():
    active = np.arange(4) < 2
    for wrong in (np.arange(3.0), np.full(4, np.nan), np.full(4, np.inf), np.zeros((4, 1))):
        with pytest.raises(InputError, match=r"x: expected \[4\] finite numbers"):
            of_gains(active, wrong)
    with pytest.raises(InputError, match="explanations are made from"):
        surprisal_score(SimpleNamespace(surprisal=None), None, examples(active, "explain"))


def test_separation_of_drawn_samples_is_the_auc_of_these_samples():
    """Each draw has so many windows of each kind; the percentiles are those of AUCs of such samples made by hand."""
    rng = np.random.default_rng(3)
    active = np.arange(30) % 5 < 2
    x = rng.normal(size=30).round(1) + active
    by_hand = []
    for _ in range(2000):
        chosen = [rng.choice(side.nonzero()[0], side.sum()) for side in (active, ~active)]
        rows = np.concatenate(chosen)
        by_hand.append(auc(active[rows], x[rows]))
    found = separation(active, x, draws=4000)
    np.testing.assert_allclose(found[1:], np.quantile(by_hand, [0.025, 0.975]), atol=0.02)
    assert separation(active, -x).value == pytest.approx(1 - found.value)
    assert separation(active, np.where(active, 2, 1)) == (1, 1, 1)
    assert sides(active, x).active == pytest.approx(x[active].mean())
