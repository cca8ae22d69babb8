"""Whole runs: the loop over a shuffled source.

One or several trainers on the same batches: reading and shuffling are paid for once.
"""

import logging
import sys
from collections.abc import Iterable, Sequence
from contextlib import closing
from functools import cache, partial
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from saefast.activations.buffer import ShuffleBuffer
from saefast.activations.open import open_buffer
from saefast.activations.sources import Source, as_source
from saefast.errors import InputError, check
from saefast.sae import geometric_median
from saefast.train.memory import free_for_steps
from saefast.train.parallel import Map, side_by_side
from saefast.train.run.run import Run
from saefast.train.run.signals import stop_signals
from saefast.train.samples import INIT_ROWS, Columns, once, take
from saefast.train.stepper import Stepper

log = logging.getLogger("saefast")


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
    one = len(trainers) == 1 or not any("trackio" in t.config.loggers for t in trainers)
    check(
        one, "loggers: expected none that has one run at a time where several SAEs are trained, got 'trackio'"
    )
    # absolute: the process may change its folder
    places = [None if folder is None else Path(folder).absolute() for folder in folders]
    runs = [Run(*each) for each in zip(trainers, places, [buffer] * len(trainers), parts, strict=True)]
    try:
        with side_by_side(workers, sae.b_dec.device) as together, closing(buffer):
            return _fit(runs, buffer, resume, together)
    finally:
        for run in runs:
            run.close()


def _fit(runs: list[Run], buffer: ShuffleBuffer, resume: bool, together: Map) -> bool:
    done, n_steps = _open(runs, buffer, resume), runs[0].trainer.config.total_steps
    started, alive = (
        runs,
        sorted(runs, key=lambda run: -run.trainer.sae.config.d_sae),
    )  # the longest step first
    with (
        tqdm(total=n_steps, initial=done, unit="step", mininterval=0.5, desc="train") as bar,
        stop_signals() as stop,
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
            run.save()
    if stop.is_set() and done < n_steps:
        _stopped(alive, done, n_steps)
        return False
    for run in alive:
        run.finish()
    return done >= n_steps


def _stopped(runs: list[Run], done: int, n_steps: int) -> None:
    """Write the SAEs as they are, and say so."""
    place = runs[0].folder
    if place is None:
        return
    where = place if len(runs) == 1 else place.parent
    if done:
        for run in runs:
            run.export()
    saved = f"saved in {where} with the SAE as it is" if done else f"nothing is in {where} yet"
    log.warning(f"stopped at step {done} of {n_steps}, {saved}: unfinished, go on with --resume")


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
