"""What the files of this folder make of every peer: a run that is stepped, or the two sides of a drop-in.

A run starts from an SAE of ours and gives one back, so that everybody begins with the same weights and is judged by the
same code. `make peers` makes an environment with all the packages.
"""

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.shapes import Shape
from saefast import SAE, SAEConfig

os.environ["TQDM_DISABLE"] = "1"  # the peers read this and the next one when they are imported
if not torch.cuda.is_available():  # where triton is installed sparsify would launch its kernels all the same
    os.environ["SPARSIFY_DISABLE_TRITON"] = "1"
BETAS, EPS = (0.9, 0.999), 6.25e-10
WARMUP = 0.05  # of the steps of a run
Step = Callable[[Tensor], Any]  # x [B, d_in] -> the loss, a number or a tensor


class Recipe(NamedTuple):
    """How a run is made. The batch size is that of the batches that `step` gets."""

    lr: float = 1e-3
    # The learning rate rises over WARMUP of the steps and then falls linearly to 0; without steps it is constant.
    steps: int | None = None
    batch_size: int = 4096
    # [n, d_in] to begin with weights of the library's own; without it a run begins with those of the SAE given.
    sample: Tensor | None = None

    @property
    def warmup(self) -> int:
        return int(WARMUP * (self.steps or 0))

    def rate(self, step: int) -> float:
        """What lr is multiplied by in a step, counted from 0."""
        if self.steps is None:
            return 1.0
        return min((step + 1) / max(1, self.warmup), (self.steps - step) / (self.steps - self.warmup))


class Run(NamedTuple):
    """A peer in training."""

    step: Step  # returns the loss that the trainer itself reports
    sae: Callable[[], SAE]  # what is trained so far, in our layout


class Side(NamedTuple):
    """One side of a drop-in: a project's own trainer, or ours in its place."""

    step: Step
    loss: Step | None = None  # computes the loss after a step, if the step does not return it
    module: Any = None  # the SAE, where the cost of a step depends on how many latents are active
    acts: Step | None = None  # its dense activations of x, in the same cases


Pair = tuple[Side, Side]  # the project's own side, then ours


def device_of(sae: SAE) -> str:
    return sae.W_enc.device.type


def start(sae: SAE, recipe: Recipe, *theirs: Tensor) -> None:
    """Copy our parameters (b_dec only, if the recipe has a sample) into theirs, which may be transposed."""
    for name, param, value in zip(("W_enc", "b_enc", "W_dec", "b_dec"), theirs, sae.params, strict=True):
        if name == "b_dec" or recipe.sample is None:
            param.data.copy_(value if param.shape == value.shape else value.T)


def as_sae(sae: SAE, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, b_dec: Tensor, fold: bool = False) -> SAE:
    """Their parameters as an SAE of ours. fold: they select by activation times the norm of the decoder row."""
    found = SAE(sae.config).to(sae.W_enc.device)
    for param, value in zip(found.params, (W_enc, b_enc, W_dec, b_dec), strict=True):
        param.copy_(value.detach() if param.shape == value.shape else value.detach().T)
    if fold:
        norms = found.W_dec.data.norm(dim=1)
        found.W_enc.data *= norms[:, None]
        found.W_dec.data /= norms[:, None]
        found.b_enc.data *= norms
    return found


def without_weights(shape: Shape, b_dec: Tensor) -> SAE:
    """An SAE that only has b_dec: for runs with weights of their own, where ours would count as their memory."""
    zero = b_dec.new_zeros(1, 1).expand(shape.F, shape.D)  # takes 4 bytes
    weights = {"W_enc": zero, "b_enc": zero[:, 0], "W_dec": zero, "b_dec": b_dec}
    return SAE.of(SAEConfig(d_in=shape.D, d_sae=shape.F, k=shape.K), weights)


def scale_of(units: str, x: Tensor) -> float:
    """What x [n, d_in] is multiplied by: dictionary_learning makes E||x||^2 = 1 ("rms"), SAELens and llamascopium
    E||x|| = sqrt(d_in) ("sqrt_d"), sparsify leaves x as it is ("none")."""
    norms = x.norm(dim=1).double()
    if units == "none":
        return 1.0
    return {
        "rms": 1 / float(norms.square().mean().sqrt()),
        "sqrt_d": x.shape[1] ** 0.5 / float(norms.mean()),
    }[units]


def not_installed(*packages: str) -> list[str]:
    return [name for name in packages if importlib.util.find_spec(name) is None]


@contextmanager
def stand_ins(*names: str) -> Iterator[None]:
    """While importing: modules of these names that have everything and do nothing."""

    class StandIn(ModuleType):
        def __getattr__(self, name: str) -> type:
            if name.startswith("__"):
                raise AttributeError(name)
            return type(name, (), {})

    kept = {name: sys.modules.get(name) for name in names}
    sys.modules.update({name: StandIn(name) for name in names})
    try:
        yield
    finally:
        for name, module in kept.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
