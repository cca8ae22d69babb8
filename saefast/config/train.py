"""How an SAE is trained. The config is frozen and checked when it is made; the command line is generated from it."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from saefast.config.sae import SAEConfig
from saefast.errors import check, check_choices, positive

__all__ = ["LOGGERS", "SAEConfig", "TrainConfig"]
Logger = Literal["wandb", "tensorboard", "trackio"]
LOGGERS = get_args(Logger)
Scaling = Literal["rms", "mean_norm", "unit"]
SIZES = "total_tokens batch_size dead_feature_threshold log_every checkpoint_every resample_tokens"
OPTIONAL_SIZES = "k_aux micro_batch_size buffer_tokens k_start"
FRACTIONS = "warmup_fraction decay_fraction sparsity_warmup_fraction k_anneal_fraction p_anneal_from"
WEIGHTS = "auxk_alpha sparsity_coefficient preact_coefficient weight_decay multi_topk_weight"
MULTIPLIERS = "lr_W_enc lr_b_enc lr_W_dec lr_b_dec lr_extra"
# Fields, what is expected of their value, and whether a value is so.
NUMBERS: tuple[tuple[str, str, Callable[[Any], bool]], ...] = (
    ("lr", "0 or a positive number, or None", lambda value: value is None or 0 <= value < math.inf),
    ("grad_clip bandwidth", "a positive number or None", lambda value: value is None or 0 < value < math.inf),
    ("eps init_encoder_scale tanh_scale", "a positive number", lambda value: 0 < value < math.inf),
    (MULTIPLIERS, "a multiplier of 0 or more", lambda value: 0 <= value < math.inf),
    (WEIGHTS, "0 or more", lambda value: 0 <= value < math.inf),
    (FRACTIONS, "a number from 0 to 1", lambda value: 0 <= value <= 1),
    ("p_end", "a number above 0, at most 1", lambda value: 0 < value <= 1),
    ("threshold_rate", "0 to 1", lambda value: 0 < value <= 1),
    ("ema_decay", "a number in [0, 1) or None", lambda value: value is None or 0 <= value < 1),
    (
        "betas",
        "two numbers in [0, 1)",
        lambda value: len(value) == 2 and all(0 <= beta < 1 for beta in value),
    ),
    ("seed", "an integer from 0 to 2^63 - 1", lambda value: type(value) is int and 0 <= value < 2**63),
    ("rescore", "0 or a positive integer", lambda value: type(value) is int and value >= 0),
    ("multi_topk", "0 or an integer from 2", lambda value: type(value) is int and value >= 0 and value != 1),
    ("resample_steps", "positive integers", lambda value: all(type(n) is int and n > 0 for n in value)),
)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How an SAE is trained. Sizes are in tokens (activation rows), never in sequences."""

    total_tokens: int
    """Tokens to train on; the source is read again when it is shorter."""
    batch_size: int = 4096
    """Tokens per optimizer step."""
    micro_batch_size: int | None = None
    """How many tokens at a time go through what is as wide as the dictionary (AuxK's pre-activations, a code kept as a
    matrix). The gradients are added up, so that the step is still that of the whole batch. Default: all."""
    lr: float | None = None
    """Peak learning rate. Default: 2e-4 / sqrt(d_sae / 2^14) (Gao et al. 2024, arXiv 2406.04093); of 'signum'
    5e-3 / sqrt(d_sae / 2^14), of 'muon' 2e-3 (sparsify)."""
    warmup_fraction: float = 0.05
    """Share of the steps over which the learning rate rises linearly from 0."""
    decay_fraction: float = 0.2
    """Share of the steps, at the end, over which the learning rate falls to 0."""
    decay: Literal["linear", "cosine"] = "linear"
    """How the learning rate falls."""
    lr_W_enc: float = 1.0
    """Multiplies lr for W_enc."""
    lr_b_enc: float = 1.0
    """Multiplies lr for b_enc."""
    lr_W_dec: float = 1.0
    """Multiplies lr for W_dec."""
    lr_b_dec: float = 1.0
    """Multiplies lr for b_dec."""
    lr_extra: float = 1.0
    """Multiplies lr for thresholds, gains and W_skip."""
    optimizer: Literal["adam", "adamw", "muon", "signum"] = "adam"
    """'adam' is fused with the backward pass. The others (see `saefast.train.optimizers`) need memory for the gradients."""
    weight_decay: float = 0.0
    """Weight decay of 'adamw' and 'muon'."""
    ema_decay: float | None = None
    """Keep an exponential moving average of the weights with this decay, and save it as the SAE (OpenAI: 0.999)."""
    loss: Literal["fvu", "mse", "mse_mean"] = "fvu"
    """The reconstruction loss: 'fvu' divides by the variance of the batch, 'mse' is the squared error summed over d_in
    and averaged over tokens, 'mse_mean' is averaged over both. The last two are computed for the scaled input."""
    unit_norm: bool = True
    """Keep the rows of W_dec at unit norm, and remove from their gradients the part along the row. False: neither."""
    penalty: Literal["none", "l1", "lp", "tanh", "l0", "target_l0"] = "none"
    """What is added to the loss for sparsity, see `saefast.engine.architectures`. The last two are for JumpReLU."""
    sparsity_coefficient: float = 0.0
    """Weight of the penalty, which is a sum over latents, averaged over tokens."""
    sparsity_warmup_fraction: float = 0.05
    """Share of the steps over which the weight of the penalty rises linearly from 0."""
    norm_weighted: bool = False
    """For 'l1', 'lp' and 'tanh': multiply each activation by the norm of its decoder row (Anthropic, April 2024)."""
    tanh_scale: float = 4.0
    """For 'tanh': the c of tanh(c * act)."""
    target_l0: float | None = None
    """For 'target_l0': the L0 that the penalty pulls JumpReLU to."""
    p_end: float = 1.0
    """For 'lp': p falls linearly from 1 to this value (p-annealing, arXiv 2408.00113). The weight is adapted so that the
    penalty of the same activations stays the same."""
    p_anneal_from: float = 0.0
    """Share of the steps after which p begins to fall."""
    bandwidth: float | None = None
    """JumpReLU: width of the window around the threshold in which it gets a gradient. Default: 0.001 of the norm that
    rows are scaled to (Gemma Scope's 0.001 is for rows of norm 1)."""
    straight_through: Literal["threshold", "all", "acts", "positive"] = "threshold"
    """JumpReLU: what gets a gradient through the step function, see `saefast.engine.architectures.jumprelu`."""
    log_threshold: bool = False
    """JumpReLU: train the logarithm of the threshold."""
    preact: Literal["none", "all", "dead"] = "none"
    """JumpReLU: which latents have a pre-activation loss."""
    preact_coefficient: float = 0.0
    """Weight of the pre-activation loss."""
    k_start: int | None = None
    """Begin with this k, which then falls linearly to k, with at most 32 different values."""
    k_anneal_fraction: float = 0.1
    """Share of the steps over which it falls."""
    multi_topk: int = 0
    """TopK: also reconstruct from multi_topk * k latents (the paper's 4), which keeps the SAE usable at other k."""
    multi_topk_weight: float = 1 / 8
    """Weight of the reconstruction from multi_topk * k latents."""
    group_weights: tuple[float, ...] = ()
    """Matryoshka: weight of each nested reconstruction. Default: 1 for each."""
    threshold_rate: float = 0.001
    """BatchTopK: how fast the threshold for inference follows the smallest activation that is kept."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Adam's decay rates of the first and second moment."""
    eps: float = 6.25e-10
    """Adam's epsilon. It is small because the loss is an average (OpenAI's value)."""
    grad_clip: float | None = None
    """Largest global norm of the gradient, which is computed exactly. None does not clip."""
    auxk_alpha: float = 1 / 32
    """Weight of the AuxK loss that revives dead latents; 0 turns it off."""
    k_aux: int | None = None
    """Dead latents that AuxK uses per token. Default: d_in / 2."""
    auxk_scale: Literal["residual", "loss"] = "residual"
    """What AuxK's squared error is divided by: the variance of the residual (OpenAI), or what the main loss is divided
    by (sparsify with 'fvu', SAELens with 'mse')."""
    auxk_ramp: bool = False
    """Multiply AuxK by min(1, dead latents / k_aux) (sparsify, SAELens)."""
    auxk_relu: bool = True
    """Whether AuxK's activations go through ReLU (as in the paper). False, as in SAELens, takes the k_aux largest of any
    sign; with `scale_by_norm` they are chosen by pre_acts * ||W_dec row||, as the code is."""
    auxk_detached: bool = True
    """Whether the residual is a constant in AuxK's loss (as in the paper). False, as in llamascopium: the reconstruction
    learns from AuxK's loss too; for 'topk' and 'batch_topk', with auxk_scale 'loss' and without auxk_ramp."""
    count_before_auxk: bool = False
    """Count the active latents of a batch before AuxK asks which latents are dead, so that no latent that is active in
    the batch takes part (dictionary_learning). False: AuxK asks first."""
    dead_feature_threshold: int = 10_000_000
    """A latent is dead when it has not been active for this many tokens."""
    resample_steps: tuple[int, ...] = ()
    """Steps after which dead latents are resampled ("Towards Monosemanticity", see `saefast.train.resample`)."""
    resample_tokens: int = 819_200
    """Number of inputs whose losses resampling looks at."""
    init_b_dec: Literal["geometric_median", "mean", "none"] = "geometric_median"
    """What `fit` sets b_dec to before the first step, from up to 32768 rows of the source, if b_dec is still 0."""
    init_encoder_scale: float = 0.3
    """Before the first step, `fit` multiplies the encoder of a fresh SAE (W_enc equal to W_dec) by this. A smaller
    encoder changes its direction faster at the same learning rate; measured in benchmarks/LOG.md."""
    init_decoder_norm: float = 1.0
    """With unit_norm False: the norm of the decoder rows (and encoder rows) of a fresh SAE before the first step."""
    normalize_input: bool | Scaling = True
    """Train as if the input were scaled by one scalar, see "Units" in docs/architectures.md. True: to
    E||x - E x||^2 = d_in, which does not see a constant in the rows. As papers have it: 'rms' to E||x||^2 = d_in,
    'mean_norm' to E||x|| = sqrt(d_in), 'unit' to E||x||^2 = 1. False: not at all."""
    buffer_tokens: int | None = None
    """Rows that the shuffle buffer holds. Default: 131072, or four batches if that is more."""
    nonfinite: Literal["stop", "skip"] = "stop"
    """What to do at rows with NaN or Inf: stop with an error, or skip and count them."""
    seed: int = 0
    """Seed of the shuffling (and of the initial weights, on the command line)."""
    backend: Literal["auto", "reference", "native", "triton"] = "auto"
    """Which implementation of the ops runs the step."""
    compute_dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Format of the operands of matrix products; sums are always fp32. 'auto': bf16 on a GPU, fp32 on a CPU. fp32
    products on a GPU follow `torch.set_float32_matmul_precision`."""
    param_dtype: Literal["fp32", "split", "split24", "bf16"] = "fp32"
    """How the weight matrices are kept: 'fp32' (and a bf16 copy), 'split' (the same bits in 4 bytes: bf16 and the 16 bits
    below), 'split24' (3 bytes: bf16 and the next 8 bits, rounded stochastically), 'bf16' (2 bytes, rounded stochastically).
    See `saefast.storage`. But for 'fp32', the matrices of the SAE itself are bf16 while it is trained; what is saved has
    all the bits that are kept."""
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
    loggers: tuple[Logger, ...] = ()
    """Where metrics go besides metrics.jsonl; each needs the extra of the same name."""

    def __post_init__(self) -> None:
        check_choices(self)
        given = [name for name in OPTIONAL_SIZES.split() if getattr(self, name) is not None]
        positive(self, *SIZES.split(), *given)
        for names, expected, holds in NUMBERS:
            for name in names.split():
                value = getattr(self, name)
                check(holds(value), f"{name}: expected {expected}, got {value!r}")
        how = self.normalize_input
        ok = how in (True, False, *get_args(Scaling))
        check(ok, f"normalize_input: expected True, False or one of {list(get_args(Scaling))}, got {how!r}")
        for logger in self.loggers:
            check(logger in LOGGERS, f"loggers: expected any of {list(LOGGERS)}, got {logger!r}")
        self._check_together()

    def _check_together(self) -> None:
        """Refuse values that do not fit each other."""
        norm, least, target = self.init_decoder_norm, self.batch_size, self.target_l0
        ok = 0 < norm < math.inf and (norm == 1 or not self.unit_norm)
        check(ok, f"init_decoder_norm: expected 1, or with unit_norm = False a positive number, got {norm!r}")
        ok = self.buffer_tokens is None or self.buffer_tokens >= least
        check(ok, f"buffer_tokens: expected at least batch_size = {least}, got {self.buffer_tokens}")
        ok = self.p_end == 1 or self.penalty == "lp"
        check(ok, f"p_end: expected 1 with penalty {self.penalty!r}, got {self.p_end}")
        ok = (self.penalty == "target_l0") == (target is not None)
        given = f"{target} and {self.penalty!r}"
        check(ok, f"target_l0: expected with penalty 'target_l0' only, got {given}")
        ok = target is None or 0 < target < math.inf
        check(ok, f"target_l0: expected a positive number, got {target!r}")
        ok = self.param_dtype == "fp32" or self.compute_dtype in ("auto", "bf16")
        wanted = f"'bf16' with param_dtype = {self.param_dtype!r}"
        check(ok, f"compute_dtype: expected {wanted}, got {self.compute_dtype!r}")

    def norm_of_rows(self, d_in: int) -> float:
        """The norm that `normalize_input` gives to rows, by its definition of a mean; 1 where it leaves them as they are."""
        return math.sqrt(d_in) if self.normalize_input not in (False, "unit") else 1.0

    def bandwidth_of(self, d_in: int) -> float:
        """In the units of the scaled input."""
        return self.bandwidth or 0.001 * self.norm_of_rows(d_in)

    @property
    def total_steps(self) -> int:
        return math.ceil(self.total_tokens / self.batch_size)

    @property
    def buffer_rows(self) -> int:
        return self.buffer_tokens or max(131_072, 4 * self.batch_size)
