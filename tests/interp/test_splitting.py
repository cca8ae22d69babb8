"""Planted splits over a ladder of three dictionaries."""

import json

import numpy as np
import pytest
import torch

from saefast import SAE, InputError, SAEConfig
from saefast.interp.atlas import Atlas
from saefast.interp.ladder_map import LadderMap, common_tokens, ladder_map
from saefast.interp.splitting import families, splitting
from tests.helpers.planted_codes import planted, sparse

M, L = 60, 50


@pytest.fixture(scope="module")
def ladder(tmp_path_factory):
    """Latent 0 of 4 is active on tokens 0 to 11; the next dictionary has a latent for each third of them (1, 2, 3), the last one for
    each single token (10 to 21). Latent 1 is latent 5 and then latent 30; latent 2 alone is never active."""
    folder = tmp_path_factory.mktemp("splitting")
    r = np.random.default_rng(0)
    contexts = r.integers(0, 40, (M, L))
    strength = 1 + 0.2 * r.random((M, L))
    acts = [np.zeros((M, L, n)) for n in (4, 8, 40)]
    acts[0][..., 0] = (contexts < 12) * strength
    for third in range(3):
        acts[1][..., 1 + third] = ((contexts < 12) & (contexts // 4 == third)) * strength
    for token in range(12):
        acts[2][..., 10 + token] = (contexts == token) * strength
    alone = sparse((M, L), 0.1, 1) * (contexts >= 12)
    acts[0][..., 1] = acts[1][..., 5] = acts[2][..., 30] = alone
    acts[0][..., 3] = acts[1][..., 7] = sparse((M, L), 0.05, 2) * (contexts >= 20) * (alone == 0)
    acts[1][..., 7] *= contexts != 25
    return [planted(folder / str(i), x, contexts) for i, x in enumerate(acts)]


def test_the_graph_is_the_planted_one(ladder):
    found = splitting(ladder)
    links = [list(zip(step.parents.tolist(), step.children.tolist())) for step in found.steps]
    assert links[0] == [(0, 1), (0, 2), (0, 3), (1, 5), (3, 7)]
    assert links[1] == [*((1 + token // 4, 10 + token) for token in range(12)), (5, 30)]
    np.testing.assert_allclose(found.steps[0].cosine, 1, rtol=1e-6)
    one, two = found.numbers()["steps"]
    assert (one["parents"], one["links"], two["parents"], two["links"]) == (3, 5, 5, 13)
    assert one["with_a_child"] == 1 and one["split"] == pytest.approx(1 / 3) and two["split"] == 3 / 5
    assert (
        one["lower_density"] == 4 / 5 and one["lower_density_where_split"] == 1
    )  # 5 is as frequent as its parent
    assert one["with_a_parent"] == 1 and one["with_several_parents"] == 0
    assert one["children_counts"][:4] == [0, 2, 0, 1]
    assert found.children_of(0).tolist() == [3, 1, 0, 1] and found.alive[0].tolist() == [
        True,
        True,
        False,
        True,
    ]


def test_latents_that_are_left_out_have_no_links(ladder):
    alive = [np.ones(records.d_sae, bool) for records in ladder]
    alive[1][[2, 3]] = False
    found = splitting(ladder, alive)
    assert found.children_of(0)[0] == 1 and not np.isin(found.steps[1].parents, [2, 3]).any()
    assert found.numbers()["steps"][0]["children"] == 3


def test_by_chance_only_what_is_active_often_has_children(ladder):
    """Latent 0 is active on three tokens of ten: with anything its masked cosine is about the root of that."""
    found = splitting(ladder, permute=0)
    others = int((found.steps[0].parents != 0).sum()) + len(found.steps[1].parents)
    assert others <= 8 and found.steps[0].cosine.max() < 0.7 and found.children_of(0)[0] >= 3


def test_families(ladder):
    found = splitting(ladder)
    (one,) = families(found, ladder)
    assert [[member.latent for member in level] for level in one.levels] == [[0], [1, 2, 3], one_by_one(one)]
    assert [len(level) for level in one.levels] == [1, 3, 12] and one.cosine == pytest.approx(1)
    for member in one.levels[2]:
        parent = one.levels[1][member.parent]
        token = member.latent - 10
        assert parent.latent == 1 + token // 4 and member.tokens == [token] and token in parent.tokens
    assert one.levels[0][0].density > one.levels[1][0].density > one.levels[2][0].density
    described = json.loads(json.dumps(one.as_json()))
    assert described["sizes"] == [1, 3, 12] and described["levels"][1][2]["latent"] == 3
    assert [len(level) for level in families(found, ladder, root=1)[0].levels] == [1, 1, 1]
    assert families(found, ladder, root=2) == [] and families(found, ladder, fewest=4) == []


def one_by_one(family):
    """The children of 1, then those of 2, then those of 3, in any order within."""
    latents = [member.latent for member in family.levels[2]]
    assert [sorted(latents[i : i + 4]) for i in (0, 4, 8)] == [list(range(i, i + 4)) for i in (10, 14, 18)]
    return latents


def test_a_child_of_two_parents_is_in_the_family_of_the_stronger(tmp_path):
    contexts = np.random.default_rng(1).integers(0, 10, (M, L))
    small = np.stack([(contexts < 4) * 1.0, (contexts >= 3) & (contexts < 9)], axis=-1)
    large = np.stack(
        [contexts < 2, (contexts >= 2) & (contexts < 4), (contexts >= 4) & (contexts < 9)], axis=-1
    )
    pair = [planted(tmp_path / str(i), x, contexts) for i, x in enumerate((small, large))]
    found = splitting(pair)
    assert found.children_of(0).tolist() == [2, 2]  # latent 1 of the large one has both as parents
    assert found.numbers()["steps"][0]["with_several_parents"] == pytest.approx(1 / 3)
    made = families(found, pair, fewest=1)
    assert {one.levels[0][0].latent: [m.latent for m in one.levels[1]] for one in made} == {0: [0, 1], 1: [2]}


def test_what_is_refused(ladder):
    with pytest.raises(InputError, match="ladder: expected records of two dictionaries"):
        splitting(ladder[:1])
    with pytest.raises(InputError, match=r"alive: expected masks of \[4, 8\] latents, got \[4, 7\]"):
        splitting(ladder[:2], [np.ones(4, bool), np.ones(7, bool)])


def test_clusters_and_their_common_tokens(ladder):
    """Clusters that are given: the family of latent 0, and the two latents that never split."""
    first = np.array([0, 4, 12, 52])
    clusters = np.full(52, -1, np.int32)
    clusters[[0, 5, 6, 7]], clusters[[1, 9]] = 1, 0
    places = torch.zeros(52, 2)
    level = np.repeat(np.arange(3, dtype=np.int32), [4, 8, 40])
    made = LadderMap(Atlas(places, torch.from_numpy(clusters), torch.arange(52).int()), level, first)
    one, other = common_tokens(made, ladder, n_tokens=12)
    assert one.members == [(0, 0), (1, 1), (1, 2), (1, 3)] and sorted(one.tokens) == list(range(12))
    assert (
        sum(one.shares) == pytest.approx(1) and other.members == [(0, 1), (1, 5)] and min(other.tokens) >= 12
    )
    assert one.number == 1 and json.loads(json.dumps(one.as_json()))["number"] == 1


@pytest.mark.slow
def test_one_map_of_a_ladder():
    """Latents of two dictionaries that point the same way are near one another."""
    pytest.importorskip("umap")
    torch.manual_seed(0)
    middles = torch.randn(6, 24)
    saes = []
    for n in (12, 36):
        sae = SAE(SAEConfig(d_in=24, d_sae=n, k=2))
        sae.params.W_dec.copy_(middles.repeat(n // 6, 1) + 0.1 * torch.randn(n, 24))
        saes.append(sae)
    alive = [np.ones(12, bool), np.arange(36) != 5]
    found = ladder_map(saes, alive)
    assert found.level.tolist() == [0] * 12 + [1] * 36 and found.rows(1, np.array([3])).tolist() == [15]
    places = found.atlas.coordinates
    assert places.isnan().any(dim=1).nonzero().tolist() == [[17]]
    distance = torch.cdist(places[:12], places[12:]).nan_to_num(nan=torch.inf)
    assert (distance.argmin(dim=1) % 6 == torch.arange(12) % 6).all()
    with pytest.raises(InputError, match="alive: expected masks"):
        ladder_map(saes, alive[:1])
    with pytest.raises(InputError, match="saes: expected decoders of one width"):
        ladder_map([saes[0], SAE(SAEConfig(d_in=8, d_sae=36, k=2))], alive)
