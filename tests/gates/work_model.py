"""How unevenly the latents of real data spread the work of the update over its programs.

    python -m tests.gates.work_model                       a line for each shape; exits with 1 if one is over its bound
    python -m tests.gates.work_model --write RUN SHARD     count again: tests/gates/latent_counts.json

Benchmarks on random codes have every latent active about as often as the others. Those of a language model do not: a few are
active in every second token and most in one of a thousand. A program takes every P-th latent, and a latent with more than
CHUNK active tokens is summed by several programs before; so what counts is the longest program over the mean one, and
the longest chain of rows that one program adds up, over the rows of a mean one.

The committed counts are those of 8192 tokens of data/acts-corpus (layer 12 of SmolLM2-135M) in an SAE made by

    saefast train data/acts-corpus --out /tmp/latents --d-sae 4608 --k 32 --tokens 600000 --batch-size 2048

For another shape the head of the curve stays as it is, since what is active everywhere is so in a larger dictionary too, and
the other latents share the rest of the entries by quantiles. Where a latent stands in the dictionary is drawn by a seed.
"""

import argparse
import json
import sys
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from benchmarks import checkout  # noqa: F401
from benchmarks.shapes import SHAPES, Shape
from saefast.sae import SAE
from saefast.triton_kernels.update import update_config

COUNTS = Path(__file__).parent / "latent_counts.json"
TOKENS = 8192
HEAD = 0.03  # active in a larger share of the tokens: stays as it is in a larger dictionary
LATENT = 8  # entries that take as long as the rest of a latent: its weights and moments, read and written
MOST_OF_PROGRAM = 1.5  # times the mean; with chunks of 64, 1.34 in A
MOST_OF_CHAIN = 0.5


@cache
def measured() -> np.ndarray:
    """Share of the tokens in which each latent is active, most active first."""
    return np.array(json.loads(COUNTS.read_text())["counts"], dtype=np.float64) / TOKENS


def counts_of(shape: Shape) -> np.ndarray:
    """[F]: active tokens of each latent in a batch, B * K in all up to rounding."""
    rates = measured()
    head = rates[rates > HEAD]
    head = head[: np.searchsorted(np.cumsum(head), shape.K / 2)]  # at most half of the entries
    tail, F = rates[len(head) :], shape.F - len(head)
    quantiles = np.interp((np.arange(F) + 0.5) / F, (np.arange(len(tail)) + 0.5) / len(tail), tail)
    quantiles *= (shape.K - head.sum()) / quantiles.sum()
    counts = np.rint(np.concatenate([head, quantiles]) * shape.B).clip(max=shape.B).astype(np.int64)
    return np.random.default_rng(0).permutation(counts)


def work(counts: np.ndarray, programs: int, chunk: int) -> tuple[float, float]:
    """-> the longest program of the update over the mean one, the longest chain of rows over the mean one's rows."""
    hot = counts > chunk
    rows = np.where(hot, -(-counts // chunk), counts)  # of a hot one the sums of its chunks
    cost = np.zeros(-(-len(counts) // programs) * programs)
    cost[: len(counts)] = LATENT + rows
    of_program = cost.reshape(-1, programs).sum(axis=0)
    chain = min(counts.max(), chunk)
    return of_program.max() / of_program.mean(), chain / (counts.sum() / programs)


def write(run: str, shard: str) -> None:
    """shard: a .safetensors file of a shard folder, of which every eighth token is taken."""
    sae = SAE.from_pretrained(run)
    x = load_file(shard)["activations"]
    _, indices = sae.encode(x[: 8 * TOKENS : 8].float())
    counts = torch.bincount(indices.flatten().long(), minlength=sae.config.d_sae).sort(descending=True).values
    COUNTS.write_text(json.dumps({"tokens": TOKENS, "k": sae.config.k, "counts": counts.tolist()}) + "\n")


def over_bounds(lines: dict[str, tuple[float, float]]) -> list[str]:
    return [
        f"{name}: {what} is {value:.2f} times the mean, at most {most}"
        for name, values in lines.items()
        for what, value, most in zip(
            ("the longest program", "the longest chain"),
            values,
            (MOST_OF_PROGRAM, MOST_OF_CHAIN),
            strict=True,
        )
        if value > most
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--write", nargs=2, metavar=("RUN", "SHARD"))
    args = parser.parse_args()
    if args.write:
        write(*args.write)
    lines = {}
    for name, shape in SHAPES.items():
        if name == "small":
            continue  # five latents a program: nothing evens out
        config = update_config(shape.D, 2, torch.device("meta"))
        counts = counts_of(shape)
        lines[name] = work(counts, config.programs, config.chunk)
        print(
            f"{name:6} most active {counts.max():5}  mean {counts.mean():6.1f}  longest program {lines[name][0]:5.2f}  "
            f"longest chain {lines[name][1]:5.2f}"
        )
    problems = over_bounds(lines)
    print(*problems, sep="\n", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
