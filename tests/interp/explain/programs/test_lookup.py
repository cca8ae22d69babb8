"""Means of tokens, by hand."""

import numpy as np
import pytest

from saefast.errors import InputError
from saefast.interp.explain import add_sentences
from saefast.interp.explain.programs.lookup import LookUp
from saefast.interp.explanations import read_explanations
from saefast.interp.records import RecordsConfig
from tests.helpers.explained import CONFIG, VOCABULARY, ids, planted

ALL = RecordsConfig(**{**CONFIG.__dict__, "score_fraction": 0.0})


def small(tmp_path):
    """Three latents: one on " cat" and a bit on " dog", one that is never active, one that is active everywhere."""
    contexts = np.array([ids(" the", " cat", ".", " dog"), ids(" cat", " cat", " the", ".")], np.int32)
    acts = np.zeros((2, 4, 3))
    acts[:, :, 0] = [[0, 4, 0, 0.25], [2, 0, 0, 0]]
    acts[:, :, 2] = [[1, 2, 3, 4], [5, 6, 7, 8]]
    return planted(tmp_path, contexts, acts, config=ALL)


def test_means_of_tokens_and_of_all_where_a_token_is_not_there(tmp_path):
    explainer = LookUp(small(tmp_path), VOCABULARY)
    windows = np.array([ids(" cat", " dog", ".", " of", " the"), [-1, *ids(" of"), -1, -1, -1]])
    one = explainer.explain(0)
    assert one.predict(windows).tolist() == [[2, 0.25, 0, 6.25 / 8, 0], [0, 6.25 / 8, 0, 0, 0]]
    assert one.predict(windows).dtype == np.float64
    assert one.sentence == 'Active on the tokens " cat" (2) and " dog" (0.25).'
    assert explainer.explain(2).predict(windows).tolist()[0] == [13 / 3, 4, 5.5, 4.5, 4]


def test_a_latent_that_is_never_active_is_predicted_to_be_0(tmp_path):
    never = LookUp(small(tmp_path), VOCABULARY).explain(1)
    assert not never.predict(np.array([ids(" cat", " of")])).any() and "Never active" in never.sentence


def test_a_token_that_is_there_once_is_not_named_before_those_that_matter(tmp_path):
    contexts = np.array([ids(" cat") * 200 + ids(" dog")], np.int32)
    acts = np.where(contexts == ids(" dog")[0], 3.0, 2.0)[..., None]
    found = LookUp(planted(tmp_path, contexts, acts, config=ALL), VOCABULARY).explain(0)
    assert found.sentence == 'Active on the token " cat" (2); less of it on 1 other tokens.'


def test_sentences_are_added_to_those_of_other_methods(tmp_path):
    records = small(tmp_path)
    explainer = LookUp(records, VOCABULARY)
    found = {latent: explainer.explain(latent) for latent in range(3)}
    add_sentences(records.folder, "rules", {1: found[0]})
    add_sentences(records.folder, explainer.name, found, {2: {"spearman": 0.5}})
    add_sentences(records.folder, explainer.name, {0: found[2]})
    lines = read_explanations(records.folder)
    assert [(line["latent"], line["method"], line["scores"]) for line in lines] == [
        (1, "rules", {}),
        (1, "lookup", {}),
        (2, "lookup", {"spearman": 0.5}),
        (0, "lookup", {}),
    ]
    assert lines[-1]["explanation"] == found[2].sentence


@pytest.mark.parametrize(
    "tokens, message",
    [
        (np.zeros(3, np.int64), r"expected ids \[n, L\] of windows, got int64 \[3\]"),
        (np.zeros((1, 3)), "got float64"),
        (np.array([[0, -2]]), "expected ids from -1 .* got -2 to 0"),
        (np.array([[0, 99]]), "got 0 to 99"),
    ],
)
def test_what_is_no_window_is_refused(tmp_path, tokens, message):
    with pytest.raises(InputError, match=message):
        LookUp(small(tmp_path), VOCABULARY).explain(0).predict(tokens)


def test_no_such_latent(tmp_path):
    with pytest.raises(InputError, match="latent: expected 0 to 2, got 3"):
        LookUp(small(tmp_path), VOCABULARY).explain(3)
