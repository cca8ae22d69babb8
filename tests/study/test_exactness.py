"""Figures of the recipe's clauses, and planted directions: right on what is right, and wrong on what is wrong."""

import pytest
import torch

from saefast import SAE, SAEConfig
from saefast.study import exactness
from saefast.study.exactness import projection, resampled
from saefast.study.recovery import Planted, measured, recovery


def test_resampling_meets_every_clause():
    pytest.importorskip("scipy")
    found = resampled()
    assert max(found.decoder_norm_error, found.encoder_norm_error, found.bias, found.moment) < 1e-5
    assert found.untouched and found.p_value > 1e-3


def test_resampling_by_the_loss_itself_is_found_out(monkeypatch):
    pytest.importorskip("scipy")
    right = exactness.resample
    monkeypatch.setattr(exactness, "resample", lambda s, x, losses, *rest: right(s, x, losses.sqrt(), *rest))
    assert resampled().p_value < 1e-6


def test_projection_and_norm():
    sae = SAE(SAEConfig(d_in=8, d_sae=32, activation="relu"), 0)
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    found = projection(sae, x)
    assert found.along < 1e-6 < found.before and found.norm_error < 1e-6
    with torch.no_grad():
        sae.W_dec[3] *= 1.01
    assert projection(sae, x).norm_error == pytest.approx(0.01, abs=1e-5)


def test_planted_rows_are_what_they_say_and_can_be_read_from_anywhere():
    source = Planted(16, 24, active=2.0, mean_norm=3.0)
    rows = next(source.rows())
    again = next(source.rows(8192 - 10))
    assert torch.equal(rows[-10:], again)
    assert not torch.equal(next(source.rows(8192)), rows)
    assert rows.mean(dim=0).sub(source.mean + source.share * source.directions.sum(dim=0)).abs().max() < 0.1


def test_measured_of_the_directions_themselves():
    source = Planted(16, 24, active=2.0, mean_norm=3.0)
    sae = SAE(SAEConfig(d_in=16, d_sae=48, k=2), 0)
    with torch.no_grad():
        sae.W_dec[:24] = source.directions
    assert measured(sae, source).found == 1
    with torch.no_grad():
        sae.W_dec[:12] = sae.W_dec[12:24]
    assert measured(sae, source).found == pytest.approx(0.5, abs=0.05)


@pytest.mark.slow
def test_directions_are_found_with_the_bias_and_not_without():
    found = recovery(tokens=300_000)
    assert max(found["topk"].found, found["l1"].found) >= 0.95
    assert found["topk, without b_dec"].found < 0.95
