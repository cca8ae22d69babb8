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
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from benchmarks.measuring import (
    RESULTS,
    batches,
    cpu_name,
    in_fresh_process,
    interleaved,
    ratio,
    rows_of,
    spread,
)
from benchmarks.peers import dictionary_learning, llamascopium, pytorch, sae_lens, sparsify
from benchmarks.peers.runs import scale_of
from benchmarks.shapes import Shape

RESULT = RESULTS / "cpu" / "drop_in.json"
SHAPE, SMOKE = Shape(4096, 576, 9216, 32), Shape(256, 576, 1152, 32)
SETTLE, ROUNDS, AGREE = 4, 11, 1e-4
TRAINED = 300
PROJECTS = {  # name -> its file, its package, what its own pipeline scales rows to
    "dictionary_learning": (dictionary_learning, "dictionary-learning", "rms"),
    "sae_lens": (sae_lens, "sae-lens", "sqrt_d"),
    "sparsify": (sparsify, "eai-sparsify", "none"),
    "llamascopium": (llamascopium, "llamascopium", "none"),
    "pytorch": (pytorch, "torch", "none"),
}


def measure(project: str, kind: str, shape: Shape, rows: Tensor) -> dict[str, Any]:
    file, _, units = PROJECTS[project]
    rows = rows * scale_of(units, rows)
    stream, (stock, ours) = batches(rows, shape.B), file.pair(kind, shape, rows)
    losses = []
    for x in (next(stream) for _ in range(SETTLE)):
        found = [(side.step(x), side.loss) for side in (stock, ours)]
        losses.append([float(number if loss is None else loss(x)) for number, loss in found])
    off = [b / a - 1 for a, b in losses]
    assert max(map(abs, off)) < AGREE, f"{project} {kind}: the losses differ: {losses}"
    l0 = float(shape.K)
    if "TopK" not in kind and ours.module is not None:
        for x in (next(stream) for _ in range(TRAINED)):
            ours.step(x)
        stock.module.load_state_dict(ours.module.state_dict())
        l0 = float((ours.acts(x) > 0).sum() / len(x))
    seconds = interleaved({"stock": stock.step, "ours": ours.step}, stream, ROUNDS)
    return {
        "seconds": spread(seconds["ours"], 5)[0],
        "l0": l0,
        "stock over ours": ratio(seconds["stock"], seconds["ours"]),
        "loss over stock's less 1, first steps": off,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder")
    parser.add_argument("--only", nargs="*", default=list(PROJECTS), choices=list(PROJECTS))
    parser.add_argument("--smoke", action="store_true", help="one kind of each, small, nothing written")
    parser.add_argument("--one", nargs=2, help="(inner) one project and kind, in this process")
    args = parser.parse_args()
    shape = SMOKE if args.smoke else SHAPE
    if args.one:
        print(json.dumps(measure(*args.one, shape, rows_of(args.folder, shape, 10**6))))
        return
    machine = {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    sizes = dict(zip(("B", "d_in", "d_sae", "k"), shape, strict=True)) | {"rounds": ROUNDS}
    found: dict[str, Any] = {}
    if RESULT.exists():
        found = json.loads(RESULT.read_text())["projects"]
    for project in args.only:
        file, package, _ = PROJECTS[project]
        row: dict[str, Any] = {"version": version(package)}
        for kind in file.KINDS[: 1 if args.smoke else None]:
            inner = [args.folder, *(["--smoke"] if args.smoke else []), "--one", project, kind]
            row[kind] = in_fresh_process(__file__, *inner)
            print(project, kind, json.dumps(row[kind]), flush=True)
        found[project] = row
        if not args.smoke:
            text = json.dumps({"shape": sizes, "machine": machine, "projects": found}, indent=1)
            RESULT.write_text(text + "\n")


if __name__ == "__main__":
    main()
