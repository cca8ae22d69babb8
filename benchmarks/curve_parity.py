"""Does saefast train to the same numbers as plain PyTorch? The same run twice, on the same batches, step by step.

    python benchmarks/curve_parity.py SHARDS HELDOUT [--d-sae 4608 --k 32 --tokens 440000 ...]

`saefast` is the Trainer on the chosen backend, `plain` dense autograd with torch.optim.Adam (`plain.py`), and `control`
is `plain` once more with W_enc larger by one unit in the last place: a top-k that flips, once, on a rounding error is
amplified by training, and the control shows by how much. Written to benchmarks/results/curve_parity.json.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from plain import PlainStep
from step_ratios import cpu_name

from saefast import SAE, SAEConfig, TrainConfig, Trainer, evaluate, open_source
from saefast.buffer import ShuffleBuffer
from saefast.trainer import INIT_ROWS

RESULT = Path(__file__).parent / "results" / "curve_parity.json"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source")
    parser.add_argument("heldout")
    parser.add_argument("--d-sae", type=int, default=4608)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=440_000)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--dead-feature-threshold", type=int, default=20_000)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()

    source = open_source(args.source)
    config = TrainConfig(
        total_tokens=args.tokens, batch_size=args.batch_size, lr=args.lr, backend=args.backend,
        betas=(0.9, 0.99), decay_fraction=0.95, dead_feature_threshold=args.dead_feature_threshold,
    )  # fmt: skip
    sae = SAE(SAEConfig(d_in=source.d_in, d_sae=args.d_sae, k=args.k))
    trainer = Trainer(sae, config)
    buffer = ShuffleBuffer(source, config.batch_size, config.buffer_rows, config.seed)
    trainer._initialize(buffer.sample(INIT_ROWS).to(sae.W_enc))  # what fit does before its first step
    assert config.lr and trainer.input_scale
    aux = (config.auxk_alpha, source.d_in // 2, config.dead_feature_threshold)
    options = (args.k, config.lr, config.betas, config.eps, trainer.input_scale, aux)
    ulp = torch.finfo(torch.float32).eps
    plain = {
        "plain": PlainStep(sae.params, *options),
        "control": PlainStep([sae.W_enc * (1 + ulp), *sae.params[1:]], *options),
    }

    curves: dict[str, list[float]] = {"saefast": [], "plain": [], "control": []}
    seconds = dict.fromkeys(curves, 0.0)
    for step, batch in zip(range(1, config.total_steps + 1), buffer, strict=False):
        x = batch.to(sae.W_enc)
        for name, curve in curves.items():
            start = time.perf_counter()
            if name == "saefast":
                curve.append(float(trainer._step(x).fvu))
            else:
                plain[name].set_lr(config.lr_at(step, args.d_sae))
                curve.append(float(plain[name](x)))
            seconds[name] += time.perf_counter() - start
    heldout = {"saefast": evaluate(sae, open_source(args.heldout))}
    for name, trained in plain.items():
        for param, value in zip(sae.params, trained.params, strict=True):
            param.copy_(value.detach())
        heldout[name] = evaluate(sae, open_source(args.heldout))

    result = {
        "shape": {
            "d_in": source.d_in,
            "d_sae": args.d_sae,
            "k": args.k,
            "batch_size": args.batch_size,
            "lr": args.lr,
        },
        "machine": {"cpu": cpu_name(), "threads": torch.get_num_threads()},
        "versions": {"torch": torch.__version__, "backend": trainer.ops.NAME},
        "steps": len(curves["plain"]),
        "largest_relative_difference_to_plain": {
            name: {
                f"first {n} steps": difference(curves[name][:n], curves["plain"][:n]) for n in (10, 100, 860)
            }
            for name in ("saefast", "control")
        },
        "heldout_fvu": {name: value.fvu for name, value in heldout.items()},
        "heldout_dead_frac": {name: value.dead_frac for name, value in heldout.items()},
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "fvu_every_20_steps": {name: [round(v, 5) for v in curve[::20]] for name, curve in curves.items()},
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({key: value for key, value in result.items() if key != "fvu_every_20_steps"}, indent=1))


def difference(curve: list[float], reference: list[float]) -> float:
    return float((torch.tensor(curve) / torch.tensor(reference) - 1).abs().max())


if __name__ == "__main__":
    main()
