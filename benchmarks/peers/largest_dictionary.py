"""The largest dictionary that trains in a budget of memory: what `scaling.py --largest` calls.

    python -m benchmarks.peers.largest_dictionary saefast 256,576,65536,32    a trial in this process: prints MiB held before, and at the peak

The peaks of three moderate sizes, each of a whole process of its own, make a line, and where it reaches the budget two steps
are trained. A process is killed when it passes the budget. The outcome is a d_sae that stayed within it, when 5% more did
not. Rows are random numbers, and nobody holds weights that are not their own; the loss has to be finite, no more is compared
here (`step_ratios.py` and `scaling.py` do).
"""

import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import measuring
from benchmarks.measuring import DEVICE, RESULTS
from benchmarks.peers.contenders import CONTENDERS, OURS, left_out, make, missing
from benchmarks.peers.pytorch import PlainStep, StockStep
from benchmarks.peers.runs import BETAS, EPS, Recipe, without_weights
from benchmarks.shapes import Shape
from saefast import SAE, SAEConfig, TrainConfig, Trainer

STOCK = {"plain PyTorch": PlainStep, "best PyTorch ops": StockStep}
# the other formats of weights and moments go the reference's way on a CPU, and take more memory in a step, not less
LEFT_OUT = ("reference", "plain PyTorch, compiled", "saefast, demo recipe", "saefast, free decoder")
CANDIDATES = tuple(name for name in CONTENDERS if name not in LEFT_OUT)
FIXED = Shape(256, 576, 0, 32)
# shares of the d_sae at which fp32 weights and moments, and nothing else, fill the budget
PROBES = 1 / 32, 1 / 16, 1 / 8
GRAIN, LESS, MORE = 1024, 0.97, 1.05
Found = dict[str, Any]


def lean(name: str, shape: Shape) -> Callable[[Tensor], Any]:
    """The step of a run from weights of its own. Those of `contenders.make` begin beside an SAE of ours; here the peers
    get one that has only b_dec, and ours and PyTorch's, whose weights these are, are made without."""
    B, D, F, K = shape
    config = SAEConfig(d_in=D, d_sae=F, k=K)
    if name == "saefast":
        train = TrainConfig(total_tokens=10**6, batch_size=B, lr=1e-3, normalize_input=False, backend=OURS)
        trainer = Trainer(SAE(config, device=DEVICE), train)
        return lambda x: trainer.step(x).fvu
    if name in STOCK:
        return STOCK[name](SAE(config, device=DEVICE).params, K, 1e-3, BETAS, EPS)
    template = without_weights(shape, torch.zeros(D))
    return make(name, template, Recipe(batch_size=B, sample=torch.randn(64, D))).step


def trial(name: str, shape: Shape) -> list[float]:
    """MiB of the process before two steps, and at their peak."""
    before, x = measuring.reset_peak(), torch.randn(shape.B, shape.D, device=DEVICE)
    step = lean(name, shape)
    for _ in range(2):
        assert math.isfinite(loss := float(step(x))), f"the loss is {loss}"
    return [before, before + measuring.peak_mib(before)]


def as_text(shape: Shape) -> str:
    return ",".join(map(str, shape))


def watched(name: str, shape: Shape, budget: float) -> Found:
    """A trial in a process of its own, with all that it imports, which ends when it is above the budget, in MiB."""
    start, why = time.perf_counter(), ""
    command = [sys.executable, "-m", measuring.module_of(__file__), name, as_text(shape)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    child = subprocess.Popen(command, cwd=measuring.checkout.ROOT, **pipes)  # type: ignore[call-overload]
    # if memory runs out all the same, this process is to go and no other
    Path(f"/proc/{child.pid}/oom_score_adj").write_text("1000")
    while True:
        try:
            out, error = child.communicate(timeout=0.01)
            break
        except subprocess.TimeoutExpired:
            pages = int(Path(f"/proc/{child.pid}/statm").read_text().split()[1])
            if pages * os.sysconf("SC_PAGE_SIZE") > budget * 2**20:
                child.kill()
                why = "killed above the budget"
    peak = json.loads(out.splitlines()[-1])[0][1] if child.returncode == 0 else None
    if peak is None and not why:
        why = (error.strip().splitlines() or [f"ended by signal {-child.returncode}"])[-1]
    elif peak is not None and peak > budget:
        why = "above the budget"
    seconds = round(time.perf_counter() - start, 1)
    found = {"d_sae": shape.F, "MiB": peak, "fits": not why, "why": why, "seconds": seconds}
    print(name, found, flush=True)
    return found


def predicted(trials: Sequence[Found], budget: float) -> tuple[float, int]:
    """A line through the peaks: its MiB for each latent, and the d_sae at which it reaches the budget, rounded down."""
    slope, held = statistics.linear_regression([t["d_sae"] for t in trials], [t["MiB"] for t in trials])
    return slope, max(GRAIN, int((budget - held) / slope) // GRAIN * GRAIN)


def largest(attempt: Callable[[int], Found], d_in: int, budget: float) -> Found:
    """attempt: d_sae -> `watched`. The budget is in MiB."""
    trials: list[Found] = []

    @cache
    def fits(d_sae: int) -> bool:
        trials.append(attempt(d_sae))
        return trials[-1]["fits"]

    full = budget * 2**20 / (24 * d_in)
    probes = [math.ceil(full * share / GRAIN) * GRAIN for share in PROBES]
    if not all(fits(d_sae) for d_sae in probes):
        return {"d_sae": None, "trials": trials}
    slope, d_sae = predicted(trials, budget)
    line = {"predicted": d_sae, "bytes per latent": round(slope * 2**20)}
    if fits(
        d_sae
    ):  # small sizes keep some buffers that large ones give back: a line through the last two is nearer
        _, nearer = predicted(trials[-2:], budget)
        d_sae = nearer if nearer > d_sae and fits(nearer) else d_sae
    while not fits(d_sae):
        d_sae = max(probes[-1], int(d_sae * LESS) // GRAIN * GRAIN)
    while fits(more := math.ceil(d_sae * MORE / GRAIN) * GRAIN):
        d_sae = more
    return {"d_sae": d_sae} | line | {"trials": trials}


def measure(names: Sequence[str], gib: int | None) -> None:
    """Writes after everybody; what was measured earlier of others, with the same budget, is kept. gib: default: what is
    available less 2."""
    gib = gib or available_gib() - 2
    path = RESULTS / "cpu" / "largest.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    found = before["largest"] if before.get("budget GiB") == gib else {}
    fixed = {"B": FIXED.B, "d_in": FIXED.D, "k": FIXED.K}
    for name in (n for n in names if not missing(n)):
        attempt = partial(lambda name, d_sae: watched(name, FIXED._replace(F=d_sae), gib * 1024), name)
        found[name] = largest(attempt, FIXED.D, gib * 1024)
        print(f"{name}: {found[name]['d_sae']} latents in {gib} GiB", flush=True)
        result = {"budget GiB": gib, "shape": fixed, "largest": found, "left out": left_out()}
        measuring.write_result("largest", result)


def available_gib() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("MemAvailable"))) // 2**20


def main() -> None:
    name, *shapes = sys.argv[1:]
    print(json.dumps([trial(name, Shape(*map(int, text.split(",")))) for text in shapes]))


if __name__ == "__main__":
    main()
