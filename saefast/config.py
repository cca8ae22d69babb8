"""The two configurations. Frozen, validated where they are made; the command line (`cli.py`) is generated from them."""

import math
from dataclasses import dataclass
from typing import Literal

from saefast.errors import check

LOGGERS = ("wandb", "tensorboard", "trackio")


def _positive(config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        is_int = isinstance(value, int) and not isinstance(value, bool)
        check(is_int and value > 0, f"{name}: expected a positive integer, got {value!r}")


@dataclass(frozen=True)
class SAEConfig:
    """What an SAE is: everything needed to rebuild the module around its weights."""

    d_in: int
    """Width of the activations."""
    d_sae: int
    """Number of latents, the size of the dictionary."""
    activation: Literal["topk"] = "topk"
    """Which pre-activations become active: 'topk' keeps the k largest of each token."""
    k: int = 32
    """Active latents per token."""

    def __post_init__(self) -> None:
        _positive(self, "d_in", "d_sae", "k")
        check(self.k <= self.d_sae, f"k: expected at most d_sae = {self.d_sae}, got {self.k}")
        check(self.activation == "topk", f"activation: expected 'topk', got {self.activation!r}")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How an SAE is trained. Sizes are in tokens (activation rows), never in sequences."""

    total_tokens: int
    """Tokens to train on; the source is read again when it is shorter."""
    batch_size: int = 4096
    """Tokens per optimizer step."""
    lr: float | None = None
    """Peak learning rate of Adam. Default: 2e-4 / sqrt(d_sae / 2^14) (Gao et al. 2024, arXiv 2406.04093)."""
    warmup_fraction: float = 0.05
    """Share of the steps over which the learning rate rises linearly from 0."""
    decay_fraction: float = 0.2
    """Share of the steps, at the end, over which it falls linearly to 0."""
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
    dead_feature_threshold: int = 10_000_000
    """A latent is dead when it has not been active for this many tokens."""
    init_b_dec: Literal["geometric_median", "mean", "none"] = "geometric_median"
    """What `fit` sets b_dec to before the first step, from up to 32768 rows of the source, if it is still 0."""
    init_encoder_scale: float = 0.3
    """What `fit` multiplies the encoder of a fresh SAE (W_enc equal to W_dec) by before the first step. A smaller
    encoder turns faster at the same learning rate; measured in benchmarks/LOG.md."""
    normalize_input: bool = True
    """Train as if the input were scaled by one scalar to E||x||^2 = d_in. See `saefast.step.Hyper`."""
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
        _positive(self, "total_tokens", "batch_size", "dead_feature_threshold", "log_every")
        _positive(self, "checkpoint_every")
        for name in ("lr", "grad_clip"):
            value = getattr(self, name)
            ok = value is None or (math.isfinite(value) and value > 0)
            check(ok, f"{name}: expected a positive number or None, got {value!r}")
        for name in ("warmup_fraction", "decay_fraction"):
            value = getattr(self, name)
            check(0 <= value <= 1, f"{name}: expected a number from 0 to 1, got {value!r}")
        in_range = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        check(in_range, f"betas: expected two numbers in [0, 1), got {self.betas!r}")
        scale = self.init_encoder_scale
        check(0 < scale < math.inf, f"init_encoder_scale: expected a positive number, got {scale!r}")
        check(0 < self.eps < math.inf, f"eps: expected a positive number, got {self.eps!r}")
        check(0 <= self.auxk_alpha < math.inf, f"auxk_alpha: expected 0 or more, got {self.auxk_alpha!r}")
        if self.k_aux is not None:
            _positive(self, "k_aux")
        is_seed = type(self.seed) is int and 0 <= self.seed < 2**63
        check(is_seed, f"seed: expected an integer from 0 to 2^63 - 1, got {self.seed!r}")
        if self.buffer_tokens is not None:
            _positive(self, "buffer_tokens")
            enough = self.buffer_tokens >= self.batch_size
            check(
                enough,
                f"buffer_tokens: expected at least batch_size = {self.batch_size}, got {self.buffer_tokens}",
            )
        for name, choices in (
            ("init_b_dec", ("geometric_median", "mean", "none")),
            ("nonfinite", ("stop", "skip")),
            ("backend", ("auto", "reference", "native", "triton")),
            ("compute_dtype", ("auto", "fp32", "bf16", "fp16")),
            ("param_dtype", ("fp32", "split", "bf16")),
            ("state_dtype", ("fp32", "bf16", "int8")),
        ):
            value = getattr(self, name)
            check(value in choices, f"{name}: expected one of {list(choices)}, got {value!r}")
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

    def peak_lr(self, d_sae: int) -> float:
        return self.lr if self.lr is not None else 2e-4 / math.sqrt(d_sae / 2**14)

    def lr_at(self, step: int, d_sae: int) -> float:
        """Learning rate of `step` (counted from 1): linear warm-up, constant, linear decay towards 0."""
        warmup, decay = self.warmup_fraction * self.total_steps, self.decay_fraction * self.total_steps
        rise = step / warmup if warmup else 1.0
        fall = (self.total_steps + 1 - step) / decay if decay else 1.0
        return self.peak_lr(d_sae) * max(0.0, min(1.0, rise, fall))
