"""Two dictionaries compared, against brute force over dense codes."""

import numpy as np
import pytest
import torch

from saefast import SAE, InputError, SAEConfig
from saefast.interp import together
from saefast.interp.compare import Comparison, compare, split_links
from saefast.interp.neurons import neurons
from saefast.interp.records import record
from tests.helpers.small_records import CONFIG, shards

D_IN, N_CONTEXTS, LENGTH = 6, 7, 11
N = 4


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Records of two SAEs on rows of which the first token of each context is left out, and their dense codes."""
    folder = tmp_path_factory.mktemp("compare")
    torch.manual_seed(0)
    contexts = torch.randint(2, 64, (N_CONTEXTS, LENGTH))
    x = torch.randn(contexts.numel(), D_IN)
    source = shards(folder / "shards", x, contexts, left_out=1)
    saes = [SAE(SAEConfig(d_in=D_IN, d_sae=d_sae, k=k)) for d_sae, k in ((9, 2), (20, 3))]
    with torch.no_grad():
        for sae in saes:
            sae.params.W_dec[3] = 0
            sae.params.b_enc[5] = -100.0  # never active
            sae.params.W_dec[2] = sae.params.W_dec[1] * 3  # as near as the other
    records = [record(sae, source, folder / str(i), CONFIG) for i, sae in enumerate(saes)]
    rows = x.view(N_CONTEXTS, LENGTH, D_IN)[:, 1:].reshape(-1, D_IN)
    codes = [
        torch.zeros(len(rows), sae.config.d_sae).scatter_(1, i.long(), a)
        for sae in saes
        for a, i in [sae.encode(rows)]
    ]
    return saes, records, [code.detach().double().numpy() for code in codes]


def check_same(found, scores):
    """The values are the N largest of each row that are no NaN, and the indices say where they are."""
    assert found.indices.dtype == torch.int32 and found.values.dtype == torch.float32
    for indices, values, some in zip(found.indices.tolist(), found.values.numpy(), scores):
        want = sorted(some[~np.isnan(some)], reverse=True)[:N]
        n = len(want)
        np.testing.assert_allclose(values[:n], want, atol=1e-6)
        np.testing.assert_allclose(some[indices[:n]], want, atol=1e-6)
        assert len(set(indices[:n])) == n and indices[n:] == [-1] * (N - n) and (values[n:] == 0).all()


def correlations(a, b):
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.corrcoef(a.T, b.T)[: a.shape[1], a.shape[1] :]


@pytest.mark.parametrize("cells", [1, 50, 10**6], ids=["a latent", "some", "all"])
def test_neighbours_are_those_of_brute_force(made, monkeypatch, cells):
    monkeypatch.setattr(together, "CELLS", cells)
    (sae_a, sae_b), (a, b), codes = made
    found = compare(a, b, sae_a, sae_b, N)
    scores = correlations(*codes)
    assert np.isnan(scores).any() and not np.isnan(scores).all()
    check_same(found.activation, scores)
    check_same(found.activation_back, scores.T)
    unit = [sae.params.W_dec / sae.params.W_dec.norm(dim=1, keepdim=True) for sae in (sae_a, sae_b)]
    cosines = (unit[0].double() @ unit[1].double().T).detach().numpy()
    check_same(found.decoder, cosines)
    check_same(found.decoder_back, cosines.T)


def test_figures_of_universality(made):
    (sae_a, sae_b), (a, b), codes = made
    found = compare(a, b, sae_a, sae_b, N)
    scores = correlations(*codes)
    best = np.nanmax(np.nan_to_num(scores, nan=-9), axis=1)
    np.testing.assert_allclose(found.similarity.numpy(), np.where(best < -1, np.nan, best), atol=1e-6)
    alone = found.without_partner(0.4).tolist()
    assert alone == [i for i, one in enumerate(best) if -1 <= one <= 0.4]
    filled = np.nan_to_num(scores, nan=-9)
    mutual = [
        [i, int(row.argmax())]
        for i, row in enumerate(filled)
        if row.max() > -1 and filled[:, row.argmax()].argmax() == i
    ]
    assert found.pairs().tolist() == mutual and len(mutual) > 2


def test_a_dictionary_and_itself(made):
    (sae, _), (records, _), _ = made
    found = compare(records, records, sae, sae, 2)
    fires = ~found.similarity.isnan()
    assert (found.activation.indices[fires, 0] == fires.nonzero()[:, 0]).all() and fires.sum() >= 5
    torch.testing.assert_close(found.similarity[fires], torch.ones(int(fires.sum())))
    assert len(found.pairs()) == fires.sum() and len(found.without_partner()) == 0


def test_links_of_the_masked_cosine_are_those_of_brute_force(made, monkeypatch):
    _, (a, b), codes = made
    monkeypatch.setattr(together, "CELLS", 30)
    found, want = split_links(a, b, 0.4, min_count=3), []
    for i, one in enumerate(codes[0].T):
        for j, other in enumerate(codes[1].T):
            if min((one > 0).sum(), (other > 0).sum()) < 3:
                continue
            cosines = [0.0]
            for mask in (one > 0, other > 0):
                norms = np.linalg.norm(one[mask]) * np.linalg.norm(other[mask])
                cosines.append((one * other)[mask].sum() / norms if norms else 0.0)
            if max(cosines) > 0.4:
                want.append((i, j, max(cosines)))
    assert len(want) > 3
    assert list(zip(found.small.tolist(), found.large.tolist())) == [(i, j) for i, j, _ in want]
    np.testing.assert_allclose(found.cosine.numpy(), [cosine for _, _, cosine in want], rtol=1e-6)


def test_it_is_saved_as_one_file(made, tmp_path):
    (sae_a, sae_b), (a, b), _ = made
    found = compare(a, b, sae_a, sae_b, 2)
    found.save(tmp_path / "comparison.safetensors")
    again = Comparison.load(tmp_path / "comparison.safetensors")
    for one, two in zip(found, again):
        assert torch.equal(one.indices, two.indices)
        torch.testing.assert_close(one.values, two.values, rtol=0, atol=0, equal_nan=True)
    with pytest.raises(InputError, match="found none"):
        Comparison.load(tmp_path / "other.safetensors")


def test_what_is_refused(made, tmp_path):
    (sae_a, sae_b), (a, b), _ = made
    with pytest.raises(InputError, match="sae_b: expected the SAE of the records"):
        compare(a, b, sae_a, sae_a)
    with pytest.raises(InputError, match="n: expected"):
        compare(a, b, sae_a, sae_b, 0)
    contexts = torch.from_numpy(a.text.contexts.copy())
    x = torch.rand(contexts.numel(), D_IN)
    plain = neurons(D_IN)
    changed = contexts.clone()
    changed[2, 3] += 1
    for i, (other, left_out, message) in enumerate(
        [
            (changed, 1, "another text in 1 of 7 contexts"),
            (contexts, 0, "7 tokens have one in one of them only"),
            (contexts[:5], 1, r"\[7, 11\] tokens, got \[5, 11\]"),
        ]
    ):
        folder = tmp_path / str(i)
        records = record(plain, shards(folder / "shards", x, other, left_out), folder / "records", CONFIG)
        with pytest.raises(InputError, match=message):
            compare(a, records, sae_a, plain)
        with pytest.raises(InputError, match=message):
            split_links(a, records)
