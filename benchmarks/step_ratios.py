"""The training step on this machine against PyTorch and peers: interleaved rounds in one process, medians of ratios.

    python benchmarks/step_ratios.py data/acts-corpus data/acts-mlp    writes benchmarks/results/step_cpu.json
    python benchmarks/step_ratios.py --smoke                           a toy shape on random numbers, nothing written

The folders are activations of width 576 (the demo's) and 1536: `saefast cache data/smollm2-135m data/corpus.jsonl --hook
model.layers.12.mlp.down_proj:in --out data/acts-mlp --tokens 40000`. The peers of `peers.py` take part where they can be
imported (in an environment of their own), else they are listed as not installed.

Everybody does the same step from the same weights on the same batches of real activations, b_dec at their mean; the
FVUs are compared before the clock runs. In each round all of them run once, in rotating order, on the next batch, and
a ratio is taken within a round: a noisy neighbour slows a whole round. All of it runs twice: with glibc's allocator as
it is, which gives large buffers back to the kernel after every free, and with one that keeps them. Memory is the peak of
a process of its own over what it held before the contender was made.
"""

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import peers
import torch
from peers import BETAS, EPS, LR, Step
from plain import PlainStep
from stock import StockStep
from torch import Tensor

from saefast import SAE, SAEConfig, TrainConfig, Trainer, open_source
from saefast.backend import unavailable

RESULT = Path(__file__).parent / "results" / "step_cpu.json"
SHAPES = {  # B, d_in, d_sae, k
    "demo": (512, 576, 4608, 32),
    "residual": (4096, 576, 9216, 32),
    "mlp": (2048, 1536, 24576, 64),
}
ROUNDS = {"smoke": 3, "demo": 25, "residual": 11, "mlp": 7}
KEEP = "glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=8589934592:glibc.malloc.hugetlb=1"
Shape = tuple[int, int, int, int]


def fresh(shape: Shape, data: Tensor) -> SAE:
    _, D, F, K = shape
    sae = SAE(SAEConfig(d_in=D, d_sae=F, k=K))
    sae.b_dec.data.copy_(data.mean(dim=0))
    return sae


def ours(backend: str, shape: Shape, data: Tensor) -> Step:
    config = TrainConfig(
        total_tokens=10**9, batch_size=shape[0], lr=LR, betas=BETAS, eps=EPS, warmup_fraction=0,
        normalize_input=False, backend=backend,  # type: ignore[arg-type]
    )  # fmt: skip
    trainer = Trainer(fresh(shape, data), config)
    return lambda x: float(trainer.step(x).fvu)


def of_peer(make: Callable[[SAE], Step], shape: Shape, data: Tensor) -> Step:
    return make(fresh(shape, data))


def encoder_product(shape: Shape, data: Tensor) -> Step:
    """The one dense product that every step contains, into memory that is used again: the floor."""
    sae, out = fresh(shape, data), torch.empty(shape[0], shape[2])
    return lambda x: float(torch.addmm(sae.b_enc.data, x, sae.W_enc.data.T, out=out)[0, 0])


def of_class(cls: type, shape: Shape, data: Tensor) -> Step:
    step = cls(fresh(shape, data).params, shape[3], LR, BETAS, EPS)
    return lambda x: float(step(x))


MAKE: dict[str, Callable[[Shape, Tensor], Step]] = {
    "plain": partial(of_class, PlainStep),
    "stock": partial(of_class, StockStep),
    "reference": partial(ours, "reference"),
    "native": partial(ours, "native"),
    "sparsify Adam": partial(of_peer, partial(peers.sparsify, "Adam")),
    "sparsify signum": partial(of_peer, partial(peers.sparsify, "signum")),
    "dictionary_learning": partial(of_peer, peers.dictionary_learning),
    "SAELens": partial(of_peer, partial(peers.sae_lens, False)),
    "SAELens sparse": partial(of_peer, partial(peers.sae_lens, True)),
    "encoder product": encoder_product,
}
ALIKE = {  # how far the FVU may be off plain's, relative: on the weights of the start, and after one update
    "stock": (1e-4, 1e-4), "reference": (1e-4, 1e-4), "native": (1e-4, 1e-4),
    "sparsify Adam": (1e-4, 1e-2),  # projects and normalises in another order
    "sparsify signum": (1e-4, 1e-2),  # its first step is as long as Adam's
    "dictionary_learning": (1e-4, 1e-3),  # another epsilon, clips the gradient
    "SAELens": (1e-4, 2e-2), "SAELens sparse": (1e-4, 2e-2),  # decoder rows change their norm
}  # fmt: skip


def why_not(name: str) -> str | None:
    return unavailable(name) if name in ("reference", "native") else peers.missing(name)


def batches(data: Tensor, B: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(0)
    while True:
        yield data[torch.randperm(len(data), generator=generator)[:B]].contiguous()


def compare(steps: dict[str, Step], stream: Iterator[Tensor]) -> dict[str, list[float]]:
    """The first two FVUs of each over plain's, less 1. Refuses to go on if they are not alike."""
    off: dict[str, list[float]] = {name: [] for name in steps if name in ALIKE}
    for i in range(2):
        x = next(stream)
        losses = {name: step(x) for name, step in steps.items()}
        per_token = float((x - x.mean(dim=0)).square().sum()) / len(x)
        for name, bounds in ALIKE.items():
            if name in losses:
                fvu = losses[name] / (per_token if name.split()[0] in peers.PER_TOKEN else 1)
                off[name].append(fvu / losses["plain"] - 1)
                alike = abs(off[name][i]) < bounds[i]
                assert alike, f"{name}: FVU {fvu} in step {i + 1}, plain's {losses['plain']}, bounds {bounds}"
    return off


def measure(steps: dict[str, Step], stream: Iterator[Tensor], rounds: int) -> dict[str, dict[str, object]]:
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for i in range(rounds):
        x = next(stream)
        for name in names[i % len(names) :] + names[: i % len(names)]:
            start = time.perf_counter()
            steps[name](x)
            seconds[name].append(time.perf_counter() - start)
    out: dict[str, dict[str, object]] = {}
    for name in names:
        row: dict[str, object] = {"seconds": round(statistics.median(seconds[name]), 4)}
        for other, theirs in seconds.items():
            if name != other and other not in ("reference", "native"):
                ratios = [a / b for a, b in zip(theirs, seconds[name], strict=True)]
                deciles = statistics.quantiles(ratios, n=10, method="inclusive")
                spread = [statistics.median(ratios), deciles[0], deciles[-1]]
                row[f"time of {other} / this"] = [round(value, 3) for value in spread]
        out[name] = row
    return out


def data_of(folder: str | None, shape: Shape) -> Tensor:
    if folder is None:
        return torch.randn(4 * shape[0], shape[1], generator=torch.Generator().manual_seed(0))
    return torch.cat([rows.float() for rows in open_source(folder).rows()])[: 10 * shape[0]]


def peak_mib(name: str, folder: str | None, shape: Shape) -> float:
    """In this process, which must be fresh."""
    data = data_of(folder, shape)
    x, _ = next(batches(data, shape[0])), torch.randn(512, 512) @ torch.randn(512, 512)
    status = partial(re.search, string=Path("/proc/self/status").read_text())
    before = int(status(r"VmRSS:\s+(\d+)")[1])  # type: ignore[index]
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    step = MAKE[name](shape, data)
    for _ in range(3):
        step(x)
    after = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    return round((int(after[1]) - before) / 1024, 1)  # type: ignore[index]


def again(*args: str, env: dict[str, str] | None = None) -> str:
    """The last line that this script prints with other arguments (the peers print, too)."""
    command = [sys.executable, __file__, *args]
    done = subprocess.run(
        command, env=os.environ | (env or {}), check=True, stdout=subprocess.PIPE, text=True
    )
    return done.stdout.splitlines()[-1]


def one_shape(name: str, folder: str | None) -> dict[str, object]:
    """Times of all contenders at one shape, in this process."""
    shape = (64, 32, 256, 4) if name == "smoke" else SHAPES[name]
    data = data_of(folder, shape)
    stream, steps = (
        batches(data, shape[0]),
        {n: make(shape, data) for n, make in MAKE.items() if not why_not(n)},
    )
    off = compare(steps, stream)
    return {
        "shape": dict(zip(("B", "d_in", "d_sae", "k"), shape, strict=True)),
        "left out": {n: why for n in MAKE if (why := why_not(n))},
        "FVU over plain's less 1: before, after an update": off,
        "contenders": measure(steps, stream, ROUNDS[name]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="*", help="activations of width 576 and of width 1536")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--one", help="(inner) time one shape")
    parser.add_argument("--peak", help="(inner) memory of one contender at the shape of --one")
    args = parser.parse_args()
    folder = args.folders[0] if args.folders else None
    if args.peak:
        print(peak_mib(args.peak, folder, SHAPES[args.one]))
    elif args.one:
        print(json.dumps(one_shape(args.one, folder)))
    elif args.smoke:
        print(json.dumps(one_shape("smoke", None), indent=1))
    else:
        if len(args.folders) != 2:
            parser.error("expected two folders of activations (or --smoke)")
        result: dict[str, object] = {
            "machine": {"cpu": cpu_name(), "cores": os.cpu_count(), "threads": torch.get_num_threads()},
            "versions": {"torch": torch.__version__, "python": platform.python_version()},
        }
        for name, shape in SHAPES.items():
            where = args.folders[0 if shape[1] == 576 else 1]
            case = json.loads(again(where, "--one", name))
            case["keeping allocator"] = json.loads(again(where, "--one", name, env={"GLIBC_TUNABLES": KEEP}))[
                "contenders"
            ]
            for contender, row in case["contenders"].items():
                row["peak MiB"] = float(again(where, "--one", name, "--peak", contender))
                print(f"{name:10} {contender:16} {row}", flush=True)
            result[name] = case
            RESULT.write_text(json.dumps(result, indent=1) + "\n")


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next(
        (line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine()
    )


if __name__ == "__main__":
    main()
