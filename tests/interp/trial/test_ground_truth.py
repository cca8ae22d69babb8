"""Planted units, and which scorers tell them apart."""

import numpy as np
import pytest

from saefast.errors import InputError
from saefast.interp.trial import another, gate, plant, told_apart
from saefast.interp.trial.planted import POLYSEMANTIC
from tests.helpers.trial_cases import Means, Table


def test_units_are_what_they_are_said_to_be(ground):
    records = ground.records
    tokens = records.text.contexts.ravel()
    raw = ground.vocabulary.raw
    for latent, (kind, name) in enumerate(zip(ground.kinds, ground.names)):
        slots, acts = records.entries(latent)
        density = len(slots) / records.n_rows
        strong = slots[acts > 0.3 * acts.max()]
        if name == "Hebrew":
            assert all(any(byte > 0xD0 for byte in raw[token]) for token in tokens[strong])
        if name == "a number after money":
            before = {raw[token].decode() for token in tokens[strong - 1]}
            assert before == {"$", "\u20ac", "\u00a3"}
        if kind == "single token":
            assert len(set(tokens[strong].tolist())) == 1
        if kind == "dense":
            assert density > 0.4
        if kind == "noise":
            assert 0.005 < density < 0.12
        assert ground.monosemantic[latent] == (kind not in POLYSEMANTIC)
    kinds = set(ground.kinds)
    assert kinds == {"token class", "pair", "script", "run", "topic", "single token", *POLYSEMANTIC}
    assert ground.kinds.count("mixture") == ground.monosemantic.sum() == 30


@pytest.mark.slow
def test_the_same_seed_gives_the_same_records(tmp_path, ground):
    again = plant(tmp_path / "again", n_contexts=200)
    assert (again.records.text.contexts == ground.records.text.contexts).all()
    for latent in (0, 40):
        for one, two in zip(again.records.entries(latent), ground.records.entries(latent)):
            assert (one == two).all()
    shards = again.records.folder.parent / "shards"
    before = {path: path.stat().st_mtime_ns for path in shards.iterdir()}
    taken = plant(tmp_path / "again", n_contexts=200)  # what is there is taken
    assert before == {path: path.stat().st_mtime_ns for path in shards.iterdir()}
    assert taken.records.n_rows == ground.records.n_rows and taken.names == ground.names
    other = plant(tmp_path / "again", seed=1, n_contexts=100)
    assert other.names != ground.names and len(other.records.text.contexts) == 100
    with pytest.raises(InputError, match="n_contexts: expected an integer of at least 100"):
        plant(tmp_path / "small", n_contexts=5)


def test_units_answer_for_any_text(ground):
    """What is recorded is what they do on texts, disturbed; and nothing that comes after a token matters."""
    text, records = ground.records.text, ground.records
    contexts = text.contexts[:20].astype(np.int64)
    for latent, kind in enumerate(ground.kinds):
        slots, acts = records.entries(latent)
        recorded = np.zeros(text.n_slots)
        recorded[slots] = acts
        recorded = recorded.reshape(text.contexts.shape)[:20]
        row, at = np.divmod(np.arange(contexts.size), text.length)
        clean = ground.activations(contexts[row], at, latent).reshape(contexts.shape)
        clean[contexts == 0] = 0  # without a row
        agree = (recorded > 0) == (clean > 0)
        assert agree.mean() > (0.85 if kind in ("mixture", "dense") else 0.985), kind
        assert np.corrcoef(recorded.ravel(), clean.ravel())[0, 1] > 0.7 or kind == "mixture"
        cut = contexts.copy()
        cut[:, 60:] = -1
        assert (ground.units[latent].clean(cut)[:, :60] == ground.units[latent].clean(contexts)[:, :60]).all()


def test_told_apart_by_hand():
    assert told_apart([0.9, 0.8, 0.1, 0.2], [True, True, False, False]) == 1
    assert told_apart([0.9, 0.1, 0.1, 0.2], [True, True, False, False]) == pytest.approx(2.5 / 4)
    for scores, kinds, message in (
        ([1.0], [True, False], "expected a number for each of 2 units"),
        ([1.0, np.nan], [True, False], "expected a number for each of 2 units"),
        ([1.0, 0.5], [True, True], "expected units of both kinds, got 2 of 2"),
    ):
        with pytest.raises(InputError, match=message):
            told_apart(scores, kinds)


class Knows(Means):
    """A made-up explainer that is good on what stands for one thing."""

    def explain(self, latent):
        table = super().explain(latent)
        return table if self.ground.monosemantic[latent] else Table(np.sin(np.arange(len(self.counts) + 1.0)))


class Nothing(Means):
    def explain(self, latent):
        return Table(np.random.default_rng(latent).random(len(self.counts)))


def test_the_gate(ground):
    knows, nothing = Knows(ground.records, "knows"), Nothing(ground.records, "nothing")
    knows.ground = ground
    found = gate(ground, [knows, nothing, Means(ground.records)], least_places=8)
    assert found["knows"].usable and found["knows"].auc > 0.9
    assert found["knows"].monosemantic > 0.5 > abs(found["knows"].polysemantic) + 0.3
    assert not found["nothing"].usable and not found["nothing"].logit_usable
    assert 0.3 < found["nothing"].auc < 0.7
    for one in found.values():
        assert one.constant == 0 and abs(one.other) < 0.1
        assert abs(one.logit_random - 0.5) < 0.1
    assert set(found["means"].by_kind) == set(ground.kinds)
    assert found["means"].logit_promotes > 0.75
    assert found["means"].by_kind["noise"] < 0.2 < found["means"].by_kind["single token"]


def test_another_is_another():
    for n in (2, 3, 50):
        for seed in range(5):
            found = another(n, seed)
            assert sorted(found) == list(range(n)) and all(i != j for i, j in enumerate(found))
    with pytest.raises(InputError, match="at least 2 units"):
        another(1)
