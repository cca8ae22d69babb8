"""Does saefast train to the same numbers as plain PyTorch, or as its own specification?

    python -m benchmarks.peers.curve_parity SHARDS HELDOUT --against plain          dense autograd, torch.optim.Adam: 860 steps
    python -m benchmarks.peers.curve_parity SHARDS HELDOUT --against reference      backend "reference", and shorter controls

Two answers, both kept in benchmarks/results/cpu/curve_parity.json, the latest of each kind.

*From the same state.* At each of the first 500 states of saefast's run both take one step, and so does fp64 with the
choices that they made (`exact_step.py`). Nothing accumulates: the loss, the parameters and the moments have to be as
near to fp64 as those of the other. The exit status is 1 if they are not.

*Left alone.* Both train on the same batches. Sooner or later rounding flips a choice (a top-k, or the sign of a dead
latent's pre-activation), and training amplifies it without bound. So there are controls, the other one again with
something changed that plain rounding may change: one unit in the last place of a parameter or of x, up or down at
random, or the order of the rows in a batch. They show when runs part and how far, and saefast has to lie among them.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.measuring import cpu_name
from benchmarks.peers.exact_step import SameState, exact_step, plain_at, step_of, step_of_plain
from benchmarks.peers.plain import PlainStep
from saefast import SAE, SAEConfig, TrainConfig, Trainer, evaluate, open_source
from saefast.activations.buffer import ShuffleBuffer
from saefast.engine.step import Hyper
from saefast.reference import Params
from saefast.train import schedules
from saefast.train.run import INIT_ROWS

RESULT = Path(__file__).parents[1] / "results" / "cpu" / "curve_parity.json"
APART = 1e-6  # relative difference of two losses that no longer is rounding
CONTROLS = ("W_enc", "W_dec", "b_dec", "x", "row order")


class Run:
    """One way of training, from its own copy of the parameters."""

    def __init__(self, name: str, params: Params, config: TrainConfig, scale: float, k: int) -> None:
        d_sae, d_in = params.W_enc.shape
        self.config, self.curve = config, list[float]()
        self.of_batch: Callable[[Tensor], Tensor] = lambda x: x
        self.plain: PlainStep | None = None
        self.sae = SAE(SAEConfig(d_in=d_in, d_sae=d_sae, k=k))
        for mine, value in zip(self.sae.params, params, strict=True):
            mine.copy_(value)
        if name == "plain":
            assert config.lr
            aux = config.auxk_alpha, d_in // 2, config.dead_feature_threshold
            self.plain = PlainStep(self.sae.params, k, config.lr, config.betas, config.eps, scale, aux)
        else:
            self.trainer = Trainer(self.sae, config)
            self.trainer.input_scale = scale

    def step(self, x: Tensor) -> None:
        x = self.of_batch(x)
        if self.plain:
            self.plain.set_lr(schedules.lr_at(self.config, len(self.curve) + 1, self.sae.config.d_sae))
            self.curve.append(float(self.plain(x)))
        else:
            self.curve.append(float(self.trainer.step_on(x).fvu))

    def trained(self) -> SAE:
        if self.plain:
            for mine, value in zip(self.sae.params, self.plain.params, strict=True):
                mine.copy_(value.detach())
        return self.sae


def one_ulp(tensor: Tensor, generator: torch.Generator) -> Tensor:
    up = torch.rand(tensor.shape, generator=generator) < 0.5
    return tensor.nextafter(torch.where(up, torch.inf, -torch.inf))


def changed(run: Run, what: str, seed: int) -> Run:
    generator = torch.Generator().manual_seed(seed)
    if what == "x":
        run.of_batch = lambda x: one_ulp(x, generator)
    elif what == "row order":
        run.of_batch = lambda x: x[torch.randperm(len(x), generator=generator)]
    else:
        param = getattr(run.sae.params if run.plain is None else Params(*run.plain.params), what)
        param.data.copy_(one_ulp(param.data, generator))
    return run


def from_same_state(saefast: Run, other: Run, x: Tensor, found: dict[str, SameState]) -> bool:
    """Both, and fp64, take a step from where saefast's run is now; whether AuxK took part."""
    trainer, config = saefast.train.trainer, saefast.config.train
    state, plan = trainer.state, trainer._plan(len(x))
    lr = schedules.lr_at(config, state.step + 1, saefast.sae.config.d_sae)
    hyper = Hyper(lr, config.betas, config.eps, trainer.input_scale or 1.0)
    numbers = torch.tensor(hyper.numbers(state.step + 1, len(x)), dtype=torch.float64)
    for name, run in (("saefast", saefast), ("other", other)):
        if run.plain:
            fvu, after, selected = step_of_plain(plain_at(run.plain, state, lr), x)
        else:
            metrics, after, selected = step_of(run.trainer.ops, state, x, plan, numbers)
            fvu = metrics.fvu
        found[name].add(float(fvu), after, *exact_step(state, x, plan, numbers, selected))
    return plan.dead_capacity > 0


def apart(curve: list[float], other: list[float]) -> dict[str, object]:
    off = (torch.tensor(curve, dtype=torch.float64) / torch.tensor(other, dtype=torch.float64) - 1).abs()
    first = (off > APART).nonzero()
    marks = [n for n in (10, 100, 500) if n < len(off)] + [len(off)]
    return {
        "first step apart": int(first[0]) + 1 if len(first) else None,
        "largest relative difference": {f"first {n} steps": float(off[:n].max()) for n in marks},
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source")
    parser.add_argument("heldout")
    parser.add_argument("--against", choices=("plain", "reference"), default="plain")
    parser.add_argument("--steps", type=int, help="of both, left alone; all of --tokens if left out")
    parser.add_argument("--forced", type=int, default=500, help="states from which both take a step")
    parser.add_argument("--seeds", type=int, default=1, help="of each kind of control")
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
    options = {
        "total_tokens": args.tokens, "batch_size": args.batch_size, "lr": args.lr, "betas": (0.9, 0.99),
        "decay_fraction": 0.95, "dead_feature_threshold": args.dead_feature_threshold,
    }  # fmt: skip
    first = Trainer(SAE(SAEConfig(d_in=source.d_in, d_sae=args.d_sae, k=args.k)), TrainConfig(**options))
    buffer = ShuffleBuffer(source, args.batch_size, first.config.buffer_rows, first.config.seed)
    first.initialize(buffer.sample(INIT_ROWS).to(first.sae.W_enc))  # what fit does before its first step

    def run(name: str, backend: str) -> Run:
        assert first.input_scale
        config = TrainConfig(**options, backend=backend)  # type: ignore[arg-type]
        return Run(name, first.sae.params, config, first.input_scale, args.k)

    backend = "reference" if args.against == "reference" else "auto"
    runs = {"saefast": run("saefast", args.backend), args.against: run(args.against, backend)}
    for seed in range(args.seeds):
        for what in CONTROLS:
            runs[f"{what}, seed {seed}"] = changed(run(args.against, backend), what, seed)
    forced, found = run(args.against, backend), {"saefast": SameState(), "other": SameState()}
    n_steps = min(args.steps or first.config.total_steps, first.config.total_steps)
    auxk_steps = 0
    for step, batch in zip(range(1, n_steps + 1), buffer, strict=False):
        x = batch.to(first.sae.W_enc)
        if step <= args.forced:
            auxk_steps += from_same_state(runs["saefast"], forced, x, found)
        for one in runs.values():
            one.step(x)
        if step % 20 == 0:
            off = (one.curve[-1] / runs[args.against].curve[-1] - 1 for one in runs.values())
            print(step, *(f"{value:.1e}" for value in off), flush=True)

    mine, other = found["saefast"], found["other"]
    losses = zip(mine.fvu, other.fvu, strict=True)
    same_state = {
        "states": len(mine.fvu), "of them with AuxK": auxk_steps,
        "largest relative difference of the two losses": max(abs(a / b - 1) for a, b in losses),
        "saefast": mine.summary(), args.against: other.summary(),
        "rms error of saefast over that of the other": mine.rms_over(other),
    }  # fmt: skip
    heldout = {name: evaluate(one.trained(), open_source(args.heldout)) for name, one in runs.items()}
    sizes = {name: getattr(args, name) for name in ("d_sae", "k", "batch_size", "lr")}
    result = {
        "shape": {"d_in": source.d_in} | sizes,
        "machine": {"cpu": cpu_name(), "threads": torch.get_num_threads()},
        "versions": {"torch": torch.__version__, "backend": runs["saefast"].trainer.ops.NAME},
        "from the same state": same_state,
        "left alone": {
            "steps": len(runs["saefast"].curve),
            "apart": {name: apart(one.curve, runs[args.against].curve) for name, one in runs.items()},
            "heldout_fvu": {name: value.fvu for name, value in heldout.items()},
            "fvu_every_20_steps": {
                name: [round(v, 5) for v in runs[name].curve[::20]] for name in ("saefast", args.against)
            },
        },
    }
    kept = json.loads(args.out.read_text()) if args.out.exists() else {}
    kept = {name: kept[name] for name in ("plain", "reference") if name in kept} | {args.against: result}
    args.out.write_text(json.dumps(kept, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    good = mine.follows(other)
    print("follows to rounding" if good else "DOES NOT FOLLOW: see `from the same state`")
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
