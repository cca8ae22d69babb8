"""The trainer: `step(x)` for one batch, `fit(source)` for a whole run."""

import logging
import math
import time
from collections import deque
from collections.abc import Iterable
from contextlib import closing
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from saefast import auxk, checkpoint, loggers, plots
from saefast.backend import load_backend
from saefast.buffer import ShuffleBuffer
from saefast.config import TrainConfig
from saefast.errors import InputError, check
from saefast.graph import GraphedStep
from saefast.memory import free_for_steps, out_of_memory_help
from saefast.sae import SAE, geometric_median
from saefast.signals import stop_signals
from saefast.sources import as_source
from saefast.state import State
from saefast.step import Hyper, Metrics, Plan, train_step
from saefast.storage import scale_rows_
from saefast.stream import open_buffer

INIT_ROWS = 32_768  # sample for b_dec and the input scale; what OpenAI uses for the geometric median
DENSITY_TOKENS = 100_000  # that share is counted over at least as many
STEPS_BETWEEN_DEAD_COUNTS = 16  # on a GPU; each waits for the device once
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
        InputError: the backend asked for cannot run here; the device has too little memory.
    """

    def __init__(self, sae: SAE, config: TrainConfig) -> None:
        self.sae, self.config = sae, config
        self.on_gpu = sae.W_enc.device.type == "cuda"
        self.ops = load_backend(config.backend, sae.W_enc.device.type)
        self.compute_dtype = self._compute_dtype()
        for name, param in sae.params._asdict().items():
            strides = param.stride()
            check(param.is_contiguous(), f"sae: {name}: expected contiguous memory, got strides {strides}")
        largest = MAX_RESCORED - sae.config.k
        fits = self.ops.NAME != "triton" or not config.rescore or config.rescore <= largest
        check(fits, f"rescore: expected at most {largest} with k = {sae.config.k}, got {config.rescore}")
        if self.on_gpu and sae.config.d_in % 8:
            log.warning(
                f"d_in = {sae.config.d_in}: works, but only rows of a multiple of 8 are read at full speed"
            )
        with out_of_memory_help(sae.config, config):
            self.state = State.fresh(sae.params, config.param_dtype, config.state_dtype, self.compute_dtype)
        sae.W_enc.data, sae.W_dec.data = self.state.weights.enc.weight, self.state.weights.dec.weight
        self.input_scale: float | None = None  # set from the first data seen
        self._logged_step = 0
        graphs = self.on_gpu and self.ops.NAME == "triton" and config.cuda_graph
        self._run = GraphedStep(self.ops, self.state) if graphs else partial(train_step, self.ops, self.state)
        self._watched: deque[tuple[int, torch.cuda.Event, Tensor]] = deque()

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
        products, config = str(self.compute_dtype).removeprefix("torch."), self.config
        return f"products in {products}, parameters {config.param_dtype}, moments {config.state_dtype}"

    def step(self, x: Tensor) -> Metrics:
        """One optimizer step on x [B, d_in], any B > 0. Metrics are those of x before the update.

        Unlike `fit` it leaves b_dec where it is; the first x sets the scale of `normalize_input`.

        Raises:
            InputError: wrong shape, dtype or device, an empty batch, NaN or Inf in x. On a GPU the step does not
                wait to see: a batch with NaN or Inf changes no weight, and a later call raises.
        """
        self.sae.check_input(x)
        check(len(x) > 0, f"x: expected at least one row, got {list(x.shape)}")
        if not self.on_gpu:
            check(bool(x.isfinite().all()), "x: expected finite values, got NaN or Inf")
        if self.input_scale is None:
            self._set_input_scale(x)
        return self._step(x)

    def fit(
        self, source: Iterable[Tensor] | Tensor, out: str | Path | None = None, resume: bool = False
    ) -> bool:
        """Train for `config.total_tokens` on a source: any iterable of tensors [n, d_in] (see `saefast.sources`).

        Args:
            out: run folder for checkpoints, metrics, the trained SAE and its curves (see `saefast.checkpoint`).
                None writes nothing.
            resume: go on from the checkpoint in `out` if there is one; the result is the same bits as a run that
                was never interrupted (same machine, same number of threads).

        Returns:
            True if the run is complete; False if SIGTERM or Ctrl-C stopped it, after saving, or the source ended.

        Raises:
            InputError: the source or the folder do not fit; NaN or Inf in the data; the loss diverged.
            OSError: `out` cannot be written. The last checkpoint is intact in every case.
        """
        config, state = self.config, self.state
        check(out is not None or not resume, "resume: expected a run folder in `out`, got None")
        rows = as_source(source, self.sae.config.d_in)
        sizes = config.batch_size, config.buffer_rows, config.seed, config.nonfinite
        device, needed = (
            self.sae.b_dec.device,
            free_for_steps(self.sae.config, config, self.compute_dtype.itemsize),
        )
        buffer = open_buffer(rows, *sizes, dtype=self.sae.b_dec.dtype, device=device, reserve=needed)
        folder = None if out is None else Path(out)
        if folder is not None:
            found = checkpoint.open_run(
                folder, self.sae.config, config, rows, resume, checkpoint.bytes_needed(state, buffer)
            )
            if found:
                self.input_scale = checkpoint.load(folder, state, buffer)
            checkpoint.truncate_metrics(folder, state.step)
        if state.step == 0:
            self._initialize(buffer.sample(INIT_ROWS).to(self.sae.b_dec))
        send = self._open_loggers(folder)

        n_steps = config.total_steps
        self._logged_step, self._logged_at = state.step, time.perf_counter()
        metrics = None
        with (
            tqdm(total=n_steps, initial=state.step, unit="step", mininterval=0.5, desc="train") as bar,
            stop_signals() as stop,
            closing(buffer),
        ):
            batches = iter(buffer)
            while state.step < n_steps and not stop.is_set():
                try:
                    x = next(batches, None)
                except InputError:  # NaN in the data, a damaged shard: what was learnt so far is kept
                    if folder is not None and metrics is not None:
                        self._save(folder, metrics, buffer)
                    raise
                if x is None:
                    log.warning(
                        f"the source cannot be read twice: it ended after {state.step} of {n_steps} steps"
                    )
                    break
                metrics = self._step(x.to(self.sae.b_dec))
                bar.update()
                if state.step % config.log_every == 0 or state.step == n_steps:
                    line = self._line(metrics, buffer.skipped)
                    bar.set_postfix({key: f"{line[key]:.4g}" for key in ("fvu", "l0", "dead_frac")})
                    for to in send:
                        to(line)
                if folder is not None and state.step % config.checkpoint_every == 0 and state.step < n_steps:
                    self._save(folder, metrics, buffer)
        if folder is None:
            return state.step == n_steps
        if metrics is not None:
            self._save(folder, metrics, buffer)
        if stop.is_set() and state.step < n_steps:
            log.warning(f"stopped at step {state.step} of {n_steps}, saved in {folder}; go on with --resume")
            return False
        self.sae.save_pretrained(folder, state.exported())
        plots.curves(folder)
        return state.step == n_steps

    def _save(self, folder: Path, metrics: Metrics, buffer: ShuffleBuffer) -> None:
        self._check_loss(metrics)
        checkpoint.save(folder, self.state, self._scale(), buffer)

    def _step(self, x: Tensor) -> Metrics:
        config, state = self.config, self.state
        self._raise_for_earlier_steps()
        hyper = Hyper(self._lr(state.step + 1), config.betas, config.eps, self._scale())
        dtype = torch.float32 if self.ops.NAME == "triton" else torch.float64
        numbers = torch.tensor(hyper.numbers(state.step + 1, len(x)), dtype=dtype)
        if self.on_gpu:
            numbers = numbers.pin_memory().to(x.device, non_blocking=True)
        with torch.no_grad(), out_of_memory_help(self.sae.config, config):
            metrics = self._run(x.contiguous(), self._plan(len(x)), numbers)
        state.step += 1
        state.fired_tokens += len(x)
        if self.on_gpu:
            loss, event = metrics.loss.to("cpu", non_blocking=True), torch.cuda.Event()
            event.record()
            self._watched.append((state.step, event, loss))
        return metrics

    def _lr(self, step: int) -> float:
        return self.config.lr_at(step, self.sae.config.d_sae)

    def _plan(self, batch_size: int) -> Plan:
        sae, config, state = self.sae.config, self.config, self.state
        interval = STEPS_BETWEEN_DEAD_COUNTS if self.on_gpu else 1
        if config.auxk_alpha and state.step % interval == 0:
            state.dead_capacity = auxk.capacity(
                state.num_tokens_since_fired, config.dead_feature_threshold,
                (interval - 1) * batch_size, exact=not self.on_gpu,
            )  # fmt: skip
        return Plan(
            k=sae.k,
            compute_dtype=self.compute_dtype,
            rescore=config.rescore,
            grad_clip=config.grad_clip,
            auxk_alpha=config.auxk_alpha,
            k_aux=config.k_aux or max(1, sae.d_in // 2),
            dead_feature_threshold=config.dead_feature_threshold,
            dead_capacity=state.dead_capacity,
        )

    def _raise_for_earlier_steps(self) -> None:
        """What the device has finished by now is looked at, without waiting for the rest."""
        while self._watched and self._watched[0][1].query():
            step, _, loss = self._watched.popleft()
            check(
                math.isfinite(loss), f"x: NaN or Inf in the batch of step {step}, or lr too high: loss {loss}"
            )

    def _check_loss(self, metrics: Metrics) -> None:
        """Raise before a diverged state is logged or saved."""
        if not math.isfinite(metrics.loss):  # waits for the device
            peak = self.config.peak_lr(self.sae.config.d_sae)
            raise InputError(
                f"lr: the loss is {float(metrics.loss)} at step {self.state.step}: training diverged; "
                f"expected a learning rate below {peak:.3g}; checkpoints hold the state before"
            )

    def _initialize(self, sample: Tensor) -> None:
        """Set the input scale; of a fresh SAE also b_dec, to the centre of the data, and the size of W_enc."""
        self._set_input_scale(sample)
        sae, init = self.sae, self.config.init_b_dec
        if init != "none" and not sae.b_dec.any():
            sae.b_dec.data.copy_(
                geometric_median(sample) if init == "geometric_median" else sample.mean(dim=0)
            )
        enc, dec = self.state.weights.enc, self.state.weights.dec
        if torch.equal(enc.weight, dec.weight):
            scale_rows_(enc, self.config.init_encoder_scale)
        self.state.refresh()

    def _set_input_scale(self, sample: Tensor) -> None:
        mean_square = float(sample.double().square().sum(dim=1).mean())
        normalize = self.config.normalize_input and mean_square > 0
        self.input_scale = math.sqrt(self.sae.config.d_in / mean_square) if normalize else 1.0

    def _scale(self) -> float:
        assert self.input_scale is not None
        return self.input_scale

    def _line(self, metrics: Metrics, skipped: int) -> dict[str, Any]:
        """One line of metrics.jsonl: plain numbers, and the counts since the last line."""
        state, batch_size = self.state, self.config.batch_size
        values = {key: float(value) for key, value in metrics._asdict().items() if key != "code_size"}
        values["lr"] = self._lr(state.step)
        self._check_loss(metrics)
        steps, now = state.step - self._logged_step, time.perf_counter()
        line: dict[str, Any] = (
            {"step": state.step, "tokens": state.step * batch_size} | values | {"rows_skipped": skipped}
        )
        line |= {"tokens_per_second": round(steps * batch_size / (now - self._logged_at), 1)}
        self._logged_step, self._logged_at = state.step, now
        first_is_last = state.step == self.config.total_steps and state.fired_tokens == line["tokens"]
        if state.fired_tokens >= DENSITY_TOKENS or first_is_last:
            line |= {
                "density_tokens": state.fired_tokens,
                "density_histogram": loggers.density_histogram(state.fired, state.fired_tokens),
            }
            state.fired.zero_()
            state.fired_tokens = 0
        return line

    def _open_loggers(self, folder: Path | None) -> list[loggers.Log]:
        if folder is None:
            return []
        described = {"sae": asdict(self.sae.config), "train": asdict(self.config)}
        services = [loggers.open_logger(name, folder, described) for name in self.config.loggers]
        return [loggers.jsonl(folder / checkpoint.METRICS), *services]
