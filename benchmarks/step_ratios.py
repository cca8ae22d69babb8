"""The training step against plain PyTorch on this machine: interleaved rounds in one process, medians of ratios.

    python benchmarks/step_ratios.py [--smoke]      writes benchmarks/results/step_cpu.json

Every contender does the same step from the same start on the same batch; the first losses are compared before the
clock runs. In each round all of them run once, in rotating order, and a ratio is taken within a round: a noisy
neighbour slows a whole round. `plain` is dense autograd with torch's fused Adam (`plain.py`).
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from plain import PlainStep

from saefast import SAE, SAEConfig, TrainConfig, Trainer
from saefast.backend import unavailable

RESULT = Path(__file__).parent / "results" / "step_cpu.json"
SHAPES = {  # B, d_in, d_sae, k
    "demo": (512, 576, 4608, 32),
    "residual": (4096, 576, 9216, 32),
    "mlp": (2048, 1536, 24576, 64),
}


def contenders(shape: tuple[int, int, int, int]) -> dict[str, Callable[[], float]]:
    """One step of each, returning its FVU; refuses to go on if they do not agree."""
    B, D, F, K = shape
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(B, D, generator=generator) @ torch.randn(D, D, generator=generator) / D**0.5
    options = {
        "total_tokens": 10**9,
        "batch_size": B,
        "lr": 1e-3,
        "warmup_fraction": 0,
        "normalize_input": False,
    }
    config = TrainConfig(**options, backend="reference")
    steps: dict[str, Callable[[], float]] = {}
    plain = PlainStep(SAE(SAEConfig(d_in=D, d_sae=F, k=K)).params, K, 1e-3, config.betas, config.eps)
    steps["plain"] = lambda: float(plain(x))
    for backend in ("reference", "native"):
        if unavailable(backend) is None:
            trainer = Trainer(SAE(SAEConfig(d_in=D, d_sae=F, k=K)), TrainConfig(**options, backend=backend))
            steps[backend] = lambda trainer=trainer: float(trainer.step(x).fvu)  # type: ignore[misc]
    for _ in range(2):
        losses = {name: step() for name, step in steps.items()}
        for name, loss in losses.items():
            assert abs(loss / losses["plain"] - 1) < 1e-4, f"{name} disagrees with plain: {losses}"
    return steps


def measure(steps: dict[str, Callable[[], float]], rounds: int) -> dict[str, dict[str, float]]:
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            start = time.perf_counter()
            steps[name]()
            seconds[name].append(time.perf_counter() - start)
    deciles = partial(statistics.quantiles, n=10, method="inclusive")
    ratios = {name: [p / s for p, s in zip(seconds["plain"], seconds[name], strict=True)] for name in names}
    return {
        name: {
            "seconds_median": round(statistics.median(seconds[name]), 4),
            "seconds_min": round(min(seconds[name]), 4),
            "times_faster_than_plain": round(statistics.median(ratios[name]), 2),
            "percentiles_10_90": [round(q, 2) for q in (deciles(ratios[name])[0], deciles(ratios[name])[-1])],
        }
        for name in names
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="a toy shape, nothing written")
    smoke = parser.parse_args().smoke
    shapes = {"smoke": (64, 32, 256, 4)} if smoke else SHAPES
    result: dict[str, object] = {
        "machine": {"cpu": cpu_name(), "cores": os.cpu_count(), "threads": torch.get_num_threads()},
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "malloc": os.environ.get("GLIBC_TUNABLES", "default"),
    }
    for name, shape in shapes.items():
        rows = measure(contenders(shape), 5 if smoke else 15)
        result[name] = {
            "shape": dict(zip(("B", "d_in", "d_sae", "k"), shape, strict=True)),
            "contenders": rows,
        }
        for contender, row in rows.items():
            print(f"{name:10} {contender:10} {row}", flush=True)
    if not smoke:
        RESULT.parent.mkdir(parents=True, exist_ok=True)
        RESULT.write_text(json.dumps(result, indent=1) + "\n")


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next(
        (line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine()
    )


if __name__ == "__main__":
    main()
