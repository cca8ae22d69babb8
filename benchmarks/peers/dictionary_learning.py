"""dictionary_learning: the `update` of its trainers."""

import itertools
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers.runs import Pair, Recipe, Run, Side, Step, as_sae, device_of, stand_ins, start
from benchmarks.shapes import Shape
from saefast import SAE

FILES = {
    "TopK": "top_k",
    "BatchTopK": "batch_top_k",
    "MatryoshkaBatchTopK": "matryoshka_batch_top_k",
    "JumpRelu": "jumprelu",
    "GatedSAE": "gdm",
    "Standard": "standard",
}
KINDS = tuple(FILES)  # the trainers that the drop-in is measured for
WARMUP = 50  # steps, of the learning rate and of the penalties in a drop-in
PENALTIES: dict[str, dict[str, Any]] = {
    "Standard": {"l1_penalty": 0.06},
    "GatedSAE": {"l1_penalty": 0.2},
    "JumpRelu": {"sparsity_penalty": 1.0},
    "MatryoshkaBatchTopK": {"group_fractions": [1 / 16, 1 / 16, 1 / 8, 1 / 4, 1 / 2]},
}


def trainers(kind: str) -> Any:
    """The module that has the trainer of this kind."""
    # These packages are for language models only, and nnsight changes torch.autocast for everybody.
    with stand_ins("nnsight", "datasets", "zstandard"):
        return import_module(f"dictionary_learning.trainers.{FILES[kind]}")


def updates(trainer: Any) -> Step:
    """Its `update`, counted from 1: in step 0 it computes a geometric median for b_dec."""
    count = itertools.count(1)
    return lambda x: trainer.update(next(count), x)


def topk(sae: SAE, recipe: Recipe) -> Run:
    config, steps = sae.config, recipe.steps
    trainer = trainers("TopK").TopKTrainer(
        steps=(steps or 10**9) + 1,
        activation_dim=config.d_in,
        dict_size=config.d_sae,
        k=config.k,
        layer=0,
        lm_name="none",
        lr=recipe.lr,
        warmup_steps=recipe.warmup,
        decay_start=recipe.warmup + 1 if steps else None,
        device=device_of(sae),
    )
    ae = trainer.ae
    theirs = ae.encoder.weight, ae.encoder.bias, ae.decoder.weight, ae.b_dec
    start(sae, recipe, *theirs)
    return Run(updates(trainer), lambda: as_sae(sae, *theirs))


def pair(kind: str, shape: Shape, rows: Tensor) -> Pair:
    stock = trainers(kind)
    from saefast.adapters import dictionary_learning as ours

    options = {"k": shape.K} if "TopK" in kind else {"sparsity_warmup_steps": WARMUP}
    options |= PENALTIES.get(kind, {}) | ({"target_l0": float(shape.K)} if kind == "JumpRelu" else {})

    def side(module: Any) -> Side:
        torch.manual_seed(0)  # JumpReluTrainer does not seed by itself
        trainer = getattr(module, f"{kind}Trainer")(
            steps=10**6,
            activation_dim=shape.D,
            dict_size=shape.F,
            layer=0,
            lm_name="none",
            lr=1e-3,
            seed=0,
            device="cpu",
            warmup_steps=WARMUP,
            **options,
        )
        ae = trainer.ae

        def reconstruction(x: Tensor) -> float:
            return float((ae(x[:64]) - x[:64]).detach().square().sum(dim=1).mean())

        return Side(updates(trainer), reconstruction, ae, ae.encode)

    return side(stock), side(ours)
