"""What a sweep of 12 SAEs costs beside 12 runs: `saefast sweep` against `saefast train` and `saefast evaluate` each.

    python -m benchmarks.ops.sweep_cost            # data/ is what `make demo` makes

Wall time, and processor time (user and system, of all threads): on a machine with neighbours the second is the one to
trust. Then in this process, one after another: the parts of one run; the training of the sweep with one SAE at a time
and side by side; and the sweep and the 12 runs on activations that a language model makes while they train. Writes
benchmarks/results/cpu/sweep.json.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path

import torch

from benchmarks.measuring import cpu_name
from saefast import SAE, SAEConfig, TrainConfig, Trainer, evaluate, open_source
from saefast.activations import lm
from saefast.activations.open import open_buffer
from saefast.sae import geometric_median
from saefast.sweep import Member, sweep
from saefast.train import plots
from saefast.train.run import INIT_ROWS

RESULT = Path(__file__).parents[1] / "results" / "cpu" / "sweep.json"
WIDTHS, KS, KINDS = (1152, 2304, 4608), (16, 32), ("topk", "batch_topk")
HOOK = "model.layers.12"


def clock() -> tuple[float, float]:
    """Wall and processor seconds, of this process and those that have ended under it."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return time.perf_counter(), sum(u.ru_utime + u.ru_stime for u in used)


def timed(function, *args) -> tuple[dict[str, float], object]:
    before = clock()
    result = function(*args)
    wall, cpu = (b - a for a, b in zip(before, clock(), strict=True))
    return {"wall_s": round(wall, 2), "cpu_s": round(cpu, 2)}, result


def command(*args: object) -> dict[str, float]:
    line = [sys.executable, "-P", "-m", "saefast.cli", *map(str, args)]
    seconds, _ = timed(lambda: subprocess.run(line, check=True, capture_output=True))
    print(args[0], *(a for a in args if not str(a).startswith("/")), seconds, flush=True)
    return seconds


def members(tokens: int, batch: int, d_in: int) -> list[Member]:
    train = TrainConfig(total_tokens=tokens, batch_size=batch, lr=2e-3, buffer_tokens=max(8192, 4 * batch))
    shapes = product(KINDS, WIDTHS, KS)
    return [Member(SAEConfig(d_in=d_in, d_sae=f, k=k, activation=kind), train) for kind, f, k in shapes]  # type: ignore[arg-type]


def side_by_side(source: str, tokens: int, batch: int, folder: Path) -> dict[str, dict[str, float]]:
    """Training with its checkpoints and curves, in a process that runs already; twice each, the second time counts."""
    rows, found = open_source(source), {}
    for attempt in range(2):
        for workers in (1, torch.get_num_threads()):
            out = folder / f"workers-{workers}-{attempt}"
            seconds, _ = timed(
                lambda o=out, w=workers: sweep(members(tokens, batch, rows.d_in), rows, o, workers=w)
            )
            found[f"{workers} at a time"] = seconds
    return found


def live(model_path: str, text: str, tokens: int, batch: int, folder: Path) -> dict[str, dict[str, float]]:
    """From a model that runs while they train, everything in this process."""
    model, tokenizer = lm.load_model(model_path)
    contexts = lm.PackedContexts(lm.Texts(text), tokenizer, 256, 4)

    def source() -> lm.ModelSource:
        return lm.ModelSource(model, HOOK, contexts, tokenizer.all_special_ids, 10.0, {"use_cache": False})

    def alone() -> None:
        for member in members(tokens, batch, source().d_in):
            Trainer(SAE(member.sae), member.train).fit(source())

    found = {
        "sweep": timed(lambda: sweep(members(tokens, batch, source().d_in), source(), folder / "live"))[0]
    }
    return found | {"12 runs": timed(alone)[0]}


def parts(source: str, held_out: str, tokens: int, batch: int, out: Path) -> dict[str, dict[str, float]]:
    """Of one run of the middle width: what a process of its own pays for."""
    found = {"start of the process": command("info")}
    rows = open_source(source)
    buffer = open_buffer(rows, batch, 131_072, dtype=torch.float32)
    found["reading, checksums, first fill of the buffer"], sample = timed(buffer.sample, INIT_ROWS)
    buffer.close()
    found["geometric median for b_dec"], _ = timed(geometric_median, sample.float())
    config = TrainConfig(total_tokens=tokens, batch_size=batch, lr=2e-3)
    trainer = Trainer(SAE(SAEConfig(d_in=rows.d_in, d_sae=WIDTHS[1], k=KS[1])), config)
    trainer.initialize(sample.float(), lambda goal: goal.mean(dim=0))
    x = sample[:batch].float()
    steps = 20
    seconds, _ = timed(lambda: [trainer.step(x, checked=True) for _ in range(steps)])
    found["steps"] = {key: round(value / steps * config.total_steps, 2) for key, value in seconds.items()}
    found["evaluation"], _ = timed(evaluate, trainer.sae, open_source(held_out))
    line = dict.fromkeys(("step", "tokens", "fvu", "l0", "dead_frac", "lr", "tokens_per_second"), 1)
    (out / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    found["curves.png"], _ = timed(plots.curves, out)
    return found


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--tokens", type=int, default=100_000)
    flags.add_argument("--batch-size", type=int, default=1024)
    flags.add_argument("--rounds", type=int, default=1)
    flags.add_argument("--source", default="data/acts-corpus")
    flags.add_argument("--held-out", default="data/heldout-corpus")
    flags.add_argument("--model", default="data/smollm2-135m")
    flags.add_argument("--text", default="data/corpus.jsonl")
    flags.add_argument("--live-tokens", type=int, default=20_480)
    args = flags.parse_args()
    same = ["--tokens", args.tokens, "--batch-size", args.batch_size, "--lr", 2e-3]
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        for r in range(args.rounds):
            load = os.getloadavg()[0]
            together = command(
                "sweep", args.source, "--out", f"{folder}/sweep-{r}", "--held-out", args.held_out,
                "--d-sae", *WIDTHS, "--k", *KS, "--activation", *KINDS, *same,
            )  # fmt: skip
            alone = {"wall_s": 0.0, "cpu_s": 0.0}
            for kind, d_sae, k in product(KINDS, WIDTHS, KS):
                out = f"{folder}/{r}-{kind}-{d_sae}-{k}"
                what = ["--d-sae", d_sae, "--k", k, "--activation", kind]
                for seconds in (
                    command("train", args.source, "--out", out, *what, *same),
                    command("evaluate", out, args.held_out),
                ):
                    alone = {key: round(alone[key] + seconds[key], 2) for key in alone}
            ratios = {key: round(together[key] / alone[key], 3) for key in alone}
            rounds.append(
                {"sweep": together, "12 runs": alone, "ratio": ratios, "load": [load, os.getloadavg()[0]]}
            )
            print(json.dumps(rounds[-1]), flush=True)
        found = {
            "args": vars(args), "widths": WIDTHS, "k": KS, "activations": KINDS, "rounds": rounds,
            "ratio": {key: statistics.median(r["ratio"][key] for r in rounds) for key in ("wall_s", "cpu_s")},
            "parts of one run": parts(args.source, args.held_out, args.tokens, args.batch_size, Path(folder)),
            "training alone": side_by_side(args.source, args.tokens, args.batch_size, Path(folder)),
            "from a live model": live(args.model, args.text, args.live_tokens, args.batch_size, Path(folder)),
            "machine": {"cpu": cpu_name(), "threads": torch.get_num_threads(),
                        "torch": torch.__version__},
        }  # fmt: skip
    RESULT.write_text(json.dumps(found, indent=2) + "\n")
    for key in ("ratio", "parts of one run", "training alone", "from a live model"):
        print(key, json.dumps(found[key]))


if __name__ == "__main__":
    main()
