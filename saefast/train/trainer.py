"""The trainer: `step(x)` for one batch, `fit(source)` for a whole run."""

import logging
import math
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from saefast.backend import load_backend
from saefast.config.compatible import check_compatible
from saefast.config.train import TrainConfig
from saefast.engine import auxk
from saefast.engine.architectures import DENSE
from saefast.engine.graph import GraphedStep
from saefast.engine.plan import CPU_DENSITY, GPU_DENSITY, Hyper, Plan
from saefast.engine.state import State
from saefast.engine.step import Metrics, train_step
from saefast.errors import InputError, check
from saefast.reference import Grads
from saefast.sae import SAE, geometric_median
from saefast.storage import Matrix, scale_rows_
from saefast.train import schedules
from saefast.train.apply import make_optimizer, step_with
from saefast.train.ema import Ema
from saefast.train.memory import out_of_memory_help
from saefast.train.optimizers import Optimizer

STEPS_BETWEEN_COUNTS = 16  # of dead and active latents, on a GPU; each waits for the device once
MAX_RESCORED = 256  # k + rescore, what the kernel sorts in one tile
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
log = logging.getLogger("saefast")


class Trainer:
    """Trains `sae` in place.

    Args:
        sae: on the device where training is to happen, fp32 (fp64 works with the reference backend). With
            param_dtype "split" or "bf16" its weight matrices become bf16.
        config: see `TrainConfig`.

    Raises:
        InputError: the backend cannot run here; too little memory; an option of another architecture.
    """

    def __init__(self, sae: SAE, config: TrainConfig) -> None:
        check_compatible(sae.config, config)
        self.sae, self.config, self.on_gpu = sae, config, sae.W_enc.device.type == "cuda"
        sae.origin = sae.origin and sae.origin._replace(tensors={})  # they are of the SAE as it was
        self.ops = load_backend(config.backend, sae.W_enc.device.type)
        self.compute_dtype = self._compute_dtype()
        for name, param in sae.params._asdict().items():
            ok, strides = param.is_contiguous(), param.stride()
            check(ok, f"sae: {name}: expected contiguous memory, got strides {strides}")
        largest = MAX_RESCORED - sae.config.top_k
        fits = self.ops.NAME != "triton" or not config.rescore or config.rescore <= largest
        check(fits, f"rescore: expected at most {largest} with k = {sae.config.k}, got {config.rescore}")
        if self.on_gpu and (sae.config.d_in % 8 or sae.config.width_out % 8):
            log.warning(f"d_in = {sae.config.d_in}: works, but rows of a multiple of 8 are read faster")
        formats = config.param_dtype, config.state_dtype, self.compute_dtype
        with out_of_memory_help(sae.config, config):
            self.state = State.fresh(sae.params, *formats, self._extra())
        self.state.dense = sae.config.activation in DENSE
        sae.W_enc.data, sae.W_dec.data = self.state.weights.enc.weight, self.state.weights.dec.weight
        self.input_scale: float | None = None  # set from the first data seen, with output_scale
        self.output_scale = 1.0
        self.ema = None if config.ema_decay is None else Ema(self._trained(), config.ema_decay)
        self._optimizer: Optimizer | None = None  # made when the scales are known
        self._run: Callable[[Tensor, Plan, Tensor], Metrics] = partial(train_step, self.ops, self.state)
        if config.optimizer != "adam":
            self._run = partial(self._run, optimizer=self._apply)
        elif self.on_gpu and self.ops.NAME == "triton" and config.cuda_graph:
            self._run = GraphedStep(self.ops, self.state)
        self._watched: deque[tuple[int, torch.cuda.Event, Tensor]] = deque()

    def _extra(self) -> dict[str, Tensor]:
        """What the state trains besides the four parameters: those of the SAE (in place), and what the recipe needs."""
        extra = self.sae.extra
        if self.config.log_threshold:
            extra["threshold"] = extra["threshold"].log()
        if self.config.penalty == "lp":
            extra["penalty_scale"] = torch.ones_like(self.sae.b_enc[0]).detach()
        return extra

    def _trained(self) -> dict[str, Tensor | Matrix]:
        """Every parameter that is trained, as it is kept."""
        enc, dec, b_enc, b_dec = self.state.weights
        values = enc, b_enc.value, dec, b_dec.value
        found: dict[str, Tensor | Matrix] = dict(
            zip(("W_enc", "b_enc", "W_dec", "b_dec"), values, strict=True)
        )
        return found | {name: v.value for name, v in self.state.extra.items() if v.value.ndim}

    @property
    def optimizer(self) -> Optimizer:
        """Of `TrainConfig.optimizer`, other than the fused Adam."""
        if self._optimizer is None:
            scales = self.scale, self.output_scale
            self._optimizer = make_optimizer(self.config, self._trained(), self._plan(1), *scales)
        return self._optimizer

    def _apply(self, grads: Grads, extra_grads: dict[str, Tensor], factor: Tensor) -> None:
        step_with(
            self.optimizer, self.state, self.config, grads, extra_grads, factor, self.lr(self.state.step + 1)
        )

    def exported(self) -> dict[str, Tensor]:
        """The parameters to save: the average where `ema_decay` or the optimizer keeps one."""
        found = self.state.exported()._asdict() | self.sae.extra
        if self.ema is not None and self.ema.steps:
            found |= self.ema.averaged(self.config.unit_norm)
        elif self._optimizer is not None:
            found |= self._optimizer.averaged()
        else:
            return found
        if self.config.log_threshold:
            found["threshold"] = found["threshold"].exp()
        return {name: tensor for name, tensor in found.items() if name != "penalty_scale"}

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds of this trainer."""
        found = self.state.tensors()
        if self.ema is not None:
            found |= self.ema.tensors()
        return found | (self.optimizer.tensors() if self.config.optimizer != "adam" else {})

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Go on from the rest of `tensors`; those of the state are restored already."""
        if self.ema is not None:
            self.ema.load(tensors)
        if self.config.optimizer != "adam":
            self.optimizer.load(tensors)

    def _compute_dtype(self) -> torch.dtype:
        """Of the products: what the config says; by default bf16 for the kernels of a GPU, else that of the SAE."""
        config, own = self.config, self.sae.b_dec.dtype
        if config.compute_dtype != "auto":
            return DTYPES[config.compute_dtype]
        if config.param_dtype != "fp32" or (self.ops.NAME == "triton" and self.on_gpu):
            return torch.bfloat16
        return own

    @property
    def precision(self) -> str:
        """The formats in one line, printed at the start."""
        kept = f"parameters {self.config.param_dtype}, moments {self.config.state_dtype}"
        return f"products in {str(self.compute_dtype).removeprefix('torch.')}, {kept}"

    def step(self, x: Tensor, target: Tensor | None = None) -> Metrics:
        """One optimizer step on x [B, d_in], any B > 0. Metrics are those of x before the update.

        Unlike `fit` it leaves b_dec where it is; the first x sets the scale of `normalize_input`.

        Args:
            target: [B, d_out], for a transcoder only.

        Raises:
            InputError: wrong shape, dtype or device, an empty batch, NaN or Inf in x or target. On a GPU the step does
                not wait to see: such a batch changes no weight, and a later call raises.
        """
        rows = self.sae.rows(x, target)
        check(len(x) > 0, f"x: expected at least one row, got {list(x.shape)}")
        finite = self.on_gpu or bool(rows.isfinite().all())
        check(finite, "x: expected finite values, got NaN or Inf")
        if self.input_scale is None:
            self.set_scales(rows)
        return self.step_on(rows)

    def fit(
        self, source: Iterable[Tensor] | Tensor, out: str | Path | None = None, resume: bool = False
    ) -> bool:
        """Train for `config.total_tokens` on a source: any iterable of tensors [n, d_in] (see `saefast.activations.sources`); for a
        transcoder [n, d_in + d_out], the target behind the input.

        Args:
            out: run folder for checkpoints, metrics, the trained SAE and its curves (see `saefast.train.checkpoint`).
                None writes nothing.
            resume: go on from the checkpoint in `out` if there is one; the result is the same bits as a run that
                was never interrupted (same machine, same number of threads).

        Returns:
            True if complete; False if SIGTERM or Ctrl-C stopped it, after saving, or the source ended.

        Raises:
            InputError: the source or the folder do not fit; NaN or Inf in the data; the loss diverged.
            OSError: `out` cannot be written. The last checkpoint is intact in every case.
        """
        from saefast.train.run import fit  # which needs the Trainer

        return fit([self], source, [out], resume)

    def step_on(self, rows: Tensor) -> Metrics:
        """`step` on rows [B, row_width] that were checked, with scales that are set; launched on their device."""
        config, state, step = self.config, self.state, self.state.step + 1
        self._raise_for_earlier_steps()
        plan, hyper = self._plan(len(rows)), self._hyper(step)
        dtype = torch.float32 if self.ops.NAME == "triton" else torch.float64
        numbers = torch.tensor(hyper.numbers(step, len(rows), plan, self.sae.config.width_out), dtype=dtype)
        if self.on_gpu:
            numbers = numbers.pin_memory().to(rows.device, non_blocking=True)
        if self.ema is not None:  # as OpenAI's code, before the optimizer's step
            self.ema.update(self._trained())
        with torch.no_grad(), torch.cuda.device_of(rows), out_of_memory_help(self.sae.config, config):
            metrics = self._run(rows.contiguous(), plan, numbers)
        state.step, state.fired_tokens = step, state.fired_tokens + len(rows)
        if config.log_threshold:
            self.sae.extra["threshold"].copy_(state.extra["threshold"].value.exp())
        if self.sae.config.activation in DENSE and step % self._interval == 0:
            between, room = GPU_DENSITY if self.on_gpu else CPU_DENSITY, plan.code_capacity
            state.dense = plan.follow_density(float(metrics.l0), self.sae.config.d_sae, between).dense
            if not plan.dense and room is not None and (found := int(metrics.code_size)) > room:
                log.warning(f"step {step}: {found} active entries, room for {room}: the others were left out")
        if self.on_gpu:
            loss, event = metrics.loss.to("cpu", non_blocking=True), torch.cuda.Event()
            event.record()
            self._watched.append((step, event, loss))
        return metrics

    @property
    def _interval(self) -> int:
        return STEPS_BETWEEN_COUNTS if self.on_gpu else 1

    def _hyper(self, step: int) -> Hyper:
        return schedules.hyper_at(self.config, self.sae.config, step, self.scale, self.output_scale)

    def lr(self, step: int) -> float:
        """Learning rate of `step`, counted from 1."""
        return schedules.lr_at(self.config, step, self.sae.config.d_sae)

    def _plan(self, batch_size: int) -> Plan:
        sae, config, state = self.sae.config, self.config, self.state
        if config.auxk_alpha and state.step % self._interval == 0:
            state.dead_capacity = auxk.capacity(
                state.num_tokens_since_fired, config.dead_feature_threshold,
                (self._interval - 1 + config.count_before_auxk) * batch_size, exact=not self.on_gpu,
            )  # fmt: skip
        return schedules.plan_at(config, sae, state, self.compute_dtype, batch_size, self.on_gpu)

    def _raise_for_earlier_steps(self) -> None:
        """What the device has finished by now is looked at, without waiting for the rest."""
        while self._watched and self._watched[0][1].query():
            step, _, loss = self._watched.popleft()
            check(
                math.isfinite(loss), f"x: NaN or Inf in the batch of step {step}, or lr too high: loss {loss}"
            )

    def check_loss(self, metrics: Metrics) -> None:
        """Raise before a diverged state is logged or saved."""
        if not math.isfinite(metrics.loss):  # waits for the device
            peak = schedules.peak_lr(self.config, self.sae.config.d_sae)
            raise InputError(
                f"lr: the loss is {float(metrics.loss)} at step {self.state.step}: training diverged; "
                f"expected a learning rate below {peak:.3g}; checkpoints hold the state before"
            )

    def initialize(self, sample: Tensor, median: Callable[[Tensor], Tensor] = geometric_median) -> None:
        """Set the scales; of a fresh SAE also b_dec, to the centre of the data, and the size of W_enc.

        sample: rows [n, row_width]. median: their geometric median, for one that is known already.
        """
        self.set_scales(sample)
        sae, init = self.sae, self.config.init_b_dec
        if init != "none" and not sae.b_dec.any():
            goal = sample[:, -sae.config.width_out :]
            sae.b_dec.data.copy_(median(goal) if init == "geometric_median" else goal.mean(dim=0))
        enc, dec = self.state.weights.enc, self.state.weights.dec
        if torch.equal(enc.weight, dec.weight):
            scale_rows_(enc, self.config.init_encoder_scale * self.config.init_decoder_norm)
            scale_rows_(dec, self.config.init_decoder_norm)
        self.state.refresh()

    def set_scales(self, sample: Tensor) -> None:
        """From rows [n, row_width]; thresholds of a fresh SAE are given in these units."""

        def scale(part: Tensor) -> float:
            mean_square = float(part.double().square().sum(dim=1).mean())
            return (
                math.sqrt(part.shape[1] / mean_square)
                if self.config.normalize_input and mean_square > 0
                else 1.0
            )

        self.input_scale = scale(sample[:, : self.sae.config.d_in])
        self.output_scale = scale(sample[:, -self.sae.config.width_out :])
        if self.state.step == 0 and self.sae.config.activation == "jumprelu":
            threshold = self.state.extra["threshold"].value
            if self.config.log_threshold:
                threshold.sub_(math.log(self.input_scale))
            else:
                threshold.div_(self.input_scale)

    @property
    def scale(self) -> float:
        assert self.input_scale is not None
        return self.input_scale
