"""Detection and fuzzing: scores by hand, and what the windows and the marks are."""

import numpy as np
import pytest
from sklearn import metrics

from saefast.errors import InputError
from saefast.interp.explain.examples import Tiles
from saefast.interp.explain.scores.classification import (
    classification_score,
    detection,
    detection_examples,
    fuzzing,
    fuzzing_marks,
    random_marks,
)
from saefast.interp.explain.scores.program import ProgramJudge
from tests.helpers.scored_units import DENSE, N_UNITS, NEVER, RARE, by_hand, records_of, true_of

# windows that were labelled by hand, and what a judge said of them
LABELS = np.array([True, True, True, False, False])
SAID = np.array([0.9, 0.5, 0.2, 0.5, 0.1])


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return records_of(tmp_path_factory.getbasetemp() / "scored_units")


@pytest.fixture(scope="module")
def tiles(records):
    return Tiles(records, "score", 32)


@pytest.fixture(scope="module")
def judge(records):
    return ProgramJudge(Tiles(records, "explain", 32))


def test_by_hand():
    found = classification_score(LABELS, SAID)
    # yes of the three: 1, a half, 0; of the two others: a half, 0
    assert found.balanced_accuracy.value == pytest.approx((1.5 / 3 + 1.5 / 2) / 2)
    assert found.accuracy == pytest.approx(3 / 5)
    assert found.precision == pytest.approx(1.5 / 2) and found.recall == pytest.approx(0.5)
    assert found.f1 == pytest.approx(2 * 0.75 * 0.5 / 1.25)
    # pairs: both, one and a half, one of the last: 4.5 of 6
    assert found.auc.value == pytest.approx(0.75)
    assert (found.n_positive, found.n_negative) == (3, 2)


def test_the_half_is_at_0_5_exactly():
    labels = np.array([True, False])
    for p, accuracy in ([0.5, 0.5], 0.5), ([0.5 + 1e-9, 0.5], 0.75), ([0.5 - 1e-9, 0.5], 0.25):
        found = classification_score(labels, np.array(p))
        assert found.balanced_accuracy.value == found.accuracy == accuracy
    assert classification_score(labels, np.array([0.5, 0.5])).auc == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("seed", range(4))
def test_beside_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    labels, p = rng.random(80) < 0.4, rng.integers(0, 9, 80) / 8.5
    found, said = classification_score(labels, p), p > 0.5
    assert found.balanced_accuracy.value == pytest.approx(metrics.balanced_accuracy_score(labels, said))
    assert found.auc.value == pytest.approx(metrics.roc_auc_score(labels, p))
    assert found.accuracy == pytest.approx(metrics.accuracy_score(labels, said))
    assert found[3:6] == pytest.approx(
        metrics.precision_recall_fscore_support(labels, said, average="binary")[:3]
    )


@pytest.mark.parametrize("p", [0.0, 0.5, 0.75, 1.0])
def test_the_same_answer_everywhere_is_chance(p):
    found = classification_score(np.arange(100) < 37, np.full(100, p))
    assert found.balanced_accuracy == found.auc == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("label", [True, False])
def test_of_one_label_nothing_is_known(label):
    found = classification_score(np.full(4, label), np.array([0, 0.2, 0.7, 1]))
    assert found.balanced_accuracy == found.auc == (0.5, 0, 1)
    assert found.accuracy == 0.5 and found.recall == (0.5 if label else 0)


def test_never_yes_has_no_precision():
    found = classification_score(LABELS, np.zeros(5))
    assert (found.precision, found.recall, found.f1) == (0, 0, 0)


def test_the_interval_of_balanced_accuracy_is_that_of_two_shares():
    labels = np.arange(100) < 50
    p = np.where(labels, np.arange(100) % 50 < 40, np.arange(100) % 50 < 20).astype(
        float
    )  # 0.8 and 0.6 right
    found = classification_score(labels, p).balanced_accuracy
    half = 1.96 * np.sqrt(0.8 * 0.2 / 50 + 0.6 * 0.4 / 50) / 2
    assert found.value == pytest.approx(0.7)
    assert found.low == pytest.approx(0.7 - half, abs=0.011) and found.high == pytest.approx(
        0.7 + half, abs=0.011
    )
    assert classification_score(labels, p, draws=0).balanced_accuracy == pytest.approx((0.7, 0, 1))
    assert classification_score(labels, p, draws=0).auc == pytest.approx((0.7, 0, 1))


@pytest.mark.parametrize(
    "labels, p",
    [
        (LABELS, SAID[:4]),
        (LABELS.astype(int), SAID),
        (LABELS[:0], SAID[:0]),
        (LABELS[None], SAID[None]),
        (LABELS, SAID + 1),
        (LABELS, -SAID),
        (LABELS, SAID * np.nan),
    ],
)
def test_bad_input(labels, p):
    with pytest.raises(InputError):
        classification_score(labels, p)


def test_windows_of_a_unit(tiles):
    found = detection_examples(tiles, 3)
    assert found.tokens.shape == (100, 32) and found.split == "score" and found.active.sum() == 50
    assert np.bincount(found.part[found.active]).tolist() == [5] * 10
    assert (found.active == (np.isin(found.tokens, [7, 8]).any(axis=1))).all()
    peaks = found.acts.max(axis=1)[found.active]
    assert all(peaks[5 * i : 5 * i + 5].max() < peaks[5 * i + 5 : 5 * i + 10].min() + 1e-9 for i in range(9))


def test_near_units_make_it_harder(tiles):
    found = detection_examples(tiles, 3, near=[5])
    near = found.of("near")
    assert len(near) == 50 and not near.active.any() and np.isin(near.tokens, [11, 12]).any(axis=1).all()


@pytest.mark.parametrize("latent, n", [(DENSE, (50, 0)), (RARE, (5, 50)), (NEVER, (0, 50))])
def test_units_that_are_always_seldom_or_never_active(judge, tiles, latent, n):
    examples = detection_examples(tiles, latent)
    for score in (detection, fuzzing):
        found = score(judge, true_of(latent), examples)
        assert (found.n_positive, found.n_negative) == n
        assert found.balanced_accuracy.value == found.auc.value == 0.5


def test_the_true_explanation(judge, tiles):
    for latent in range(0, N_UNITS, 8):
        examples = detection_examples(tiles, latent)
        for score in (detection, fuzzing):
            found = score(judge, true_of(latent), examples)
            assert found.balanced_accuracy.value > 0.98 and found.auc.value > 0.98


def test_windows_that_explainers_see_are_refused(judge, records):
    examples = detection_examples(Tiles(records, "explain", 32), 3)
    for score in (detection, fuzzing):
        with pytest.raises(InputError, match="score"):
            score(judge, true_of(3), examples)


def test_marks_by_hand():
    acts = [[0, 1, 0.29, 0.3], [2, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    tokens = [[1, 1, 1, 1], [1, 1, 1, -1], [1, 1, 1, 1], [-1, -1, 1, -1]]
    found = fuzzing_marks(by_hand(acts, tokens))
    assert found[:2].tolist() == [[False, True, False, True], [True, False, False, False]]
    assert found[2].sum() == 2  # active on 3 and 1 tokens
    assert found[3].tolist() == [False, False, True, False]  # there is one token only


def test_so_many_marks_are_wrong_rounded_up():
    quiet = np.zeros((5, 9))
    acts = np.concatenate([np.eye(9)[:2] + np.eye(9)[2:4], np.eye(9)[4:5], quiet])
    assert (fuzzing_marks(by_hand(acts))[3:].sum(axis=1) == 2).all()  # 5 / 3
    assert not fuzzing_marks(by_hand(quiet)).any()


def test_wrong_marks_are_anywhere_and_the_same_for_the_same_seed():
    examples = by_hand(np.zeros((2000, 8)))
    found = random_marks(examples, 2)
    assert (found.sum(axis=1) == 2).all() and np.allclose(found.mean(axis=0), 0.25, atol=0.04)
    assert (found == random_marks(examples, 2)).all() and (found != random_marks(examples, 2, seed=1)).any()
    assert (found != random_marks(by_hand(np.zeros((2000, 8)), latent=1), 2)).any()
    backwards = examples.take(np.arange(2000)[::-1])
    assert (random_marks(backwards, 2)[::-1] == found).all()


def test_wrong_marks_are_not_on_active_tokens():
    acts = np.tile([[1.0, 0, 2, 0]], (50, 1))
    assert (random_marks(by_hand(acts), 3) == (acts == 0)).all()
