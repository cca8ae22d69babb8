"""`make gpu`, prediction 10: the step of other projects on this GPU, those that can be imported here.

Each is its own public step with its own optimizer at the width, k and batch of A and B, under bf16 autocast, without AuxK.
They compute different losses, so nothing is compared but whether the loss falls. A folder of packages can be put on
PYTHONPATH; what is not there is listed as not installed.
"""

import importlib.util
from functools import partial

from torch import Tensor

from benchmarks.gpu.common import (
    CASES,
    REHEARSAL,
    Item,
    Part,
    Report,
    Result,
    autocast,
    batches,
    expect,
    free,
    peak_gb,
    step_ms,
)
from benchmarks.peers import bionemo, openai
from benchmarks.peers.contenders import CONTENDERS, Make
from benchmarks.peers.runs import Recipe, without_weights

LR = 1e-4
PREDICTED_MS = {"A": 2.7, "B": 15.0}  # for the kernels of openai and sparsify, to 40%
PEERS: dict[str, tuple[str | None, Make]] = {
    "sparsify": CONTENDERS["sparsify Adam"],
    "sparsify-signum": CONTENDERS["sparsify signum"],
    "openai": ("sparse_autoencoder", openai.topk),
    "bionemo": ("sae", bionemo.topk),
    "dictionary_learning": CONTENDERS["dictionary_learning"],
    "sae_lens": CONTENDERS["SAELens"],
}


def peer(name: str, case: str, report: Report) -> Result:
    package, make = PEERS[name]
    if package and importlib.util.find_spec(package) is None:
        return {"missing": package}
    if REHEARSAL and name == "openai":
        return {"said": "its kernels do not run in the interpreter"}
    shape = CASES[case]
    (x,) = batches(shape, 1)  # what ours trains on, too
    recipe = Recipe(LR, batch_size=shape.B, sample=x)
    run = make(without_weights(shape, x.mean(dim=0)), recipe)
    free()

    def step() -> Tensor | float:
        with autocast():
            return run.step(x)

    losses = [float(step()) for _ in range(4)]
    expect(losses[-1] < losses[0], f"the loss does not fall: {losses}")
    found = step_ms(step) | peak_gb() | {"losses": losses}
    found["tokens_per_s"] = round(1e3 * shape.B / found["median_ms"])
    if name in ("sparsify", "openai"):
        found["prediction_for_h200_ms"] = [round(PREDICTED_MS[case] * factor, 2) for factor in (0.6, 1.4)]
    ours = report.get("step", {}).get(f"{case} triton", {}).get("triton")
    if ours:
        found["triton_is_faster_by"] = round(found["median_ms"] / ours["median_ms"], 2)
    return found


ITEMS: dict[str, Item] = {
    f"{name} {case}": partial(peer, name, case) for case in CASES if case in PREDICTED_MS for name in PEERS
}
PEER = Part(ITEMS, item_seconds=40)
