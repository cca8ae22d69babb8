"""How an SAE is trained. Frozen, validated where it is made; the command line (`cli.py`) is generated from it."""

import math
from dataclasses import dataclass
from typing import Literal

from saefast.config.sae import SAEConfig
from saefast.errors import check, one_of, positive

__all__ = ["LOGGERS", "SAEConfig", "TrainConfig"]
LOGGERS = ("wandb", "tensorboard", "trackio")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How an SAE is trained. Sizes are in tokens (activation rows), never in sequences."""

    total_tokens: int
    """Tokens to train on; the source is read again when it is shorter."""
    batch_size: int = 4096
    """Tokens per optimizer step."""
    micro_batch_size: int | None = None
    """Tokens at a time of what is as wide as the dictionary (AuxK's pre-activations, a code kept as a matrix); the
    gradients are added up, so that the step is that of the whole batch. Default: all."""
    lr: float | None = None
    """Peak learning rate of Adam. Default: 2e-4 / sqrt(d_sae / 2^14) (Gao et al. 2024, arXiv 2406.04093)."""
    warmup_fraction: float = 0.05
    """Share of the steps over which the learning rate rises linearly from 0."""
    decay_fraction: float = 0.2
    """Share of the steps, at the end, over which it falls to 0."""
    decay: Literal["linear", "cosine"] = "linear"
    """How it falls."""
    lr_W_enc: float = 1.0
    """Multiplies lr for this parameter, as the next four."""
    lr_b_enc: float = 1.0
    """Of b_enc."""
    lr_W_dec: float = 1.0
    """Of W_dec."""
    lr_b_dec: float = 1.0
    """Of b_dec."""
    lr_extra: float = 1.0
    """Of thresholds, gains and W_skip."""
    optimizer: Literal["adam", "adamw", "muon", "signum"] = "adam"
    """'adam' is fused with the backward pass; the others (see `saefast.train.optimizers`) make the gradients exist."""
    weight_decay: float = 0.0
    """Of 'adamw' and 'muon'."""
    ema_decay: float | None = None
    """Keep an exponential moving average of the weights, and save that as the SAE (OpenAI: 0.999)."""
    loss: Literal["fvu", "mse", "mse_mean"] = "fvu"
    """The reconstruction loss: 'fvu' divides by the variance of the batch, 'mse' is the squared error summed over
    d_in and averaged over tokens, 'mse_mean' averaged over both. The last two are of the scaled input."""
    unit_norm: bool = True
    """Rows of W_dec keep unit norm, and their gradient its part along the row taken out; False lets them free."""
    penalty: Literal["none", "l1", "lp", "tanh", "l0", "target_l0"] = "none"
    """What is added to the loss for sparsity, see `saefast.engine.architectures`; the last two are JumpReLU's."""
    sparsity_coefficient: float = 0.0
    """Weight of the penalty: a sum over latents, averaged over tokens."""
    sparsity_warmup_fraction: float = 0.05
    """Share of the steps over which that weight rises linearly from 0."""
    norm_weighted: bool = False
    """'l1', 'lp', 'tanh': activations times the norm of their decoder row (Anthropic, April 2024)."""
    tanh_scale: float = 4.0
    """c of tanh(c * act)."""
    target_l0: float | None = None
    """For 'target_l0': the L0 that JumpReLU is pulled to."""
    p_end: float = 1.0
    """'lp': p falls linearly from 1 to this (p-annealing, arXiv 2408.00113); the weight is adapted so that the penalty
    of the same activations stays the same."""
    p_anneal_from: float = 0.0
    """Share of the steps after which it begins to fall."""
    bandwidth: float = 0.001
    """JumpReLU: width of the window in which thresholds get a gradient."""
    straight_through: Literal["threshold", "all", "acts", "positive"] = "threshold"
    """JumpReLU: what learns through the step, see `saefast.engine.architectures.jumprelu`."""
    log_threshold: bool = False
    """JumpReLU: train the logarithm of the threshold."""
    preact: Literal["none", "all", "dead"] = "none"
    """JumpReLU: which latents the pre-activation loss is for."""
    preact_coefficient: float = 0.0
    """Its weight."""
    k_start: int | None = None
    """Begin with this k and fall linearly to k, in at most 32 steps."""
    k_anneal_fraction: float = 0.1
    """Share of the steps over which it does."""
    multi_topk: int = 0
    """TopK: also reconstruct from multi_topk * k latents (the paper's 4), which keeps the SAE usable at other k."""
    multi_topk_weight: float = 1 / 8
    """Weight of that reconstruction."""
    group_weights: tuple[float, ...] = ()
    """Matryoshka: weight of each nested reconstruction. Default: 1 each, the sum."""
    threshold_rate: float = 0.001
    """BatchTopK: how fast the threshold for inference follows the smallest activation kept."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Adam's decay rates of the first and second moment."""
    eps: float = 6.25e-10
    """Adam's epsilon; small because the loss is an average (OpenAI's value)."""
    grad_clip: float | None = None
    """Largest global norm of the gradient, exact; None does not clip."""
    auxk_alpha: float = 1 / 32
    """Weight of the AuxK loss that revives dead latents; 0 turns it off."""
    k_aux: int | None = None
    """Dead latents that AuxK uses per token. Default: d_in / 2."""
    auxk_scale: Literal["residual", "loss"] = "residual"
    """What AuxK's squared error is divided by: the variance of the residual (OpenAI) or as the main loss (sparsify
    with 'fvu', SAELens with 'mse')."""
    auxk_ramp: bool = False
    """Multiply AuxK by min(1, dead latents / k_aux) (sparsify, SAELens)."""
    auxk_relu: bool = True
    """AuxK's activations go through ReLU (the paper). False, as SAELens: the k_aux largest of any sign, chosen as the
    code is where that is by the norm of the decoder row."""
    auxk_detached: bool = True
    """The residual is a constant to AuxK (the paper). False, as llamascopium: the reconstruction learns from AuxK's loss
    too. For 'topk' and 'batch_topk', with auxk_scale 'loss' and without auxk_ramp."""
    count_before_auxk: bool = False
    """AuxK asks who is dead when this batch is counted, so that no latent active in it takes part
    (dictionary_learning); False: before."""
    dead_feature_threshold: int = 10_000_000
    """A latent is dead when it has not been active for this many tokens."""
    resample_steps: tuple[int, ...] = ()
    """Steps after which dead latents are resampled ("Towards Monosemanticity", see `saefast.train.resample`)."""
    resample_tokens: int = 819_200
    """Inputs whose losses resampling looks at."""
    init_b_dec: Literal["geometric_median", "mean", "none"] = "geometric_median"
    """What `fit` sets b_dec to before the first step, from up to 32768 rows of the source, if it is still 0."""
    init_encoder_scale: float = 0.3
    """What `fit` multiplies the encoder of a fresh SAE (W_enc equal to W_dec) by before the first step. A smaller
    encoder turns faster at the same learning rate; measured in benchmarks/LOG.md."""
    init_decoder_norm: float = 1.0
    """With unit_norm False: the norm of the decoder rows (and encoder rows) of a fresh SAE before the first step."""
    normalize_input: bool = True
    """Train as if the input were scaled by one scalar to E||x||^2 = d_in. See `saefast.engine.step.Hyper`."""
    buffer_tokens: int | None = None
    """Rows in the shuffle buffer. Default: 131072, or four batches if that is more."""
    nonfinite: Literal["stop", "skip"] = "stop"
    """Rows with NaN or Inf: stop with an error, or skip and count them."""
    seed: int = 0
    """Seed of the shuffling (and of the initial weights, on the command line)."""
    backend: Literal["auto", "reference", "native", "triton"] = "auto"
    """Which implementation of the ops runs the step."""
    compute_dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Format of the operands of the products; sums are always fp32. 'auto': bf16 on a GPU, fp32 on a CPU. fp32
    products on a GPU follow `torch.set_float32_matmul_precision`."""
    param_dtype: Literal["fp32", "split", "bf16"] = "fp32"
    """How the weight matrices are kept: 'fp32' (and a bf16 copy), 'split' (the same precision in 4 bytes: bf16 and
    the 16 bits below), 'bf16' (2 bytes, rounded stochastically). See `saefast.storage`."""
    state_dtype: Literal["fp32", "bf16", "int8"] = "fp32"
    """How Adam's moments are kept: 8, 4 or 2 bytes per parameter."""
    rescore: int = 0
    """With 16-bit products: latents beyond k that are scored again in fp32 before the k largest are taken."""
    cuda_graph: bool = True
    """On a GPU, record the step once and replay it; False launches every kernel from Python (for debugging)."""
    log_every: int = 10
    """Steps between lines in metrics.jsonl."""
    checkpoint_every: int = 1000
    """Steps between checkpoints; one is also written at the end and on SIGTERM or Ctrl-C."""
    loggers: tuple[Literal["wandb", "tensorboard", "trackio"], ...] = ()
    """Where metrics go besides metrics.jsonl; each needs the extra of the same name."""

    def __post_init__(self) -> None:
        positive(self, "total_tokens", "batch_size", "dead_feature_threshold", "log_every")
        positive(self, "checkpoint_every")
        for name in ("lr", "grad_clip"):
            value = getattr(self, name)
            ok = value is None or (math.isfinite(value) and value > 0)
            check(ok, f"{name}: expected a positive number or None, got {value!r}")
        for name in (
            "warmup_fraction", "decay_fraction", "sparsity_warmup_fraction", "k_anneal_fraction", "p_anneal_from",
        ):  # fmt: skip
            value = getattr(self, name)
            check(0 <= value <= 1, f"{name}: expected a number from 0 to 1, got {value!r}")
        in_range = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        check(in_range, f"betas: expected two numbers in [0, 1), got {self.betas!r}")
        norm = self.init_decoder_norm
        ok = 0 < norm < math.inf and (norm == 1 or not self.unit_norm)
        check(ok, f"init_decoder_norm: expected 1, or with unit_norm = False a positive number, got {norm!r}")
        scale = self.init_encoder_scale
        check(0 < scale < math.inf, f"init_encoder_scale: expected a positive number, got {scale!r}")
        check(0 < self.eps < math.inf, f"eps: expected a positive number, got {self.eps!r}")
        check(0 <= self.auxk_alpha < math.inf, f"auxk_alpha: expected 0 or more, got {self.auxk_alpha!r}")
        for name in ("k_aux", "micro_batch_size"):
            if getattr(self, name) is not None:
                positive(self, name)
        is_seed = type(self.seed) is int and 0 <= self.seed < 2**63
        check(is_seed, f"seed: expected an integer from 0 to 2^63 - 1, got {self.seed!r}")
        if self.buffer_tokens is not None:
            positive(self, "buffer_tokens")
            enough = self.buffer_tokens >= self.batch_size
            check(
                enough,
                f"buffer_tokens: expected at least batch_size = {self.batch_size}, got {self.buffer_tokens}",
            )
        for name in ("sparsity_coefficient", "preact_coefficient", "weight_decay", "multi_topk_weight"):
            value = getattr(self, name)
            check(0 <= value < math.inf, f"{name}: expected 0 or more, got {value!r}")
        for name in ("lr_W_enc", "lr_b_enc", "lr_W_dec", "lr_b_dec", "lr_extra"):
            value = getattr(self, name)
            check(0 <= value < math.inf, f"{name}: expected a multiplier of 0 or more, got {value!r}")
        for name in ("bandwidth", "tanh_scale"):
            value = getattr(self, name)
            check(0 < value < math.inf, f"{name}: expected a positive number, got {value!r}")
        check(0 < self.p_end <= 1, f"p_end: expected a number above 0, at most 1, got {self.p_end!r}")
        annealed = self.p_end == 1 or self.penalty == "lp"
        check(annealed, f"p_end: expected 1 with penalty {self.penalty!r}, got {self.p_end}")
        check(0 < self.threshold_rate <= 1, f"threshold_rate: expected 0 to 1, got {self.threshold_rate!r}")
        ok = self.ema_decay is None or 0 <= self.ema_decay < 1
        check(ok, f"ema_decay: expected a number in [0, 1) or None, got {self.ema_decay!r}")
        if self.k_start is not None:
            positive(self, "k_start")
        is_count = type(self.multi_topk) is int and self.multi_topk != 1 and self.multi_topk >= 0
        check(is_count, f"multi_topk: expected 0 or an integer from 2, got {self.multi_topk!r}")
        asked = (self.penalty == "target_l0") == (self.target_l0 is not None)
        check(
            asked,
            f"target_l0: expected with penalty 'target_l0' only, got {self.target_l0} and {self.penalty!r}",
        )
        ok = self.target_l0 is None or 0 < self.target_l0 < math.inf
        check(ok, f"target_l0: expected a positive number, got {self.target_l0!r}")
        rising = all(type(step) is int and step > 0 for step in self.resample_steps)
        check(rising, f"resample_steps: expected positive integers, got {self.resample_steps!r}")
        positive(self, "resample_tokens")
        for name, choices in (
            ("decay", ("linear", "cosine")),
            ("optimizer", ("adam", "adamw", "muon", "signum")),
            ("loss", ("fvu", "mse", "mse_mean")),
            ("penalty", ("none", "l1", "lp", "tanh", "l0", "target_l0")),
            ("straight_through", ("threshold", "all", "acts", "positive")),
            ("preact", ("none", "all", "dead")),
            ("auxk_scale", ("residual", "loss")),
            ("init_b_dec", ("geometric_median", "mean", "none")),
            ("nonfinite", ("stop", "skip")),
            ("backend", ("auto", "reference", "native", "triton")),
            ("compute_dtype", ("auto", "fp32", "bf16", "fp16")),
            ("param_dtype", ("fp32", "split", "bf16")),
            ("state_dtype", ("fp32", "bf16", "int8")),
        ):
            one_of(self, name, choices)
        fits = self.param_dtype == "fp32" or self.compute_dtype in ("auto", "bf16")
        check(
            fits,
            f"compute_dtype: expected 'bf16' with param_dtype = {self.param_dtype!r}, got {self.compute_dtype!r}",
        )
        is_count = type(self.rescore) is int and self.rescore >= 0
        check(is_count, f"rescore: expected 0 or a positive integer, got {self.rescore!r}")
        for logger in self.loggers:
            check(logger in LOGGERS, f"loggers: expected any of {list(LOGGERS)}, got {logger!r}")

    @property
    def total_steps(self) -> int:
        return math.ceil(self.total_tokens / self.batch_size)

    @property
    def buffer_rows(self) -> int:
        return self.buffer_tokens or max(131_072, 4 * self.batch_size)
