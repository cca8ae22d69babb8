"""openai/sparse_autoencoder: the lines of its `train.py` around its module. Its kernels need CUDA; it is not on PyPI."""

import torch
from torch import Tensor

from benchmarks.peers.runs import EPS, Recipe, Run, as_sae, device_of, not_installed, stand_ins, start
from saefast import SAE


def topk(sae: SAE, recipe: Recipe) -> Run:
    with stand_ins(*not_installed("wandb", "blobfile")):
        from sparse_autoencoder import train

    # As published it does not run in one process: with a capacity_factor it asks for the size of a group of processes.
    sharded_topk = train.sharded_topk
    train.sharded_topk = lambda x, k, sh_comm, capacity_factor=None: sharded_topk(x, k, sh_comm)
    config = sae.config
    coder = train.FastAutoencoder(config.d_sae, config.d_in, config.k, auxk=None, dead_steps_threshold=10**9)
    coder = coder.to(device_of(sae))
    theirs = coder.encoder.weight, coder.latent_bias, coder.decoder.weight, coder.pre_bias
    start(sae, recipe, *theirs)
    adam = torch.optim.Adam(coder.parameters(), lr=recipe.lr, eps=EPS, fused=True)

    def step(x: Tensor) -> Tensor:
        recons, _ = coder(x)
        loss = (recons - x).square().mean() / x.square().mean()
        loss.backward()
        train.unit_norm_decoder_(coder)
        train.unit_norm_decoder_grad_adjustment_(coder)
        adam.step()
        adam.zero_grad()
        return loss.detach()

    return Run(step, lambda: as_sae(sae, *theirs))
