"""overcomplete: its `train_sae` on one batch at a time."""

import torch
from torch import Tensor

from benchmarks.peers.runs import BETAS, EPS, Recipe, Run, as_sae, device_of, stand_ins, start
from saefast import SAE


def topk(sae: SAE, recipe: Recipe) -> Run:
    """It has no b_dec: it gets x less the mean."""
    # These two import vision models, and an older matplotlib.
    with stand_ins("overcomplete.models", "overcomplete.visualization"):
        from overcomplete.sae import TopKSAE
        from overcomplete.sae.train import train_sae

    config, device = sae.config, device_of(sae)
    model = TopKSAE(config.d_in, nb_concepts=config.d_sae, top_k=config.k, device=device)
    linear, mean = model.encoder.final_block[0], sae.b_dec.data.clone()
    theirs = linear.weight, linear.bias, model.dictionary._weights, mean
    start(sae, recipe, *theirs)
    adam = torch.optim.Adam(model.parameters(), lr=recipe.lr, betas=BETAS, eps=EPS)
    schedule = torch.optim.lr_scheduler.LambdaLR(adam, recipe.rate)
    losses: list[Tensor] = []

    def criterion(x: Tensor, x_hat: Tensor, *_: object) -> Tensor:
        losses[:] = [(x - x_hat).square().mean()]
        return losses[0]

    def step(x: Tensor) -> Tensor:
        once = {"nb_epochs": 1, "monitoring": 0, "device": device}
        train_sae(model, [x - mean], criterion, adam, schedule, **once)
        return losses[0].detach()

    return Run(step, lambda: as_sae(sae, *theirs[:2], model.get_dictionary(), mean))
