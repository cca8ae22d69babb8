"""How a TopK training step grows with d_sae, d_in, k, the batch and the number of SAEs; the largest dictionary that trains.

    .venv-peers/bin/python -m benchmarks.peers.scaling data/acts-corpus    writes benchmarks/results/<device>/scaling.json
    .venv-peers/bin/python -m benchmarks.peers.scaling --largest           writes benchmarks/results/cpu/largest.json as it goes
    python -m benchmarks.peers.scaling --smoke                             toy sizes on random numbers, nothing written

One size moves at a time from those of `Plan.base`. At every point everybody has the same weights and batches, and the FVUs of
two steps are compared before the clock runs (`step_ratios.compare`); where d_sae is largest only ours is timed. Rows narrower
than the folder's are their first columns, wider ones several tokens side by side. Several SAEs are stepped as in
`saefast.sweep`, and one after another on all threads: they see the same batches, and have the same FVUs bit for bit.

An exponent is the slope of a line through the logarithms of the medians, with its standard error: what noise and curvature
leave. Peak memory is that of two steps on random numbers (`largest_dictionary.trial`), above what the process held before.
"""

import argparse
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import measuring
from benchmarks.measuring import DEVICE, in_fresh_process, interleaved, ratio, rows_of, spread
from benchmarks.peers import largest_dictionary
from benchmarks.peers.contenders import OURS, missing
from benchmarks.peers.step_ratios import compare, fresh, step_of
from benchmarks.shapes import Shape
from saefast import TrainConfig, Trainer
from saefast.train.memory import memory_bytes
from saefast.train.parallel import side_by_side, workers_for

LETTERS = {"d_sae": "F", "d_in": "D", "k": "K", "batch": "B"}  # fields of a Shape
PLAIN = "plain PyTorch"
TIMED = ("saefast", PLAIN, "best PyTorch ops", "sparsify Adam")
ALONE = 8  # times the d_sae of the base: beyond, ours alone is timed
Found = dict[str, Any]


class Plan(NamedTuple):
    base: Shape
    axes: dict[str, tuple[int, ...]]
    rounds: int


PLAN = Plan(
    Shape(512, 576, 2**12, 32),
    {
        "d_sae": (2**12, 2**13, 2**14, 2**15, 2**16),
        "d_in": (96, 192, 384, 576, 1536),
        "k": (8, 32, 64, 256),
        "batch": (256, 512, 1024, 4096),
        "SAEs": (1, 2, 4, 8),
    },
    3,
)
SMOKE = Plan(
    Shape(64, 32, 256, 4),
    {
        "d_sae": (256, 512, 1024, 4096),
        "d_in": (16, 32, 48),
        "k": (2, 4, 8),
        "batch": (32, 64, 96),
        "SAEs": (1, 2, 3),
    },
    2,
)


def exponent(sizes: Sequence[float], values: Sequence[float]) -> list[float]:
    """Least squares of log(values) = slope * log(sizes) + constant: the slope and its standard error."""
    x, y = [math.log(size) for size in sizes], [math.log(value) for value in values]
    slope, constant = statistics.linear_regression(x, y)
    left = sum((b - slope * a - constant) ** 2 for a, b in zip(x, y, strict=True))
    error = math.sqrt(left / (len(x) - 2) / (statistics.variance(x) * (len(x) - 1)))
    return [round(slope, 3), round(error, 3)]


def axis(values: Sequence[int], points: Sequence[Found], unit: str) -> Found:
    """What was found at each value, and everybody's exponent of the medians, from the points where they took part."""
    exponents = {}
    for name in points[0]:
        there = [(v, p[name][unit][0]) for v, p in zip(values, points, strict=True) if name in p]
        exponents[name] = exponent(*zip(*there, strict=True))
    return {"values": list(values), "points": list(points), "exponents": exponents}


def widened(rows: Tensor, d_in: int) -> Tensor:
    """rows [n, D] -> [n // tokens, d_in]: their first columns, or those of as many tokens side by side as it takes."""
    n, D = rows.shape
    tokens = -(-d_in // D)
    return rows[: n // tokens * tokens].reshape(-1, tokens * D)[:, :d_in].contiguous().to(DEVICE)


def timed(steps: Mapping[str, Callable[[Tensor], Any]], stream: Iterator[Tensor], rounds: int) -> Found:
    """The seconds of each step, and their ratio to the first one's."""
    seconds = interleaved(steps, stream, rounds)
    first = seconds[next(iter(steps))]
    return {name: {"seconds": spread(s, 5), "ratio": ratio(s, first)} for name, s in seconds.items()}


def taking_part(names: Sequence[str], shape: Shape, base: Shape) -> Sequence[str]:
    return names if shape.F <= ALONE * base.F else names[:1]


def point(names: Sequence[str], shape: Shape, rows: Tensor, rounds: int) -> Found:
    rows = widened(rows, shape.D)
    stream = measuring.batches(rows, shape.B)
    steps = {name: step_of(name, shape, rows) for name in dict.fromkeys([*names, PLAIN])}
    compare(steps, stream)
    return timed({name: steps[name] for name in names}, stream, rounds)


def several(n: int, shape: Shape, rows: Tensor, rounds: int) -> Found:
    """One step of each of n SAEs: side by side as a sweep makes it, and one SAE after another."""
    rows, threads = widened(rows, shape.D), torch.get_num_threads()
    stream = measuring.batches(rows, shape.B)
    config = TrainConfig(total_tokens=10**6, batch_size=shape.B, lr=1e-3, normalize_input=False, backend=OURS)
    swept, single = ([Trainer(fresh(shape, rows).to(DEVICE), config) for _ in range(n)] for _ in range(2))

    with side_by_side(workers_for(n, DEVICE), DEVICE) as together:

        def sweep(x: Tensor) -> list[float]:
            return [float(metrics.fvu) for metrics in together(lambda trainer: trainer.step(x), swept)]

        def one_by_one(x: Tensor) -> list[float]:
            torch.set_num_threads(threads)  # of this thread only, in which a sweep computes nothing
            return [float(trainer.step(x).fvu) for trainer in single]

        for x in (next(stream), next(stream)):
            assert (a := sweep(x)) == (b := one_by_one(x)), f"side by side {a}, one after another {b}"
        return timed({"sweep": sweep, "one by one": one_by_one}, stream, rounds)


def times(plan: Plan, names: Sequence[str], rows: Tensor) -> Found:
    """All axes; each is printed as soon as it is measured. They share the point at the base, which has three times the rounds."""
    base, found = point(names, plan.base, rows, 3 * plan.rounds), {}
    for what, letter in LETTERS.items():
        shapes = [plan.base._replace(**{letter: value}) for value in plan.axes[what]]
        points = []
        for shape in shapes:
            here = taking_part(names, shape, plan.base)
            points.append(base if shape == plan.base else point(here, shape, rows, plan.rounds))
        found[what] = axis(plan.axes[what], points, "seconds")
        table(what, found[what])
    counts = plan.axes["SAEs"]
    found["SAEs"] = axis(counts, [several(n, plan.base, rows, plan.rounds) for n in counts], "seconds")
    table("SAEs", found["SAEs"])
    return found


def memory(plan: Plan, names: Sequence[str]) -> Found:
    """Peak memory over d_sae, each contender in one process, beside what `saefast.train.memory` predicts for ours. The
    first trial of a process loads what is loaded on first use, and does not count."""
    shapes = [plan.base._replace(F=value) for value in plan.axes["d_sae"]]
    points: list[Found] = [{} for _ in shapes]
    for name in names:
        measured = [s for s in shapes if name in taking_part(names, s, plan.base)]
        peaks = in_fresh_process(
            largest_dictionary.__file__, name, *map(largest_dictionary.as_text, [plan.base, *measured])
        )
        for found, (before, peak) in zip(points, peaks[1:]):  # noqa: B905 (not all take part in the last)
            found[name] = {"MiB": [round(peak - before, 1)]}
    for found, shape in zip(points, shapes, strict=True):
        parts = memory_bytes(*shape, compute_bytes=2 if DEVICE == "cuda" else 4)
        if DEVICE == "cpu":
            del parts["pre-activations"]  # never exist, see docs/engine.md
        found["memory_bytes"] = {"MiB": [round(sum(parts.values()) / 2**20, 1)]}
    return axis(plan.axes["d_sae"], points, "MiB")


def table(title: str, found: Found) -> None:
    """Print milliseconds of the first contender and the ratios of the others to it, or MiB if memory was measured."""

    def cell(name: str, measured: Found) -> str:
        if "MiB" in measured:
            return f"{measured['MiB'][0]:.0f}"
        if name == names[0]:
            return "{:.1f} ms ({:.1f} to {:.1f})".format(*(1000 * s for s in measured["seconds"]))
        return "{:.2f} ({:.2f} to {:.2f})".format(*measured["ratio"])

    names = list(found["points"][0])
    print("".join(f"{text:>28}" for text in (title, *names)))
    for value, measured in zip(found["values"], found["points"], strict=True):
        cells = [cell(name, measured[name]) if name in measured else "" for name in names]
        print("".join(f"{text:>28}" for text in (value, *cells)))
    slopes = ["{:.2f} ± {:.2f}".format(*found["exponents"][name]) for name in names]
    print("".join(f"{text:>28}" for text in ("exponent", *slopes)) + "\n", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", help="activations")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--largest", action="store_true", help="in the memory of a machine without a GPU")
    parser.add_argument(
        "--memory", type=int, metavar="GIB", help="of --largest; default: what is available less 2"
    )
    everybody = largest_dictionary.CANDIDATES
    parser.add_argument("--contenders", nargs="+", choices=everybody, default=everybody, help="of --largest")
    args = parser.parse_args()
    if args.largest:
        if DEVICE == "cuda":
            parser.error(
                "--largest: watches the memory of the CPU; expected CUDA_VISIBLE_DEVICES to be empty"
            )
        return largest_dictionary.measure(args.contenders, args.memory)
    if not args.folder and not args.smoke:
        parser.error("folder: expected a folder of activations (or --smoke, or --largest)")
    plan, names = SMOKE if args.smoke else PLAN, [name for name in TIMED if not missing(name)]
    found = times(plan, names, rows_of(args.folder, plan.base, 80))
    peaks = memory(plan, names[:1] if args.smoke else names)
    table("d_sae, peak MiB", peaks)
    if args.smoke:
        assert not largest_dictionary.watched("saefast", plan.base, budget=50)["fits"]
        return
    base = dict(zip(("B", "d_in", "d_sae", "k"), plan.base, strict=True))
    print(measuring.write_result("scaling", {"base": base, "seconds": found, "peak MiB": peaks}))


if __name__ == "__main__":
    main()
