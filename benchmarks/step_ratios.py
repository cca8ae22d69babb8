"""The training step on this machine against PyTorch and peers: interleaved rounds in one process, medians of ratios.

    python benchmarks/step_ratios.py data/acts-corpus data/acts-mlp    writes benchmarks/results/step_cpu.json
    python benchmarks/step_ratios.py --smoke                           a toy shape on random numbers, nothing written

The folders are activations of width 576 (the demo's) and 1536: `saefast cache data/smollm2-135m data/corpus.jsonl --hook
model.layers.12.mlp.down_proj:in --out data/acts-mlp --tokens 40000`. sparsify takes part where it can be imported
(`pip install eai-sparsify==1.3.3 && pip uninstall -y torchvision`, in an environment of its own), else it is listed as
not installed.

Everybody does the same step from the same weights on the same batches of real activations, b_dec at their mean; the
losses are compared before the clock runs. In each round all of them run once, in rotating order, on the next batch, and
a ratio is taken within a round: a noisy neighbour slows a whole round. All of it runs twice: with glibc's allocator as
it is, which gives large buffers back to the kernel after every free, and with one that keeps them. Memory is the peak of
a process of its own over what it held before the contender was made.
"""

import argparse
import importlib.util
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

import torch
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
LR, BETAS, EPS = 1e-3, (0.9, 0.999), 6.25e-10
Shape = tuple[int, int, int, int]
Step = Callable[[Tensor], float]


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


def sparsify(optimizer: str, shape: Shape, data: Tensor) -> Step:
    """Its module, stepped as its trainer does."""
    from schedulefree import ScheduleFreeWrapper
    from sparsify.config import SparseCoderConfig
    from sparsify.sign_sgd import SignSGD
    from sparsify.sparse_coder import SparseCoder

    _, D, F, K = shape
    sae, coder = fresh(shape, data), SparseCoder(D, SparseCoderConfig(num_latents=F, k=K))
    own = coder.encoder.weight, coder.encoder.bias, coder.W_dec, coder.b_dec
    for param, value in zip(own, sae.params, strict=True):
        param.data.copy_(value)
    if optimizer == "signum":
        opt = ScheduleFreeWrapper(SignSGD([{"params": list(coder.parameters()), "lr": LR}]), momentum=0.95)
        opt.train()
    else:
        opt = torch.optim.Adam(coder.parameters(), lr=LR, betas=BETAS, eps=EPS)

    def step(x: Tensor) -> float:
        coder.set_decoder_norm_to_unit_norm()
        fvu = coder(x=x, y=x).fvu
        fvu.backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        opt.step()
        opt.zero_grad()
        return float(fvu.detach())

    return step


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
    "sparsify Adam": partial(sparsify, "Adam"),
    "sparsify signum": partial(sparsify, "signum"),
    "encoder product": encoder_product,
}
SAME_STEP = ("plain", "stock", "reference", "native", "sparsify Adam")  # signum's second loss is another


def why_not(name: str) -> str | None:
    if name.startswith("sparsify"):
        return None if importlib.util.find_spec("sparsify") else "not installed"
    return unavailable(name) if name in ("reference", "native") else None


def batches(data: Tensor, B: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(0)
    while True:
        yield data[torch.randperm(len(data), generator=generator)[:B]].contiguous()


def compare(steps: dict[str, Step], stream: Iterator[Tensor]) -> None:
    """Refuse to go on if they do not agree: on the weights of the start, and after one update."""
    for i in range(2):
        x = next(stream)
        losses = {name: step(x) for name, step in steps.items()}
        for name in losses.keys() & set(SAME_STEP):
            # sparsify projects and normalises in another order, which shows after an update
            bound = 1e-2 if i and name.startswith("sparsify") else 1e-4
            off = abs(losses[name] / losses["plain"] - 1)
            assert off < bound, f"{name} disagrees with plain in step {i + 1}: {losses}"


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
        for other in ("plain", "stock", "sparsify Adam", "sparsify signum", "encoder product"):
            if other in seconds and name != other:
                ratios = [a / b for a, b in zip(seconds[other], seconds[name], strict=True)]
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
    compare(steps, stream)
    return {
        "shape": dict(zip(("B", "d_in", "d_sae", "k"), shape, strict=True)),
        "left out": {n: why for n in MAKE if (why := why_not(n))},
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
