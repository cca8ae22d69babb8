"""Quality per second: seconds of training until the FVU on held-out activations is down to a target, ours and the peers'.

    .venv-peers/bin/python -m benchmarks.peers.quality data/acts-corpus data/heldout-corpus           writes results/<device>/quality.json
    .venv-peers/bin/python -m benchmarks.peers.quality data/acts-corpus data/heldout-corpus --tune    the learning rates, quality_tuning.json
    python -m benchmarks.peers.quality --smoke                                                        a toy on random numbers, nothing written

Real activations without attention sinks (`saefast cache` drops them), B 512, d_in 576, d_sae 4608, k 32, everybody on the
same batches in the same order, each with its own initial weights, b_dec at the mean of the data, its rows scaled as its own
pipeline does, the learning rate rising over 5 % of the steps and falling linearly to 0 (signum: constant, its weights are
averages), its peak tuned for each to a factor of sqrt 2. What comes out is converted to an SAE of ours and judged by one
code, on rows that nobody trains on.

Everybody trains a sixteenth of the run in turn, so that a noisy neighbour meets all of them; the clock runs only inside of
the steps. FVUs do not depend on speed, so `--tune` may run on a busy machine.
"""

import argparse
import math
from collections.abc import Iterator
from functools import partial
from itertools import islice

import torch
from torch import Tensor

from benchmarks import measuring
from benchmarks.measuring import DEVICE, rows_of, seconds_of
from benchmarks.peers.contenders import CONTENDERS, left_out, make, missing
from benchmarks.peers.runs import Recipe, Run, scale_of
from saefast import SAE, SAEConfig, evaluate

B, D_SAE, K = 512, 4608, 32
STEPS, MARKS, HELD_OUT = 256, 16, 8192
LONG, LONG_LR = 4, 4e-3  # times the steps, for a second run of ours, and its rate (benchmarks/LOG.md)
DEMO = "saefast, demo recipe"  # for longer runs
LEFT_OUT = ("reference", "plain PyTorch, compiled", DEMO)  # the first two: another's numbers at another speed
# what their pipelines scale rows to; the others get E||x||^2 = d_in, as Trainer's normalize_input has it
UNITS = {
    "dictionary_learning": "rms",
    "SAELens": "sqrt_d",
    "SAELens sparse": "sqrt_d",
    "llamascopium": "sqrt_d",
    "sparsify Adam": "none",
    "sparsify signum": "none",
}
FIRST = 4e-3  # the first learning rate that is tried
SAME = {"plain PyTorch": "saefast", "best PyTorch ops": "saefast"}  # the arithmetic, so the tuned rate


def scale(name: str, rows: Tensor) -> float:
    return scale_of(UNITS[name], rows) if name in UNITS else rows.shape[1] ** 0.5 * scale_of("rms", rows)


class Pupil:
    """A contender in training, with a clock that runs only inside of its steps."""

    def __init__(
        self, name: str, lr: float, steps: int, rows: Tensor, d_sae: int, k: int, seed: int = 0
    ) -> None:
        self.scale = scale(name, rows)
        torch.manual_seed(seed)
        sae = SAE(SAEConfig(d_in=rows.shape[1], d_sae=d_sae, k=k), seed).to(rows.device)
        sae.b_dec.data.copy_(rows.mean(dim=0) * self.scale)
        self.run: Run = make(name, sae, Recipe(lr, steps, B, rows[:B] * self.scale))
        self.seconds, self.curve = 0.0, list[list[float]]()  # points [seconds, tokens, FVU]

    def train(self, batches: Iterator[Tensor]) -> None:
        for x in batches:
            x = x * self.scale
            self.seconds += seconds_of(partial(self.run.step, x))

    def judge(self, held_out: Tensor, tokens: int) -> float:
        sae = self.run.sae()
        sae.b_enc.data /= self.scale
        sae.b_dec.data /= self.scale
        fvu = evaluate(sae, held_out).fvu
        self.curve.append([round(self.seconds, 3), tokens, round(fvu, 5)])
        return fvu


def stream(rows: Tensor, seed: int = 0) -> Iterator[Tensor]:
    """All rows once in the order of a seed, then again in another."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        for index in torch.randperm(len(rows), generator=generator).split(B):
            if len(index) == B:
                yield rows[index]


def compete(pupils: dict[str, Pupil], rows: Tensor, held_out: Tensor, steps: int) -> None:
    """The run of all of them, in turn."""
    streams = {name: stream(rows) for name in pupils}
    for mark in range(1, MARKS + 1):
        for name, pupil in pupils.items():
            done, until = steps * (mark - 1) // MARKS, steps * mark // MARKS
            pupil.train(islice(streams[name], until - done))
            pupil.judge(held_out, until * B)
        print({name: pupil.curve[-1] for name, pupil in pupils.items()}, flush=True)


def tune(name: str, rows: Tensor, held_out: Tensor, found: dict[str, float]) -> Iterator[dict[str, float]]:
    """found: FVU by learning rate, so far. Yields it with one more until the best has one on both sides of it, and these
    are a factor of sqrt 2 away."""
    while True:
        rates = [float(lr) for lr in found]
        best = min(rates, key=lambda lr: found[repr(lr)], default=FIRST)
        wanted = [best] if best not in rates else []
        wanted += [best / 2] if min(rates, default=0) == best else []
        wanted += [best * 2] if max(rates, default=0) == best else []
        wanted += [
            lr for lr in (best / 2**0.5, best * 2**0.5) if not any(abs(lr / r - 1) < 0.01 for r in rates)
        ]
        if not wanted:
            return
        lr = float(f"{wanted[0]:.3g}")
        pupil = Pupil(name, lr, STEPS, rows, D_SAE, K)
        pupil.train(islice(stream(rows), STEPS))
        fvu = pupil.judge(held_out, STEPS * B)
        found = found | {repr(lr): fvu if math.isfinite(fvu) else math.inf}
        yield found


def read_rates() -> dict[str, dict[str, float]]:
    rates: dict[str, dict[str, float]] = measuring.read_result("quality_tuning").get(
        "FVU by learning rate", {}
    )
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="*", help="activations to train on, and held-out ones")
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, help="with --tune: these")
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args()
    names = [name for name in CONTENDERS if not missing(name) and name not in LEFT_OUT]
    if args.smoke:
        torch.manual_seed(0)
        rows = (torch.randn(2048, 32) @ torch.randn(32, 32) + 3).to(DEVICE)
        pupils = {name: Pupil(name, FIRST, 32, rows, 256, 4) for name in names}
        compete(pupils, rows, rows[:512], 32)
        curves = {name: pupil.curve for name, pupil in pupils.items()}
        assert all(curve[-1][2] < curve[0][2] for curve in curves.values()), curves
        return
    if len(args.folders) != 2:
        parser.error("folders: expected activations to train on and held-out ones (or --smoke)")
    rows = rows_of(args.folders[0], (B, 576), 10**6).to(DEVICE)
    held_out = rows_of(args.folders[1], (B, 576), HELD_OUT // B).to(DEVICE)
    tuned = read_rates()
    if args.tune:
        for name in args.only or [n for n in names if n not in SAME]:
            for found in tune(name, rows, held_out, tuned.get(name, {})):
                print(name, found, flush=True)
                tuned = read_rates() | {name: found}  # another process may tune others
                result = {"tokens": STEPS * B, "FVU by learning rate": tuned}
                measuring.write_result("quality_tuning", result)
        return
    best = {name: float(min(found, key=found.__getitem__)) for name, found in tuned.items()}
    rates = {name: best[SAME.get(name, name)] for name in names}
    pupils = {name: Pupil(name, rates[name], STEPS, rows, D_SAE, K) for name in names}
    compete(pupils, rows, held_out, STEPS)
    more = f"saefast, {LONG} times the tokens"
    longer = {more: Pupil(DEMO, LONG_LR, LONG * STEPS, rows, D_SAE, K)}
    compete(longer, rows, held_out, LONG * STEPS)
    shape = {"B": B, "d_in": rows.shape[1], "d_sae": D_SAE, "k": K}
    shape |= {"tokens": STEPS * B, "held out": len(held_out)}
    curves = {name: pupil.curve for name, pupil in (pupils | longer).items()}
    found = {"shape": shape, "long": more, "lr": rates | {more: LONG_LR}, "[seconds, tokens, FVU]": curves}
    print(measuring.write_result("quality", found | {"left out": left_out()}))


if __name__ == "__main__":
    main()
