"""Ablation and active latents against one context at a time."""

import pytest
import torch

from saefast.errors import InputError
from saefast.interp.effects import (
    ablation_cost,
    ablation_effects,
    active_latents,
    read_ablations,
    shown_windows,
)
from tests.helpers.effects_cases import language_model, recorded, sae_of, text
from tests.helpers.spliced import captured, logits_with
from tests.helpers.tiny_lm import tokenizer

ALL = ("top", "interval", "quantile", "random", "inactive")


def by_hand(sae, model, path, tokens, latent, at=None, out=None):
    """The change of the log-likelihood of each token of one context, from a full pass and dense codes."""
    names = [path] if at is None else at
    outputs = out or names
    found, logits = captured(model, {*names, *outputs}, input_ids=tokens[None])
    x = torch.cat([found[name] for name in names], dim=2)[0]
    acts, indices = sae.encode(x)
    only = torch.where(indices == latent, acts, 0)
    none = torch.zeros_like(acts)
    part = (sae.decode(only, indices, x) - sae.decode(none, indices, x)).detach()
    new, first = {}, 0
    for name in outputs:
        width = found[name].shape[2]
        new[name] = found[name] - part[None, :, first : first + width]
        first += width
    without = logits_with(model, new, input_ids=tokens[None])
    lp = [each[0, :-1].log_softmax(dim=1).gather(1, tokens[1:, None])[:, 0] for each in (logits, without)]
    return torch.cat([torch.zeros(1), lp[1] - lp[0]]), bool(only.any())


@pytest.mark.parametrize("kind", ["llama", "gpt2", "neox"])
def test_effects_are_those_of_one_context_at_a_time(kind, tmp_path):
    path = {"llama": "model.layers.1", "gpt2": "transformer.h.1", "neox": "gpt_neox.layers.1"}[kind]
    sae = sae_of(d_sae=40)
    records, _, model = recorded(tmp_path, sae, kind)
    counts = records.table()["count"].to_numpy()
    latents = sorted({0, *counts.argsort()[-2:].tolist()})
    windows = shown_windows(records, latents, ALL, n=3)
    cost = ablation_effects(records, sae, model, path, latents, ALL, n=3, contexts_at_once=2)
    assert cost == ablation_cost(windows) and cost.passes < len(windows)
    found = read_ablations(tmp_path)
    assert found.keys() == {window.key for window in windows}
    some, of_context = 0.0, {}
    for window in windows:
        key = window.context, window.latent
        tokens = torch.from_numpy(records.text.contexts[window.context]).long()
        if key not in of_context:
            of_context[key] = by_hand(sae, model, path, tokens, window.latent)
        change, active = of_context[key]
        effects, end = found[window.key], window.start + window.length
        assert (effects[0] is None) == (window.start == 0)
        got = torch.tensor([0.0 if effect is None else effect for effect in effects])
        torch.testing.assert_close(got, change[window.start : end], rtol=1e-3, atol=2e-5)
        assert active or not got.any()
        some = max(some, float(got.abs().max()))
    assert some > 0.01


@pytest.mark.parametrize("norm", ["layer_norm", "constant_norm", "scale"])
def test_the_normalisation_is_undone(norm, tmp_path):
    scales = (0.5, 0.25) if norm == "scale" else None
    sae = sae_of(input_norm=norm, scales=scales)
    records, _, model = recorded(tmp_path, sae)
    ablation_effects(records, sae, model, "model.layers.1", [2], n=2)
    checked = 0
    for (latent, _, _, rank), effects in read_ablations(tmp_path).items():
        window = next(w for w in shown_windows(records, [2], n=2) if w.rank == rank)
        tokens = torch.from_numpy(records.text.contexts[window.context]).long()
        change, _ = by_hand(sae, model, "model.layers.1", tokens, latent)
        got = torch.tensor([0.0 if effect is None else effect for effect in effects])
        torch.testing.assert_close(got, change[window.start :][: len(got)], rtol=1e-3, atol=2e-5)
        checked += 1
    assert checked


@pytest.mark.parametrize("kind", ["crosscoder", "transcoder"])
def test_several_places_and_the_output_of_a_transcoder(kind, tmp_path):
    if kind == "crosscoder":
        sae, at, out = sae_of(64, layers=2), ["model.layers.0", "model.layers.2"], None
    else:
        sae = sae_of(d_out=32, pre_bias=False)
        at, out = ["model.layers.1.mlp:in"], ["model.layers.1.mlp"]
    records, _, model = recorded(tmp_path, sae, hook=at)
    latent = int(records.table()["count"].to_numpy().argmax())
    ablation_effects(records, sae, model, at, [latent], n=3)
    found = read_ablations(tmp_path)
    for window in shown_windows(records, [latent], n=3):
        tokens = torch.from_numpy(records.text.contexts[window.context]).long()
        change, _ = by_hand(sae, model, None, tokens, latent, at, out)
        got = torch.tensor([effect or 0.0 for effect in found[window.key]])
        torch.testing.assert_close(got, change[window.start :][: len(got)], rtol=1e-3, atol=2e-5)
        assert got.any()
    assert found


def test_windows_that_are_there_stay_and_other_hooks_are_refused(tmp_path):
    sae = sae_of()
    records, _, model = recorded(tmp_path, sae)
    ablation_effects(records, sae, model, "model.layers.1", [1], n=1)
    first = read_ablations(tmp_path)
    cost = ablation_effects(records, sae, model, "model.layers.1", [1, 2], n=1)
    both = read_ablations(tmp_path)
    assert cost.windows == len(both) - len(first) and {k: both[k] for k in first} == first
    with pytest.raises(InputError, match="delete it"):
        ablation_effects(records, sae, model, "model.layers.0", [1])
    with pytest.raises(InputError, match="other weights"):
        ablation_effects(records, sae_of(seed=5), model, "model.layers.1", [1])
    with pytest.raises(InputError, match="groups"):
        shown_windows(records, [1], ("best",))
    with pytest.raises(InputError, match="latents"):
        shown_windows(records, [19])


def test_active_latents_are_those_of_the_encoder_without_the_rows_left_out():
    sae, model, tokens = sae_of(), language_model("llama"), text()[0][0]
    found = active_latents(sae, model, "model.layers.1", tokens)
    rows = captured(model, ["model.layers.1"], input_ids=tokens[None])[0]["model.layers.1"][0]
    acts, indices = sae.encode(rows)
    for pairs, of_token, latents in zip(found, acts.tolist(), indices.tolist(), strict=True):
        wanted = {latent: act for latent, act in zip(latents, of_token, strict=True) if act > 0}
        assert {pair.latent for pair in pairs} == wanted.keys()
        assert [pair.act for pair in pairs] == sorted((pair.act for pair in pairs), reverse=True)
        assert all(abs(pair.act - wanted[pair.latent]) < 1e-3 for pair in pairs)
    norms = rows.norm(dim=1)
    limit, dropped = float(norms.sort().values[-2]), int(tokens[3])
    fewer = active_latents(sae, model, "model.layers.1", tokens, n=2, max_norm=limit, drop_ids=[dropped])
    for i, (pairs, norm) in enumerate(zip(fewer, norms.tolist(), strict=True)):
        left_out = norm > limit or int(tokens[i]) == dropped
        assert len(pairs) == (0 if left_out else min(2, len(found[i])))


def test_text_takes_its_tokenizer_and_may_be_empty():
    sae, model, tok = sae_of(), language_model("llama"), tokenizer()
    by_text = active_latents(sae, model, "model.layers.1", "w1 w2 w5", tok)
    assert by_text == active_latents(sae, model, "model.layers.1", [3, 4, 7])
    assert active_latents(sae, model, "model.layers.1", "", tok) == []
    assert len(active_latents(sae, model, "model.layers.1", [5])) == 1
    with pytest.raises(InputError, match="tokenizer"):
        active_latents(sae, model, "model.layers.1", "w1")
    with pytest.raises(InputError, match="vocabulary"):
        active_latents(sae, model, "model.layers.1", [64])
    with pytest.raises(InputError, match="width"):
        active_latents(sae_of(d_in=16), model, "model.layers.1", [5])
    with pytest.raises(InputError, match="integer token ids"):
        active_latents(sae, model, "model.layers.1", [1.5])
