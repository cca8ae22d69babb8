"""The map of a dictionary. umap compiles itself for some seconds, once for this file."""

import warnings

import numpy as np
import pytest
import torch

from saefast import SAE, InputError, SAEConfig
from saefast.interp import atlas as module
from saefast.interp.atlas import ATLAS, Atlas, atlas

pytest.importorskip("umap")
BUNDLES, EACH = 6, 12


@pytest.fixture(scope="module")
def bundles():
    """Rows in 6 bundles of 12 that point nearly the same way, of very different lengths, in a mixed order."""
    torch.manual_seed(0)
    middle = torch.randn(BUNDLES, 1, 24)
    rows = (middle + 0.15 * torch.randn(BUNDLES, EACH, 24)).flatten(0, 1)
    bundle = torch.arange(BUNDLES).repeat_interleave(EACH)
    mixed = torch.randperm(len(rows))
    return rows[mixed] * torch.logspace(-20, 20, len(rows))[:, None], bundle[mixed]


@pytest.mark.slow
def test_latents_that_point_the_same_way_are_together(bundles):
    rows, bundle = bundles
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = atlas(rows)
    assert found.coordinates.shape == (len(rows), 2) and found.coordinates.isfinite().all()
    assert found.clusters.dtype == found.order.dtype == torch.int32
    distances = torch.cdist(found.coordinates, found.coordinates).fill_diagonal_(torch.inf)
    nearest = distances.topk(3, largest=False).indices
    assert (bundle[nearest] == bundle[:, None]).all()
    for cluster in range(int(found.clusters.max()) + 1):  # none has latents of two bundles
        assert len(set(bundle[found.clusters == cluster].tolist())) == 1
    assert found.clusters.max() + 1 >= BUNDLES and (found.clusters >= 0).float().mean() > 0.8
    assert sorted(found.order.tolist()) == list(range(len(rows)))
    along = bundle[found.order.long()]
    assert (along[1:] != along[:-1]).sum() == BUNDLES - 1  # on the line each bundle is one piece


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bits_and_another_seed_another_map(bundles):
    first, again, other = (atlas(bundles[0], seed=seed) for seed in (1, 1, 2))
    for one, two in zip(first, again, strict=True):
        assert torch.equal(one, two)
    assert not torch.equal(first.coordinates, other.coordinates)


@pytest.mark.slow
def test_dead_latents_are_nowhere_and_move_nobody(bundles):
    rows = bundles[0].clone()
    rows[7] = 0
    alive = torch.arange(len(rows)) % 5 != 0
    found = atlas(rows, alive=alive.numpy())
    nowhere = ~alive | (torch.arange(len(rows)) == 7)
    assert torch.equal(found.coordinates.isnan().all(dim=1), nowhere)
    assert (found.clusters[nowhere] == -1).all()
    assert found.order[-int(nowhere.sum()) :].tolist() == nowhere.nonzero()[:, 0].tolist()
    assert torch.equal(found.coordinates[~nowhere], atlas(rows[~nowhere]).coordinates)


@pytest.mark.parametrize("n", [0, 1, 2, 3, 4, 5, 6, 11, 13])
def test_tiny_dictionaries(n):
    torch.manual_seed(n)
    found = atlas(torch.randn(n, 8))
    assert found.coordinates.shape == (n, 2) and found.coordinates.isfinite().all()
    assert len(set(map(tuple, found.coordinates.tolist()))) == n
    assert sorted(found.order.tolist()) == list(range(n)) and found.clusters.shape == (n,)


def test_latents_that_are_all_the_same():
    assert atlas(torch.ones(40, 8)).coordinates.isfinite().all()


@pytest.mark.slow  # compiles the search for neighbours
def test_a_dictionary_beyond_the_exact_size_is_laid_out_by_its_principal_directions(bundles, monkeypatch):
    monkeypatch.setattr(module, "EXACT", 50)
    monkeypatch.setattr(module, "PRINCIPAL", 8)
    found = atlas(bundles[0])
    assert found.coordinates.isfinite().all() and (found.clusters == -1).all()
    distances = torch.cdist(found.coordinates, found.coordinates).fill_diagonal_(torch.inf)
    same = bundles[1][distances.argmin(dim=1)] == bundles[1]
    assert same.float().mean() > 0.95


def test_principal_directions_keep_the_cosines_of_rows_in_few_of_them(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(module, "PRINCIPAL", 3)
    unit = torch.nn.functional.normalize(torch.randn(30, 3) @ torch.randn(3, 16))
    flat = module._principal(unit)
    assert flat.shape == (30, 3)
    torch.testing.assert_close(flat @ flat.T, unit @ unit.T)


@pytest.mark.parametrize("at_once", [1, 100, 10**6])
def test_neighbours_are_exact_and_begin_with_the_row_itself(monkeypatch, at_once):
    torch.manual_seed(0)
    monkeypatch.setattr(module, "COSINES", at_once)
    unit = torch.nn.functional.normalize(torch.randn(23, 6))
    unit[5] = unit[2]
    indices, distances = module._nearest(unit, 4)
    cosines = (unit.double() @ unit.double().T).fill_diagonal_(2).numpy()
    want = -np.sort(-cosines, axis=1)[:, :4]
    assert indices[:, 0].tolist() == list(range(23))
    np.testing.assert_allclose(np.take_along_axis(cosines, indices, 1), want)
    np.testing.assert_allclose(distances[:, 1:], 1 - want[:, 1:], atol=1e-6)


def test_an_sae_and_its_file(tmp_path):
    sae = SAE(SAEConfig(d_in=8, d_sae=32, k=2))
    found = atlas(sae)
    assert torch.equal(found.coordinates, atlas(sae.params.W_dec).coordinates)
    assert Atlas.load(tmp_path) is None
    found.save(tmp_path)
    for one, two in zip(found, Atlas.load(tmp_path), strict=True):
        assert torch.equal(one, two)
    (tmp_path / ATLAS).write_bytes((tmp_path / ATLAS).read_bytes()[:-8])
    with pytest.raises(InputError, match=ATLAS):
        Atlas.load(tmp_path)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"dictionary": torch.full((4, 3), float("nan"))}, "finite weights, got NaN"),
        ({"dictionary": torch.zeros(4)}, r"W_dec \[F, d\]"),
        ({"alive": torch.ones(3)}, r"alive: expected \[4\], got \[3\]"),
        ({"seed": -1}, "seed"),
        ({"n_neighbors": 1}, "n_neighbors"),
        ({"min_dist": 2.0}, "min_dist"),
        ({"min_cluster_size": 1}, "min_cluster_size"),
    ],
)
def test_what_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        atlas(**{"dictionary": torch.ones(4, 3)} | change)


def test_without_umap_the_message_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "umap", None)
    with pytest.raises(InputError, match=r"pip install 'saefast\[interp\]'"):
        atlas(torch.eye(20))
