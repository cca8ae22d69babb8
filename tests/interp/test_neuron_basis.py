"""Whether latents are neurons: ratios of known rows, the best neuron against brute force."""

import numpy as np
import pytest
import torch

from saefast import SAE, InputError, SAEConfig
from saefast.interp.neuron_basis import neuron_basis, participation
from saefast.interp.neurons import neurons
from saefast.interp.records import record
from tests.helpers.small_records import CONFIG, shards


def test_participation_of_known_rows():
    rows = [[0, 0, -3.0, 0], [1, -1, 0, 0], [2, 2, 2, 2], [0, 0, 0, 0], [1e-30, 1e-30, 0, 0], [3, 1, 0, 0]]
    ratio, by_size = participation(np.array(rows))
    np.testing.assert_allclose(ratio, [1, 2, 4, np.nan, 2, 100 / 82])
    np.testing.assert_allclose(by_size, [1, 2, 4, np.nan, 2, 16 / 10])


def test_the_best_neuron_is_that_of_brute_force(tmp_path):
    torch.manual_seed(0)
    contexts, x = torch.randint(0, 64, (10, 30)), torch.randn(300, 12)
    sae = SAE(SAEConfig(d_in=12, d_sae=30, k=4))
    with torch.no_grad():
        sae.params.W_dec[:3] = torch.eye(12)[:3]  # neurons
        sae.params.W_enc[:3] = torch.eye(12)[:3]
        sae.params.W_dec[3:6] = 0
        sae.params.W_dec[3:6, :5] = 1.0
        sae.params.b_enc[9] = -100.0  # dead
    source = shards(tmp_path / "s", x, contexts)
    of_latents, of_neurons = (
        record(sae, source, tmp_path / "r", CONFIG),
        record(neurons(12), source, tmp_path / "n", CONFIG),
    )
    found = neuron_basis(of_latents, of_neurons, sae)
    acts, indices = sae.encode(x)
    code = torch.zeros(300, 30).scatter_(1, indices.long(), acts).detach().numpy()
    with np.errstate(invalid="ignore", divide="ignore"):
        r = np.corrcoef(code.T, x.relu().T)[:30, 30:]
    assert (found.neuron[9], found.alive[9]) == (-1, False) and np.isnan(found.correlation[9])
    there = found.alive
    np.testing.assert_allclose(found.correlation[there], r[there].max(axis=1), atol=1e-5)
    assert (found.neuron[there] == r[there].argmax(axis=1)).all() and found.neuron[:3].tolist() == [0, 1, 2]
    numbers = found.numbers()
    assert numbers["latents"] == 29 and numbers["median_best_neuron"] == pytest.approx(
        np.median(r[there].max(axis=1)), abs=1e-5
    )
    rounded = np.rint(found.participation[there])
    assert numbers["one_neuron"] == (rounded == 1).mean() == 3 / 29
    assert numbers["2_to_10_neurons"] == ((rounded > 1) & (rounded <= 10)).mean() > 0.1
    assert sum(numbers["histogram"]["latents"]) == 29
    few = neuron_basis(of_latents, of_neurons, sae, np.arange(30) < 3)
    assert few.numbers()["one_neuron"] == 1 and few.numbers()["latents"] == 3
    with pytest.raises(InputError, match="records_of_neurons: expected 12"):
        neuron_basis(of_latents, of_latents, sae)
