"""Steps of `train_step` under a plan written by hand, and the same by autograd in fp64."""

import torch

import saefast
from saefast import reference
from saefast.engine.state import State
from saefast.engine.step import train_step
from tests.helpers import dense
from tests.helpers.steps import numbers_at, plan_of

D, F, K, B = 24, 80, 6, 96


def start(seed=3):
    sae = saefast.SAE(saefast.SAEConfig(d_in=D, d_sae=F, k=K), seed=seed).double()
    sae.b_enc.data -= 0.5
    return sae.params


def run(params, batches, ops=reference, **options):
    """States and metrics after training a copy of `params` on the batches."""
    l1 = options.pop("l1", 0.0)
    plan = plan_of(K, params.W_enc.dtype, D, F, penalty="l1" if l1 else "none", **options)
    state = State.fresh(reference.Params(*(p.clone() for p in params)))
    metrics = []
    for x in batches:
        state.step += 1
        numbers = numbers_at(plan, state.step, len(x), lr=3e-3, sparsity=l1)
        metrics.append(train_step(ops, state, x, plan, numbers))
    return state, metrics


def oracle(params, batches, activation, l1=0.0, grad_clip=None):
    leaves = [p.clone().requires_grad_() for p in params]
    W_enc, b_enc, W_dec, b_dec = leaves
    optimizer = torch.optim.Adam(leaves, lr=3e-3, betas=(0.9, 0.999), eps=1e-8)
    losses = []
    for x in batches:
        pre_acts = (x - b_dec) @ W_enc.T + b_enc
        acts = pre_acts.relu()
        if activation == "batch_topk":
            flat = pre_acts.detach().flatten()[None]
            acts = (pre_acts * dense.topk_mask(flat, K * len(x)).view(pre_acts.shape)).relu()
        loss = dense.fvu(acts @ W_dec + b_dec, x) + l1 * acts.sum() / len(x)
        optimizer.zero_grad()
        loss.backward()
        with torch.no_grad():
            W_dec.grad -= (W_dec.grad * W_dec).sum(1, keepdim=True) * W_dec
            if grad_clip:
                torch.nn.utils.clip_grad_norm_(leaves, grad_clip)
            optimizer.step()
            W_dec /= W_dec.norm(dim=1, keepdim=True)
        losses.append(float(loss.detach()))
    return leaves, losses
