"""Does an SAE train as well in fewer bytes? Held-out FVU after the same steps in each format of weights and moments.

    python -m benchmarks.ops.formats data/acts-corpus data/heldout-corpus
    python -m benchmarks.ops.formats --smoke      a toy on random numbers

All formats of a seed have the same initial weights and batches, and products in bf16 (of the reference, so this runs on
a CPU; what a GPU keeps is the same). Differences from fp32 weights with fp32 moments are taken seed by seed.
"""

import argparse
import statistics
import time

import torch
from torch import Tensor

from benchmarks.measuring import DEVICE, rows_of
from saefast import SAE, SAEConfig, TrainConfig, Trainer, evaluate

FORMATS = [("fp32", "fp32"), ("split", "int8"), ("split24", "int8"), ("bf16", "int8")]
HELD_OUT = 16  # batches


def held_out_fvu(
    rows: Tensor, held_out: Tensor, formats: tuple[str, str], seed: int, args: argparse.Namespace
) -> float:
    """Of an SAE after one pass over `rows`, as precise as it is kept. In fp32: what is exported."""
    sae = SAE(SAEConfig(d_in=rows.shape[1], d_sae=args.d_sae, k=args.k), seed).to(rows.device)
    config = TrainConfig(
        total_tokens=len(rows),
        batch_size=args.batch_size,
        lr=args.lr,
        seed=seed,
        backend="reference",
        compute_dtype="bf16",
        param_dtype=formats[0],
        state_dtype=formats[1],
    )
    trainer = Trainer(sae, config)
    assert trainer.fit(rows)
    tensors = {name: value.float() for name, value in trainer.exported().items()}
    return evaluate(SAE.of(sae.config, tensors), held_out, "reference").fvu


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("folders", nargs="*", help="activations to train on, and held-out ones")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--d-sae", type=int, default=512)
    parser.add_argument("--k", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args(argv)
    if len(args.folders) != (0 if args.smoke else 2):
        parser.error("give two folders of activations, or --smoke and none")
    if args.smoke:
        args.d_sae, args.k, args.batch_size, args.steps, args.seeds, d_in = 64, 4, 64, 4, 2, 16
        generator = torch.Generator().manual_seed(0)
        rows, held_out = (
            torch.randn(n, d_in, generator=generator).to(DEVICE)
            for n in (args.steps * args.batch_size, args.batch_size)
        )
    else:
        sizes = (args.batch_size, 576)
        rows, held_out = (
            rows_of(folder, sizes, n).to(DEVICE)
            for folder, n in zip(args.folders, (args.steps, HELD_OUT), strict=True)
        )
    found: dict[tuple[str, str], list[float]] = {formats: [] for formats in FORMATS}
    began = time.perf_counter()
    for seed in range(args.seeds):
        for formats in FORMATS:
            found[formats].append(held_out_fvu(rows, held_out, formats, seed, args))
            print(f"seed {seed} {'-'.join(formats):13} FVU {found[formats][-1]:.5f}", flush=True)
    for formats in FORMATS:
        more = [one / base - 1 for one, base in zip(found[formats], found[FORMATS[0]], strict=True)]
        each = ", ".join(f"{share:+.3%}" for share in more)
        print(
            f"{'-'.join(formats):13} mean FVU {statistics.mean(found[formats]):.5f}; over fp32-fp32: {each}"
        )
    print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
