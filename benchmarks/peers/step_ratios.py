"""The TopK training step of everybody in `contenders.py`, side by side: seconds, ratios, peak memory.

    .venv-peers/bin/python -m benchmarks.peers.step_ratios data/acts-corpus    writes benchmarks/results/<device>/step.json
    python -m benchmarks.peers.step_ratios --smoke                             a toy shape on random numbers, nothing written

`--shapes mlp` with activations of width 1536 measures a third shape: `saefast cache data/smollm2-135m data/corpus.jsonl
--hook model.layers.12.mlp.down_proj:in --out data/acts-mlp --tokens 40000`. What was measured earlier is kept beside it.

Everybody does the same step from the same weights on the same batches of real activations, b_dec at their mean; the FVUs
of the first two steps are compared before the clock runs. All of it runs twice: with glibc's allocator as it is, which
gives large buffers back to the kernel after every free, and with one that keeps them. Memory is the peak of a process of
its own, in its second step, over what it held before the contender was made.
"""

import argparse
import importlib
import json
import os
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks import measuring
from benchmarks.measuring import DEVICE, in_fresh_process, interleaved, ratio, rows_of, spread
from benchmarks.peers.contenders import CONTENDERS, fvu_of, left_out, make, missing
from benchmarks.peers.runs import Recipe
from saefast import SAE, SAEConfig

SHAPES = {  # B, d_in, d_sae, k
    "smoke": (64, 32, 256, 4),
    "demo": (512, 576, 4608, 32),
    "residual": (4096, 576, 9216, 32),
    "mlp": (2048, 1536, 24576, 64),
}
ROUNDS = {"smoke": 3, "demo": 9, "residual": 4, "mlp": 4}
ALLOCATORS: dict[str, dict[str, str]] = {"glibc": {}, "glibc, keeping": {"GLIBC_TUNABLES": measuring.KEEP}}
# Two recipes of ours for better quality; the specification, made to be read; what `bench_step.py` measures
LEFT_OUT = ("saefast, demo recipe", "saefast, free decoder", "reference", "plain PyTorch, compiled")
PRODUCT = "the encoder's product in fp32"
ALIKE = {  # how far the FVU may be off plain's, relative: on the weights of the start, and after one update
    "saefast": (1e-4, 1e-4),
    "best PyTorch ops": (1e-4, 1e-4),
    "sparsify Adam": (1e-4, 1e-2),  # projects and normalises in another order
    "sparsify signum": (1e-4, 1e-2),  # its first step is as long as Adam's
    "dictionary_learning": (1e-4, 1e-3),  # another epsilon, clips the gradient
    "SAELens": (1e-4, 2e-2),  # decoder rows change their norm
    "SAELens sparse": (1e-4, 2e-2),  # likewise
    "llamascopium": (1e-4, 2e-2),  # likewise, and b_dec does not enter the encoder
    "overcomplete": (1e-4, 2e-2),  # no b_dec to train
}
Shape = tuple[int, int, int, int]


def fresh(shape: Shape, rows: Tensor) -> SAE:
    _, D, F, K = shape
    sae = SAE(SAEConfig(d_in=D, d_sae=F, k=K))
    sae.b_dec.data.copy_(rows.mean(dim=0))
    return sae


def step_of(name: str, shape: Shape, rows: Tensor) -> Any:
    sae = fresh(shape, rows).to(DEVICE)
    if name == PRODUCT:  # the one dense product that every step contains, into memory that is used again
        out = torch.empty(shape[0], shape[2], device=DEVICE)
        return lambda x: torch.addmm(sae.b_enc.data, x, sae.W_enc.data.T, out=out)
    return make(name, sae, Recipe(batch_size=shape[0])).step


def compare(steps: dict[str, Any], stream: Any) -> dict[str, list[float]]:
    """The first two FVUs of each over plain's, less 1. Refuses to go on if they are not alike."""
    off: dict[str, list[float]] = {name: [] for name in steps if name in ALIKE}
    for i in range(2):
        x = next(stream)
        found = {name: fvu_of(name, step(x), x) for name, step in steps.items() if name != PRODUCT}
        for name, errors in off.items():
            errors.append(found[name] / found["plain PyTorch"] - 1)
            assert abs(errors[i]) < ALIKE[name][i], (
                f"{name}: FVU {found[name]} in step {i + 1}, bounds {ALIKE[name]}: {found}"
            )
    return off


def one(name: str, folder: str | None) -> dict[str, Any]:
    """Times of all contenders at one shape, in this process."""
    shape = SHAPES[name]
    rows = rows_of(folder, shape).to(DEVICE)
    stream = measuring.batches(rows, shape[0])
    names = [n for n in CONTENDERS if n not in LEFT_OUT and not missing(n)]
    steps = {n: step_of(n, shape, rows) for n in [*names, PRODUCT]}
    off = compare(steps, stream)
    seconds = interleaved(steps, stream, ROUNDS[name])
    timed = {
        n: {"seconds": spread(s, 5), "times ours": ratio(s, seconds["saefast"])} for n, s in seconds.items()
    }
    return {"FVU over plain's less 1: before, after an update": off, "contenders": timed}


def peaks(name: str, folder: str | None) -> dict[str, float]:
    """Peak MiB of each, in a process that is forked when the libraries that are slow to import are there. Nothing may have
    run on two threads before: a pool of OpenMP threads does not survive a fork."""
    threads, shape = torch.get_num_threads(), SHAPES[name]
    torch.set_num_threads(1)
    rows = rows_of(folder, shape)
    x, _ = next(measuring.batches(rows, shape[0])), torch.randn(64, 64) @ torch.randn(64, 64)
    names = [n for n in CONTENDERS if n not in LEFT_OUT and not missing(n)]
    for library in {CONTENDERS[n][0] for n in names} & {"sparsify", "sae_lens", "llamascopium"}:
        importlib.import_module(str(library))
    found = {}
    for n in names:
        read, write = os.pipe()
        if os.fork() == 0:
            torch.set_num_threads(threads)
            before = measuring.reset_peak()
            step = step_of(n, shape, rows)
            for _ in range(2):
                step(x)
            os.write(write, json.dumps(measuring.peak_mib(before)).encode())
            os._exit(0)
        os.close(write)
        with os.fdopen(read) as pipe:
            found[n] = json.loads(pipe.read())
    torch.set_num_threads(threads)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", help="activations of the width of the shapes")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["demo", "residual"])
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--inner", choices=("times", "both"), help="(inner) of the shapes, in this process")
    args = parser.parse_args()
    if args.inner:
        memory = {name: peaks(name, args.folder) for name in args.shapes} if args.inner == "both" else {}
        print(json.dumps([{name: one(name, args.folder) for name in args.shapes}, memory]))
        return
    if not args.folder and not args.smoke:
        parser.error("folder: expected a folder of activations (or --smoke)")
    where = ["--shapes", "smoke"] if args.smoke else [args.folder, "--shapes", *args.shapes]
    again = partial(in_fresh_process, __file__, *where, "--inner")
    inner = ["both" if not env and DEVICE == "cpu" else "times" for env in ALLOCATORS.values()]
    found = [again(what, env=env) for what, env in zip(inner, ALLOCATORS.values(), strict=True)]
    times, memory = {name: one[0] for name, one in zip(ALLOCATORS, found, strict=True)}, found[0][1]
    if args.smoke:
        print(json.dumps({"times": times, "peak MiB": memory}))
        return
    shapes = measuring.read_result("step").get("shapes", {})
    for name in args.shapes:
        shapes[name] = {
            "shape": dict(zip(("B", "d_in", "d_sae", "k"), SHAPES[name], strict=True)),
            "peak MiB": memory.get(name, {}),
        } | {allocator: found[name] for allocator, found in times.items()}
    print(measuring.write_result("step", {"shapes": shapes, "left out": left_out()}))


if __name__ == "__main__":
    main()
