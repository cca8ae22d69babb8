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
        self._described = run_folder.Described({"id": "", "key": None}, {})
        self._lines: list[dict[str, Any]] = []  # of metrics that there are when the run is opened
        self._curve = loggers.Curve()  # of the lines now
        self._expected: loggers.Curve | None = None  # what the checkpoint says of them
        self._release: Callable[[], None] = lambda: None

    def open(self, resume: bool) -> BufferState | None:
        """Make the folder; or read its checkpoint, and give the state of the buffer when that was written. No file is
        written before all that are read are known to be whole."""
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
        self._lines = loggers.read_lines(self.folder / checkpoint.METRICS)
        started, self._described = checkpoint.open_run(self.folder, now, resume, needed, self._lines)
        if started:
            loaded = checkpoint.load(self.folder, state, self._described.fields["key"])
            (trainer.input_scale, trainer.output_scale), tensors, found, self._expected = loaded
            trainer.load_tensors(tensors)
        self._logged_step = state.step
        return found

    def begin(self, sample: Callable[[Columns], Tensor], median: Callable[[Tensor], Tensor]) -> None:
        """sample: rows to start from, for a run at step 0."""
        trainer, step = self.trainer, self.trainer.state.step
        if step == 0:
            trainer.initialize(sample(self.columns), median)
        self._logged_at = time.perf_counter()
        if self.folder is None:
            return
        run_folder.record(self.folder, self._described, trainer.config, step)
        metrics, kept = self.folder / checkpoint.METRICS, [e for e in self._lines if e["step"] <= step]
        self._curve = loggers.curve_of(metrics, kept, step, self._expected)
        if step < trainer.config.total_steps:
            loggers.write_lines(metrics, kept)  # those after `step`, or half of one, come again
            for name in (own_format.WEIGHTS, own_format.CONFIG):  # again when it ends or is stopped
                (self.folder / name).unlink(missing_ok=True)
            self._send = self._open_loggers(self.folder)

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
                self._curve = self._curve.with_line(line)
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
            named = self._described.fields["key"], self._curve
            checkpoint.save(self.folder, trainer.state, trainer.tensors(), scales, self.buffer, *named)

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

    def _open_loggers(self, folder: Path) -> list[loggers.Log]:
        config = self.trainer.config
        described = {"sae": asdict(self.trainer.sae.config), "train": asdict(config)}
        sent = self._lines[-1]["step"] if self._lines else 0
        at = self._described.id, self.trainer.state.step, sent
        services = [loggers.open_logger(name, folder, described, *at) for name in config.loggers]
        return [loggers.jsonl(folder / checkpoint.METRICS), *services]


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
