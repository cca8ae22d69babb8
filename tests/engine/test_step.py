"""A whole training step, over several steps, against dense autograd + torch.optim.Adam."""

import pytest
import torch

import saefast
from saefast.train import schedules
from tests.helpers import dense


def make(dtype, seed=3, **options):
    sae = saefast.SAE(saefast.SAEConfig(d_in=24, d_sae=80, k=6), seed=seed).to(dtype)
    options = {"total_tokens": 96 * 40, "batch_size": 96, "lr": 3e-3, "backend": "reference"} | options
    return sae, saefast.TrainConfig(**options)


@pytest.mark.parametrize(
    "options,clip,aux",
    [
        ({}, None, None),
        ({"grad_clip": 1e-3}, 1e-3, None),
        ({"auxk_alpha": 0.5, "k_aux": 4, "dead_feature_threshold": 96 * 2}, None, (0.5, 4, 96 * 2)),
    ],
    ids=["plain", "clip", "auxk"],
)
def test_thirty_steps_equal_autograd(x64, options, clip, aux):
    sae, config = make(torch.float64, normalize_input=False, **({"auxk_alpha": 0.0} | options))
    oracle = dense.Trainer(sae.params, 6, config.lr, config.eps, clip=clip, aux=aux)
    trainer = saefast.Trainer(sae, config)
    n_aux = 0
    for step in range(1, 31):
        x = x64.roll(step, 0) * (1 + 0.01 * step)
        oracle.set_lr(schedules.lr_at(config, step, 80))
        metrics = trainer.step(x)
        n_aux += float(metrics.auxk_loss) > 0
        assert float(metrics.fvu) == pytest.approx(oracle.step(x), rel=1e-8)
    assert bool(n_aux) == bool(aux)
    for got, want in zip(sae.params, oracle.params):
        torch.testing.assert_close(got, want.detach(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("clip", [None, 1e-2])
def test_input_normalisation_equals_scaling_the_data_and_folding_afterwards(x64, clip):
    sae, config = make(torch.float64, grad_clip=clip)
    scale = (24 / (x64 - x64.mean(dim=0)).square().sum(dim=1).mean()).sqrt()
    plain, plain_config = make(torch.float64, normalize_input=False, grad_clip=clip)
    trainer, plain_trainer = saefast.Trainer(sae, config), saefast.Trainer(plain, plain_config)
    for _ in range(20):
        fvu, plain_fvu = trainer.step(x64).fvu, plain_trainer.step(x64 * scale).fvu
        assert float(fvu) == pytest.approx(float(plain_fvu), rel=1e-9)
    folded = (plain.W_enc, plain.b_enc / scale, plain.W_dec, plain.b_dec / scale)
    for got, want in zip(sae.params, folded):
        torch.testing.assert_close(got, want.data, rtol=1e-7, atol=1e-9)


def test_same_bits_twice_and_on_every_backend_close(x64):
    x = x64.float()
    runs = {}
    for name in ("reference", "reference again", "native"):
        backend = name.split()[0]
        if saefast.backend.unavailable(backend):
            continue
        sae, config = make(torch.float32, backend=backend)
        trainer = saefast.Trainer(sae, config)
        for _ in range(10):
            trainer.step(x)
        runs[name] = sae.params
    assert all(torch.equal(a, b) for a, b in zip(runs["reference"], runs["reference again"]))
    for a, b in zip(runs["reference"], runs.get("native", runs["reference"])):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_decoder_rows_stay_unit_norm(x64):
    sae, config = make(torch.float32)
    trainer = saefast.Trainer(sae, config)
    for _ in range(5):
        trainer.step(x64.float())
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(80))


def test_dead_latents_are_counted_in_tokens(x64):
    sae, config = make(torch.float32, dead_feature_threshold=96 * 3)
    sae.b_enc.data[:10] = -1e6
    trainer = saefast.Trainer(sae, config)
    fractions = [float(trainer.step(x64.float()).dead_frac) for _ in range(5)]
    assert fractions[:3] == [0, 0, 0] and fractions[3] >= 10 / 80
    assert (trainer.state.num_tokens_since_fired[:10] == 96 * 5).all()


def test_one_row_batch():
    sae, config = make(torch.float32)
    metrics = saefast.Trainer(sae, config).step(torch.randn(1, 24))
    assert metrics.fvu.isfinite() and all(p.isfinite().all() for p in sae.params)


@pytest.mark.parametrize("backend", ["reference", "native"])
@pytest.mark.parametrize("k", [1, 80])
def test_smallest_and_largest_k(x64, backend, k):
    if saefast.backend.unavailable(backend):
        pytest.skip(saefast.backend.unavailable(backend))
    sae = saefast.SAE(saefast.SAEConfig(d_in=24, d_sae=80, k=k))
    trainer = saefast.Trainer(
        sae, saefast.TrainConfig(total_tokens=960, batch_size=96, lr=1e-3, backend=backend)
    )
    first = float(trainer.step(x64.float()).fvu)
    for _ in range(8):
        metrics = trainer.step(x64.float())
    assert float(metrics.fvu) < first and float(metrics.l0) <= k


@pytest.mark.parametrize(
    "x,message",
    [
        (torch.randn(4, 23), r"x: expected a tensor \[B, 24\], got \[4, 23\]"),
        (torch.randn(24), r"x: expected a tensor \[B, 24\], got \[24\]"),
        (torch.randn(4, 24).double(), "x: expected dtype torch.float32, got torch.float64"),
        (torch.randn(0, 24), "x: expected at least one row"),
        (torch.full((4, 24), float("nan")), "x: expected finite values, got NaN or Inf"),
    ],
)
def test_bad_batches_are_refused_before_anything_changes(x, message):
    sae, config = make(torch.float32)
    before = [p.clone() for p in sae.params]
    with pytest.raises(saefast.InputError, match=message):
        saefast.Trainer(sae, config).step(x)
    assert all(torch.equal(a, b) for a, b in zip(before, sae.params))


@pytest.mark.parametrize("backend", ["reference", "native"])
@pytest.mark.parametrize("activation", ["topk", "batch_topk"])
def test_the_smallest_activations_are_known_where_one_wants_to_know(x64, activation, backend):
    """Of the code before the update: the mean over tokens, of a batch the smallest; a token with none gives Inf."""
    sae = saefast.SAE(saefast.SAEConfig(24, 80, activation, k=6), seed=3)
    config = saefast.TrainConfig(total_tokens=10**4, backend=backend, normalize_input=False)
    trainer, x = saefast.Trainer(sae, config), x64.float()
    trainer.state.smallest = torch.zeros(())
    acts = ((x - sae.b_dec) @ sae.W_enc.T + sae.b_enc).relu().detach()
    kept = acts.topk(6).values if activation == "topk" else acts.flatten().topk(6 * len(x)).values[None]
    trainer.step(x)
    torch.testing.assert_close(trainer.state.smallest, kept[:, -1].mean())
    sae.b_enc.data.fill_(-1e6)
    trainer.step(x)
    assert trainer.state.smallest == torch.inf
