"""One trainer with its run folder: what is done before, after each step, and at the end of a run, with logs, checkpoints
and the SAE. The loop over the batches is in `saefast.train.loop`.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saefast.activations.buffer import ShuffleBuffer
from saefast.engine.step import Metrics
from saefast.errors import InputError
from saefast.formats import saefast as own_format
from saefast.formats.contents import source_metadata
from saefast.interp.evaluate import MAX_PRE_ACTS
from saefast.sae.inference import encode
from saefast.train.resample import resample
from saefast.train.run import checkpoint, loggers, plots, run_folder
from saefast.train.samples import Columns, calibration_rows, take
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
        self._id, self._sent = "", 0  # of the run; the last step that has a line of metrics
        self._release: Callable[[], None] = lambda: None

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
        source["rows"] = run_folder.fingerprint(buffer.source)
        machine = {"backend": trainer.ops.NAME, "device": trainer.sae.b_dec.device.type}
        now = run_folder.describe(trainer.sae, config, source, machine | trainer.notes)
        self._release = run_folder.lock(self.folder)
        started, described = checkpoint.open_run(self.folder, now, resume, needed)
        if started:
            (trainer.input_scale, trainer.output_scale), tensors, found = checkpoint.load(self.folder, state)
            trainer.load_tensors(tensors)
            run_folder.record(self.folder, described, config, state.step)
        self._id = described.id
        self._sent = loggers.begin_jsonl(self.folder / checkpoint.METRICS, state.step)
        self._logged_step = state.step
        return found

    def begin(self, sample: Callable[[Columns], Tensor], median: Callable[[Tensor], Tensor]) -> None:
        """sample: rows to start from, for a run at step 0."""
        if self.trainer.state.step == 0:
            self.trainer.initialize(sample(self.columns), median)
        self._send = self._open_loggers()
        self._logged_at = time.perf_counter()
        if self.folder is not None and self.trainer.state.step < self.trainer.config.total_steps:
            for name in (own_format.WEIGHTS, own_format.CONFIG):  # again when it ends or is stopped
                (self.folder / name).unlink(missing_ok=True)

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
        generator = torch.Generator("cpu").manual_seed((trainer.config.seed << 20) + state.step)
        n = resample(state, trainer.frame.rows(x), token_losses(trainer, x), dead, generator)
        state.refresh()
        log.info(f"step {state.step}: {n} dead latents resampled")

    def save(self) -> None:
        self.trainer.sync()
        if self.trainer.arch.measures:
            rows = take(calibration_rows(self.buffer, self.trainer.config.batch_size), self.columns)
            if len(rows):
                self.trainer.calibrate(rows.to(self.trainer.sae.b_dec))
        if self.folder is not None and self.metrics is not None:
            self.trainer.check_loss(self.metrics)
            trainer = self.trainer
            scales = trainer.scale, trainer.output_scale
            checkpoint.save(self.folder, trainer.state, trainer.tensors(), scales, self.buffer)

    def export(self) -> None:
        """Write the SAE as it is now."""
        if self.folder is not None:
            sae = self.trainer.sae
            sae.metadata = source_metadata(self.buffer.source.describe()) | sae.metadata
            sae.save_pretrained(self.folder, self.trainer.exported())

    def finish(self) -> None:
        """Write the trained SAE and its curves."""
        self.trainer.settle()
        self.export()
        if self.folder is not None:
            plots.curves(self.folder)

    def close(self) -> None:
        """End what a run holds open."""
        for to in self._send:
            to.close()
        self._send = []
        self._release()
        self._release = lambda: None

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
        line |= {"tokens_per_second": round(steps * batch_size / max(now - self._logged_at, 1e-9), 1)}
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
        at = self._id, self.trainer.state.step, self._sent
        services = [loggers.open_logger(name, self.folder, described, *at) for name in config.loggers]
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
