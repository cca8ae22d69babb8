"""Options that do nothing: for every field of both configs and every architecture, another value changes the result of a
short run, or is refused by the field's name. What acts on speed, memory and files alone is listed, and tested by its effect."""

from dataclasses import fields

import pytest
import torch

import saefast
from saefast.config.compatible import ACTS
from saefast.config.train import SAEConfig, TrainConfig
from saefast.train.run import checkpoint
from tests.helpers.option_cases import ARCHITECTURES, D_IN, D_SAE, OTHERS, PENALTY, VALUES, rows, trainer_of

# With these settings beside it the field must act: (field, architecture, settings).
MUST_ACT = [
    ("tanh_scale", "jumprelu", {"penalty": "tanh", "sparsity_coefficient": 0.05}),
    ("target_l0", "jumprelu", {"penalty": "target_l0", "sparsity_coefficient": 0.05, "target_l0": 2.0}),
    ("p_end", "relu", {"penalty": "lp", "sparsity_coefficient": 0.05}),
    ("p_anneal_from", "relu", {"penalty": "lp", "sparsity_coefficient": 0.05, "p_end": 0.5}),
    *[("norm_weighted", kind, PENALTY | {"unit_norm": False}) for kind in ("relu", "jumprelu", "gated")],
    ("norm_weighted", "relu", PENALTY | {"layers": 2}),
    *[("sparsity_coefficient", kind, PENALTY) for kind in ("relu", "jumprelu", "gated")],
    *[("sparsity_warmup_fraction", kind, PENALTY) for kind in ("relu", "jumprelu", "gated")],
    ("penalty", "jumprelu", PENALTY),
    *[(f"{name}", "jumprelu", {}) for name in ("bandwidth", "straight_through", "log_threshold")],
    ("init_threshold", "jumprelu", {}),
    ("preact", "jumprelu", {"preact": "dead", "preact_coefficient": 0.1}),
    ("preact_coefficient", "jumprelu", {"preact": "all", "preact_coefficient": 0.05}),
    ("lr_extra", "jumprelu", {}),
    ("lr_extra", "gated", {}),
    *[("k_start", kind, {"total_tokens": 32 * 12}) for kind in ("topk", "batch_topk", "matryoshka")],
    *[
        ("k_anneal_fraction", kind, {"k_start": 8, "total_tokens": 32 * 12})
        for kind in ("topk", "batch_topk", "matryoshka")
    ],
    ("multi_topk", "topk", {}),
    ("multi_topk_weight", "topk", {"multi_topk": 2}),
    ("group_sizes", "matryoshka", {}),
    ("group_weights", "matryoshka", {}),
    *[("threshold_rate", kind, {}) for kind in ("batch_topk", "matryoshka")],
    *[(name, "topk", {"optimizer": "adamw"}) for name in ("weight_decay", "betas", "eps", "grad_clip")],
    *[(name, "topk", {"optimizer": "muon"}) for name in ("weight_decay", "betas", "eps", "grad_clip")],
    ("init_decoder_norm", "topk", {"unit_norm": False}),
    *[
        ("scale_by_norm", kind, {"unit_norm": False})
        for kind in ("topk", "batch_topk", "matryoshka", "jumprelu")
    ],
    *[("auxk_detached", kind, {"auxk_scale": "loss"}) for kind in ("topk", "batch_topk")],
    ("resample_tokens", "relu", {"resample_steps": (3, 5)}),
    ("rescore", "topk", {"compute_dtype": "bf16"}),
    ("decay", "topk", {}),
    *[
        (name, kind, {})
        for name in ("betas", "eps", "grad_clip", "k_aux", "auxk_alpha")
        for kind in ARCHITECTURES
    ],
]


def outcome(activation, options):
    """Everything a user sees of a run: the weights, and the metrics of every step."""
    trainer = trainer_of(activation, options)
    seen, step = [], trainer.step
    trainer.step = lambda x, **how: seen.append(step(x, **how)) or seen[-1]
    assert trainer.fit(rows())
    metrics = [[float(value) for value in found] for found in seen]
    return [{name: tensor.clone() for name, tensor in trainer.exported().items()}, metrics]


def same(a, b):
    weights = a[0].keys() == b[0].keys() and all(
        a[0][name].shape == b[0][name].shape and torch.equal(a[0][name].float(), b[0][name].float())
        for name in a[0]
    )
    return weights and a[1] == b[1]


@pytest.fixture(scope="module")
def outcomes():
    """Of the runs that others are compared with, made once."""
    kept = {}

    def find(activation, settings):
        key = activation, tuple(sorted(settings.items()))
        if key not in kept:
            kept[key] = outcome(activation, settings)
        return kept[key]

    return find


def test_every_field_is_in_one_of_the_lists():
    everything = {f.name for config in (SAEConfig, TrainConfig) for f in fields(config)}
    assert VALUES.keys() | OTHERS.keys() == everything and not VALUES.keys() & OTHERS.keys()
    with_conditions = {name for names, _, _ in ACTS for name in names.split()}
    shown = {name for name, _, _ in MUST_ACT}
    assert with_conditions - {"k", "micro_batch_size", "param_dtype", "state_dtype"} - {
        "auxk_scale", "auxk_ramp", "auxk_relu", "count_before_auxk"
    } <= shown  # fmt: skip


@pytest.mark.parametrize("name", VALUES)
def test_an_option_acts_or_is_refused_by_its_name(outcomes, name):
    for activation in ARCHITECTURES:
        if name == "activation" and activation == VALUES[name]:
            continue
        options = {name: VALUES[name]}
        if name == "activation":
            options["k"] = None
        try:
            found = outcome(activation, options)
        except saefast.InputError as error:
            assert str(error).startswith(f"{name}: expected ") or name == "d_in", (activation, error)
            continue
        assert not same(found, outcomes(activation, {})), f"{name} does nothing with {activation}"


@pytest.mark.parametrize("name,activation,settings", MUST_ACT)
def test_an_option_acts_where_it_can(outcomes, name, activation, settings):
    if settings.get("optimizer") == "muon" and not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has no Muon")
    found = outcome(activation, settings | {name: VALUES[name]})
    assert not same(found, outcomes(activation, settings))


REFUSED = [
    ("bandwidth", "topk", {}, "bandwidth: expected .* with activation 'topk', got 0.5"),
    ("tanh_scale", "jumprelu", PENALTY, "tanh_scale: expected 4.0 with penalty 'l1', got 2.0"),
    ("decay", "topk", {"decay_fraction": 0.0}, "decay: expected 'linear' with decay_fraction 0.0, got 'cosine'"),
    ("k_start", "topk", {"k_anneal_fraction": 0.0}, "k_start: expected None with k_anneal_fraction 0.0, got 8"),
    ("penalty", "jumprelu", {}, "penalty: expected 'none' with sparsity_coefficient 0.0, got 'tanh'"),
    ("preact", "jumprelu", {}, "preact: expected 'none' with preact_coefficient 0.0, got 'all'"),
    ("norm_weighted", "relu", PENALTY, "norm_weighted: expected False with unit_norm True, got True"),
    ("multi_topk", "topk", {"multi_topk_weight": 0.0}, "multi_topk: expected 0 with multi_topk_weight 0.0, got 2"),
    *[
        (name, "topk", {"optimizer": "signum"}, f"{name}: expected .* with optimizer 'signum', got ")
        for name in ("betas", "eps", "grad_clip", "weight_decay", "state_dtype")
    ],
    *[
        (name, "topk", {"auxk_alpha": 0.0}, f"{name}: expected .* with auxk_alpha 0.0, got ")
        for name in ("auxk_scale", "auxk_ramp", "auxk_relu", "count_before_auxk")
    ],
    ("rescore", "topk", {}, "rescore: expected 0 without 16-bit products, got 4 with torch.float32"),
]  # fmt: skip


@pytest.mark.parametrize("name,activation,settings,message", REFUSED)
def test_an_option_that_cannot_act_is_refused(name, activation, settings, message):
    with pytest.raises(saefast.InputError, match=f"^{message}"):
        trainer_of(activation, settings | {name: VALUES[name]})


def test_a_transcoder_and_a_crosscoder_are_what_d_out_and_layers_act_on():
    with pytest.raises(saefast.InputError, match="^skip: expected False"):
        trainer_of("topk", {"skip": True})
    plain, skipping = (
        trainer_of("topk", {"d_out": 4, "pre_bias": False, "skip": skip}) for skip in (False, True)
    )
    for trainer in (plain, skipping):
        assert trainer.fit(rows(d_in=D_IN + 4))
    assert plain.sae.W_dec.shape == (D_SAE, 4) and "W_skip" in skipping.sae.extra
    assert not torch.equal(plain.sae.W_dec, skipping.sae.W_dec)
    half = trainer_of("topk", {"d_out": 4, "pre_bias": False, "skip": True, "lr_extra": 0.5})
    assert half.fit(rows(d_in=D_IN + 4))
    assert not torch.equal(half.sae.extra["W_skip"], skipping.sae.extra["W_skip"])


@pytest.mark.parametrize("activation", ["relu", "topk"])
def test_micro_batch_size_is_how_many_rows_are_as_wide_as_the_dictionary(activation, monkeypatch):
    widths = []
    for size in (None, 8):
        trainer, largest = trainer_of(activation, {"micro_batch_size": size}), 0
        dense_error = trainer.ops.dense_error

        def watched(acts, *rest, original=dense_error, **more):
            nonlocal largest
            largest = max(largest, len(acts))
            return original(acts, *rest, **more)

        monkeypatch.setattr(trainer.ops, "dense_error", watched)
        assert trainer.fit(rows())
        monkeypatch.undo()
        widths.append(largest)
    assert widths == [32, 8]
    with pytest.raises(
        saefast.InputError, match="^micro_batch_size: expected None with auxk_alpha 0.0, got 8$"
    ):
        trainer_of("topk", {"micro_batch_size": 8, "auxk_alpha": 0.0})


def test_files_and_where_it_runs(tmp_path, monkeypatch):
    saved = []
    save = checkpoint.save
    monkeypatch.setattr(checkpoint, "save", lambda *args: saved.append(1) or save(*args))
    monkeypatch.setattr("saefast.train.run.plots.curves", lambda folder: None)
    counts = []
    for i, options in enumerate(({}, {"log_every": 3}, {"checkpoint_every": 5})):
        trainer = trainer_of("topk", options | {"backend": "reference"})
        assert trainer.ops.NAME == "reference"
        saved.clear()
        assert trainer.fit(rows(), tmp_path / str(i))
        counts.append((len((tmp_path / str(i) / "metrics.jsonl").read_text().splitlines()), len(saved)))
    assert counts == [(1, 1), (3, 1), (1, 2)]
    x = rows()
    x[3] = torch.nan
    with pytest.raises(saefast.InputError, match="NaN"):
        trainer_of("topk", {}).fit(x)
    assert trainer_of("topk", {"nonfinite": "skip"}).fit(x)


def test_loggers_without_a_folder_are_refused():
    with pytest.raises(saefast.InputError, match="^loggers: expected .* without a run folder in `out`, got"):
        trainer_of("topk", {"loggers": ("tensorboard",)}).fit(rows())


def test_a_run_too_short_for_an_option_says_so(caplog):
    trainer_of("relu", {"resample_steps": (7, 8)}).fit(rows())
    assert not caplog.messages
    trainer_of("relu", {"resample_steps": (9, 12), "dead_feature_threshold": 256}).fit(rows())
    assert caplog.messages == [
        "resample_steps: the first of (9, 12) is beyond the 8 steps of this run",
        "k_aux: AuxK has no effect in this run of 256 tokens: a latent is dead after dead_feature_threshold = 256 of them",
    ]
