"""Ground truth: on sparse combinations of known directions, training finds the directions."""

import pytest
import torch

import saefast
from saefast.activations.sources import SyntheticSource


@pytest.mark.slow
def test_true_directions_are_recovered():
    source = SyntheticSource(d_in=64, n_features=128, n_active=4, n_tokens=200_000, noise=0.02, seed=0)
    sae = saefast.SAE(saefast.SAEConfig(d_in=64, d_sae=192, k=4))
    config = saefast.TrainConfig(
        total_tokens=800_000, batch_size=1024, lr=3e-3, dead_feature_threshold=20_000, buffer_tokens=32_768
    )
    saefast.Trainer(sae, config).fit(source)
    best = (source.directions @ sae.W_dec.data.T).max(dim=1).values
    recovered = (best >= 0.95).float().mean()
    print(f"{recovered:.1%} of {len(best)} directions at cosine 0.95, median cosine {best.median():.4f}")
    assert recovered >= 0.95
    assert torch.nn.functional.cosine_similarity(sae.b_dec.data, source.offset, dim=0) > 0.5
