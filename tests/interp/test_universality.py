"""Similarities of two dictionaries, against brute force over dense codes, and planted twins."""

import numpy as np
import pytest
import torch

from saefast import InputError
from saefast.interp import together
from saefast.interp.effects import logit_matrix, logit_weights
from saefast.interp.universality import attributions, expected_maximum, permuted, universality
from tests.helpers import effects_cases as case
from tests.helpers.planted_codes import planted, sparse

M, L, V = 12, 15, 20


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two planted codes of 9 and 14 latents, of which the first token of each context has no row; logits; dense codes."""
    folder = tmp_path_factory.mktemp("universality")
    contexts = np.random.default_rng(5).integers(0, V, (M, L))
    dense = [sparse((M, L, n), 0.2, seed) for n, seed in ((9, 0), (14, 1))]
    dense[1][..., 4] = dense[0][..., 2] * 2 + 0.1 * dense[1][..., 4]  # twins
    dense[0][..., 7] = dense[1][..., 11] = 0  # dead
    records = [planted(folder / str(i), x, contexts, left_out=1) for i, x in enumerate(dense)]
    logits = [torch.randn(n, V, generator=torch.Generator().manual_seed(n)) for n in (9, 14)]
    logits[1][4] = 0  # without variance
    return records, logits, [x[:, 1:] for x in dense], contexts[:, 1:]


def correlations(a, b):
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.corrcoef(a.reshape(-1, a.shape[-1]).T, b.reshape(-1, b.shape[-1]).T)[
            : a.shape[-1], a.shape[-1] :
        ]


def check_best(matches, r):
    for i, row in enumerate(r):
        if np.isnan(row).all():
            assert matches.partner[i] == -1 and np.isnan(matches.best[i])
        else:
            assert matches.partner[i] == np.nanargmax(row)
            np.testing.assert_allclose(matches.best[i], np.nanmax(row), atol=1e-6)


@pytest.mark.parametrize("cells, dense", [(30, 10**9), (10**6, 0)], ids=["sparse", "dense"])
def test_similarities_are_those_of_brute_force(made, monkeypatch, cells, dense):
    monkeypatch.setattr(together, "CELLS", cells)
    monkeypatch.setattr(together, "DENSE", dense)
    (a, b), (v, w), (x, y), tokens = made
    found = universality(a, b, v, w, min_count=1)
    by_acts = correlations(x, y)
    check_best(found.activation, by_acts)
    attributed = [f[:, :-1] * v.numpy().T[tokens[:, 1:]] for f, v in ((x, v), (y, w))]
    by_attribution = correlations(*attributed)
    check_best(found.attribution, by_attribution)
    by_logits = np.corrcoef(v.numpy(), np.where(np.arange(14)[:, None] == 4, np.nan, w.numpy()))[:9, 9:]
    by_logits[:, 11] = by_logits[7] = np.nan  # dead latents are nobody's partner
    check_best(found.logits, by_logits)
    partner = np.where(np.isnan(by_acts).all(axis=1), 0, np.nan_to_num(by_acts, nan=-9).argmax(axis=1))
    for matches, r in ((found.attribution, by_attribution), (found.logits, by_logits)):
        want = np.where(np.isnan(by_acts).all(axis=1), np.nan, r[np.arange(9), partner])
        np.testing.assert_allclose(matches.of_pair, want, atol=1e-6)
    both = ~np.isnan(found.attribution.of_pair)
    want = np.corrcoef(found.attribution.of_pair[both], found.activation.best[both])[0, 1]
    assert found.tracking == pytest.approx(want, abs=1e-5)
    assert found.activation.partner[2] == 4 and found.activation.best[2] > 0.9
    numbers = found.numbers()
    assert numbers["activation"]["median"] == pytest.approx(np.nanmedian(found.activation.best))
    assert (
        sum(numbers["attribution"]["best"]["histogram"]["latents"])
        == numbers["attribution"]["best"]["latents"]
        == 8
    )


def test_attributions_and_permuted_codes(made):
    (a, _), (v, _), (x, _), tokens = made
    code = attributions(a, v)
    assert code.n_rows == M * (L - 2)
    full = together.tile(code, 0, 9).toarray().reshape(M, L, 9)
    np.testing.assert_allclose(full[:, 1:-1], x[:, :-1] * v.numpy().T[tokens[:, 1:]], rtol=1e-6)
    assert (full[:, [0, -1]] == 0).all()
    mixed = together.tile(permuted(a, seed=3), 0, 9).toarray().reshape(M, L, 9)
    assert (mixed[:, 0] == 0).all()
    rows, was = mixed[:, 1:].reshape(-1, 9), x.astype(np.float32).reshape(-1, 9)
    assert not np.array_equal(rows, was)
    assert sorted(rows.tolist()) == sorted(was.tolist())  # whole rows moved
    again, other = (together.tile(permuted(a, seed=s), 0, 9).toarray().reshape(M, L, 9) for s in (3, 4))
    assert np.array_equal(mixed, again) and not np.array_equal(mixed, other)


def test_twins_are_found_and_the_control_is_near_zero(tmp_path):
    """Every latent of b is one of a with noise; the logit weights of twins are alike, too."""
    r, n = np.random.default_rng(0), 40
    contexts = r.integers(0, 50, (80, 50))
    x = sparse((80, 50, n), 0.05, 1)
    order = r.permutation(n)
    y = np.maximum(x[..., order] * (1 + 0.2 * r.normal(size=x.shape)) + 0.3 * sparse(x.shape, 0.01, 2), 0)
    v = r.normal(size=(n, 50))
    w = v[order] + 0.5 * r.normal(size=v.shape)
    a, b = planted(tmp_path / "a", x, contexts), planted(tmp_path / "b", y, contexts)
    found = universality(a, b, torch.from_numpy(v), torch.from_numpy(w))
    twin = np.argsort(order)
    for matches in (found.activation, found.attribution, found.logits):
        assert (matches.partner == twin).all()
    numbers = found.numbers()
    assert numbers["activation"]["median"] > 0.85 and numbers["logits"]["best"]["median"] > 0.75
    assert numbers["attribution"]["pairs_by_activation"]["median"] > 0.75
    assert 0 < numbers["permuted"]["median"] < 0.1 and numbers["permuted_expected"] == pytest.approx(
        2.16 / 4000**0.5, rel=0.02
    )
    few = universality(a, b, alive_a=np.arange(n) < 5, alive_b=np.arange(n) != twin[0])
    assert (
        (few.activation.partner[5:] == -1).all()
        and few.activation.best[0] < 0.2
        and few.activation.best[1] > 0.8
    )
    assert few.logits is None and few.attribution is None and "logits" not in few.numbers()


def test_the_expected_maximum_is_that_of_normal_numbers():
    drawn = np.random.default_rng(0).normal(size=(4000, 200)).max(axis=1).mean()
    assert expected_maximum(200, 10_001) * 100 == pytest.approx(drawn, rel=0.02)
    assert expected_maximum(0, 100) == expected_maximum(5, 1) == 0


def test_all_logit_weights_are_those_of_which_the_largest_are_kept(monkeypatch):
    sae, model = case.sae_of(), case.language_model("llama")
    sae.metadata["hook_name"] = case.HOOKS["llama"]
    kept = logit_weights(sae, model, 5)
    found = logit_matrix(sae, model, n_vocab=64)
    assert found.shape == (19, 64)
    assert torch.equal(found.topk(5).values, kept.positive) and torch.equal(
        found.median(dim=1).values, torch.zeros(19)
    )


def test_what_is_refused(made):
    (a, b), (v, w), _, _ = made
    for given, message in [
        ((a, b, v), "expected both or neither"),
        ((a, b, v[:, :18], w[:, :18]), r"logits: expected \[9, V\] with V > 19"),
        ((a, b, v, w[:, :19]), "logits_b: expected 20 tokens"),
        ((a, b, w, v), r"logits: expected \[9, V\]"),
    ]:
        with pytest.raises(InputError, match=message):
            universality(*given)
    with pytest.raises(InputError, match=r"alive_b: expected \[14\], got \[9\]"):
        universality(a, b, alive_b=np.ones(9, bool))
