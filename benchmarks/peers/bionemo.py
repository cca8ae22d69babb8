"""NVIDIA BioNeMo's `sae`: the lines of its `Trainer.fit` around its `TopKSAE`, without its logging. It is not on PyPI."""

import torch
from torch import Tensor

from benchmarks.peers.runs import Recipe, Run, as_sae, device_of, start
from saefast import SAE


def topk(sae: SAE, recipe: Recipe) -> Run:
    """Of the package the folder `sae/architectures` is enough."""
    from sae.architectures import TopKSAE

    config = sae.config
    module = TopKSAE(config.d_in, config.d_sae, config.k, normalize_input=False).to(device_of(sae))
    theirs = module.encoder.weight, module.latent_bias, module.decoder.weight, module.pre_bias
    start(sae, recipe, *theirs)
    adam = torch.optim.Adam(module.parameters(), lr=recipe.lr)

    def step(x: Tensor) -> Tensor:
        loss: Tensor = module.loss(x)["total"]
        loss.backward()
        adam.step()
        adam.zero_grad()
        module.post_step()
        return loss.detach()

    return Run(step, lambda: as_sae(sae, *theirs))
