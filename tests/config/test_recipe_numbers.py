"""The settings of papers by name, against the numbers that their sources give."""

import math

import pytest

from saefast.config.recipes import RECIPES, recipe

# The numbers of the sources, in their units: steps of a batch, shares of a run. What it leaves open is in `note`.
ADAM = {"betas": (0.9, 0.999), "eps": 1e-8}
AT_ONCE = {"warmup_fraction": 0, "decay_fraction": 0}  # a constant learning rate
BATCH_TOPK = AT_ONCE | {
    "betas": (0.9, 0.99),
    "eps": 1e-8,
    "batch_size": 4096,
    "auxk_alpha": 1 / 32,
    "k_aux": 512,
}
BATCH_TOPK |= {"dead_feature_threshold": 5 * 4096, "unit_norm": True}
BATCH_TOPK |= {"normalize_input": False, "init_encoder_scale": 1}
PUBLISHED = {  # of each recipe: the SAE's, the trainer's
    "monosemanticity-2023": (
        {"pre_bias": True},
        ADAM
        | AT_ONCE
        | {"batch_size": 8192, "lr": 1e-4, "sparsity_coefficient": 0.004, "sparsity_warmup_fraction": 0}
        | {"resample_steps": (25_000, 50_000, 75_000, 100_000), "resample_tokens": 819_200}
        | {"dead_feature_threshold": 12_500 * 8192, "buffer_tokens": 819_200, "auxk_alpha": 0}
        | {"unit_norm": True, "init_encoder_scale": 1, "normalize_input": False},
    ),
    "anthropic-april-2024": (
        {"pre_bias": False},
        ADAM
        | {"batch_size": 4096, "lr": 5e-5, "warmup_fraction": 0, "decay_fraction": 1 / 5}
        | {"sparsity_coefficient": 5, "sparsity_warmup_fraction": 1 / 20, "grad_clip": 1, "auxk_alpha": 0}
        | {"unit_norm": False, "norm_weighted": True, "init_decoder_norm": 0.1, "init_encoder_scale": 1},
    ),
    "anthropic-jumprelu-2025": (
        {"pre_bias": False, "init_threshold": 0.1},
        ADAM
        | {"batch_size": 2**15, "lr": 2e-4, "warmup_fraction": 0, "decay_fraction": 1 / 5, "grad_clip": 1}
        | {"sparsity_coefficient": (10 + 20) / 2, "sparsity_warmup_fraction": 1, "auxk_alpha": 0}
        | {"tanh_scale": 4, "bandwidth": 2, "preact_coefficient": 3e-6, "unit_norm": False}
        | {"norm_weighted": True, "init_decoder_norm": 0.1, "init_encoder_scale": 1},
    ),
    "openai-topk-2024": (
        {"pre_bias": True, "k": 32},
        AT_ONCE
        | {"betas": (0.9, 0.999), "eps": 6.25e-10, "batch_size": 2**17, "auxk_alpha": 1 / 32, "k_aux": 256}
        | {"dead_feature_threshold": 10**7, "ema_decay": 0.999, "unit_norm": True, "init_encoder_scale": 1},
    ),
    "gemma-scope-jumprelu": (
        {"pre_bias": False, "init_threshold": 0.001},
        {"betas": (0, 0.999), "eps": 1e-8, "batch_size": 2**12, "lr": 7e-5, "decay_fraction": 0}
        | {"warmup_fraction": 1000 / 100_000, "sparsity_warmup_fraction": 10_000 / 100_000}
        | {"sparsity_coefficient": 1e-3, "bandwidth": 0.001, "unit_norm": True, "auxk_alpha": 0}
        | {"init_encoder_scale": 1},
    ),
    "batchtopk": ({"pre_bias": True, "k": 32}, BATCH_TOPK | {"lr": 1e-4}),
    "matryoshka": ({"pre_bias": True, "k": 32}, BATCH_TOPK | {"lr": 3e-4}),
    "sparsify": (
        {"pre_bias": True, "k": 32},
        AT_ONCE
        | {"batch_size": 65_536, "auxk_alpha": 0, "dead_feature_threshold": 10**7, "unit_norm": True}
        | {"normalize_input": False, "init_encoder_scale": 1 / math.sqrt(3)},
    ),
    "saelens-topk": (
        {"pre_bias": True, "k": 100, "scale_by_norm": True},
        ADAM
        | AT_ONCE
        | {
            "batch_size": 4096,
            "lr": 3e-4,
            "grad_clip": 1,
            "auxk_alpha": 1,
            "auxk_ramp": True,
            "auxk_relu": False,
        }
        | {"dead_feature_threshold": 1000 * 4096, "unit_norm": False, "init_decoder_norm": 0.1}
        | {"init_encoder_scale": 1, "normalize_input": False},
    ),
}


@pytest.mark.parametrize("name", RECIPES)
def test_the_numbers_of_a_recipe_are_those_of_its_source(name):
    for got, want in zip(recipe(name), PUBLISHED[name]):
        numbers = {key: value for key, value in got.items() if not isinstance(value, str | None)}
        assert numbers.keys() == want.keys()
        for key, value in want.items():
            assert numbers[key] == pytest.approx(value, rel=1e-12, abs=0), key


# What stands for a formula in them: architecture, loss, penalty, its gradient, pre-activation loss, AuxK, input, b_dec.
WORDS = {
    "monosemanticity-2023": "relu mse_mean l1 geometric_median",
    "anthropic-april-2024": "relu mse l1 mean_norm none",
    "anthropic-jumprelu-2025": "jumprelu mse tanh all all mean_norm none",
    "openai-topk-2024": "topk fvu residual rms geometric_median",
    "gemma-scope-jumprelu": "jumprelu mse l0 threshold unit none",
    "batchtopk": "batch_topk mse_mean loss none",
    "matryoshka": "matryoshka mse residual none",
    "sparsify": "topk fvu signum mean",
    "saelens-topk": "topk mse loss none",
}


@pytest.mark.parametrize("name", RECIPES)
def test_the_formulas_of_a_recipe_are_those_of_its_source(name):
    got = [value for fields in recipe(name) for value in fields.values() if isinstance(value, str)]
    assert sorted(got) == sorted(WORDS[name].split())
