"""Where a code without bound (ReLU, JumpReLU, Gated) is better kept as a list of entries, and where as a matrix [B, F].

    python -m benchmarks.ops.density [--smoke]

The same training step both ways, interleaved in one process, at several shares of active latents. `saefast.engine.plan`
takes CPU_DENSITY from it.
"""

import argparse
import statistics
import time

import torch

from saefast import SAE, SAEConfig, TrainConfig, Trainer

SHAPES = [(512, 576, 4608), (2048, 576, 4608)]
DENSITIES = [0.01, 0.04, 0.08, 0.16, 0.32]


def seconds(
    B: int, D: int, F: int, density: float, activation: str, rounds: int
) -> tuple[float, float, float]:
    """-> medians of a list and of a matrix, and the density there was."""
    x = torch.randn(B, D, generator=torch.Generator().manual_seed(0))
    sae = SAE(SAEConfig(d_in=D, d_sae=F, activation=activation))  # type: ignore[arg-type]
    trainer = Trainer(
        sae, TrainConfig(total_tokens=10**9, lr=1e-9, penalty="l1", sparsity_coefficient=0.1, auxk_alpha=0)
    )
    sae.b_enc.data.fill_(-float((x @ sae.W_enc.data[:64].T).quantile(1 - density)))
    times: dict[bool, list[float]] = {False: [], True: []}
    l0 = 0.0
    for _ in range(rounds + 1):
        for dense, measured in times.items():
            trainer.state.dense = dense
            start = time.perf_counter()
            l0 = float(trainer.step(x).l0)
            measured.append(time.perf_counter() - start)
    return statistics.median(times[False][1:]), statistics.median(times[True][1:]), l0 / F


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="a toy shape")
    args = parser.parse_args()
    shapes, rounds = ([(32, 16, 64)], 1) if args.smoke else (SHAPES, 5)
    for activation in ("relu", "jumprelu"):
        for shape in shapes:
            for density in DENSITIES:
                listed, matrix, got = seconds(*shape, density, activation, rounds)
                print(f"{activation:9} {shape} density {got:.3f}: list {listed:.4f} s, matrix {matrix:.4f} s, "
                      f"list / matrix {listed / matrix:.2f}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
