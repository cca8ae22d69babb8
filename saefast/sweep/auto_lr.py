"""A learning rate that fits a run, found by successive halving in at most a tenth of its steps.

All rates begin with a short run, the best of them with one twice as long, and so on. Each is a whole run from the same
start, over the same batches, with its own warm-up and decay: a rate is then judged where it would end. The best rate hardly
depends on the length of a run (docs/usage.md has figures). With small batches it falls slowly, so of two rates that are nearly
equal the lower one is taken.
"""

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from saefast.activations.open import open_buffer
from saefast.activations.sources import Source, TensorSource
from saefast.config.compatible import DEFAULTS, without_idle
from saefast.config.train import TrainConfig
from saefast.errors import InputError, check
from saefast.sae import SAE
from saefast.storage import FP32
from saefast.train.run.signals import stop_signals
from saefast.train.samples import INIT_ROWS
from saefast.train.schedules import peak_lr
from saefast.train.trainer import Trainer

FACTORS = tuple(2.0**i for i in range(-3, 7))  # of the rate that a recipe or the optimizer has
KEPT = (10, 5, 3)  # how many rates each round has; each is twice as long as the one before
SHARE = 10  # the steps of all rounds together are at most 1 / SHARE of those of the run
LEAST_STEPS = 5  # of the first round
ROWS, PASSES = 131_072, 4  # that are kept for the search; how often the longest round may read them
PIECES = 16  # of which they are made, where a source can be read anywhere
EQUAL = 1.05  # measures that differ by less are of equal rates: the lower one is taken


@dataclass(frozen=True)
class Found:
    """What a search has found."""

    lr: float
    measure: str
    """ "fvu", or "loss" where a penalty is a part of it: of rows that were not trained on."""
    rounds: tuple[tuple[int, dict[float, float]], ...]
    """For each round the steps of a run, and the measure of each rate; infinite if it diverged."""

    def described(self) -> dict[str, Any]:
        """As run.json has it: values that are not finite are None."""
        rounds = [
            {
                "steps": steps,
                "lr": list(at),
                self.measure: [v if math.isfinite(v) else None for v in at.values()],
            }
            for steps, at in self.rounds
        ]
        return {"lr": self.lr, "rounds": rounds}

    def lines(self) -> list[str]:
        """The curve, a line for each rate."""
        steps = ", ".join(f"{steps} steps" for steps, _ in self.rounds)
        lines = [f"lr auto: held-out {self.measure.upper()} of each rate after {steps}"]
        for lr in self.rounds[0][1]:
            values = [
                f"{at[lr]:10.4g}" if math.isfinite(at[lr]) else "  diverged"
                for _, at in self.rounds
                if lr in at
            ]
            lines.append(f"  {lr:10.3g} {' '.join(values)}{'   <- chosen' if lr == self.lr else ''}")
        return lines


def rounds_of(config: TrainConfig) -> list[tuple[int, int]]:
    """How many rates each round has, and the steps of each of its runs.

    Raises:
        InputError: the run is too short for a search.
    """
    budget, rows = config.total_steps // SHARE, max(ROWS, 4 * config.batch_size)
    for n in range(len(KEPT), 0, -1):
        cost = sum(rates * 2**i for i, rates in enumerate(KEPT[:n]))
        steps = min(budget // cost, PASSES * rows // config.batch_size >> (n - 1))
        if steps >= LEAST_STEPS:
            return [(rates, steps * 2**i) for i, rates in enumerate(KEPT[:n])]
    least = SHARE * KEPT[0] * LEAST_STEPS
    too_short = f"lr: expected a number for a run of {config.total_steps} steps"
    raise InputError(f"{too_short} ('auto' takes a tenth of the steps, and needs {least}), got 'auto'")


def auto_lr(make: Callable[[], SAE], config: TrainConfig, source: Source) -> Found | None:
    """The learning rate for `config`, whose `lr` is the middle of the search (None: that of the optimizer).

    Args:
        make: makes the SAE from which the run begins, each time the same.
        source: up to ROWS of its rows are kept, the first ones, or pieces of all of it where it can be read anywhere. An
            eighth of them is not trained on.

    Returns:
        None if SIGTERM or Ctrl-C stopped the search.

    Raises:
        InputError: the run is too short for a search; all rates diverged; what `Trainer` and the source refuse.
    """
    rounds, first = rounds_of(config), make()
    base = peak_lr(config, first.config.d_sae)
    check(base > 0, f"lr: expected a positive number as the middle of the search, got {base}")
    n_train = rounds[-1][1] * config.batch_size
    rows = sample(source, min(n_train + n_train // 7, max(ROWS, 4 * config.batch_size)))
    generator = torch.Generator("cpu").manual_seed(config.seed)
    order = torch.randperm(len(rows), generator=generator, dtype=torch.int64, device="cpu")
    held_out, trained = rows[order[: len(rows) // 8]], rows[order[len(rows) // 8 :].sort().values]
    check(len(held_out) > 0, f"source: expected 8 finite rows or more for lr 'auto', got {len(rows)}")
    measure = "fvu" if (config.penalty, config.preact) == ("none", "none") else "loss"
    rates = [base * factor for factor in FACTORS]
    found: list[tuple[int, dict[float, float]]] = []
    total = sum(n * steps for n, steps in rounds)
    with tqdm(total=total, unit="step", mininterval=0.5, desc="lr auto") as bar, stop_signals() as stop:
        for n, steps in rounds:
            at = found[-1][1] if found else dict.fromkeys(rates, 0.0)
            best = sorted(sorted(at, key=at.__getitem__)[:n])
            values = {}
            for lr in best:
                trainer = Trainer(make(), short(config, first, steps, lr))
                if not _train(trainer, trained, stop.is_set, bar):
                    return None
                values[lr] = _measured(trainer, held_out, measure)
            found.append((steps, values))
    last = found[-1][1]
    least = min(last.values())
    check(math.isfinite(least), f"lr: all rates from {rates[0]:.3g} to {rates[-1]:.3g} diverged")
    chosen = min(lr for lr, value in last.items() if value <= least * EQUAL)
    return Found(chosen, measure, tuple(found))


def sample(source: Source, n: int) -> Tensor:
    """Up to n finite rows: the first ones, or PIECES of all of it where the source can be read anywhere."""
    if source.random_access and hasattr(source, "__len__"):
        pieces = min(PIECES, len(source))
        each = min(n, len(source)) // pieces
        starts = torch.arange(pieces, dtype=torch.int64, device="cpu") * len(source) // pieces
        rows = source.take((starts[:, None] + torch.arange(each, dtype=torch.int64, device="cpu")).flatten())
        return rows[rows.isfinite().all(dim=1)]
    chunks: list[Tensor] = []
    stream = source.rows()
    for rows in stream:
        chunks.append(rows[rows.isfinite().all(dim=1)][:n].cpu())
        n -= len(chunks[-1])
        if n <= 0:
            break
    if isinstance(stream, Generator):
        stream.close()  # ends the thread of a source that reads ahead
    return torch.cat(chunks) if chunks else torch.empty(0, source.d_in, **FP32)


def short(config: TrainConfig, sae: SAE, steps: int, lr: float) -> TrainConfig:
    """A run of `steps` with the same schedules, without what a run so short cannot have."""
    own = {"total_tokens": steps * config.batch_size, "lr": lr, "loggers": (), "resample_steps": ()}
    own |= {"resample_tokens": DEFAULTS["resample_tokens"]}
    train = vars(config) | own
    without_idle(dict(vars(sae.config)), train, [name for name in train if name not in own])
    return TrainConfig(**train)


def _train(trainer: Trainer, rows: Tensor, stopped: Callable[[], bool], bar: Any) -> bool:
    """Train on shuffled rows; False if it was stopped. One that diverges ends early."""
    config, b_dec = trainer.config, trainer.sae.b_dec
    capacity = max(len(rows), config.batch_size)
    buffer = open_buffer(TensorSource(rows), config.batch_size, capacity, config.seed, dtype=b_dec.dtype)
    try:
        trainer.initialize(buffer.sample(INIT_ROWS).to(b_dec))
        batches = iter(buffer)
        for _ in range(config.total_steps):
            if stopped():
                return False
            trainer.step(next(batches).to(b_dec), checked=True)
            bar.update()
    except InputError:  # on a GPU, of a loss that is not finite
        return True
    finally:
        buffer.close()
    return True


def _measured(trainer: Trainer, rows: Tensor, measure: str) -> float:
    """Of steps that change nothing: their metrics are those before the update, with the penalty of the last step."""
    steps, trainer.config = trainer.config.total_steps, replace(trainer.config, lr=0.0)
    if trainer.state.step < steps:
        return math.inf
    sums = 0.0
    try:
        for batch in rows.split(trainer.config.batch_size):
            metrics = trainer.step(batch.to(trainer.sae.b_dec), checked=True)
            sums += len(batch) * float(getattr(metrics, measure))
    except InputError:
        return math.inf
    return sums / len(rows) if math.isfinite(sums) else math.inf
