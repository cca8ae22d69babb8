"""Each project's own training step, and the same step after the one line of `docs/drop-in/` has changed.

    .venv-peers/bin/python -m benchmarks.peers.drop_in data/acts-corpus    writes benchmarks/results/cpu/drop_in.json

B 4096, d_in 576, d_sae 9216, k 32, real activations, fp32: both sides from the same seed, on the same batches, interleaved,
in a process for each project (nnsight changes torch for everybody). Before the clock runs, the losses of the first
steps are compared. Where a step costs what is active (ReLU, JumpReLU, Gated), ours is then trained for 300 steps and the
other side gets its weights. What is timed is the step as the project's own loop makes it: forward, backward, optimizer, schedules,
statistics; not its data, which is the same on both sides.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.measuring import batches, cpu_name, module_of
from benchmarks.peers.drop_in_pairs import D_IN, D_SAE, PROJECTS, B, K
from benchmarks.peers.parity_common import read, scale_of

RESULT = Path(__file__).parents[1] / "results" / "cpu" / "drop_in.json"
SETTLE, ROUNDS, AGREE = 4, 11, 1e-4
TRAINED = 300
PACKAGES = {
    "dictionary_learning": "dictionary-learning", "sae_lens": "sae-lens", "sparsify": "eai-sparsify",
    "llamascopium": "llamascopium", "pytorch": "torch",
}  # fmt: skip
UNITS = {"dictionary_learning": "rms", "sae_lens": "sqrt_d"}  # of the rows, as their own normalisation


def measure(project: str, kind: str, rows: Tensor) -> dict[str, Any]:
    rows = rows * scale_of(UNITS.get(project, "none"), rows)
    stream, (stock, ours) = batches(rows, B), PROJECTS[project][0](kind, rows)
    losses = []
    for x in (next(stream) for _ in range(SETTLE)):
        found = [(side.step(x), side.loss) for side in (stock, ours)]
        losses.append([number if loss is None else loss(x) for number, loss in found])
    off = [b / a - 1 for a, b in losses]
    assert max(map(abs, off)) < AGREE, f"{project} {kind}: the losses differ: {losses}"
    l0 = float(K)
    if "TopK" not in kind and ours.module is not None:
        for x in (next(stream) for _ in range(TRAINED)):
            ours.step(x)
        stock.module.load_state_dict(ours.module.state_dict())
        l0 = float((ours.acts(x) > 0).sum() / len(x))  # type: ignore[misc]
    seconds: dict[str, list[float]] = {"stock": [], "ours": []}
    for i in range(ROUNDS):
        x = next(stream)
        for name, side in (("stock", stock), ("ours", ours))[:: 1 if i % 2 else -1]:
            start = time.perf_counter()
            side.step(x)
            seconds[name].append(time.perf_counter() - start)
    ratios = [a / b for a, b in zip(seconds["stock"], seconds["ours"], strict=True)]
    deciles = statistics.quantiles(ratios, n=10, method="inclusive")
    return {
        "seconds": statistics.median(seconds["ours"]),
        "l0": l0,
        "stock over ours": [statistics.median(ratios), deciles[0], deciles[-1]],
        "loss over stock's less 1, first steps": off,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder")
    parser.add_argument("--only", nargs="*", default=list(PROJECTS), choices=list(PROJECTS))
    parser.add_argument(
        "--smoke", action="store_true", help="one kind of each at a small shape, nothing written"
    )
    parser.add_argument("--one", nargs=2, help="(inner) one project and kind, in this process")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(*args.one, read(args.folder))))
        return
    machine = {
        "cpu": cpu_name(), "cores": os.cpu_count(), "threads": torch.get_num_threads(), "torch": torch.__version__,
        "python": platform.python_version(),
    }  # fmt: skip
    shape = {"B": B, "d_in": D_IN, "d_sae": D_SAE, "k": K, "rounds": ROUNDS}
    found: dict[str, Any] = {}
    if RESULT.exists():
        found = json.loads(RESULT.read_text())["projects"]
    for project in args.only:
        row: dict[str, Any] = {"version": version(PACKAGES[project])}
        for kind in PROJECTS[project][1][: 1 if args.smoke else None]:
            command = [sys.executable, "-m", module_of(__file__), args.folder, "--one", project, kind]
            env = os.environ | ({"DROP_IN_SHAPE": "256,1152"} if args.smoke else {})
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=env)
            row[kind] = json.loads(done.stdout.splitlines()[-1])
            print(project, kind, json.dumps(row[kind]), flush=True)
        found[project] = row
        if args.smoke:
            continue
        text = json.dumps({"shape": shape, "machine": machine, "projects": found}, indent=1)
        RESULT.write_text(text + "\n")


if __name__ == "__main__":
    main()
