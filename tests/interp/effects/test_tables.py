"""Logit weights, neighbours, alignment and correlations against brute force."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from saefast.errors import InputError
from saefast.interp.effects import (
    Effects,
    alignment,
    correlated,
    correlated_neurons,
    effects_of,
    logit_weights,
    neighbours,
)
from saefast.interp.neurons import neurons
from tests.helpers.effects_cases import HIDDEN, HOOKS, NORMS, language_model, recorded, sae_of


def ranked(row, n):
    """Indices of the n largest finite ones, of equal ones the smaller first; padded with -1."""
    order = sorted((i for i in range(len(row)) if row[i] > -np.inf), key=lambda i: (-row[i], i))[:n]
    return order + [-1] * (n - len(order))


def logits_by_hand(kind, directions):
    """In fp64, with the formula of each norm."""
    model = language_model(kind)
    norm, rows = model.get_submodule(NORMS[kind]), directions.double()
    if kind != "llama":
        rows = rows - rows.mean(dim=1, keepdim=True)
    return (rows * norm.weight.double()) @ model.get_output_embeddings().weight.double().T


@pytest.mark.parametrize("kind", list(HOOKS))
@pytest.mark.parametrize("place", ["residual", "hidden"])
def test_logit_weights_are_the_direct_path_in_three_families(kind, place):
    model, (path, width) = language_model(kind), HIDDEN[kind]
    if place == "residual":
        sae, hook = sae_of(), HOOKS[kind]
        directions = sae.W_dec.data
    else:
        sae, hook = sae_of(width), f"{path}:in"
        linear = model.get_submodule(path)
        out = linear(sae.W_dec.data) - linear(torch.zeros(1, width))
        directions = out.detach()
    sae.W_dec.data[2] = 0
    directions = directions.clone()
    directions[2] = 0
    wide = logits_by_hand(kind, directions)[:, :61]
    wide = (wide - wide.median(dim=1, keepdim=True).values).detach()
    found = logit_weights(sae, model, n=5, n_bins=7, hook=hook, n_vocab=61)
    for f, row in enumerate(wide.tolist()):
        assert found.positive_tokens[f].tolist() == ranked(row, 5)
        assert found.negative_tokens[f].tolist() == ranked([-x for x in row], 5)
        expected = np.histogram(row, bins=7, range=(min(row), max(row) + (f == 2)))[0]
        assert np.abs(found.histogram[f].numpy() - expected).sum() <= 2  # at most one at an edge, by rounding
    torch.testing.assert_close(found.positive.double(), wide.topk(5).values, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.highest.double(), wide.amax(dim=1), rtol=1e-4, atol=1e-5)
    assert found.histogram.sum(dim=1).tolist() == [61] * 19


def test_more_rows_than_tokens_and_the_parts_of_a_transcoder_and_a_crosscoder():
    model = language_model("llama")
    plain = sae_of()
    found = logit_weights(plain, model, n=70, hook="model.layers.1")
    assert (found.positive_tokens[:, 64:] == -1).all() and (found.positive_tokens[:, :64] >= 0).all()
    transcoder = sae_of(d_out=32, pre_bias=False)
    cross = sae_of(d_in=64, layers=2)
    for sae, hook, rows in (
        (transcoder, "model.layers.1.mlp:in", transcoder.W_dec),
        (cross, ["model.layers.0", "model.layers.1"], cross.W_dec[:, 32:]),
    ):
        plain.W_dec.data.copy_(rows.data)
        wanted = logit_weights(plain, model, hook="model.layers.1")
        got = logit_weights(sae, model, hook=hook)
        assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


@pytest.mark.parametrize(
    ("hook", "said"),
    [
        ("model.layers.1.mlp:in", "direct path"),
        ("model.layers.1.input_layernorm", "direct path"),
        ("model.layers.1.self_attn.q_proj", "direct path"),
        ("model.layers.1.mlp.act_fn", "direct path"),
        ("model.layers.1.mlp.down_proj:in", "width"),
        ("model.layers.9", "near it"),
        (None, "metadata"),
    ],
)
def test_logit_weights_refuse_where_there_is_no_direct_path(hook, said):
    with pytest.raises(InputError, match=said):
        logit_weights(sae_of(), language_model("llama"), hook=hook)


def test_logit_weights_refuse_models_in_which_norm_or_unembedding_are_not_found():
    model, hook = language_model("llama"), "model.layers.1"
    with pytest.raises(InputError, match="unembedding"):
        logit_weights(sae_of(), model.model, hook="layers.1")
    given = logit_weights(sae_of(), model.model, hook="layers.1", unembedding=model.lm_head)
    assert torch.equal(given.positive, logit_weights(sae_of(), model, hook=hook).positive)
    with pytest.raises(InputError, match="norm"):
        logit_weights(sae_of(), model, hook=hook, norm="model.layers.0.mlp.act_fn")
    with pytest.raises(InputError, match="n_vocab"):
        logit_weights(sae_of(), model, hook=hook, n_vocab=65)


@pytest.mark.parametrize("n", [1, 4, 30])
def test_neighbours_are_those_of_all_cosines(n, monkeypatch):
    monkeypatch.setitem(neighbours.__globals__, "ROWS", 5)
    monkeypatch.setitem(neighbours.__globals__, "COLUMNS", 4)
    a, b = sae_of(), sae_of(d_sae=11, seed=8)
    a.W_dec.data[7] = 0
    a.W_dec.data[3:6] = torch.eye(32)[0]  # equal ones: the smaller index first
    a.W_enc.data[3] = 1e-30
    for side, weight in (("decoder", "W_dec"), ("encoder", "W_enc")):
        for other in (None, b):
            rows, columns = getattr(a, weight).data, getattr(other or a, weight).data
            cosine = F.normalize(rows.double(), eps=1e-60) @ F.normalize(columns.double(), eps=1e-60).T
            cosine = cosine.to(torch.float32)
            cosine[~rows.any(dim=1)] = -torch.inf
            cosine[:, ~columns.any(dim=1)] = -torch.inf
            if other is None:
                cosine.fill_diagonal_(-torch.inf)
            found = neighbours(a, other, n, side)
            assert found.indices.tolist() == [ranked(row, n) for row in cosine.tolist()]
            wanted = cosine.gather(1, found.indices.long().clamp(min=0)).where(found.indices >= 0, 0)
            torch.testing.assert_close(found.values, wanted, rtol=1e-5, atol=1e-6)


def test_a_single_latent_and_another_width():
    one = sae_of(d_sae=1, k=1)
    assert neighbours(one, n=2).indices.tolist() == [[-1, -1]]
    assert alignment(one, 40).indices.shape == (1, 40)
    with pytest.raises(InputError, match="width"):
        neighbours(one, sae_of(d_in=8))


def test_alignment_lists_the_largest_coordinates():
    sae = sae_of(d_in=6)
    sae.W_dec.data[0] = torch.tensor([0.0, -2, 1, 2, 0, 0])
    sae.W_dec.data[1] = 0
    found = alignment(sae, 4)
    assert found.indices[:2].tolist() == [[1, 3, 2, -1], [-1] * 4]
    assert found.values[0].tolist() == [-2, 2, 1, 0]
    torch.testing.assert_close(found.l1[0], torch.tensor([0.4, 0.4, 0.2, 0]))
    assert alignment(neurons(5), 2).indices[:, 0].tolist() == [0, 1, 2, 3, 4]


def dense(records):
    """[F, rows] float64."""
    acts = np.zeros((records.d_sae, records.text.n_slots))
    for latent in range(records.d_sae):
        slots, values = records.entries(latent)
        acts[latent, slots] = values
    return acts[:, records.text.encoded.ravel()]


def pearson(a, b, same):
    with np.errstate(invalid="ignore", divide="ignore"):
        r = np.corrcoef(np.concatenate([a, b]))[: len(a), len(a) :]
    r = np.where(np.isnan(r), -np.inf, r)
    if same:
        np.fill_diagonal(r, -np.inf)
    return r


def agrees(found, r, n):
    for row, indices, values in zip(r, found.indices.tolist(), found.values.tolist(), strict=True):
        wanted = ranked(row, n)
        assert [i >= 0 for i in indices] == [i >= 0 for i in wanted]
        assert len({i for i in indices if i >= 0}) == sum(i >= 0 for i in indices)
        got = [row[i] for i in indices if i >= 0]
        np.testing.assert_allclose(got, [row[i] for i in wanted if i >= 0], atol=1e-9)
        np.testing.assert_allclose(values[: len(got)], got, atol=1e-6)


@pytest.mark.parametrize("n", [3, 25])
def test_correlations_are_those_of_dense_activations(tmp_path, monkeypatch, n):
    monkeypatch.setattr("saefast.interp.records.codes.block_entries", lambda d_sae: 100)  # several blocks
    sae = sae_of()
    sae.b_enc.data[4] = -1e6  # never active
    records, source, _ = recorded(tmp_path / "a", sae)
    monkeypatch.setattr("saefast.interp.records.codes.block_entries", lambda d_sae: 10**6)  # one
    other, _, _ = recorded(tmp_path / "b", neurons(32))
    assert 1 < len(records.blocks) != len(other.blocks)
    monkeypatch.setattr("saefast.interp.together.CELLS", 60)  # several tiles
    monkeypatch.setitem(correlated.__globals__, "SUMS", 200)
    a, b = dense(records), dense(other)
    agrees(correlated(records, n=n), pearson(a, a, True), n)
    agrees(correlated(records, other, n), pearson(a, b, False), n)
    x = torch.cat(list(source.rows())).double().numpy()
    agrees(correlated_neurons(records, source, sae, n), pearson(a, x.T, False), n)
    assert (correlated(records, n=n).indices[4] == -1).all()
    alone, _, _ = recorded(tmp_path / "c", sae_of(d_sae=1, k=1))
    assert correlated(alone, n=2).indices.tolist() == [[-1, -1]]


def test_another_text_is_refused(tmp_path):
    sae = sae_of()
    records, _, _ = recorded(tmp_path / "a", sae)
    other, source, _ = recorded(tmp_path / "b", sae, "gpt2")
    other.text.contexts[0, 0] += 1
    with pytest.raises(InputError, match="another text in 1 of 9 contexts"):
        correlated(records, other)
    records.text.contexts[1, 0] += 1
    with pytest.raises(InputError, match="another text"):
        correlated_neurons(records, source, sae)


def test_effects_of_makes_what_it_can_and_saves_it(tmp_path, caplog):
    sae = sae_of()
    records, source, model = recorded(tmp_path, sae)
    effects = effects_of(records, sae, n=3)
    assert effects.logits is None and effects.correlated_neurons is None and effects.decoder is not None
    assert "no logit weights: the model was not given" in caplog.text
    full = effects_of(records, sae, model, source, hook="model.layers.1", n=3)
    loaded = Effects.load(tmp_path)
    for table, again in zip(full, loaded, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(table, again, strict=True))
    with pytest.raises(InputError, match="other weights"):
        effects_of(records, sae_of(seed=9))
