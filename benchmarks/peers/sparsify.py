"""sparsify: the lines of its `Trainer.fit` that come after the language model."""

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.peers.runs import BETAS, EPS, Pair, Recipe, Run, Side, Step, as_sae, device_of, start
from benchmarks.shapes import Shape
from saefast import SAE

KINDS = ("adam", "signum")  # the trainers that the drop-in is measured for
KEPT = ExitStack()  # holds until the process ends


def steps(coder: Any, optimizers: Sequence[Any], schedulers: Sequence[Any]) -> Step:
    def step(x: Tensor) -> Tensor:
        coder.set_decoder_norm_to_unit_norm()
        variance = (x - x.mean(dim=0)).square().sum()
        fvu: Tensor = coder(x, x, dead_mask=None, total_variance=variance).fvu
        fvu.backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        for each in (*optimizers, *schedulers):
            each.step()
        optimizers[0].zero_grad()
        return fvu.detach()

    return step


def topk(optimizer: str, sae: SAE, recipe: Recipe) -> Run:
    """optimizer: "adam", or "signum", which needs no schedule: its weights are averages."""
    from schedulefree import ScheduleFreeWrapper
    from sparsify.config import SparseCoderConfig
    from sparsify.sign_sgd import SignSGD
    from sparsify.sparse_coder import SparseCoder

    config, device = sae.config, device_of(sae)
    coder = SparseCoder(config.d_in, SparseCoderConfig(num_latents=config.d_sae, k=config.k), device=device)
    params = coder.encoder.weight, coder.encoder.bias, coder.W_dec, coder.b_dec
    start(sae, recipe, *params)
    signum = optimizer == "signum"
    schedulers = []
    if signum:
        sign_sgd = SignSGD([{"params": list(coder.parameters()), "lr": recipe.lr}])
        opt: Any = ScheduleFreeWrapper(sign_sgd, momentum=0.95)
        opt.train()
    else:
        fused = device == "cuda" or None
        opt = torch.optim.Adam(coder.parameters(), lr=recipe.lr, betas=BETAS, eps=EPS, fused=fused)
        schedulers = [torch.optim.lr_scheduler.LambdaLR(opt, recipe.rate)]

    def trained() -> SAE:
        if signum:
            opt.eval()
        coder.set_decoder_norm_to_unit_norm()
        found = as_sae(sae, *params)
        if signum:
            opt.train()
        return found

    return Run(steps(coder, [opt], schedulers), trained)


class Lookup(nn.Module):
    """A language model to sparsify's trainer: token ids are numbers of rows, `lookup` is the module that it hooks."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.device, self.dummy_inputs = rows.device, {"input_ids": torch.zeros(1, 1, dtype=torch.int64)}
        self.lookup = nn.Embedding.from_pretrained(rows)

    @property
    def base_model(self) -> "Lookup":
        return self

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.lookup(input_ids)


def pair(kind: str, shape: Shape, rows: Tensor) -> Pair:
    import sparsify.trainer
    from sparsify.config import SparseCoderConfig, TrainConfig

    from saefast.adapters import sparsify as ours

    def side(cls: Any) -> Side:
        config = TrainConfig(
            SparseCoderConfig(num_latents=shape.F, k=shape.K),
            batch_size=1,
            optimizer=kind,
            lr_warmup_steps=5,
            hookpoints=["lookup"],
            save_dir=KEPT.enter_context(tempfile.TemporaryDirectory()),
        )
        trainer = cls(config, [None] * 1000, Lookup(rows[: shape.B]))
        coder = trainer.saes["lookup"]
        coder.b_dec.data = rows.mean(dim=0)
        if cls is ours.Trainer:  # what its `fit` does around the loop
            KEPT.enter_context(trainer.on_the_engine())
        return Side(steps(coder, trainer.optimizers, trainer.lr_schedulers))

    return side(sparsify.trainer.Trainer), side(ours.Trainer)
