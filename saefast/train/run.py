"""Whole runs: the loop over a shuffled source, with logs, checkpoints and the final SAE.

One or several trainers on the same batches: reading and shuffling are paid for once.
"""

import logging
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from saefast.activations.buffer import ShuffleBuffer
from saefast.activations.open import open_buffer
from saefast.activations.sources import Source, as_source
from saefast.engine.step import Metrics
from saefast.errors import InputError, check
from saefast.formats.contents import source_metadata
from saefast.interp.evaluate import MAX_PRE_ACTS
from saefast.sae import geometric_median
from saefast.sae.inference import encode
from saefast.train import checkpoint, loggers, plots
from saefast.train.memory import free_for_steps
from saefast.train.parallel import Map, side_by_side
from saefast.train.resample import resample
from saefast.train.samples import INIT_ROWS, Columns, calibration_rows, once, take
from saefast.train.signals import stop_signals
from saefast.train.stepper import Stepper

DENSITY_TOKENS = 100_000  # that share is counted over at least as many

BufferState = tuple[dict[str, Tensor], dict[str, Any]]

log = logging.getLogger("saefast")


class Run:
    """One trainer with its run folder (None writes nothing)."""

    def __init__(
        self, trainer: Stepper, folder: Path | None, buffer: ShuffleBuffer, columns: Columns
    ) -> None:
        self.trainer, self.folder, self.buffer, self.columns = trainer, folder, buffer, columns
        self.metrics: Metrics | None = None
        self.error: InputError | None = None  # what ended it before the others
        self._send: list[loggers.Log] = []

    def open(self, resume: bool) -> BufferState | None:
        """Make the folder; or go on from its checkpoint, and give the state of the buffer when that was written."""
        trainer, buffer, found = self.trainer, self.buffer, None
        state, config = trainer.state, trainer.config
        self._logged_step = state.step
        if self.folder is None:
            return None
        averages = (config.ema_decay is not None) + (config.optimizer != "adam")
        needed = checkpoint.bytes_needed(state, buffer, averages)
        source = buffer.source.describe() | {"seed": buffer.seed, "columns": self.columns}
        if checkpoint.open_run(self.folder, trainer.sae.config, config, source, resume, needed):
            (trainer.input_scale, trainer.output_scale), tensors, found = checkpoint.load(self.folder, state)
            trainer.load_tensors(tensors)
        checkpoint.truncate_metrics(self.folder, state.step)
        self._logged_step = state.step
        return found

    def begin(self, sample: Callable[[Columns], Tensor], median: Callable[[Tensor], Tensor]) -> None:
        """sample: rows to start from, for a run at step 0."""
        if self.trainer.state.step == 0:
            self.trainer.initialize(sample(self.columns), median)
        self._send = self._open_loggers()
        self._logged_at = time.perf_counter()

    def step(self, rows: Tensor) -> None:
        """One step, which may run beside those of other runs."""
        try:
            self.metrics = self.trainer.step(
                take(rows, self.columns).to(self.trainer.sae.b_dec), checked=True
            )
        except InputError as error:
            self.error = error

    def after_step(self) -> dict[str, Any] | None:
        """What is due after a step, one run at a time; the line of metrics.jsonl, at those steps that have one."""
        trainer, config, line = self.trainer, self.trainer.config, None
        assert self.metrics is not None
        step, n_steps = trainer.state.step, config.total_steps
        try:
            if step in config.resample_steps:
                self._resample()
            if step % config.log_every == 0 or step == n_steps:
                line = self._line(self.metrics, self.buffer.skipped)
                for to in self._send:
                    to(line)
            if step % config.checkpoint_every == 0 and step < n_steps:
                self.save()
        except InputError as error:
            self.error = error
        return line

    def _resample(self) -> None:
        """From the rows that wait in the shuffle buffer, a random part of the data."""
        trainer, state = self.trainer, self.trainer.state
        dead = state.num_tokens_since_fired >= trainer.config.dead_feature_threshold
        trainer.sync()
        rows = self.buffer.sample(trainer.config.resample_tokens)
        x = take(rows, self.columns).to(trainer.sae.b_dec)
        generator = torch.Generator().manual_seed((trainer.config.seed << 20) + state.step)
        n = resample(state, trainer.frame.rows(x), token_losses(trainer, x), dead, generator)
        state.refresh()
        log.info(f"step {state.step}: {n} dead latents resampled")

    def save(self, last: bool = False) -> None:
        self.trainer.sync()
        if last or self.trainer.exports_average:
            rows = calibration_rows(self.buffer, self.trainer.config.batch_size)
            if self.trainer.arch.measures and len(rows := take(rows, self.columns)):
                self.trainer.calibrate(rows.to(self.trainer.sae.b_dec))
        if self.folder is not None and self.metrics is not None:
            self.trainer.check_loss(self.metrics)
            trainer = self.trainer
            scales = trainer.scale, trainer.output_scale
            checkpoint.save(self.folder, trainer.state, trainer.tensors(), scales, self.buffer)

    def finish(self) -> None:
        """Write the trained SAE and its curves."""
        self.trainer.settle()
        if self.folder is not None:
            described, metadata = self.buffer.source.describe(), self.trainer.sae.metadata
            metadata |= source_metadata(described) | metadata
            self.trainer.sae.save_pretrained(self.folder, self.trainer.exported())
            plots.curves(self.folder)

    def _line(self, metrics: Metrics, skipped: int) -> dict[str, Any]:
        """One line of metrics.jsonl: plain numbers, and the counts since the last line."""
        trainer, state, batch_size = self.trainer, self.trainer.state, self.trainer.config.batch_size
        values = {key: float(value) for key, value in metrics._asdict().items() if key != "code_size"}
        values["lr"] = trainer.lr(state.step)
        trainer.check_loss(metrics)
        steps, now = state.step - self._logged_step, time.perf_counter()
        line: dict[str, Any] = (
            {"step": state.step, "tokens": state.step * batch_size} | values | {"rows_skipped": skipped}
        )
        line |= {"tokens_per_second": round(steps * batch_size / (now - self._logged_at), 1)}
        self._logged_step, self._logged_at = state.step, now
        first_is_last = state.step == trainer.config.total_steps and state.fired_tokens == line["tokens"]
        if state.fired_tokens >= DENSITY_TOKENS or first_is_last:
            line |= {
                "density_tokens": state.fired_tokens,
                "density_histogram": loggers.density_histogram(state.fired, state.fired_tokens),
            }
            state.fired.zero_()
            state.fired_tokens = 0
        return line

    def _open_loggers(self) -> list[loggers.Log]:
        if self.folder is None:
            return []
        config = self.trainer.config
        described = {"sae": asdict(self.trainer.sae.config), "train": asdict(config)}
        services = [loggers.open_logger(name, self.folder, described) for name in config.loggers]
        return [loggers.jsonl(self.folder / checkpoint.METRICS), *services]


@torch.no_grad()
def token_losses(trainer: Stepper, x: Tensor) -> Tensor:
    """x [n, d_in] -> the loss of each row [n]: squared error and L1 penalty, in the units of `loss` "mse"."""
    sae, config, scale = trainer.sae, trainer.config, trainer.scale
    sparsity = config.sparsity_coefficient if config.penalty == "l1" else 0.0
    weight = sae.W_dec.norm(dim=1) if config.norm_weighted else torch.ones_like(sae.b_enc)
    losses = []
    for rows in x.split(max(1, MAX_PRE_ACTS // sae.config.d_sae)):
        acts, indices = encode(trainer.ops, sae.params, sae.extra, sae.config, rows)
        error = trainer.ops.decode(acts, indices, sae.W_dec.data, sae.b_dec.data) - rows
        penalty = sparsity * scale * (acts * weight[indices.long()]).sum(dim=1)
        losses.append(scale**2 * error.square().sum(dim=1) + penalty)
    return torch.cat(losses)


def fit(
    trainers: Sequence[Stepper],
    source: Iterable[Tensor] | Tensor,
    folders: Sequence[str | Path | None],
    resume: bool = False,
    columns: Sequence[Columns] | None = None,
    seed: int | None = None,
    workers: int = 1,
) -> bool:
    """`Trainer.fit` for trainers that agree in dtype, device and in what shapes their batches (`saefast.sweep` checks
    it). Where there are several, one that diverges ends alone, with a warning.

    Checkpoints are written one after another. A kill in between leaves some a few steps ahead: the buffer goes on from
    the last of the run furthest behind, and the others let pass the batches that they have seen.

    Args:
        columns: of the rows of a Source, for each trainer; None for all of them.
        seed: of the shuffling; default: that of the first config.
        workers: how many to train side by side, see `saefast.train.parallel`.
    """
    first = trainers[0]
    config, sae = first.config, first.sae
    check(not resume or None not in folders, "resume: expected a run folder in `out`, got None")
    parts = [None] * len(trainers) if columns is None else columns
    width = source.d_in if columns is not None and isinstance(source, Source) else sae.config.row_width
    rows = as_source(source, width)
    needed = sum(free_for_steps(t.sae.config, t.config, t.compute_dtype.itemsize) for t in trainers)
    sizes = config.batch_size, config.buffer_rows, config.seed if seed is None else seed
    b_dec = sae.b_dec
    buffer = open_buffer(
        rows, *sizes, config.nonfinite, dtype=b_dec.dtype, device=b_dec.device, reserve=needed
    )
    places = [None if folder is None else Path(folder) for folder in folders]
    runs = [Run(*each) for each in zip(trainers, places, [buffer] * len(trainers), parts, strict=True)]
    with side_by_side(workers, sae.b_dec.device) as together:
        return _fit(runs, buffer, resume, together)


def _fit(runs: list[Run], buffer: ShuffleBuffer, resume: bool, together: Map) -> bool:
    done, n_steps = _open(runs, buffer, resume), runs[0].trainer.config.total_steps
    started, alive = (
        runs,
        sorted(runs, key=lambda run: -run.trainer.sae.config.d_sae),
    )  # the longest step first
    with (
        tqdm(total=n_steps, initial=done, unit="step", mininterval=0.5, desc="train") as bar,
        stop_signals() as stop,
        closing(buffer),
    ):
        batches = iter(buffer)
        while done < n_steps and not stop.is_set():
            try:
                x = next(batches, None)
            except InputError:  # NaN in the data, a damaged shard: what was learnt so far is kept
                for run in alive:
                    run.save()
                raise
            if x is None:
                log.warning(f"the source cannot be read twice: it ended after {done} of {n_steps} steps")
                break
            behind = [run for run in alive if run.trainer.state.step == done]
            done += 1
            together(partial(Run.step, rows=x), behind)
            lines = [run.after_step() for run in behind if run.error is None]
            alive = _without_failed(alive, len(started))
            bar.update()
            if lines and (line := lines[0]) is not None:
                bar.set_postfix({key: f"{line[key]:.4g}" for key in ("fvu", "l0", "dead_frac")})
        for run in alive:
            run.save(last=True)
    if stop.is_set() and done < n_steps:
        if (place := started[0].folder) is not None:
            where = place if len(started) == 1 else place.parent
            log.warning(f"stopped at step {done} of {n_steps}, saved in {where}; go on with --resume")
        return False
    for run in alive:
        run.finish()
    return done == n_steps


def _open(runs: list[Run], buffer: ShuffleBuffer, resume: bool) -> int:
    """Open the folders and set the buffer to the run furthest behind; returns the steps it has done."""
    done, behind = sys.maxsize, None
    for run in runs:
        state = run.open(resume)
        if run.trainer.state.step < done:
            done, behind = run.trainer.state.step, state
    if behind is not None:
        buffer.load_state_dict(*behind)
    rows = cache(lambda: buffer.sample(INIT_ROWS).to(runs[0].trainer.sae.b_dec))
    sample, median = cache(lambda columns: take(rows(), columns)), once(geometric_median)
    for run in runs:
        run.begin(sample, median)
    return done


def _without_failed(runs: list[Run], n_started: int) -> list[Run]:
    failed = [run for run in runs if run.error is not None]
    alive = [run for run in runs if run.error is None]
    for run in failed:
        assert run.error is not None
        if n_started == 1 or not alive:
            raise run.error
        log.warning(f"{run.folder}: ends at step {run.trainer.state.step}, the others go on: {run.error}")
    return alive
