"""Recipes of papers and of other projects: the architecture and the settings, with the numbers of their source.

    sae_options, train_options = recipe("anthropic-april-2024")
    sae = SAE(SAEConfig(d_in=d, d_sae=n, **sae_options))
    trainer = Trainer(sae, TrainConfig(total_tokens=tokens, **train_options))

Reductions: the `loss` "mse" is the sum over d_in, averaged over tokens; "mse_mean" is averaged over both; "fvu" is the
squared error of the batch divided by its variance. A penalty is a sum over latents, averaged over tokens. Where a source
counts in another way, its number is converted, and both numbers are given below.

Units: each recipe scales the rows as its source does (`normalize_input`), so its numbers are those of the source: Anthropic
to E||x|| = sqrt(d_in), Gemma Scope to E||x||^2 = 1; openai to E||x||^2 = d_in, though row by row. The other sources
leave the rows as they are, and so do their recipes: there the numbers depend on the size of the activations.

Steps become shares of the run: a source that warms up over 1000 of 100,000 steps warms up over 1% here.

A recipe sets every field that its source determines, also where our default is the same; "lr": None is a law in d_sae, that
of its optimizer (see `saefast.train.schedules.peak_lr`).
"""

from typing import Any, NamedTuple

from saefast.errors import check


class Recipe(NamedTuple):
    source: str
    sae: dict[str, Any]  # fields of SAEConfig
    train: dict[str, Any]  # fields of TrainConfig
    note: str = ""  # what differs from the source, or is converted


RECIPES: dict[str, Recipe] = {
    "monosemanticity-2023": Recipe(
        "Bricken et al. 2023, Towards Monosemanticity",
        {"activation": "relu", "pre_bias": True},
        {
            "loss": "mse_mean", "penalty": "l1", "sparsity_coefficient": 0.004, "sparsity_warmup_fraction": 0.0,
            "unit_norm": True, "betas": (0.9, 0.999), "batch_size": 8192, "lr": 1e-4, "warmup_fraction": 0.0,
            "decay_fraction": 0.0, "eps": 1e-8, "auxk_alpha": 0.0, "normalize_input": False,
            "init_b_dec": "geometric_median", "init_encoder_scale": 1.0, "dead_feature_threshold": 12_500 * 8192,
            "resample_steps": (25_000, 50_000, 75_000, 100_000), "resample_tokens": 819_200,
            "buffer_tokens": 819_200,
        },
        "lr and betas are not published: 1e-4 is that of Nanda's replication. The formula of the paper is the sum over "
        "d_in, its text says mean over d_in: 0.004 goes with the mean. Weights begin as random unit rows, not Kaiming.",
    ),
    "anthropic-april-2024": Recipe(
        "Conerly et al., Circuits Updates April 2024",
        {"activation": "relu", "pre_bias": False},
        {
            "loss": "mse", "penalty": "l1", "norm_weighted": True, "unit_norm": False, "sparsity_coefficient": 5.0,
            "sparsity_warmup_fraction": 0.05, "batch_size": 4096, "lr": 5e-5, "warmup_fraction": 0.0,
            "decay_fraction": 0.2, "betas": (0.9, 0.999), "eps": 1e-8, "grad_clip": 1.0, "auxk_alpha": 0.0,
            "init_b_dec": "none", "init_decoder_norm": 0.1, "init_encoder_scale": 1.0, "normalize_input": "mean_norm",
        },
        "decoder rows of norm 0.1 at the start (the source gives 0.05 to 1, depending on the data)",
    ),
    "anthropic-jumprelu-2025": Recipe(
        "Circuits Updates January 2025",
        {"activation": "jumprelu", "pre_bias": False, "init_threshold": 0.1},
        {
            "loss": "mse", "penalty": "tanh", "tanh_scale": 4.0, "norm_weighted": True, "unit_norm": False,
            "straight_through": "all", "bandwidth": 2.0, "sparsity_coefficient": 15.0,
            "sparsity_warmup_fraction": 1.0, "preact": "all", "preact_coefficient": 3e-6, "batch_size": 32_768,
            "lr": 2e-4, "warmup_fraction": 0.0, "decay_fraction": 0.2, "betas": (0.9, 0.999), "eps": 1e-8,
            "grad_clip": 1.0, "auxk_alpha": 0.0, "init_b_dec": "none", "init_decoder_norm": 0.1,
            "init_encoder_scale": 1.0, "normalize_input": "mean_norm",
        },
        "weights of the penalty from 10 to 20 are named; decoder rows begin with norm 0.1 in place of U(-1/n, 1/n), and "
        "b_enc is not set from the data",
    ),
    "openai-topk-2024": Recipe(
        "Gao et al. 2024, arXiv 2406.04093, and openai/sparse_autoencoder",
        {"activation": "topk", "k": 32, "pre_bias": True},
        {
            "loss": "fvu", "unit_norm": True, "batch_size": 131_072, "lr": None, "warmup_fraction": 0.0,
            "decay_fraction": 0.0, "betas": (0.9, 0.999), "eps": 6.25e-10, "auxk_alpha": 1 / 32,
            "auxk_scale": "residual", "k_aux": 256, "dead_feature_threshold": 10_000_000, "ema_decay": 0.999,
            "init_b_dec": "geometric_median", "init_encoder_scale": 1.0, "normalize_input": "rms",
        },
        "lr is 2e-4 / sqrt(d_sae / 2^14), the law of the paper; the released code z-scores each input, which is not done",
    ),
    "gemma-scope-jumprelu": Recipe(
        "Rajamanoharan et al. 2024, arXiv 2407.14435; Lieberum et al. 2024, arXiv 2408.05147",
        {"activation": "jumprelu", "pre_bias": False, "init_threshold": 0.001},
        {
            "loss": "mse", "unit_norm": True, "penalty": "l0", "sparsity_coefficient": 1e-3,
            "sparsity_warmup_fraction": 0.1, "bandwidth": 0.001, "straight_through": "threshold",
            "normalize_input": "unit", "batch_size": 4096, "lr": 7e-5, "warmup_fraction": 0.01, "decay_fraction": 0.0,
            "betas": (0.0, 0.999), "eps": 1e-8, "auxk_alpha": 0.0, "init_b_dec": "none", "init_encoder_scale": 1.0,
        },
        "the papers sweep the weight of the penalty: 1e-3 is only a place to begin; their learning rate rises as a cosine",
    ),
    "batchtopk": Recipe(
        "Bussmann et al. 2024, arXiv 2412.06410",
        {"activation": "batch_topk", "k": 32, "pre_bias": True},
        {
            "loss": "mse_mean", "unit_norm": True, "batch_size": 4096, "lr": 1e-4, "warmup_fraction": 0.0,
            "decay_fraction": 0.0, "betas": (0.9, 0.99), "eps": 1e-8, "auxk_alpha": 1 / 32, "auxk_scale": "loss",
            "k_aux": 512, "dead_feature_threshold": 5 * 4096, "normalize_input": False, "init_b_dec": "none",
            "init_encoder_scale": 1.0,
        },
        "the defaults of the authors' code, whose AuxK does not hold its residual constant; k is swept there",
    ),
    "matryoshka": Recipe(
        "Bussmann et al. 2025, arXiv 2503.17547",
        {"activation": "matryoshka", "k": 32, "pre_bias": True},
        {
            "loss": "mse", "unit_norm": True, "normalize_input": False, "batch_size": 4096, "lr": 3e-4,
            "warmup_fraction": 0.0, "decay_fraction": 0.0, "betas": (0.9, 0.99), "eps": 1e-8, "auxk_alpha": 1 / 32,
            "auxk_scale": "residual", "k_aux": 512, "dead_feature_threshold": 5 * 4096, "init_b_dec": "none",
            "init_encoder_scale": 1.0,
        },
        "sizes, lr and AuxK of the authors' script (five prefixes, d_sae / 16 to d_sae; k 32), the rest as their "
        "BatchTopK; the loss is the paper's sum over the prefixes",
    ),
    "sparsify": Recipe(
        "EleutherAI/sparsify 1.3.3, defaults",
        {"activation": "topk", "k": 32, "pre_bias": True},
        {
            "loss": "fvu", "optimizer": "signum", "unit_norm": True, "batch_size": 32 * 2048, "lr": None,
            "warmup_fraction": 0.0, "decay_fraction": 0.0, "auxk_alpha": 0.0, "dead_feature_threshold": 10_000_000,
            "normalize_input": False, "init_b_dec": "mean", "init_encoder_scale": 3**-0.5,
        },
        "lr is 5e-3 / sqrt(d_sae / 2^14), its law for signum; its batch is 32 sequences of 2048 tokens; rows of W_enc begin "
        "with norm 1 / sqrt(3)",
    ),
    "saelens-topk": Recipe(
        "SAELens 6.54, TopKTrainingSAE and the runner's defaults",
        {"activation": "topk", "k": 100, "scale_by_norm": True, "pre_bias": True},
        {
            "loss": "mse", "unit_norm": False, "batch_size": 4096, "lr": 3e-4, "warmup_fraction": 0.0,
            "decay_fraction": 0.0, "betas": (0.9, 0.999), "eps": 1e-8, "grad_clip": 1.0, "auxk_alpha": 1.0,
            "auxk_scale": "loss", "auxk_ramp": True, "auxk_relu": False, "dead_feature_threshold": 1000 * 4096,
            "init_b_dec": "none", "init_decoder_norm": 0.1, "init_encoder_scale": 1.0, "normalize_input": False,
        },
        "its 1000 batches until a latent is dead are counted in tokens",
    ),
}  # fmt: skip


def recipe(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields of SAEConfig and of TrainConfig that the recipe sets: two dicts that you may change.

    Raises:
        InputError: there is no recipe of this name.
    """
    check(name in RECIPES, f"recipe: expected one of {list(RECIPES)}, got {name!r}")
    found = RECIPES[name]
    return dict(found.sae), dict(found.train)
