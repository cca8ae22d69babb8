"""Training goes on from an SAE that was made before: with a learning rate of 0 nothing that a user can see changes, whatever
the SAE and the recipe; where a recipe cannot hold for it, it is refused by name."""

import logging
import math

import pytest
import torch

import saefast
from saefast.config.sae import SAEConfig
from saefast.config.train import TrainConfig
from saefast.errors import InputError

pytestmark = pytest.mark.usefixtures("no_curves")
D, F, N = 16, 64, 1024
SAES = {
    "topk": {"k": 6},
    "topk by norm": {"k": 6, "scale_by_norm": True},
    "topk without bias of the input": {"k": 6, "pre_bias": False},
    "batch_topk": {"activation": "batch_topk", "k": 6},
    "batch_topk by norm": {"activation": "batch_topk", "k": 6, "scale_by_norm": True},
    "matryoshka": {"activation": "matryoshka", "k": 6},
    "group_max": {"activation": "group_max", "k": 8},
    "relu": {"activation": "relu"},
    "jumprelu": {"activation": "jumprelu"},
    "gated": {"activation": "gated"},
    "gated without bias of the input": {"activation": "gated", "pre_bias": False},
    "transcoder": {"k": 6, "d_out": 12, "pre_bias": False, "skip": True},
    "crosscoder": {"k": 6, "layers": 2, "input_norm": "scale", "scales": (0.5, 2.0, 0.5, 2.0)},
    "scaled": {"k": 6, "input_norm": "scale", "scales": (3.0, 3.0)},
}
SELECTS_BY_SIZE = ("topk", "batch_topk", "matryoshka", "group_max")


def rows(config, n=N):
    generator = torch.Generator().manual_seed(1)
    return 50 * torch.randn(n, config.row_width, generator=generator) + 7


def made_before(options, norms=1.0, b_dec=True, tied=False):
    """An SAE with parameters of every kind, in the units of data 50 times as large as usual."""
    config = SAEConfig(d_in=D, d_sae=F, **options)
    sae = saefast.SAE(config, seed=3)
    generator = torch.Generator().manual_seed(2)

    def random(like):
        return torch.randn(like.shape, generator=generator)

    with torch.no_grad():
        if not tied:
            sae.W_enc.add_(0.1 * random(sae.W_enc))
        sae.W_dec.copy_(torch.nn.functional.normalize(sae.W_dec + 0.05 * random(sae.W_dec), dim=1))
        if tied:
            sae.W_enc.copy_(sae.W_dec)
        sae.b_enc.copy_(3 * random(sae.b_enc))
        sae.b_dec.copy_(9 * random(sae.b_dec) if b_dec else torch.zeros_like(sae.b_dec))
        for name, value in sae.extra.items():
            value.copy_(
                {"threshold": 20 + 5 * random(value).abs(), "r_mag": 0.3 * random(value)}.get(
                    name, random(value)
                )
            )
        sae.W_dec.mul_(norms)
        sae.W_enc.mul_(5)
    return sae


def seen(sae, x):
    """What a user sees: the evaluation, the reconstruction, the parameters."""
    x = x[:, : sae.config.row_width]
    given, target = x[:, : sae.config.d_in], x[:, sae.config.d_in :] if sae.config.d_out else None
    with torch.no_grad():
        x_hat = sae(given, target).x_hat
    found = saefast.evaluate(sae, x)
    return {"l0": torch.tensor(found.l0), "fvu": torch.tensor(found.fvu), "x_hat": x_hat.clone()} | {
        name: value.clone() for name, value in sae.tensors.items()
    }


def assert_same(before, after, but=()):
    for name, value in before.items():
        if name not in but:
            torch.testing.assert_close(
                after[name], value, rtol=2e-5, atol=2e-5 * float(value.abs().max()), msg=name
            )


def train_config(**options):
    penalty = {"batch_size": 128, "total_tokens": 30 * 128, "buffer_tokens": 512, "auxk_alpha": 1 / 32}
    return TrainConfig(**penalty | options)


def reloaded(sae, folder):
    sae.save_pretrained(folder)
    return saefast.SAE.from_pretrained(folder)


@pytest.mark.parametrize("lr,backend", [(0.0, "reference"), (0.0, "native"), (1e-12, "native")])
@pytest.mark.parametrize("name", SAES)
def test_a_step_and_a_fit_without_learning_change_nothing(name, lr, backend, tmp_path):
    sae = reloaded(made_before(SAES[name]), tmp_path / "sae")
    x = rows(sae.config)
    before = seen(sae, x)
    # an average of 20 batches says more of a threshold than the SAE: where something is learnt, it counts
    total = 30 * 128 if lr == 0 else 19 * 128
    trainer = saefast.Trainer(sae, train_config(lr=lr, backend=backend, total_tokens=total))
    target = x[:128, D:] if sae.config.d_out else None
    trainer.step(x[:128, :D].contiguous(), target)
    assert_same(before, seen(sae, x))
    assert saefast.Trainer(sae, train_config(lr=lr, backend=backend, total_tokens=total)).fit(
        x, tmp_path / "run"
    )
    assert_same(before, seen(sae, x))
    assert_same(before, seen(saefast.SAE.from_pretrained(tmp_path / "run"), x))


RECIPES = {
    "log_threshold": ("jumprelu", {"log_threshold": True, "penalty": "l0", "sparsity_coefficient": 1e-3}),
    "every latent of the threshold": (
        "jumprelu",
        {"straight_through": "all", "penalty": "tanh", "sparsity_coefficient": 0.1},
    ),
    "rows as they are": ("jumprelu", {"normalize_input": False}),
    "norm 1": ("jumprelu", {"normalize_input": "unit"}),
    "mean of the norm": (
        "relu",
        {"normalize_input": "mean_norm", "penalty": "l1", "sparsity_coefficient": 1.0},
    ),
    "average": ("jumprelu", {"ema_decay": 0.9}),
    "average of topk": ("topk", {"ema_decay": 0.9}),
    "adamw": ("topk", {"optimizer": "adamw", "weight_decay": 0.1}),
    "muon": ("gated", {"optimizer": "muon"}),
    "signum": ("batch_topk", {"optimizer": "signum"}),
    "split": (
        "topk",
        {"param_dtype": "split", "state_dtype": "int8", "backend": "reference", "compute_dtype": "bf16"},
    ),
    "free decoder": ("topk by norm", {"unit_norm": False, "init_decoder_norm": 0.1}),
    "mean": ("relu", {"init_b_dec": "mean"}),
    "more at first": ("topk", {"k_start": 12}),
}


@pytest.mark.parametrize("name", RECIPES)
def test_no_recipe_changes_an_sae_without_learning(name, tmp_path):
    kind, options = RECIPES[name]
    sae = reloaded(made_before(SAES[kind]), tmp_path / "sae")
    x = rows(sae.config)
    before = seen(sae, x)
    assert saefast.Trainer(sae, train_config(lr=0.0, **options)).fit(x, tmp_path / "run")
    after = seen(saefast.SAE.from_pretrained(tmp_path / "run"), x)
    assert_same(before, after)
    if options.get("param_dtype") is None:
        assert_same(before, seen(sae, x))


@pytest.mark.parametrize("tied", [True, False])
def test_what_is_rightly_0_or_tied_stays_so(tied, tmp_path):
    sae = reloaded(made_before({"k": 6}, b_dec=False, tied=tied), tmp_path / "sae")
    with torch.no_grad():
        sae.W_enc.copy_(sae.W_dec if tied else sae.W_enc)
    x = rows(sae.config)
    before = seen(sae, x)
    assert saefast.Trainer(sae, train_config(lr=0.0)).fit(x)
    assert_same(before, seen(sae, x))


def test_weights_set_by_hand_are_not_fresh():
    """Without a file: a state dict that was loaded, or a threshold that was set."""
    other = made_before({"k": 6}, b_dec=False, tied=True)
    sae = saefast.SAE(other.config)
    assert sae.fresh
    sae.load_state_dict(other.state_dict())
    assert not sae.fresh
    x = rows(sae.config)
    before = seen(sae, x)
    assert saefast.Trainer(sae, train_config(lr=0.0)).fit(x)
    assert_same(before, seen(sae, x))

    sae = saefast.SAE(SAEConfig(d_in=D, d_sae=F, activation="jumprelu", pre_bias=False))
    sae.threshold.data.fill_(20.0)
    saefast.Trainer(sae, train_config(lr=0.0)).step(x[:128])
    assert torch.equal(sae.threshold.detach(), torch.full((F,), 20.0))


def test_a_fresh_sae_is_fitted_to_the_data_and_a_copy_of_it_too():
    import copy

    sae = copy.deepcopy(saefast.SAE(SAEConfig(d_in=D, d_sae=F, k=6)))
    assert sae.fresh and sae.double().fresh
    trainer = saefast.Trainer(sae.float(), train_config(lr=0.0))
    x = rows(sae.config)
    trainer.initialize(x)
    assert sae.b_dec.abs().max() > 1 and torch.allclose(sae.W_enc.norm(dim=1), torch.tensor(0.3))


@pytest.mark.parametrize("spread", [False, True])
@pytest.mark.parametrize("backend", ["reference", "native"])
@pytest.mark.parametrize("name", SAES)
def test_norms_of_decoder_rows_go_into_the_encoder_or_are_refused(name, backend, spread, tmp_path, caplog):
    norms = 0.1 * (torch.linspace(0.2, 3, F)[:, None] if spread else 1.0)
    sae = reloaded(made_before(SAES[name], norms), tmp_path / "sae")
    x, config = rows(sae.config), train_config(lr=0.0, backend=backend)
    before = seen(sae, x)
    by_size = sae.config.activation in SELECTS_BY_SIZE and not sae.config.scale_by_norm
    if spread and by_size:
        with pytest.raises(InputError, match=r"^unit_norm: expected False for this SAE, .* from 0.02 to 0.3"):
            saefast.Trainer(sae, config).fit(x)
        assert_same(before, seen(sae, x))
        free = train_config(lr=0.0, backend=backend, unit_norm=False)
        assert saefast.Trainer(sae, free).fit(x)
        assert_same(before, seen(sae, x))
        return
    with caplog.at_level(logging.WARNING, logger="saefast"):
        assert saefast.Trainer(sae, config).fit(x)
    after = seen(sae, x)
    assert_same(before, after, but=("W_enc", "b_enc", "W_dec", "threshold", "b_mag"))
    assert "the norms went into the encoder" in caplog.text
    torch.testing.assert_close(after["W_dec"].norm(dim=1), torch.ones(F))
    # the fold itself, by hand
    by = before["W_dec"].norm(dim=1)
    torch.testing.assert_close(after["W_enc"], before["W_enc"] * by[:, None])
    torch.testing.assert_close(after["b_enc"], before["b_enc"] * by)


def test_a_16_bit_file_of_unit_rows_is_taken_as_it_is(tmp_path):
    sae = made_before({"k": 6})
    with torch.no_grad():
        for param in sae.parameters():
            param.copy_(param.bfloat16())
    x = rows(sae.config)
    before, indices = seen(sae, x), sae.encode(x)[1]
    assert saefast.Trainer(sae, train_config(lr=0.0)).fit(x)
    after = seen(sae, x)
    assert_same(before, after, but=("W_enc", "b_enc", "W_dec", "fvu", "x_hat"))
    assert torch.equal(
        sae.encode(x)[1], indices
    )  # the same latents, whose rows are a rounding of 2^-9 nearer to 1
    assert (after["x_hat"] - before["x_hat"]).norm() < 2e-3 * before["x_hat"].norm()


def test_thresholds_of_0_have_no_logarithm():
    sae = made_before({"activation": "jumprelu"})
    with torch.no_grad():
        sae.threshold[3] = 0
    with pytest.raises(
        InputError, match="^log_threshold: expected an SAE with thresholds above 0, got one of 0$"
    ):
        saefast.Trainer(sae, train_config(lr=0.0, log_threshold=True))


@pytest.mark.parametrize("kind", ["layer_norm", "constant_norm"])
def test_rows_normalised_one_by_one_are_refused(kind):
    sae = made_before({"k": 6, "input_norm": kind})
    with pytest.raises(
        InputError, match=f"^input_norm: expected 'none' or 'scale' to train .*, got '{kind}'$"
    ):
        saefast.Trainer(sae, train_config(lr=0.0))


def test_going_on_trains(tmp_path):
    """Every case above would pass if nothing trained."""
    for name, options in SAES.items():
        sae = reloaded(made_before(options), tmp_path / name)
        x = rows(sae.config)
        before = saefast.evaluate(sae, x).fvu
        assert saefast.Trainer(sae, train_config(lr=3e-2)).fit(x)
        assert saefast.evaluate(sae, x).fvu < 0.7 * before, name


def test_a_loaded_threshold_follows_after_20_batches(tmp_path):
    sae = reloaded(made_before({"activation": "batch_topk", "k": 6}), tmp_path / "sae")
    x = rows(sae.config)
    trainer = saefast.Trainer(sae, train_config(lr=1e-12))
    was = float(sae.threshold)
    for step in range(1, 25):
        trainer.step(x[:128])
        assert (float(sae.threshold) == was) == (step < 20), step
    assert abs(saefast.evaluate(sae, x).l0 - 6) < 0.6 and math.isfinite(was)
