"""Which recipe the demo uses, and is it at least as good as the best peer's? Held-out FVU after the same tokens.

    pip install eai-sparsify==1.3.3 && pip uninstall -y torchvision    # in an environment of its own
    python -m benchmarks.peers.recipe data/acts-corpus data/heldout-corpus   # writes benchmarks/results/cpu/recipe.json

Everybody trains d_sae 4608, k 32 on the same shuffled batches of the demo's cache, with b_dec at the centre of the
data and a learning rate tuned per optimizer and batch size. sparsify runs as its trainer does: its module, its
optimizers, decoder normalised before and gradient projected after each backward pass. What the results file holds
already is not measured again: delete it to start over.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from saefast import SAE, SAEConfig, TrainConfig, Trainer, evaluate, open_source
from saefast.activations.buffer import ShuffleBuffer
from saefast.train.run import INIT_ROWS

RESULT = Path(__file__).parents[1] / "results" / "cpu" / "recipe.json"
D_SAE, K = 4608, 32
GRID = [
    *[("saefast Adam", lr, 512, 0) for lr in (2e-3, 3e-3, 4e-3, 6e-3)],
    *[("saefast Adam", lr, 1024, 0) for lr in (4e-3, 6e-3)],
    *[("sparsify signum", lr, 512, 0) for lr in (3e-3, 5e-3, 8e-3)],
    *[("sparsify signum", lr, 1024, 0) for lr in (5e-3, 8e-3, 12e-3)],
    *[("sparsify Adam", lr, 512, 0) for lr in (1e-3, 2e-3, 4e-3, 6e-3)],
    *[("sparsify Adam", lr, 1024, 0) for lr in (4e-3,)],
    # the best of each again: other weights, another order of the rows
    *[("saefast Adam", 4e-3, 512, seed) for seed in (1, 2)],
    *[("sparsify Adam", 4e-3, 512, seed) for seed in (1, 2)],
]


def train_saefast(buffer: ShuffleBuffer, lr: float, steps: int, seed: int) -> SAE:
    sae = SAE(SAEConfig(d_in=buffer.source.d_in, d_sae=D_SAE, k=K), seed)
    batch_size = buffer.batch_size
    config = TrainConfig(
        total_tokens=steps * batch_size, batch_size=batch_size, lr=lr, betas=(0.9, 0.99), decay_fraction=0.95,
        dead_feature_threshold=20_000,
    )  # fmt: skip
    trainer = Trainer(sae, config)
    trainer.initialize(buffer.sample(INIT_ROWS).to(sae.W_enc))
    for x in batches(buffer, steps):
        trainer.step(x)
    return sae


def train_sparsify(optimizer: str, buffer: ShuffleBuffer, lr: float, steps: int, seed: int) -> SAE:
    from schedulefree import ScheduleFreeWrapper
    from sparsify.config import SparseCoderConfig
    from sparsify.sign_sgd import SignSGD
    from sparsify.sparse_coder import SparseCoder

    torch.manual_seed(seed)
    coder = SparseCoder(buffer.source.d_in, SparseCoderConfig(num_latents=D_SAE, k=K))
    schedule = None
    if optimizer == "signum":
        opt = ScheduleFreeWrapper(SignSGD([{"params": list(coder.parameters()), "lr": lr}]), momentum=0.95)
        opt.train()
    else:  # linear warm-up and linear decay to 0, as sparsify schedules Adam
        opt = torch.optim.Adam(coder.parameters(), lr=lr)
        warmup = steps / 20
        schedule = torch.optim.lr_scheduler.LambdaLR(
            opt, lambda s: min((s + 1) / warmup, (steps - s) / (steps - warmup))
        )
    for step, x in enumerate(batches(buffer, steps)):
        if step == 0:
            coder.b_dec.data = x.mean(dim=0)
        coder.set_decoder_norm_to_unit_norm()
        coder(x=x, y=x).fvu.backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        opt.step()
        opt.zero_grad()
        if schedule:
            schedule.step()
    if optimizer == "signum":
        opt.eval()
    coder.set_decoder_norm_to_unit_norm()
    sae = SAE(
        SAEConfig(d_in=buffer.source.d_in, d_sae=D_SAE, k=K)
    )  # the same arithmetic: evaluated by one code
    trained = (coder.encoder.weight, coder.encoder.bias, coder.W_dec, coder.b_dec)
    for param, value in zip(sae.params, trained, strict=True):
        param.copy_(value.detach())
    return sae


def batches(buffer: ShuffleBuffer, steps: int) -> Iterator[Tensor]:
    for _, x in zip(range(steps), buffer, strict=False):
        yield x.float()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source")
    parser.add_argument("heldout")
    parser.add_argument("--tokens", type=int, default=440_000)
    args = parser.parse_args()
    runs = json.loads(RESULT.read_text())["runs"] if RESULT.exists() else []
    done = {(run["who"], run["lr"], run["batch_size"], run["seed"]) for run in runs}
    for who, lr, batch_size, seed in GRID:
        if (who, lr, batch_size, seed) in done:
            continue
        buffer = ShuffleBuffer(open_source(args.source), batch_size, 131_072, seed)
        steps = args.tokens // batch_size
        if who.startswith("saefast"):
            sae = train_saefast(buffer, lr, steps, seed)
        else:
            sae = train_sparsify(who.split()[1], buffer, lr, steps, seed)
        result = evaluate(sae, open_source(args.heldout))
        run = {"who": who, "lr": lr, "batch_size": batch_size, "seed": seed}
        runs.append(run | {"fvu": result.fvu, "dead": result.dead_frac})
        print(json.dumps(runs[-1]), flush=True)
        RESULT.parent.mkdir(parents=True, exist_ok=True)
        RESULT.write_text(
            json.dumps({"tokens": args.tokens, "d_sae": D_SAE, "k": K, "runs": runs}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
