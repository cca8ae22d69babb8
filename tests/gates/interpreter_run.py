"""A training run on real activations with the Triton kernels in the interpreter, step by step beside the reference.

    python -m tests.gates.interpreter_run data/acts-corpus [--steps 200] [--write]

--write keeps the result as benchmarks/results/cpu/interpreter_run.json.

The interpreter executes the kernels' own code on the CPU, a few milliseconds a program, so the SAE is small and the
activations are whole: 8 rows of the shards at a time, 32 latents, k = 4, AuxK on. Two runs train from one start on the
same batches and every step's loss, L0 and AuxK loss are compared. Rounding sooner or later flips a selection and the
runs part; a third run, the reference with W_enc one unit in the last place larger, shows by how much.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"  # before the first import of a kernel

import torch

from benchmarks import checkout  # noqa: F401
from saefast import SAE, InputError, SAEConfig, TrainConfig, Trainer, open_source
from saefast.activations.buffer import ShuffleBuffer
from tests.gates import quick_interpreter

RESULT = Path(__file__).parents[2] / "benchmarks" / "results" / "cpu" / "interpreter_run.json"
B, F, K = 8, 32, 4
FIRST = 50  # steps in which the losses agree to rounding
ROUNDING = 1e-5


def make(d_in: int, backend: str, steps: int, one_ulp: bool = False) -> Trainer:
    sae = SAE(SAEConfig(d_in=d_in, d_sae=F, k=K))
    config = TrainConfig(
        total_tokens=B * steps,
        batch_size=B,
        lr=2e-3,
        backend=backend,
        dead_feature_threshold=4 * B,
        k_aux=6,
    )
    trainer = Trainer(sae, config)
    if one_ulp:
        weight = sae.W_enc.data
        weight.copy_(torch.nextafter(weight, torch.full_like(weight, torch.inf)))
    return trainer


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("source", type=Path, help="shard folder of `saefast cache`")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name}")
    args = parser.parse_args()
    source = open_source(args.source)
    quick_interpreter.install()
    trainers = {
        "reference": make(source.d_in, "reference", args.steps),
        "triton": make(source.d_in, "triton", args.steps),
        "one ulp": make(source.d_in, "reference", args.steps, one_ulp=True),
    }
    batches = iter(ShuffleBuffer(source, B, 4096, seed=0))
    curves: dict[str, list[list[float]]] = {name: [] for name in trainers}
    began = time.perf_counter()
    for _ in range(args.steps):
        x = next(batches).float()
        for name, trainer in trainers.items():
            metrics = trainer.step(x)
            curves[name].append([float(value) for value in (metrics.loss, metrics.l0, metrics.auxk_loss)])

    distance = {}
    for name in ("triton", "one ulp"):
        pairs = zip(curves[name], curves["reference"], strict=True)
        distance[name] = [abs(got[0] / want[0] - 1) for got, want in pairs]
    same_l0 = sum(a[1] == b[1] for a, b in zip(curves["triton"], curves["reference"], strict=True))
    result = {
        "shape": {"B": B, "d_in": source.d_in, "d_sae": F, "k": K, "steps": args.steps},
        "loss_first_and_last": [curves["reference"][0][0], curves["reference"][-1][0]],
        "loss_distance_first_steps": max(distance["triton"][:FIRST]),
        "loss_distance_all_steps": max(distance["triton"]),
        "control_first_steps": max(distance["one ulp"][:FIRST]),
        "control_all_steps": max(distance["one ulp"]),
        "steps_with_equal_l0": same_l0,
        "steps_with_auxk": sum(curve[2] > 0 for curve in curves["triton"]),
        "seconds": round(time.perf_counter() - began, 1),
    }
    print(json.dumps(result, indent=1))
    bound = max(ROUNDING, 10 * max(distance["one ulp"]))
    ok = result["loss_distance_first_steps"] <= ROUNDING and max(distance["triton"]) <= bound
    ok = ok and result["steps_with_auxk"] > 0 and curves["triton"][-1][0] < curves["triton"][0][0]
    if ok and args.write:
        RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print("follows the reference" if ok else "DOES NOT FOLLOW THE REFERENCE")
    return 0 if ok else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        sys.exit(f"interpreter_run.py: {error}")
