"""Dead, ultra-low-density and live latents: counts against brute force, planted clusters told apart, no cluster where there is none."""

import math

import numpy as np
import pytest
import torch

from saefast import SAE, InputError, SAEConfig
from saefast.interp.density import density_sets, tell_apart
from saefast.interp.neurons import neurons
from saefast.interp.records import record
from tests.helpers.small_records import CONFIG, shards

pytest.importorskip("sklearn")


def test_counts_and_histogram_are_those_of_brute_force(tmp_path):
    torch.manual_seed(0)
    contexts, x = torch.randint(0, 64, (9, 20)), torch.randn(180, 8)
    sae = SAE(SAEConfig(d_in=8, d_sae=40, k=3))
    sae.params.b_enc[:7] = -100.0  # never active
    sae.params.b_enc[7] = 100.0  # always
    sets = density_sets(record(sae, shards(tmp_path / "s", x, contexts, 1), tmp_path / "r", CONFIG), sae)
    acts, indices = sae.encode(x.view(9, 20, 8)[:, 1:].reshape(-1, 8))
    counts = np.bincount(indices[acts > 0].numpy(), minlength=40)
    assert sets.n_rows == 171 and (sets.counts == counts).all() and counts[7] == 171
    assert (sets.dead == (counts == 0)).all() and sets.dead[:7].all()
    assert (sets.density == counts / 171).all() and not (sets.dead & sets.live).any()
    unit = [weight / weight.norm(dim=1, keepdim=True) for weight in (sae.W_enc, sae.W_dec)]
    np.testing.assert_allclose(sets.statistics[:, 2], (unit[0] * unit[1]).sum(1).detach(), rtol=1e-5)
    found, numbers = sets.histogram(4), sets.numbers()
    want = np.zeros(len(found["live"]), int)
    for count in counts[counts > 0]:
        want[min(math.floor((math.log10(count / 171) - found["edges"][0]) * 4 + 1e-9), len(want) - 1)] += 1
    assert found["live"] == want.tolist() and sum(found["ultra_low"]) == 0
    assert numbers["dead"] == sets.dead.sum() and numbers["above_1_percent"] == (counts / 171 > 0.01).sum()
    assert numbers["clusters"] == 1 and "too few" in numbers["why"]


def statistics(seed, n_low=60, n_live=500):
    """Densities that overlap; the bias and the cosine of ultra-low latents are others. The live ones are of two kinds and skewed."""
    r = np.random.default_rng(seed)
    live = -2.2 - r.gamma(3.0, 0.5, n_live) - 0.5 * (r.random(n_live) < 0.3)
    parts = [
        np.stack([live, 0.1 * live + r.normal(0, 0.15, n_live), r.normal(0.8, 0.06, n_live)], axis=1),
        np.stack(
            [r.normal(-5, 0.5, n_low), r.normal(-0.25, 0.08, n_low), r.normal(0.35, 0.08, n_low)], axis=1
        ),
    ]
    return np.concatenate(parts), np.arange(n_live + n_low) >= n_live


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_planted_ultra_low_latents_are_told_apart_though_densities_overlap(seed):
    points, is_low = statistics(seed)
    assert points[~is_low, 0].min() < points[is_low, 0].max() - 0.5
    found = tell_apart(points, seed)
    assert (found.is_low == is_low).mean() > 0.96
    assert "log10_density, b_enc, cosine" in found.why and found.overlap < 0.03 and found.distance > 3
    by_density_alone = tell_apart(points * [1, 0, 0], seed)
    assert (by_density_alone.is_low == is_low).mean() < (found.is_low == is_low).mean()


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_one_cluster_is_said_to_be_one(seed):
    points, is_low = statistics(seed)
    found = tell_apart(points[~is_low], seed)
    assert not found.is_low.any() and found.why.startswith("one cluster") and math.isnan(found.overlap)
    dense = points + [
        2.5,
        0,
        0,
    ]  # the lower cluster lies where ordinary latents are: it is not the ultra-low one
    assert not tell_apart(dense, seed).is_low.any()


def test_from_records_to_sets(tmp_path):
    """An SAE of 60 latents on coordinates of their own: 10 of them are rare, biased and write elsewhere."""
    r, n = np.random.default_rng(0), 30_000
    is_low = np.arange(60) >= 50
    x = np.where(r.random((n, 60)) < 10 ** r.normal(-1.6, 0.3, 60), 3.0, 0.0).astype(np.float32)
    x[:, is_low] = 0
    for latent in range(50, 60):
        x[r.integers(1, n, 1 + latent % 3), latent] = 3.0
    x[0] = 0.5  # active without a bias that suppresses it
    x[:, 7] = 0
    W_dec = torch.eye(60)
    W_dec[is_low] = torch.eye(60)[is_low] * 0.3 + torch.eye(60)[is_low].roll(1, 1)
    parts = {"W_enc": torch.eye(60), "W_dec": W_dec, "b_dec": torch.zeros(60)}
    parts["b_enc"] = torch.where(torch.from_numpy(is_low), -1.0, -0.1) + 0.01 * torch.randn(60)
    sae = SAE.of(SAEConfig(d_in=60, d_sae=60, activation="relu", pre_bias=False), parts)
    contexts = torch.randint(0, 9, (n // 100, 100))
    records = record(sae, shards(tmp_path / "s", torch.from_numpy(x), contexts), tmp_path / "r", CONFIG)
    sets = density_sets(records, sae)
    assert sets.dead.nonzero()[0].tolist() == [7] and (sets.ultra_low == is_low).all()
    assert (sets.live == ~(is_low | sets.dead)).all()
    numbers = sets.numbers()
    assert (numbers["dead"], numbers["ultra_low"], numbers["live"], numbers["clusters"]) == (1, 10, 49, 2)
    assert sum(numbers["histogram"]["ultra_low"]) == 10 and sum(numbers["histogram"]["live"]) == 49
    with pytest.raises(InputError, match="other weights"):
        density_sets(records, neurons(60))


def test_neurons_have_densities_too(tmp_path):
    contexts, x = torch.randint(0, 9, (20, 50)), torch.randn(1000, 60)
    records = record(neurons(60), shards(tmp_path / "s", x, contexts), tmp_path / "r", CONFIG)
    sets = density_sets(records, neurons(60))
    assert sets.live.all() and sets.clusters == 1 and sets.numbers()["above_1_percent"] == 60
