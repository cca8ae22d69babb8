"""Training end to end over many steps: the rate of each, where it begins, and how often the contexts are read."""

import dataclasses

import pytest
import torch

from saefast import SAE, InputError, SAEConfig
from saefast.sae import geometric_median
from saefast.train.end_to_end import EndToEnd, EndToEndConfig
from tests.helpers import tiny_lm

HOOK = "model.layers.1"


def tokens(seed=0):
    return torch.randint(2, 64, (2, 9), generator=torch.Generator().manual_seed(seed))


def trainer(d_sae=64, **options):
    return EndToEnd(
        SAE(SAEConfig(d_in=32, d_sae=d_sae, k=4)), tiny_lm.model(), HOOK, EndToEndConfig(**options)
    )


@pytest.mark.parametrize("d_sae,want", [(64, 3.2e-3), (256, 1.6e-3)])
def test_the_default_rate_falls_with_the_root_of_d_sae(d_sae, want):
    """2e-4 at 2^14 latents (Gao et al. 2024), and that is what Adam gets."""
    trained = trainer(d_sae)
    assert trained.peak_lr == pytest.approx(want, rel=1e-12)
    assert trainer(d_sae, lr=0.25).peak_lr == 0.25
    before = trained.sae.W_enc.data.clone()
    trained.step(tokens())
    # the first step of Adam moves each weight that has a gradient by the rate
    moved = (trained.sae.W_enc - before).abs()[trained.sae.W_enc.grad.abs() > 1e-6]
    assert len(moved) > 100 and torch.allclose(moved, torch.tensor(want), rtol=1e-2)


def test_the_defaults():
    config = EndToEndConfig()
    assert (config.loss, config.mse_coefficient, config.sink_ratio) == ("kl", 0, 10)
    assert (config.downstream, config.downstream_coefficient) == ((), 0)
    trained = trainer()
    norms = trained.point.capture(tokens()).norm(dim=-1)
    trained.gradients(tokens())
    assert trained.max_norm == pytest.approx(10 * float(norms.median()))
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.lr = 1.0
    with pytest.raises(TypeError):
        EndToEndConfig("ce")  # by name only
    assert trained.input_scale == pytest.approx((32 / float(norms.square().mean())) ** 0.5, rel=1e-5)


@pytest.mark.parametrize("lr", [None, 0.5])
def test_the_rate_rises_over_5_percent_of_the_steps_and_falls_over_20(lr, monkeypatch):
    trained, seen, read = trainer(d_sae=64, lr=lr), [], []
    monkeypatch.setattr(trained, "step", lambda batch, rate: (read.append(batch), seen.append(rate)))
    batches = [tokens(seed) for seed in range(3)]
    trained.fit(batches, 40)
    want = [0.5, *[1.0] * 31, *(left / 8 for left in range(8, 0, -1))]
    assert seen == pytest.approx([(lr or 3.2e-3) * share for share in want], rel=1e-12)
    assert all(got is batches[i % 3] for i, got in enumerate(read))


def test_b_dec_begins_at_the_geometric_median_of_the_first_batch_if_it_is_0(monkeypatch):
    for value in (0.0, 0.25):
        trained = trainer(contexts_at_once=1)
        trained.sae.b_dec.data.fill_(value)
        monkeypatch.setattr(trained, "step", lambda batch, rate: None)
        trained.fit([tokens()], 2)
        rows = trained.point.capture(tokens()).flatten(0, 1)
        want = torch.full((32,), value) if value else geometric_median(rows)
        assert torch.allclose(trained.sae.b_dec, want, rtol=1e-6)


@pytest.mark.parametrize("sink_ratio", [1.5, None])
def test_tokens_that_were_refused_decide_nothing(sink_ratio):
    """Neither the scale nor the norm of sinks is that of a batch without a row for the SAE."""
    ends = []
    for refused in (True, False):
        trained = EndToEnd(
            SAE(SAEConfig(d_in=32, d_sae=64, k=4)),
            tiny_lm.model(),
            HOOK,
            EndToEndConfig(sink_ratio=sink_ratio),
            [1],
        )
        if refused:
            with pytest.raises(
                InputError, match="^tokens: expected rows for the SAE, got special tokens and att"
            ):
                trained.step(torch.ones(2, 3, dtype=torch.int64))
            assert trained.input_scale is None and trained.n_steps == 0
        trained.step(tokens())
        ends.append((trained.max_norm, trained.input_scale, *(param.data for param in trained.params)))
    assert ends[0][:2] == ends[1][:2] and all(torch.equal(a, b) for a, b in zip(ends[0][2:], ends[1][2:]))


def test_two_tokens_are_a_context():
    metrics = trainer().step(tokens()[:, :2])
    assert 0 < metrics.ce < 100 and 0 < metrics.l0 <= 4
