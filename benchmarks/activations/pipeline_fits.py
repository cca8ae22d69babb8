"""What `pipeline.py` times: training loops, their time split into waiting and training, and their checks."""

import time
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from benchmarks.measuring import DEVICE, ratio, seconds_of, spread
from benchmarks.peers.pytorch import PlainStep
from benchmarks.shapes import Shape
from saefast import SAE, SAEConfig, TrainConfig, Trainer
from saefast.activations.open import open_buffer
from saefast.activations.sources import Source

Step = Callable[[Tensor], Tensor]
Rates = dict[str, list[float]]  # tokens/s of each stage in each round


class Fit:
    """A training loop in chunks: milliseconds of a step in each, those spent waiting, and of processors."""

    def __init__(self, batches: Iterator[Tensor], step: Step) -> None:
        self.batches, self.step = batches, step
        self.total, self.waiting, self.busy = list[float](), list[float](), list[float]()
        self.fvus: list[Tensor] = []

    def next_batch(self) -> None:
        self.x = next(self.batches)

    def train(self) -> None:
        self.fvus.append(self.step(self.x).clone())  # a CUDA graph writes to the same memory again

    def run(self, steps: int, warm: int) -> None:
        for _ in range(warm):
            self.next_batch()
            self.train()
        waiting, training, begin = 0.0, 0.0, time.process_time()
        for _ in range(steps):
            waiting += seconds_of(self.next_batch)
            training += seconds_of(self.train)
        self.busy.append(1e3 * (time.process_time() - begin) / steps)
        self.waiting.append(1e3 * waiting / steps)
        self.total.append(1e3 * (waiting + training) / steps)

    def result(self, B: int, of: "Fit", expected: list[float] | None = None) -> dict[str, list[float]]:
        """Beside `of`, which has its batches in memory, and the tokens/s expected of the stages together."""
        training = [t - w for t, w in zip(self.total, self.waiting, strict=True)]
        rates = [1e3 * B / t for t in self.total]
        found = {
            "tokens/s": spread(rates, 0),
            "waiting, ms": spread(self.waiting),
            "training, ms": spread(training),
            "processor, ms": spread(self.busy),
            "share waiting": ratio(self.waiting, self.total),
            "over in memory": ratio(self.total, of.total),
        }
        return found | ({"over expected": ratio(rates, expected)} if expected else {})


def new_trainer(shape: Shape, sample: Tensor, total_tokens: int = 10**9) -> Trainer:
    B, D, F, K = shape
    config = TrainConfig(
        total_tokens=total_tokens,
        batch_size=B,
        lr=2e-3,
        warmup_fraction=0,
        normalize_input=False,
        buffer_tokens=2 * B,
    )
    trainer = Trainer(SAE(SAEConfig(d_in=D, d_sae=F, k=K), device=DEVICE), config)
    trainer.initialize(sample.to(trainer.sae.b_dec))
    return trainer


def ours(shape: Shape, sample: Tensor) -> Step:
    trainer = new_trainer(shape, sample)
    return lambda x: trainer.step(x.to(trainer.sae.b_dec), checked=True).fvu


def plain(shape: Shape, sample: Tensor) -> Step:
    sae, config = (trainer := new_trainer(shape, sample)).sae, trainer.config
    step = PlainStep(sae.params, shape.K, config.lr, config.betas, config.eps)
    return lambda x: step(x.to(sae.b_dec))


def check_is_fit(source: Source, shape: Shape) -> None:
    """Refuses to go on unless our loop is that of `Trainer.fit`."""
    steps, capacity = 3, 2 * shape.B
    buffer = open_buffer(source, shape.B, capacity, dtype=torch.float32, device=DEVICE)
    sample = buffer.sample(capacity)
    loop, fit = (new_trainer(shape, sample, steps * shape.B) for _ in range(2))
    for x in islice(buffer, steps):
        loop.step(x.to(loop.sae.b_dec), checked=True)
    buffer.close()
    fit.fit(source)
    assert all(torch.equal(a, b) for a, b in zip(loop.sae.params, fit.sae.params, strict=True))


def check_alike(fits: Mapping[str, Fit]) -> None:
    """Refuses to go on unless fits on the same batches went the same way."""
    for name, fit in fits.items():
        first = next(iter(fits.values()))
        n = min(len(fit.fvus), len(first.fvus))
        fvus, others = torch.stack(fit.fvus[:n]), torch.stack(first.fvus[:n])
        if "plain" in name:
            torch.testing.assert_close(fvus[:2], others[:2], rtol=1e-4, atol=0)
            torch.testing.assert_close(fvus, others, rtol=1e-2, atol=0)
        else:
            assert torch.equal(fvus, others), f"{name}: another FVU on the same batches"


def together(a: list[float], b: list[float]) -> list[float]:
    """Tokens/s of two stages, in each round, that share the cores or, on a GPU, do not."""
    return [min(x, y) if DEVICE == "cuda" else 1 / (1 / x + 1 / y) for x, y in zip(a, b, strict=True)]


def results(shape: Shape, fits: Mapping[str, Fit], rates: Rates, feeds: Mapping[str, str]) -> dict[str, Any]:
    """feeds: the stage before training, of those fits that have one of their own."""
    check_alike(fits)
    memory = fits["in memory"]
    rates = rates | {"training": [1e3 * shape.B / t for t in memory.total]}
    expected = {name: together(rates[stage], rates["training"]) for name, stage in feeds.items()}
    return {
        "stages, tokens/s": {name: spread(values, 0) for name, values in rates.items()},
        "fits": {name: fit.result(shape.B, memory, expected.get(name)) for name, fit in fits.items()},
    }
