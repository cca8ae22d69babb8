"""Every architecture as one dense formula of its parameters, for autograd in fp64. No op of ours.

`loss(...)` is the objective; straight-through gradients are written as surrogate terms whose value is 0 and whose
derivative is the one of the papers.
"""

import torch

from tests.helpers.dense import fvu, topk_mask


def step_function(pre, threshold, bandwidth, to_input):
    """H(pre - threshold) with the derivative -K / bandwidth in threshold, and with to_input K / bandwidth in pre."""
    open_ = (pre > threshold).to(pre.dtype).detach()
    band = (((pre - threshold).abs() < bandwidth / 2).to(pre.dtype) / bandwidth).detach()
    moving = (pre if to_input else pre.detach()) - threshold
    return open_ + band * (moving - moving.detach())


def jumprelu(pre, threshold, bandwidth, to_input, positive=False):
    """pre * H, with theta in place of pre where H is differentiated."""
    open_ = (pre > threshold).to(pre.dtype).detach()
    inside = (pre - threshold).abs() < bandwidth / 2
    band = ((inside & (pre > 0) if positive else inside).to(pre.dtype) / bandwidth).detach()
    moving = (pre if to_input else pre.detach()) - threshold
    return pre * open_ + threshold.detach() * band * (moving - moving.detach())


def norms_of(W_dec, layers):
    return W_dec.unflatten(1, (layers, -1)).norm(dim=2).sum(dim=1)


def penalty(kind, u, exponent, tanh_scale):
    if kind == "l1":
        return u.sum()
    if kind == "lp":
        return torch.where(u > 0, u.clamp_min(1e-30) ** exponent, 0).sum()
    return torch.tanh(tanh_scale * u).sum()


def acts_of(p, sae, plan, c, centred):
    """(acts [B, F], pre_acts)."""
    pre = centred @ p["W_enc"].T + p["b_enc"]
    norms = p["W_dec"].norm(dim=1)
    if sae.activation in ("topk", "batch_topk", "matryoshka"):
        scores = (pre * norms if sae.scale_by_norm else pre).detach()
        k = plan.k * (plan.train.multi_topk or 1)
        if sae.activation == "topk":
            return (pre * topk_mask(scores, min(k, sae.d_sae))).relu(), pre
        mask = topk_mask(scores.flatten()[None], k * len(pre)).view(pre.shape)
        return (pre * mask).relu(), pre
    if sae.activation == "group_max":
        groups = pre.unflatten(1, (sae.k, -1))
        mask = torch.zeros_like(groups).scatter_(2, groups.argmax(dim=2, keepdim=True), 1.0)
        return (pre * mask.flatten(1)).relu(), pre
    if sae.activation == "jumprelu":
        theta = p["threshold"].exp() if plan.train.log_threshold else p["threshold"]
        scale = norms if sae.scale_by_norm else 1.0
        to_input, positive = plan.train.straight_through == "all", plan.train.straight_through == "positive"
        return jumprelu(pre * scale, theta, c["bandwidth"], to_input, positive) / scale, pre
    if sae.activation == "gated":
        dot = centred @ p["W_enc"].T
        return (p["r_mag"].exp() * dot + p["b_mag"]).relu() * (pre > 0), pre
    return pre.relu(), pre


def auxk(p, plan, pre, dead, residual, over):
    """The largest dead latents on what is left over; over: what the main loss divides by."""
    k_aux = min(plan.k_aux, int(dead.sum()))
    raw = not plan.train.auxk_relu
    scores = pre * p["W_dec"].norm(dim=1) if plan.sae.scale_by_norm else pre
    acts = pre * topk_mask(scores.detach().masked_fill(~dead, -torch.inf), k_aux)
    squares = ((acts if raw else acts.relu()) @ p["W_dec"] - residual).square().sum()
    if plan.train.auxk_scale == "residual":
        over = (residual - residual.mean(dim=0)).square().sum()
    return squares / over * (min(1.0, int(dead.sum()) / plan.k_aux) if plan.train.auxk_ramp else 1.0)


def loss(p, sae, plan, c, x, target, dead=None):
    """c: sparsity, scale, exponent, bandwidth, inactive, as floats. Returns (loss, the part that is a penalty)."""
    B = len(x)
    goal = x if target is None else target
    centred = x - p["b_dec"] if sae.pre_bias else x
    acts, pre = acts_of(p, sae, plan, c, centred)
    base = p["b_dec"] + (x @ p["W_skip"].T if sae.skip else 0)
    out = c["output_scale"]
    variance = (goal - goal.mean(dim=0)).square().sum()
    over = {
        "fvu": variance if variance > 0 else goal.numel(),
        "mse": B / out**2,
        "mse_mean": B * goal.shape[1] / out**2,
    }[plan.train.loss]

    def squares(some):
        return (some @ p["W_dec"] + base - goal).square().sum() / over

    total = squares(acts)
    if sae.activation == "matryoshka":
        weights = plan.train.group_weights or (1.0,) * len(sae.group_sizes)
        prefixes = [acts * (torch.arange(sae.d_sae) < size) for size in sae.group_sizes]
        total = sum(w * squares(prefix) for w, prefix in zip(weights, prefixes))
    elif plan.train.multi_topk:
        few = acts * topk_mask(acts.detach(), plan.k)
        total = squares(few) + plan.train.multi_topk_weight * squares(acts)
    if plan.dead_capacity and plan.train.count_before_auxk:
        dead = dead & ~(acts > 0).any(dim=0)
    if plan.dead_capacity:
        residual = goal - base - acts @ p["W_dec"]
        residual = residual.detach() if plan.train.auxk_detached else residual
        total = total + plan.train.auxk_alpha * auxk(p, plan, pre, dead, residual, over)
    norms = norms_of(p["W_dec"], sae.layers)
    weight = c["scale"] * (norms if plan.train.norm_weighted else 1)
    added = torch.zeros((), dtype=x.dtype)
    if plan.train.penalty in ("l1", "lp", "tanh"):
        of = pre.relu() if sae.activation == "gated" else acts
        added = (
            p.get("penalty_scale", 1)
            * c["sparsity"]
            / B
            * penalty(plan.train.penalty, of * weight, c["exponent"], plan.train.tanh_scale)
        )
    if sae.activation == "gated":
        fixed_W, fixed_b = p["W_dec"].detach(), p["b_dec"].detach()
        added = added + (pre.relu() @ fixed_W + fixed_b - goal).square().sum() / over
    if sae.activation == "jumprelu":
        theta = p["threshold"].exp() if plan.train.log_threshold else p["threshold"]
        of = acts.detach() if plan.train.straight_through == "acts" else pre
        of = of * norms.detach() if sae.scale_by_norm else of
        l0 = step_function(of, theta, c["bandwidth"], plan.train.straight_through == "all").sum() / B
        if plan.train.penalty == "l0":
            added = added + c["sparsity"] * l0
        elif plan.train.penalty == "target_l0":
            added = added + c["sparsity"] * (l0 / plan.train.target_l0 - 1).square()
        if plan.train.preact != "none":
            which = torch.ones(sae.d_sae) if plan.train.preact == "all" else dead.to(x.dtype)
            added = added + c["inactive"] / B * ((theta - pre).relu() * which * norms).sum()
    return total + added, added


__all__ = ["fvu", "loss"]
