"""Whole runs: the loop over a shuffled source, with logs, checkpoints and the final SAE.

One or several trainers on the same batches: reading and shuffling are paid for once.
"""

import logging
import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from saefast import checkpoint, loggers, plots
from saefast.architectures.inference import encode
from saefast.buffer import ShuffleBuffer
from saefast.errors import InputError, check
from saefast.evaluate import MAX_PRE_ACTS
from saefast.memory import free_for_steps
from saefast.resample import resample
from saefast.signals import stop_signals
from saefast.sources import Source, as_source
from saefast.step import Metrics
from saefast.stream import open_buffer
from saefast.trainer import Trainer

INIT_ROWS = 32_768  # sample for b_dec and the input scale; what OpenAI uses for the geometric median
DENSITY_TOKENS = 100_000  # that share is counted over at least as many

log = logging.getLogger("saefast")


class Run:
    """One trainer with its run folder (None writes nothing)."""

    def __init__(
        self, trainer: Trainer, folder: Path | None, source: Source, buffer: ShuffleBuffer, resume: bool
    ) -> None:
        self.trainer, self.folder, self.buffer = trainer, folder, buffer
        state, config = trainer.state, trainer.config
        if folder is not None:
            averages = (config.ema_decay is not None) + (config.optimizer != "adam")
            needed = checkpoint.bytes_needed(state, buffer, averages)
            if checkpoint.open_run(folder, trainer.sae.config, config, source, resume, needed):
                (trainer.input_scale, trainer.output_scale), tensors = checkpoint.load(folder, state, buffer)
                trainer.load_tensors(tensors)
            checkpoint.truncate_metrics(folder, state.step)
        self.metrics: Metrics | None = None
        self._logged_step, self._logged_at = state.step, time.perf_counter()
        self._send: list[loggers.Log] = []

    def begin(self, sample: Tensor | None) -> None:
        """sample: rows to start from, for a run at step 0."""
        if sample is not None:
            self.trainer.initialize(sample.to(self.trainer.sae.b_dec))
        self._send = self._open_loggers()
        self._logged_at = time.perf_counter()

    def step(self, rows: Tensor) -> dict[str, Any] | None:
        """One step; the line of metrics.jsonl, at those steps that have one."""
        trainer, config, line = self.trainer, self.trainer.config, None
        self.metrics = trainer.step_on(rows.to(trainer.sae.b_dec))
        step, n_steps = trainer.state.step, config.total_steps
        if step in config.resample_steps:
            self._resample()
        if step % config.log_every == 0 or step == n_steps:
            line = self._line(self.metrics, self.buffer.skipped)
            for to in self._send:
                to(line)
        if step % config.checkpoint_every == 0 and step < n_steps:
            self.save()
        return line

    def _resample(self) -> None:
        """From the rows that wait in the shuffle buffer, a random part of the data."""
        trainer, state = self.trainer, self.trainer.state
        dead = state.num_tokens_since_fired >= trainer.config.dead_feature_threshold
        x = self.buffer.sample(trainer.config.resample_tokens).to(trainer.sae.b_dec)
        generator = torch.Generator().manual_seed((trainer.config.seed << 20) + state.step)
        n = resample(state, x, token_losses(trainer, x), dead, generator)
        state.refresh()
        log.info(f"step {state.step}: {n} dead latents resampled")

    def save(self) -> None:
        if self.folder is not None and self.metrics is not None:
            self.trainer.check_loss(self.metrics)
            trainer = self.trainer
            scales = trainer.scale, trainer.output_scale
            checkpoint.save(self.folder, trainer.state, trainer.tensors(), scales, self.buffer)

    def finish(self) -> None:
        """Write the trained SAE and its curves."""
        if self.folder is not None:
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
def token_losses(trainer: Trainer, x: Tensor) -> Tensor:
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
    trainers: Sequence[Trainer],
    source: Iterable[Tensor] | Tensor,
    folders: Sequence[str | Path | None],
    resume: bool = False,
) -> bool:
    """`Trainer.fit` for trainers that agree in d_in, d_out, dtype, device and in what shapes their batches."""
    first = trainers[0]
    config, sae = first.config, first.sae
    check(not resume or None not in folders, "resume: expected a run folder in `out`, got None")
    rows = as_source(source, sae.config.row_width)
    needed = max(free_for_steps(t.sae.config, t.config, t.compute_dtype.itemsize) for t in trainers)
    buffer = open_buffer(
        rows, config.batch_size, config.buffer_rows, config.seed, config.nonfinite,
        dtype=sae.b_dec.dtype, device=sae.b_dec.device, reserve=needed,
    )  # fmt: skip
    places = [None if folder is None else Path(folder) for folder in folders]
    runs = [Run(t, place, rows, buffer, resume) for t, place in zip(trainers, places, strict=True)]
    fresh = first.state.step == 0
    sample = buffer.sample(INIT_ROWS) if fresh else None
    for run in runs:
        run.begin(sample)

    n_steps, done = config.total_steps, first.state.step
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
                for run in runs:
                    run.save()
                raise
            if x is None:
                log.warning(f"the source cannot be read twice: it ended after {done} of {n_steps} steps")
                break
            lines = [run.step(x) for run in runs]
            done += 1
            bar.update()
            if lines[0] is not None:
                bar.set_postfix({key: f"{lines[0][key]:.4g}" for key in ("fvu", "l0", "dead_frac")})
        for run in runs:
            run.save()
    if stop.is_set() and done < n_steps:
        where = f", saved in {places[0]}; go on with --resume" if places[0] is not None else ""
        if where:
            log.warning(f"stopped at step {done} of {n_steps}{where}")
        return False
    for run in runs:
        run.finish()
    return done == n_steps
