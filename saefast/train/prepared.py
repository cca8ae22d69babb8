"""An SAE with the state of its training and the units in which it is trained: what a run has before its first step, what
it exports, and what a checkpoint holds of it."""

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from saefast.backend import load_backend
from saefast.config.compatible import check_compatible
from saefast.config.train import TrainConfig
from saefast.engine.architectures import architecture_of
from saefast.engine.architectures.batch_topk import SETTLED
from saefast.engine.state import State
from saefast.errors import check
from saefast.reference import Params
from saefast.sae import SAE, geometric_median
from saefast.storage import Matrix, narrowed, scale_rows_
from saefast.train.begin import Frame, factors, layer_scales, scale_of, unit_rows_
from saefast.train.checks import check_range, check_trainable
from saefast.train.ema import Ema
from saefast.train.memory import out_of_memory_help
from saefast.train.optimizers import Optimizer, make_optimizer

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
OF_THE_FRAME = frozenset({"b_enc", "b_dec", "b_mag"})  # parameters that a shift of the rows changes
log = logging.getLogger("saefast")


class Prepared:
    """The part of `saefast.train.stepper.Stepper` that makes no step."""

    def __init__(self, sae: SAE, config: TrainConfig) -> None:
        check_compatible(sae.config, config)
        check_trainable(sae)
        self.frozen = frozenset(
            name for name, param in sae.named_parameters() if param.ndim and not param.requires_grad
        )
        if "W_dec" in self.frozen:  # its rows stay what they are
            config = replace(config, unit_norm=False, init_decoder_norm=1.0)
        held = sorted(self.frozen) if config.resample_steps else []
        check(
            not held,
            f"resample_steps: expected (), {', '.join(held)} may not change (requires_grad is False)",
        )
        self.fresh = sae.fresh
        self.sae, self.config, self.on_gpu = sae, config, sae.W_enc.device.type == "cuda"
        sae.origin = sae.origin and sae.origin._replace(tensors={})  # they are of the SAE as it was
        self.ops, self.arch = load_backend(config.backend, sae.W_enc.device.type), architecture_of(sae.config)
        self.compute_dtype = self._compute_dtype()
        if config.rescore and self.ops.MAX_SELECTED is not None:
            largest = self.ops.MAX_SELECTED - sae.config.top_k
            fits, k = config.rescore <= largest, sae.config.k
            check(fits, f"rescore: expected at most {largest} with k = {k}, got {config.rescore}")
        if self.on_gpu and (sae.config.d_in % 8 or sae.config.width_out % 8):
            log.warning(f"d_in = {sae.config.d_in}: works, but rows of a multiple of 8 are read faster")
        formats = config.param_dtype, config.state_dtype, self.compute_dtype
        made = self.arch.extra_parameters(sae.config, sae.b_enc.device)
        self._fresh_extra = self.fresh and all(
            torch.equal(sae.extra[name], value.to(sae.extra[name])) and name not in self.frozen
            for name, value in made.items()
        )
        with out_of_memory_help(sae.config, config):
            extra = self.arch.trained(sae.extra, config, sae.b_enc.data)
            low = []  # each fp32 matrix goes before the next one comes, and before the moments
            for W in (sae.W_enc, sae.W_dec):
                W.data, below = narrowed(W.data, config.param_dtype)
                low.append(below)
            self.state = State.fresh(sae.params, *formats, extra, low)
        self.state.dense = self.arch.unbounded
        self.input_scale: float | None = None  # set from the first data seen, with output_scale
        self.output_scale = 1.0
        self.frame = Frame(factors(sae.config, sae.b_dec))
        self.measured: dict[str, Tensor] = {}  # see `calibrate`
        self.notes: dict[str, Any] = {}  # for run.json: from what the run began, how its rate was found
        self.ema = None if config.ema_decay is None else Ema(self._trained(), config.ema_decay)
        self._optimizer: Optimizer | None = None  # made when the scales are known

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
            self._optimizer = make_optimizer(self.config, self._trained(), self.arch, *scales, self.frozen)
        return self._optimizer

    def exported(self) -> dict[str, Tensor]:
        """The parameters to save: the average where `ema_decay` or the optimizer keeps one."""
        found = self.arch.restored(self._whole() | self._averaged(), self.config)
        return self.frame.parameters(found) | self.measured

    @property
    def exports_average(self) -> bool:
        return self.config.optimizer == "signum" or (self.ema is not None and self.ema.steps > 0)

    def _averaged(self) -> dict[str, Tensor]:
        if self.ema is not None and self.ema.steps:
            return self.ema.averaged(self.config.unit_norm)
        return {} if self._optimizer is None else self._optimizer.averaged()

    @torch.no_grad()
    def calibrate(self, rows: Tensor) -> None:
        """Measure on rows [n, row_width] of the data what the exported SAE has that is not trained: the threshold of
        BatchTopK. While training it follows the batches, which is right after 1 / threshold_rate of them, for weights that
        are not an average."""
        sae, weights, size = self.sae.config, self.state.weights, self.config.batch_size
        settled = self.fresh or self.state.step >= SETTLED
        followed = self.state.step * self.config.threshold_rate >= 1 and not self.exports_average
        self.measured = {}
        if not self.arch.measures or followed or not settled or 0 in (self.config.lr, self.config.lr_extra):
            return
        params = Params(weights.enc.shadow, weights.b_enc.value, weights.dec.shadow, weights.b_dec.value)
        if self.exports_average:
            found = self._averaged()
            W_enc, W_dec = (found[name].to(self.compute_dtype) for name in ("W_enc", "W_dec"))
            params = Params(W_enc, found["b_enc"], W_dec, found["b_dec"])
        rows = self.frame.rows(rows)[:, : sae.d_in]
        batches = rows[: max(size, len(rows) // size * size)].contiguous().split(size)
        self.measured = self.arch.measured(self.ops, params, sae, batches)

    def _whole(self) -> dict[str, Tensor]:
        """Every parameter as the engine trains it."""
        return self.state.exported()._asdict() | {name: v.value for name, v in self.state.extra.items()}

    def sync(self) -> None:
        """Bring those parameters of the SAE up to date that are not the ones that the engine trains, but made of them."""
        if self.frame.shift is not None:
            found = self.frame.parameters(self.arch.restored(self._whole(), self.config))
            for name in OF_THE_FRAME & found.keys():
                getattr(self.sae, name).data.copy_(found[name])

    def _restore(self) -> None:
        """Bring the parameters of the SAE that are trained in another form up to date."""
        extra = self.state.extra
        for name, value in self.arch.restored({n: v.value for n, v in extra.items()}, self.config).items():
            if value is not extra[name].value:
                self.sae.extra[name].copy_(value)

    def settle(self) -> None:
        """At the end of a run: the SAE has what was measured for it, unless another is exported."""
        if not self.exports_average:
            for name, value in self.measured.items():
                self.sae.extra[name].copy_(value)

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds of this trainer."""
        found = self.state.tensors()
        found |= {} if self.frame.shift is None else {"frame.shift": self.frame.shift}
        if self.sae.config.scales is not None:
            found["frame.scales"] = torch.tensor(self.sae.config.scales, dtype=torch.float64, device="cpu")
        found |= {f"measured.{name}": value for name, value in self.measured.items()}
        if self.ema is not None:
            found |= self.ema.tensors()
        return found | (self.optimizer.tensors() if self.config.optimizer != "adam" else {})

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Go on from the rest of `tensors`; those of the state are restored already."""
        if "frame.scales" in tensors:
            self._set_layer_scales(tuple(tensors["frame.scales"].tolist()))
        if "frame.shift" in tensors:
            self._set_shift(tensors["frame.shift"])
        names = [name for name in tensors if name.startswith("measured.")]
        self.measured = {name.removeprefix("measured."): tensors[name].to(self.sae.b_dec) for name in names}
        if self.ema is not None:
            self.ema.load(tensors)
        if self.config.optimizer != "adam":
            self.optimizer.load(tensors)
        self._restore()
        self.sync()

    def _compute_dtype(self) -> torch.dtype:
        """Of the products: what the config says; by default bf16 for the kernels of a GPU, else that of the SAE."""
        config, own = self.config, self.sae.b_dec.dtype
        if config.compute_dtype != "auto":
            return DTYPES[config.compute_dtype]
        if config.param_dtype != "fp32":
            return torch.bfloat16
        return self.ops.GPU_DTYPE if self.on_gpu and self.ops.GPU_DTYPE else own

    @property
    def precision(self) -> str:
        """The formats in one line, printed at the start."""
        kept = f"parameters {self.config.param_dtype}, moments {self.config.state_dtype}"
        return f"products in {str(self.compute_dtype).removeprefix('torch.')}, {kept}"

    def initialize(self, sample: Tensor, median: Callable[[Tensor], Tensor] = geometric_median) -> None:
        """Set the scales; fit a fresh SAE to the data: b_dec to their centre, and the size of W_enc.

        sample: rows [n, row_width]. median: their geometric median, for one that is known already.
        """
        check_range(sample)
        self.set_scales(sample)
        if not self.fresh:
            return
        sae, config, weights = self.sae, self.config, self.state.weights
        rows, width, d_in = self.frame.rows(sample), sae.config.width_out, sae.config.d_in
        centre = median if config.init_b_dec == "geometric_median" else partial(torch.mean, dim=0)
        if config.init_b_dec != "none" and not sae.b_dec.any():
            if not (sae.config.pre_bias or sae.b_enc.any() or OF_THE_FRAME & self.frozen):
                parts = (rows[:, :d_in], rows[:, d_in:]) if sae.config.d_out else (rows,)
                self._set_shift(torch.cat([centre(part) for part in parts]))
            elif "b_dec" not in self.frozen:
                weights.b_dec.value.copy_(centre(rows[:, -width:]))
        tied, norm = torch.equal(weights.enc.weight, weights.dec.weight), config.init_decoder_norm
        if "W_enc" not in self.frozen:
            scale_rows_(weights.enc, (config.init_encoder_scale if tied else 1.0) * norm)
        if "W_dec" not in self.frozen:
            scale_rows_(weights.dec, norm)
        self.state.refresh()
        self.sync()

    def set_scales(self, sample: Tensor) -> None:
        """From rows [n, row_width]; thresholds of a fresh SAE are given in these units. An SAE that was made before keeps
        its own, see `saefast.train.begin`."""
        sae, config, state = self.sae, self.config, self.state
        if self.fresh and config.normalize_input and sae.config.layers > 1 and sae.config.scales is None:
            self._set_layer_scales(layer_scales(sample, sae.config, config))
        rows = self.frame.rows(sample)
        self.input_scale = scale_of(rows[:, : sae.config.d_in], config)
        self.output_scale = scale_of(rows[:, -sae.config.width_out :], config)
        if state.step == 0:
            if self._fresh_extra:
                self.arch.begin_(state.extra, sae.config, config, self.input_scale)
            unit_rows_(state, sae.config, config, self.arch, self.frozen)
            state.refresh()

    def _set_layer_scales(self, scales: tuple[float, ...]) -> None:
        self.sae.config = replace(self.sae.config, input_norm="scale", scales=scales)
        self.frame = self.frame._replace(factor=factors(self.sae.config, self.sae.b_dec))

    def _set_shift(self, shift: Tensor) -> None:
        """From now on the SAE has its own biases, made of those that are trained."""
        self.frame = self.frame._replace(shift=shift.to(self.sae.b_dec))
        for name, param in self.sae.named_parameters():
            if name in OF_THE_FRAME:
                param.data = param.data.clone()

    @property
    def scale(self) -> float:
        assert self.input_scale is not None
        return self.input_scale
