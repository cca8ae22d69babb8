"""Data of unusual statistics: x and x + c are the same problem, layers of a crosscoder count alike, and the threshold of a
trained BatchTopK SAE gives the L0 that was asked."""

import pytest
import torch

import saefast
from saefast.config.sae import SAEConfig
from saefast.config.train import TrainConfig

pytestmark = pytest.mark.usefixtures("no_curves")
D = 32
SAES = {
    "topk": ({"k": 4}, {}),
    "topk without bias of the input": ({"k": 4, "pre_bias": False}, {}),
    "batch_topk": ({"activation": "batch_topk", "k": 4}, {"loss": "mse"}),
    "batch_topk without bias of the input": ({"activation": "batch_topk", "k": 4, "pre_bias": False}, {}),
    "matryoshka": ({"activation": "matryoshka", "k": 4}, {}),
    "group_max": ({"activation": "group_max", "k": 4, "pre_bias": False}, {}),
    "relu": ({"activation": "relu"}, {"penalty": "l1", "sparsity_coefficient": 0.5, "loss": "mse"}),
    "jumprelu": (
        {"activation": "jumprelu", "pre_bias": False},
        {"penalty": "l0", "sparsity_coefficient": 0.3, "loss": "mse", "bandwidth": 0.5, "init_b_dec": "mean"},
    ),
    "gated": ({"activation": "gated", "pre_bias": False}, {"penalty": "l1", "sparsity_coefficient": 0.1}),
    "transcoder": ({"k": 4, "d_out": D, "pre_bias": False, "skip": True}, {}),
    "crosscoder": ({"k": 4, "layers": 2}, {}),
}


def sparse_rows(n=8000, width=D, seed=0):
    """Rows of sparse codes over 100 directions, with mean 0."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(100, width, generator=generator), dim=1)
    active = torch.rand(n, 100, generator=generator) < 0.03
    x = (active * (0.5 + torch.rand(n, 100, generator=generator))) @ directions
    return x - x.mean(dim=0)


def trained(rows, sae, train, **options):
    made = saefast.SAE(SAEConfig(d_in=D, d_sae=128, **sae))
    settings = {"total_tokens": 40_000, "batch_size": 256, "lr": 3e-3, "buffer_tokens": 2048}
    assert saefast.Trainer(made, TrainConfig(**settings | train | options)).fit(rows)
    return made, saefast.evaluate(made, rows)


@pytest.mark.parametrize("name", SAES)
def test_a_constant_in_the_rows_changes_nothing(name):
    options, train = SAES[name]
    x = sparse_rows(width=D + options.get("d_out", 0))
    c = torch.randn(x.shape[1], generator=torch.Generator().manual_seed(9))
    c *= 15 * x.norm(dim=1).square().mean().sqrt() / c.norm()
    (_, at_0), (_, at_c) = (trained(rows, options, train) for rows in (x, x + c))
    assert at_c.fvu == pytest.approx(at_0.fvu, rel=0.05) and at_c.l0 == pytest.approx(at_0.l0, rel=0.05)
    assert at_c.dead_frac == pytest.approx(at_0.dead_frac, abs=0.05) and at_0.fvu < 0.6


def test_the_sae_of_a_shifted_run_is_in_the_units_of_the_data(tmp_path):
    """After every step, in the file, and after a resumed run: b_enc and b_dec are made of those that are trained."""
    x = sparse_rows() + 5
    config = {"k": 4, "pre_bias": False}
    sae, found = trained(x, config, {})
    with torch.no_grad():
        by_hand = (sae(x).x_hat - x).square().sum() / (x - x.mean(0)).square().sum()
    assert float(by_hand) == pytest.approx(found.fvu, rel=1e-3)
    again = saefast.SAE(SAEConfig(d_in=D, d_sae=128, **config))
    train = TrainConfig(total_tokens=40_000, batch_size=256, lr=3e-3, buffer_tokens=2048)
    trainer = saefast.Trainer(again, train)
    assert trainer.fit(x, tmp_path / "run")
    loaded = saefast.SAE.from_pretrained(tmp_path / "run")
    for name, value in again.tensors.items():
        assert torch.equal(loaded.tensors[name], value) and torch.equal(value, sae.tensors[name])
    stepped = saefast.Trainer(saefast.SAE(SAEConfig(d_in=D, d_sae=128, **config)), train)
    stepped.initialize(x)
    for rows in x[:1024].split(256):
        seen = float(stepped.sae(rows).fvu)  # of the SAE as it is between two steps
        assert float(stepped.step(rows).fvu) == pytest.approx(seen, rel=1e-3)


def test_layers_of_unequal_norm_count_alike(tmp_path):
    one = sparse_rows(width=2 * D)
    x = torch.cat([one[:, :D], 100 * one[:, D:] + 30], dim=1)
    sae = saefast.SAE(SAEConfig(d_in=2 * D, d_sae=128, k=4, layers=2))
    train = TrainConfig(total_tokens=60_000, batch_size=256, lr=3e-3, buffer_tokens=2048)
    assert saefast.Trainer(sae, train).fit(x, tmp_path / "run")
    found = saefast.evaluate(sae, x)
    assert len(found.layer_fvu) == 2 and max(found.layer_fvu) < 1.1 * min(found.layer_fvu) < 0.5
    # as if they had been equal all along
    equal = saefast.SAE(SAEConfig(d_in=2 * D, d_sae=128, k=4, layers=2))
    assert saefast.Trainer(equal, train).fit(torch.cat([x[:, :D], x[:, D:] / 100], dim=1))
    assert saefast.evaluate(
        equal, one + torch.cat([torch.zeros(D), 0.3 * torch.ones(D)])
    ).layer_fvu == pytest.approx(found.layer_fvu, rel=0.02)
    # its factors are part of it, in its file too, and nothing is scaled twice when training goes on
    assert sae.config.input_norm == "scale" and sae.config.scales[0] == pytest.approx(
        100 * sae.config.scales[1], rel=0.3
    )
    loaded = saefast.SAE.from_pretrained(tmp_path / "run")
    assert loaded.config == sae.config
    assert saefast.evaluate(loaded, x).layer_fvu == pytest.approx(found.layer_fvu, rel=1e-6)
    assert saefast.Trainer(loaded, TrainConfig(total_tokens=1024, batch_size=256, lr=0.0)).fit(x)
    assert saefast.evaluate(loaded, x).layer_fvu == pytest.approx(found.layer_fvu, rel=1e-4)


def test_fvu_of_layers_by_hand():
    x = torch.cat([sparse_rows(500), 3 * sparse_rows(500, seed=1)], dim=1)
    sae = saefast.SAE(SAEConfig(d_in=2 * D, d_sae=128, k=4, layers=2))
    found = saefast.evaluate(sae, x)
    with torch.no_grad():
        error, centred = (sae(x).x_hat - x).double(), (x - x.mean(dim=0)).double()
    want = [
        float(error[:, s].square().sum() / centred[:, s].square().sum())
        for s in (slice(0, D), slice(D, 2 * D))
    ]
    assert found.layer_fvu == pytest.approx(want, rel=1e-6)
    assert found.fvu == pytest.approx(float(error.square().sum() / centred.square().sum()), rel=1e-6)


AVERAGES = {
    "weights": {},
    "ema": {"ema_decay": 0.99},
    "signum": {"optimizer": "signum"},
    "muon": {"optimizer": "muon"},
}


@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("steps", [20, 60])
@pytest.mark.parametrize("activation", ["batch_topk", "matryoshka"])
def test_a_trained_threshold_gives_the_l0_that_was_asked(activation, steps, average, tmp_path):
    x = sparse_rows()
    for batch, lr in ((32, 1e-2), (256, 1e-3)):
        sae = saefast.SAE(SAEConfig(d_in=D, d_sae=128, activation=activation, k=8))
        train = TrainConfig(
            total_tokens=steps * batch, batch_size=batch, lr=lr, buffer_tokens=2048, **AVERAGES[average]
        )
        out = tmp_path / f"{batch}"
        assert saefast.Trainer(sae, train).fit(x, out)
        assert saefast.evaluate(saefast.SAE.from_pretrained(out), x).l0 == pytest.approx(8, rel=0.1)
        if average == "weights":
            assert saefast.evaluate(sae, x).l0 == pytest.approx(8, rel=0.1)
