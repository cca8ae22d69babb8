"""Explainers read the documents for explaining, and no others."""

import numpy as np
import pytest

from saefast.interp.explain.programs.lookup import LookUp
from saefast.interp.explain.programs.ngrams import NGrams
from saefast.interp.explain.programs.rules import Rules
from saefast.interp.explain.programs.split import REACH, ExplainSplit
from tests.helpers.explained import ID, VOCABULARY, planted, text

EOS = 0


def documents(seed, m=40, length=64):
    """Text with ends of documents in it, and what two latents do: one after " the", one on Hebrew, with noise."""
    rng = np.random.default_rng(seed)
    contexts = text(m, length, seed)
    contexts[rng.random(contexts.shape) < 0.03] = EOS
    acts = np.zeros((m, length, 2))
    acts[:, 1:, 0] = contexts[:, :-1] == ID[" the"]
    acts[:, :, 1] = np.isin(contexts, [ID["\u05d0"], ID[" \u05e9\u05dc"]])
    return contexts, acts * rng.uniform(1, 3, acts.shape)


def after_the(texts, at, latent):
    """What latent 0 is made of; latent 1 is the token itself."""
    rows = np.arange(len(at))
    before, here = texts[rows, np.maximum(at - 1, 0)], texts[rows, at]
    return 2.0 * (
        ((before == ID[" the"]) & (at > 0))
        if latent == 0
        else np.isin(here, [ID["\u05d0"], ID[" \u05e9\u05dc"]])
    )


EXPLAINERS = {
    "lookup": lambda records: LookUp(records, VOCABULARY),
    "ngrams": lambda records: NGrams(records, VOCABULARY, after_the),
    "rules": lambda records: Rules(records, VOCABULARY),
}


@pytest.mark.parametrize("name", EXPLAINERS)
def test_nothing_of_the_documents_for_scoring_is_read(tmp_path, name):
    contexts, acts = documents(1)
    records = planted(tmp_path / "a", contexts, acts, (EOS,))
    slots = np.arange(contexts.size)
    scored = records.text.splits(records.text.documents(slots), records.config).reshape(contexts.shape) == 1
    other, other_acts = documents(2)
    ends = (contexts == EOS) | (other == EOS)
    mutated = np.where(scored & ~ends, other, contexts)
    mutated_acts = np.where(scored[..., None], 5 * other_acts[:, :, ::-1], acts)
    assert (mutated != contexts).mean() > 0.2 and 0.2 < scored.mean() < 0.8
    again = planted(tmp_path / "b", mutated, mutated_acts, (EOS,))
    windows = text(20, 9, 3)
    explainers = [EXPLAINERS[name](one) for one in (records, again)]
    assert explainers[0].name == name
    for latent in range(2):
        one, two = (explainer.explain(latent) for explainer in explainers)
        assert one.sentence == two.sentence and "Active on" in one.sentence
        np.testing.assert_array_equal(one.predict(windows), two.predict(windows))


@pytest.mark.parametrize("separators", [(EOS,), ()])
def test_the_texts_of_the_split_lie_apart(tmp_path, separators):
    contexts, acts = documents(4, m=9, length=16)
    records = planted(tmp_path, contexts, acts, separators)
    split = ExplainSplit(records)
    of = records.text.documents(np.arange(contexts.size)).reshape(contexts.shape)
    texts = []  # (document, tokens) in the order of the slots
    for context in range(len(contexts)):
        for document in np.unique(of[context]):
            if records.text.splits(np.array([document]), records.config)[0] == 0:
                texts.append((int(document), contexts[context][of[context] == document].tolist()))
    want = [-1] * REACH
    for _, tokens in texts:
        want += tokens + [-1] * REACH
    assert split.tokens.tolist() == want
    assert sorted({int(d) for d in split.document if d >= 0}) == sorted({d for d, _ in texts})
    for latent in range(2):
        places, found = split.entries(latent)
        dense = np.zeros(len(split.tokens))
        dense[places] = found
        again = acts[:, :, latent][np.isin(of, [d for d, _ in texts])]
        np.testing.assert_allclose(dense[split.tokens >= 0], again, rtol=1e-6)


@pytest.mark.parametrize("name", EXPLAINERS)
def test_padding_is_predicted_to_be_0_and_windows_are_apart(tmp_path, name):
    explainer = EXPLAINERS[name](planted(tmp_path, *documents(5), (EOS,)))
    windows = text(6, 9, 6)
    padded = np.pad(windows, ((0, 0), (2, 1)), constant_values=-1)
    for latent in range(2):
        one = explainer.explain(latent)
        acts = one.predict(padded)
        assert not acts[padded < 0].any()
        np.testing.assert_array_equal(acts[:, 2:-1], one.predict(windows))
        alone = np.concatenate([one.predict(window[None]) for window in windows])
        np.testing.assert_array_equal(alone, one.predict(windows))
        assert one.predict(windows[:0]).shape == (0, 9)
