"""Every named trainer of the peers beside ours: the same rows in the same order, from the same weights.

    python -m benchmarks.peers.parity_peers runs data/acts-corpus data/heldout-corpus    theirs, see there
    python -m benchmarks.peers.parity runs data/acts-corpus data/heldout-corpus          ours, and the comparison
    python -m benchmarks.peers.parity data/acts-corpus --time                            steps, where both can be imported

Held-out FVU and L0 over three seeds (of the weights and of the order of the rows). A row agrees when the means are
within 1 %, or within what the peer's own seeds differ by. Writes benchmarks/results/cpu/parity.json and
parity_time_256_1152.json (the name has the shape; for another see `parity_common.py`).
What a run of ours has found is kept in `runs` and not found again.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.measuring import cpu_name
from benchmarks.peers.parity_common import (
    D_SAE,
    DEAD_TOKENS,
    DECAY,
    GROUPS,
    RECIPES,
    SEEDS,
    SPARSITY_WARMUP,
    STEPS,
    THRESHOLD_RATE,
    WARMUP,
    B,
    K,
    batch_indices,
    read,
    scale_of,
)
from saefast import SAE, SAEConfig, TrainConfig, Trainer, evaluate
from saefast.engine.plan import Hyper
from saefast.sae import geometric_median

RESULTS = Path(__file__).parents[1] / "results" / "cpu"
AGREE = 0.01
ROUNDS, SETTLE, TRAINED = 11, 3, 200

COMMON: dict[str, Any] = {
    "total_tokens": STEPS * B, "batch_size": B, "eps": 1e-8, "loss": "mse", "normalize_input": False,
    "warmup_fraction": WARMUP / STEPS, "decay_fraction": DECAY / STEPS, "sparsity_warmup_fraction": SPARSITY_WARMUP / STEPS,
    "auxk_alpha": 0.0, "dead_feature_threshold": DEAD_TOKENS,
}  # fmt: skip
# dictionary_learning counts the batch before it asks who is dead, we after
DL_AUXK = {"auxk_alpha": 1 / 32, "grad_clip": 1.0, "dead_feature_threshold": DEAD_TOKENS - B}
# SAELens: more than 40 batches, as the main loss, less while few are dead
SL_AUXK = {
    "auxk_alpha": 1.0, "auxk_scale": "loss", "auxk_ramp": True, "dead_feature_threshold": DEAD_TOKENS + B,
}  # fmt: skip
SL = {"unit_norm": False, "grad_clip": 1.0}
NESTED = tuple(sum(GROUPS[: i + 1]) for i in range(len(GROUPS)))

# what each recipe is in our options: SAEConfig's, TrainConfig's, b_dec
OURS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "DL Standard": ({"activation": "relu"}, {"penalty": "l1"}, "none"),
    "DL TopK": ({"k": K}, DL_AUXK, "median"),
    "DL BatchTopK": ({"activation": "batch_topk", "k": K}, DL_AUXK | {"threshold_rate": THRESHOLD_RATE}, "median"),
    "DL JumpReLU formula": (
        {"activation": "jumprelu", "pre_bias": False, "init_threshold": 0.001},
        {
            "penalty": "target_l0", "target_l0": float(K), "bandwidth": 0.001,
            "betas": (0.0, 0.999), "grad_clip": 1.0,
        },
        "none",
    ),
    "DL Gated": (
        {"activation": "gated"},
        {"penalty": "l1", "betas": (0.0, 0.999)},
        "none",
    ),
    "DL Matryoshka formula": (
        {"activation": "matryoshka", "k": K, "group_sizes": NESTED},
        DL_AUXK | {"threshold_rate": THRESHOLD_RATE, "group_weights": (1 / len(NESTED),) * len(NESTED)},
        "median",
    ),
    "SP TopK Adam": ({"k": K}, {"loss": "fvu", "decay_fraction": 1 - WARMUP / STEPS}, "mean"),
    "SP TopK signum": ({"k": K}, {"loss": "fvu", "optimizer": "signum", "warmup_fraction": 0, "decay_fraction": 0}, "mean"),
    "SL TopK": ({"k": K, "scale_by_norm": True}, SL | SL_AUXK, "none"),
    "SL BatchTopK": (
        {"activation": "batch_topk", "k": K, "scale_by_norm": True}, SL | SL_AUXK | {"threshold_rate": THRESHOLD_RATE}, "none",
    ),
    "SL JumpReLU": (
        {"activation": "jumprelu", "init_threshold": 0.01},
        SL | {"penalty": "l0", "bandwidth": 0.05}, "none",
    ),
    "SL Standard": (
        {"activation": "relu"}, SL | {"penalty": "l1", "norm_weighted": True}, "none",
    ),
}  # fmt: skip


# The peers count the steps of the warm-up from 0, we from 1. The penalties without a target feel it: 1 % of L0.
FROM_ZERO = ("DL Standard", "DL Gated")


class FromZero(Trainer):
    """The first update has length 0."""

    def _hyper(self, step: int) -> Hyper:
        hyper = super()._hyper(step)
        return hyper._replace(lr=min(hyper.lr, (self.config.lr or 0.0) * (step - 1) / WARMUP))


def start(name: str, weights: Path, d_in: int, first: Tensor | None = None) -> Trainer:
    """Ours, from a file of weights. first [B, d_in]: the first batch, which sets b_dec."""
    recipe, (sae_options, train_options, centre) = RECIPES[name], OURS[name]
    sae = SAE(SAEConfig(d_in=d_in, d_sae=D_SAE, **sae_options))
    config = TrainConfig(lr=recipe.lr, sparsity_coefficient=recipe.sparsity, **(COMMON | train_options))
    theirs = torch.load(weights, weights_only=True)
    theirs["b_enc"] = theirs.pop("b_gate", theirs.get("b_enc"))
    for key, param in (sae.params._asdict() | sae.extra).items():
        if key in theirs and theirs[key].shape == param.shape:
            param.copy_(theirs[key])
    if config.unit_norm:  # theirs become so in a first step of length 0
        sae.params.W_dec.div_(sae.params.W_dec.norm(dim=1, keepdim=True))
    if first is not None and centre != "none":
        sae.params.b_dec.copy_(geometric_median(first) if centre == "median" else first.mean(dim=0))
    return (FromZero if name in FROM_ZERO else Trainer)(sae, config)


def train(name: str, seed: int, weights: Path, rows: Tensor, heldout: Tensor) -> dict[str, Any]:
    scale = scale_of(RECIPES[name].units, rows)
    order = list(batch_indices(seed, len(rows)))
    trainer = start(name, weights, rows.shape[1], rows[order[0]] * scale)
    began = time.perf_counter()
    for index in order:
        trainer.step(rows[index] * scale)
    seconds = time.perf_counter() - began
    kept = trainer.exported()  # of signum it is the average of the steps
    torch.save(kept, weights.with_name(f"ours-{weights.name}"))
    for key, param in (trainer.sae.params._asdict() | trainer.sae.extra).items():
        param.copy_(kept[key])
    found = evaluate(trainer.sae, heldout * scale)
    return {
        "name": name, "seed": seed, "fvu": found.fvu, "l0": found.l0, "dead": found.dead_frac,
        "seconds_per_step": seconds / STEPS,
    }  # fmt: skip


def compare(theirs: list[dict[str, Any]], ours: list[dict[str, Any]]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for key in ("fvu", "l0"):
        a, b = [run[key] for run in theirs], [run[key] for run in ours]
        off = statistics.mean(b) / statistics.mean(a) - 1
        spread = (max(a) - min(a)) / statistics.mean(a)
        verdict = "within 1 %" if abs(off) <= AGREE else "within the seeds" if abs(off) <= spread else "OFF"
        paired = [y / x - 1 for x, y in zip(a, b, strict=True)]
        row[key] = {
            "theirs": a,
            "ours": b,
            "ours / theirs - 1": off,
            "by seed": paired,
            "spread": spread,
            "verdict": verdict,
        }
    return row | {"dead": {"theirs": [r["dead"] for r in theirs], "ours": [r["dead"] for r in ours]}}


def agreement(runs: Path, rows: Tensor, heldout: Tensor, only: list[str]) -> dict[str, Any]:
    out = {}
    for name in only:
        theirs, ours = [], []
        for seed in SEEDS:
            path = runs / f"{name.replace(' ', '-')}-{seed}.json"
            if not path.exists():
                continue
            mine = path.with_name(f"ours-{path.name}")
            if not mine.exists():
                mine.write_text(json.dumps(train(name, seed, path.with_suffix(".pt"), rows, heldout)) + "\n")
            theirs.append(json.loads(path.read_text()))
            ours.append(json.loads(mine.read_text()))
        if theirs:
            out[name] = compare(theirs, ours)
            print(name, json.dumps(out[name]), flush=True)
    return out


def times(rows: Tensor, only: list[str]) -> dict[str, Any]:
    """Interleaved in one process: every step once in a round, in rotating order; ratios within a round.

    Ours is trained for TRAINED steps before: what a step costs depends on how many latents are active.
    """
    from benchmarks.peers import parity_peers

    steps: dict[str, tuple[float, Callable[[Tensor], Any]]] = {}
    l0 = {}
    for name in only:
        scale = scale_of(RECIPES[name].units, rows)
        peer = parity_peers.make(RECIPES[name], rows.shape[1], 0)
        with tempfile.TemporaryDirectory() as folder:
            weights = Path(folder) / "start.pt"
            torch.save(peer.tensors(), weights)
            trainer = start(name, weights, rows.shape[1], rows[:B] * scale)
        for index in batch_indices(1, len(rows), TRAINED):
            l0[name] = float(trainer.step(rows[index] * scale).l0)
        steps[name], steps[f"peer {name}"] = (scale, trainer.step), (scale, peer.step)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for i, index in enumerate(batch_indices(0, len(rows), SETTLE + ROUNDS)):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            scale, step = steps[name]
            x = rows[index] * scale
            began = time.perf_counter()
            step(x)
            seconds[name].append(time.perf_counter() - began)
    out = {}
    for name in only:
        mine, topk, peer = (seconds[n][SETTLE:] for n in (name, only[0], f"peer {name}"))
        out[name] = {
            "seconds": statistics.median(mine),
            "l0": l0[name],
            f"of our {only[0]}": statistics.median(a / b for a, b in zip(mine, topk, strict=True)),
            "peer's over ours": statistics.median(a / b for a, b in zip(peer, mine, strict=True)),
        }
        print(name, json.dumps(out[name]), flush=True)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("paths", nargs="+", help="RUNS SOURCE HELDOUT, or SOURCE with --time")
    parser.add_argument(
        "--only", nargs="*", default=["DL TopK", *(n for n in OURS if n != "DL TopK")], choices=list(OURS)
    )
    parser.add_argument("--time", action="store_true")
    args = parser.parse_args()
    if len(args.paths) != (1 if args.time else 3):
        parser.error(f"expected RUNS SOURCE HELDOUT, or SOURCE with --time, got {args.paths}")
    rows = read(args.paths[0 if args.time else 1])
    shape = {"B": B, "d_in": rows.shape[1], "d_sae": D_SAE, "k": K, "rows": len(rows)}
    shape["steps"] = TRAINED if args.time else STEPS
    machine = {
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
    }
    found = (
        times(rows, args.only)
        if args.time
        else agreement(Path(args.paths[0]), rows, read(args.paths[2]), args.only)
    )
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / (f"parity_time_{B}_{D_SAE}.json" if args.time else "parity.json")
    path.write_text(json.dumps({"shape": shape, "machine": machine, "rows": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
