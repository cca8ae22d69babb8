"""Everybody who trains the same TopK SAE: ours, plain PyTorch and the peers, under one name each.

`make(name, sae, recipe)` begins a run from an SAE of ours; `missing(name)` says why it cannot be made here. NEVER lists those
that no machine like this one can run, with the reason: they are named in every table, not dropped.
"""

import importlib.util
import os
import shutil
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from benchmarks.measuring import DEVICE
from benchmarks.peers import dictionary_learning, llamascopium, overcomplete, runs, sae_lens, sparsify
from benchmarks.peers.pytorch import PlainStep, StockStep
from benchmarks.peers.runs import BETAS, EPS, Recipe, Run
from saefast import SAE, TrainConfig, Trainer
from saefast.backend import unavailable

OURS = "triton" if DEVICE == "cuda" else "native"
# what a fresh W_enc and W_dec are multiplied by: TrainConfig.init_encoder_scale, and unit norm
UNIT = 0.3, 1.0


def ours(backend: str, sae: SAE, recipe: Recipe, fresh: Sequence[float] = UNIT, **options: object) -> Run:
    settings = {
        "total_tokens": recipe.batch_size * (recipe.steps or 10**6),
        "batch_size": recipe.batch_size,
        "lr": recipe.lr,
        "betas": BETAS,
        "eps": EPS,
        "backend": backend,
        "normalize_input": False,
        "warmup_fraction": runs.WARMUP if recipe.steps else 0,
        "decay_fraction": 1 - runs.WARMUP if recipe.steps else 0,
    }
    mine = copy_of(sae, recipe, fresh)
    trainer = Trainer(mine, TrainConfig(**settings | options))  # type: ignore[arg-type]
    return Run(lambda x: trainer.step(x).fvu, lambda: runs.as_sae(mine, *mine.params))


def of_class(cls: type[PlainStep] | type[StockStep], sae: SAE, recipe: Recipe, compiled: bool = False) -> Run:
    """Plain PyTorch, with the schedule of the others. compiled: forward, loss and their gradients by torch.compile."""
    step = cls(copy_of(sae, recipe).params, sae.config.k, recipe.lr, BETAS, EPS)
    if compiled:
        step.fvu = torch.compile(step.fvu, dynamic=False)  # type: ignore[union-attr, method-assign]
    scheduler = torch.optim.lr_scheduler.LambdaLR(step.adam, recipe.rate)

    def run(x: Tensor) -> Tensor:
        fvu = step(x)
        scheduler.step()
        return fvu

    return Run(run, lambda: runs.as_sae(sae, *step.params))


def copy_of(sae: SAE, recipe: Recipe, fresh: Sequence[float] = UNIT) -> SAE:
    """The same parameters; for a run from weights of its own, those of a fresh SAE times `fresh`."""
    found = runs.as_sae(sae, *sae.params)
    if recipe.sample is not None:
        found.W_enc.data *= fresh[0]
        found.W_dec.data *= fresh[1]
    return found


Make = Callable[[SAE, Recipe], Run]
# Latents count as dead after 20,000 tokens; the default of 10,000,000 is more than a short run has.
DEMO = {"betas": (0.9, 0.99), "dead_feature_threshold": 20_000}
# What was found to be best for a short run, see benchmarks/LOG.md: rows of W_dec of any norm, short to begin with
FREE = DEMO | {"fresh": (0.1, 0.1), "unit_norm": False, "loss": "mse", "grad_clip": 1.0}
CONTENDERS: dict[str, tuple[str | None, Make]] = {  # name -> the package that must be there, how a run begins
    "saefast": (None, partial(ours, OURS)),
    "saefast, demo recipe": (None, partial(ours, OURS, **DEMO)),
    "saefast, free decoder": (None, partial(ours, OURS, **FREE)),
    "reference": (None, partial(ours, "reference")),
    "plain PyTorch": (None, partial(of_class, PlainStep)),
    "plain PyTorch, compiled": (None, partial(of_class, PlainStep, compiled=True)),
    "best PyTorch ops": (None, partial(of_class, StockStep)),
    "sparsify Adam": ("sparsify", partial(sparsify.topk, "adam")),
    "sparsify signum": ("sparsify", partial(sparsify.topk, "signum")),
    "dictionary_learning": ("dictionary_learning", dictionary_learning.topk),
    "SAELens": ("sae_lens", partial(sae_lens.topk, False)),
    "SAELens sparse": ("sae_lens", partial(sae_lens.topk, True)),
    "llamascopium": ("llamascopium", llamascopium.topk),
    "overcomplete": ("overcomplete", overcomplete.topk),
}
NEVER = {
    "openai/sparse_autoencoder": (
        "its kernels are Triton's, for CUDA only; not on PyPI (`make gpu` runs a checkout of 4965b94)"
    ),
    "flexsae": (
        "its kernels are Triton's, for CUDA only, from the Hugging Face kernels hub; decoder and loss, no trainer"
    ),
}
# The loss of these is not the FVU but the squared error of a token, or of an element.
PER_TOKEN = ("dictionary_learning", "SAELens", "SAELens sparse", "llamascopium")
PER_ELEMENT = ("overcomplete",)


def missing(name: str) -> str | None:
    package, _ = CONTENDERS[name]
    if name.startswith("saefast"):
        return unavailable(OURS)
    if name.endswith("compiled") and not shutil.which(os.environ.get("CXX", "g++")):
        return "torch.compile needs a C++ compiler"
    return "not installed" if package and not importlib.util.find_spec(package) else None


def left_out() -> dict[str, str]:
    """Everybody who does not take part here, with the reason."""
    return {name: why for name in CONTENDERS if (why := missing(name))} | NEVER


def make(name: str, sae: SAE, recipe: Recipe | None = None) -> Run:
    return CONTENDERS[name][1](sae, recipe or Recipe())


def fvu_of(name: str, loss: Tensor | float, x: Tensor) -> float:
    """The FVU of the batch x from the loss that the contender reports for it."""
    variance = float((x - x.mean(dim=0)).square().sum())
    if name in PER_TOKEN:
        return float(loss) * len(x) / variance
    return float(loss) * x.numel() / variance if name in PER_ELEMENT else float(loss)
