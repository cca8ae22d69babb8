"""The rise of the loss in a context and outside of it, beside the effects of whole contexts."""

import numpy as np
import pytest

from saefast.errors import InputError
from saefast.interp.contexts import ablation as module
from saefast.interp.contexts import context_ablation, documents_of, rows_of
from saefast.interp.effects.ablation import Ablation, Window
from tests.helpers.effects_cases import recorded, sae_of

HOOK = "transformer.h.1"


def case(tmp_path):
    """A latent that is active in some contexts, but not in all, and one that never is."""
    for seed in range(30):
        sae = sae_of(d_sae=40, seed=seed)
        records, _, model = recorded(tmp_path / str(seed), sae, "gpt2")
        labels = np.random.default_rng(0).random(records.text.contexts.shape) < 0.4
        documents = rows_of(records, "score").any(axis=1)
        contexts = [np.unique(records.entries(latent)[0] // records.text.length) for latent in range(40)]
        n_active = np.array([documents[each].sum() for each in contexts])
        n_active[n_active == documents.sum()] = 0
        latent = int(n_active.argmax())
        after = np.zeros(labels.shape, bool)
        after.ravel()[records.entries(latent)[0]] = True
        reached = rows_of(records, "score")[:, 1:] & labels[:, 1:] & after[:, :-1]
        if n_active.max() > 2 and min(map(len, contexts)) == 0 and reached.any():
            return sae, records, model, latent, labels
    raise AssertionError("no SAE has such latents")


def test_means_are_those_of_all_contexts(tmp_path):
    sae, records, model, latent, labels = case(tmp_path)
    found = context_ablation(records, sae, model, HOOK, latent, labels, split="score")
    ablation = Ablation(records, sae, model, HOOK, None, None)
    m, length = labels.shape
    rise = np.zeros((m, length))
    for window, effects in ablation.effects([Window(latent, "", 0, 0, i, 0, length) for i in range(m)]):
        rise[window.context, 1:] = -np.array(effects[1:])
    tokens = rows_of(records, "score")
    tokens[:, 0] = False
    active = np.zeros((m, length), bool)
    active.ravel()[records.entries(latent)[0]] = True
    assert 1 < found.n_ablated == found.n_active < m
    assert (found.n_inside, found.n_outside) == ((tokens & labels).sum(), (tokens & ~labels).sum())
    inside, outside = rise[tokens & labels].mean(), rise[tokens & ~labels].mean()
    assert found.inside.value == pytest.approx(inside, rel=1e-4, abs=1e-7) and abs(inside) > 1e-3
    assert found.outside.value == pytest.approx(outside, rel=1e-4, abs=1e-7)
    assert found.ratio.value == pytest.approx(inside / abs(outside), rel=1e-3)
    assert found.inside.low <= found.inside.value <= found.inside.high
    after = np.zeros_like(active)
    after[:, 1:] = active[:, :-1]
    assert found.after_inside == pytest.approx(rise[tokens & labels & after].mean(), rel=1e-4)
    assert len(np.unique(documents_of(records.text)[tokens])) > 2
    assert context_ablation(records, sae, model, HOOK, latent, labels, split="score") == found


def test_inactive_contexts_take_no_pass_and_count_as_zero(tmp_path, monkeypatch):
    sae, records, model, latent, labels = case(tmp_path)
    made = []

    class Counted(Ablation):
        def effects(self, windows):
            made.extend(windows)
            return super().effects(windows)

    monkeypatch.setattr(module, "Ablation", Counted)
    dead = int(records.table()["count"].to_numpy().argmin())
    assert len(records.entries(dead)[0]) == 0
    found = context_ablation(records, sae, model, HOOK, dead, labels, split="score")
    assert made == [] and found.inside.value == found.outside.value == 0 and found.n_ablated == 0
    context_ablation(records, sae, model, HOOK, latent, labels, split="score")
    contexts = {window.context for window in made}
    assert contexts <= {int(slot) // records.text.length for slot in records.entries(latent)[0]}


def test_draws_are_weighted(tmp_path):
    """With one context of each kind drawn, the mean over many seeds is that of all."""
    sae, records, model, latent, labels = case(tmp_path)
    labels[::2] = False  # some contexts have none
    every = context_ablation(records, sae, model, HOOK, latent, labels, split="score")
    drawn = [
        context_ablation(records, sae, model, HOOK, latent, labels, split="score", n=1, seed=seed)
        for seed in range(24)
    ]
    assert max(one.n_ablated for one in drawn) == 2 < every.n_ablated
    values = np.array([one.outside.value for one in drawn])
    error = values.std() / np.sqrt(len(values))
    assert abs(values.mean() - every.outside.value) < 5 * error + 0.2 * abs(every.outside.value)


def test_wrong_input(tmp_path):
    sae, records, model, latent, labels = case(tmp_path)
    with pytest.raises(InputError, match="other weights"):
        context_ablation(records, sae_of(d_sae=40, seed=9), model, HOOK, latent, labels)
    with pytest.raises(InputError, match="labels"):
        context_ablation(records, sae, model, HOOK, latent, labels[1:])
    with pytest.raises(InputError, match="labels"):
        context_ablation(records, sae, model, HOOK, latent, np.zeros_like(labels))
    with pytest.raises(InputError, match="n: expected"):
        context_ablation(records, sae, model, HOOK, latent, labels, n=0)
