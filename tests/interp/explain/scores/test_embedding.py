"""Scores by how alike texts are."""

from types import SimpleNamespace

import numpy as np
import pytest

from saefast.errors import InputError
from saefast.interp.explain.examples import Tiles
from saefast.interp.explain.scores.classification import detection_examples
from saefast.interp.explain.scores.embedders import HashedNgrams
from saefast.interp.explain.scores.embedding import (
    Windows,
    embed_windows,
    embedding_intruder,
    embedding_score,
    example_embedding_score,
)
from saefast.interp.explain.scores.intruder import IntruderTrial, intruder_trials
from saefast.interp.trial.scores import auc
from saefast.interp.vocabulary import Vocabulary
from tests.helpers.explained import ID, ids, planted, text
from tests.helpers.explained import VOCABULARY as TOKENS
from tests.helpers.look_records import Tokens


class Texts(Tokens):
    text = Vocabulary.text


VOCABULARY = Texts(TOKENS.raw, special=(0,))


class Said:
    """An embedder that knows a vector for each text."""

    name = "said"

    def __init__(self, vectors):
        self.vectors, self.asked = vectors, []

    def embed(self, texts):
        self.asked += texts
        return np.asarray([self.vectors[text] for text in texts], np.float32).reshape(len(texts), -1)


def sentence(text):
    return SimpleNamespace(latent=0, sentence=text)


def windows(vectors, active, part=None):
    active = np.asarray(active, bool)
    part = np.where(active, 0, -1) if part is None else np.asarray(part)
    return Windows(np.asarray(vectors, np.float64), active, part.astype(np.int8), 3)


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    """Unit 0 is active on " law" and " court", unit 1 at random, unit 2 never."""
    contexts = text(200, 64, 1)
    rng = np.random.default_rng(0)
    acts = np.zeros((*contexts.shape, 3))
    acts[..., 0] = np.isin(contexts, ids(" law", " court")) * rng.uniform(1, 2, contexts.shape)
    acts[..., 1] = (rng.random(contexts.shape) < 0.02) * rng.uniform(1, 2, contexts.shape)
    records = planted(tmp_path_factory.mktemp("embedding"), contexts, acts)
    return {split: Tiles(records, split, 8) for split in ("explain", "score")}


def test_windows_are_embedded_as_text_without_what_stands_for_none(tiles):
    examples = detection_examples(tiles["score"], 0).take([0, 60])
    examples.tokens[:] = [ids("<eos>", " the", "A", "<eos>", "C", " of", "s", "<eos>"), [-1] * 8]
    embedder = Said({" theAC ofs": [0.6, 0.8], "": [0, 0]})
    found = embed_windows(embedder, VOCABULARY, examples)
    np.testing.assert_allclose(found.vectors, [[0.6, 0.8], [0, 0]], atol=1e-6)
    assert found.active.tolist() == [True, False]
    assert found.part.tolist() == examples.part.tolist() and found.latent == 0


def test_windows_that_explainers_see_are_refused(tiles):
    with pytest.raises(InputError, match="score"):
        embed_windows(HashedNgrams(), VOCABULARY, detection_examples(tiles["explain"], 0))
    with pytest.raises(InputError, match="at least one window"):
        embed_windows(HashedNgrams(), VOCABULARY, detection_examples(tiles["score"], 0).of("top"))


def test_the_score_is_the_auc_of_cosines_with_ties():
    rng = np.random.default_rng(5)
    vectors = rng.integers(-2, 3, (40, 2)).astype(float)  # many are equal
    active = rng.random(40) < 0.4
    found = embedding_score(Said({"it": [0.6, 0.8]}), sentence("it"), windows(vectors, active))
    cosines = (vectors @ [np.float32(0.6), np.float32(0.8)]).round(9)
    above = [(a > b) + (a == b) / 2 for a in cosines[active] for b in cosines[~active]]
    assert found.auc.value == pytest.approx(np.mean(above))
    assert found.auc.value == pytest.approx(auc(active, cosines))
    assert found.auc.low < found.auc.value < found.auc.high
    assert (found.n_active, found.n_inactive) == (active.sum(), (~active).sum())
    assert found.active == pytest.approx(cosines[active].mean(), abs=1e-6)
    assert found.inactive == pytest.approx(cosines[~active].mean(), abs=1e-6)


def test_an_explanation_that_says_what_is_there_is_above_one_that_does_not(tiles):
    embedder = HashedNgrams()
    found = embed_windows(embedder, VOCABULARY, detection_examples(tiles["score"], 0))
    right = embedding_score(embedder, sentence(' law or " court"'), found)
    wrong = embedding_score(embedder, sentence(" cat or Paris"), found)
    assert right.auc.low > 0.8 and right.auc.low > wrong.auc.high
    nothing = embedding_score(embedder, sentence(""), found)
    assert nothing.auc == (0.5, 0.5, 0.5) and nothing.active == nothing.inactive == 0


def test_where_one_kind_of_windows_is_missing_nothing_is_known(tiles):
    embedder = HashedNgrams()
    examples = detection_examples(tiles["score"], 2)
    assert not examples.active.any()
    found = embed_windows(embedder, VOCABULARY, examples)
    score = embedding_score(embedder, sentence("anything"), found)
    assert score.auc == (0.5, 0.0, 1.0) and score.n_active == 0 and score.active == 0
    assert example_embedding_score(found).n_trials == 0
    with pytest.raises(InputError, match="embedder"):
        embedding_score(HashedNgrams(7), sentence("anything"), found)


def test_windows_that_are_alike_have_the_largest_difference():
    axes = np.eye(2)
    found = example_embedding_score(windows(axes[[0] * 8 + [1] * 9], [1] * 8 + [0] * 9))
    assert found == ((1, 1, 1), (-1, -1, -1), (1, 1, 1), 20)
    turned = example_embedding_score(windows(axes[[0, 1] * 4 + [0, 1] * 4], [1] * 8 + [0] * 8))
    assert turned.active.low < 0.3 and turned.auc.low < 0.7  # all windows are alike


def test_no_window_is_compared_with_itself():
    """All are orthogonal to one another: if one were in its own set, its cosine would be above 0."""
    found = example_embedding_score(windows(np.eye(16), [1] * 5 + [0] * 11), n_trials=200)
    assert found[:3] == ((0, 0, 0), (0, 0, 0), (0.5, 0.5, 0.5))


def test_active_windows_are_compared_with_those_of_their_quantile():
    axes = np.eye(3)
    vectors, active = axes[[0] * 4 + [1] * 4 + [2] * 12], [1] * 8 + [0] * 12
    part = [0] * 4 + [1] * 4 + [-1] * 12
    assert example_embedding_score(windows(vectors, active, part)).active == (1, 1, 1)
    mixed = example_embedding_score(windows(vectors, active))  # all of one quantile
    assert mixed.active.value == pytest.approx(3 / 7)  # 3 of the 7 others are alike
    alone = example_embedding_score(windows(vectors, active, [*range(8), *[-1] * 12]))
    assert alone == ((0, -2, 2), (0, -2, 2), (0.5, 0, 1), 0)


def test_a_trial_has_as_many_windows_as_it_is_told():
    """Of one window the mean cosine is one of the numbers that are there; of all of them it is always the same."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(24, 6))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    given, cosines = windows(vectors, [1] * 12 + [0] * 12), vectors @ vectors.T
    one = example_embedding_score(given, n_trials=1, size=1)
    differences = cosines[:12, :12, None] - cosines[:12, None, 12:]
    assert np.abs(differences - one.active.value).min() < 1e-12
    every = example_embedding_score(given, n_trials=1, size=50)
    others = [(cosines[i, :12].sum() - 1) / 11 for i in range(12)]
    far = [[(cosines[i, 12:].sum() - cosines[i, j]) / 11 for j in range(12, 24)] for i in range(12)]
    assert np.abs(np.subtract(np.asarray(others)[:, None], far) - every.active.value).min() < 1e-12
    assert example_embedding_score(given, seed=1) != example_embedding_score(given, seed=2)
    assert example_embedding_score(given) == example_embedding_score(given)
    for wrong in ("n_trials", "size"):
        with pytest.raises(InputError, match=wrong):
            example_embedding_score(given, **{wrong: 0})


def trial(texts, intruder):
    tokens = np.asarray([ids(one) for one in texts], np.int32)
    return IntruderTrial(tokens, np.zeros(tokens.shape, bool), intruder, 0)


def test_the_intruder_is_the_window_least_like_the_others():
    embedder = Said({"A": [1, 0.0], "C": [0.8, 0.6], "GT": [0.0, 1]})
    trials = [trial(["A", "A", "GT", "C"], 2), trial(["GT", "A", "GT"], 1), trial(["A", "C", "GT"], 1)]
    found = embedding_intruder(embedder, VOCABULARY, trials)
    assert found.share.value == pytest.approx(2 / 3) and found.n == 3 and found.chance == 0.25
    assert sorted(embedder.asked) == ["A", "C", "GT"]  # each text once


def test_where_all_windows_are_alike_the_intruder_is_found_by_chance():
    trials = [trial(["A"] * 5, i % 5) for i in range(50)]
    found = embedding_intruder(Said({"A": [0.6, 0.8]}), VOCABULARY, trials)
    assert found.share.value == found.chance == 0.2
    assert embedding_intruder(HashedNgrams(), VOCABULARY, []).n == 0


def test_units_with_something_in_common_have_intruders(tiles):
    embedder, score = HashedNgrams(), tiles["score"]
    found = [embedding_intruder(embedder, VOCABULARY, intruder_trials(score, unit)) for unit in (0, 1)]
    assert found[0].share.low > 0.25 and found[0].share.value > found[1].share.value
    alike = [
        example_embedding_score(embed_windows(embedder, VOCABULARY, detection_examples(score, unit)))
        for unit in (0, 1)
    ]
    assert alike[0].auc.low > 0.5 and alike[0].auc.value > alike[1].auc.value
    assert ID[" law"] in detection_examples(score, 0).tokens
