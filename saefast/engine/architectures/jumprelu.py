"""JumpReLU (Rajamanoharan et al. 2024, arXiv 2407.14435): a threshold theta for each latent, trained.

    acts = pre_acts where pre_acts > theta, else 0          loss = reconstruction + penalty

The step H(pre - theta) has no gradient; within half a bandwidth eps of theta it is taken to be 1 / eps wide:

    d acts / d theta = -(theta / eps) K        d H / d theta = -(1 / eps) K        K = 1 where |pre - theta| < eps / 2

and nothing more with respect to pre_acts ("threshold"), or the same with the other sign, so that the weights learn from
it too ("all": Anthropic, January 2025). "acts" is dictionary_learning's: as "threshold", but the H whose mean is L0 is of
the activations, H(acts - theta), so that K is 1 where |acts - theta| < eps / 2: in the upper half of the band, and with
|theta| < eps / 2 in every token in which the latent is not active. Nor is theta kept at 0 or above: one below 0 lets
negative activations through, and the latent counts as active in every token.
"positive" is llamascopium's: as "threshold", where pre_acts > 0.

With `scale_by_norm` pre_acts * ||W_dec row|| is compared with theta, and eps is in those units; the activations are the
pre_acts, and theta is not scaled in the pre-activation loss (llamascopium's sparsity_include_decoder_norm).

Penalties: "l0": sparsity * mean L0. "target_l0": sparsity * (mean L0 / target_l0 - 1)^2. Those of
`saefast.engine.architectures.penalties` on the activations. The pre-activation loss against dead latents (Anthropic 2025;
SAELens: of dead latents only) is preact_coefficient * sum over latents of relu(theta - pre) * ||W_dec row||, mean over
tokens. It reaches every latent in every token; all tokens minus those where it is active gives it without a dense code.
"""

import math

import torch
from torch import Tensor

from saefast.config.sae import SAEConfig
from saefast.config.train import TrainConfig
from saefast.engine.architecture import Architecture, Entries, Step, threshold_code
from saefast.engine.architectures.penalties import penalty
from saefast.engine.code import Backward, Code, Extra, where
from saefast.engine.plan import Plan
from saefast.errors import check
from saefast.storage import positive, row_norms


class JumpReLU(Architecture):
    unbounded = True

    def extra_parameters(self, sae: SAEConfig, device: str | torch.device) -> dict[str, Tensor]:
        first = first_threshold(sae, math.sqrt(sae.d_in))
        return {"threshold": torch.full((sae.d_sae,), first, dtype=torch.float32, device=device)}

    def trained(self, extra: dict[str, Tensor], train: TrainConfig, b_enc: Tensor) -> dict[str, Tensor]:
        if not train.log_threshold:
            return extra
        least = float(extra["threshold"].min())
        check(least > 0, f"log_threshold: expected an SAE with thresholds above 0, got one of {least:.4g}")
        return extra | {"threshold": extra["threshold"].log()}

    def restored(self, trained: dict[str, Tensor], train: TrainConfig) -> dict[str, Tensor]:
        return trained | ({"threshold": trained["threshold"].exp()} if train.log_threshold else {})

    def begin_(self, extra: Extra, sae: SAEConfig, train: TrainConfig, scale: float) -> None:
        value = first_threshold(sae, train.norm_of_rows(sae.d_in)) / scale
        extra["threshold"].value.fill_(math.log(value) if train.log_threshold else value)

    def enlarge_(self, extra: Extra, sae: SAEConfig, train: TrainConfig, norms: Tensor) -> None:
        if sae.scale_by_norm:  # thresholds are of pre_acts * ||W_dec row||, which stay the same
            return
        if train.log_threshold:
            extra["threshold"].value.add_(norms.log())
        else:
            extra["threshold"].value.mul_(norms)

    def in_data_units(self, name: str, train: TrainConfig) -> bool:
        return name == "threshold" and not train.log_threshold

    def smallest_value(self, name: str, train: TrainConfig) -> float | None:
        kept = name == "threshold" and not train.log_threshold and train.straight_through != "acts"
        return 0.0 if kept else None

    def select(self, step: Step, centred: Tensor) -> Code:
        weights, plan = step.weights, step.plan
        norms, threshold = None, theta(step)
        lowest = threshold - step.c.bandwidth / 2
        if plan.sae.scale_by_norm:
            norms = positive(row_norms(weights.dec).to(threshold.dtype))
            lowest = lowest / norms
            if plan.train.preact != "none":  # whose entries are those above theta itself
                lowest = torch.minimum(lowest, threshold)
            threshold = threshold / norms
        if plan.train.straight_through == "positive":
            lowest = lowest.clamp_min(0)
        if plan.dense:
            pre_acts = step.ops.encode_dense(centred, weights.enc.shadow, weights.b_enc.value)
            acts, listed = where(pre_acts > threshold, pre_acts), (pre_acts > lowest).to(pre_acts.dtype)
            return Code(acts, None, None, pre_acts, listed, norms=norms)
        pre_acts, indices, row_offsets, size = threshold_code(step, centred, lowest.contiguous())
        acts = where(pre_acts > threshold[indices.long()], pre_acts)
        listed = (pre_acts > -torch.inf).to(acts.dtype)
        return Code(acts, indices, row_offsets, pre_acts, listed, size, norms=norms)

    def update_finds_gradient(self, plan: Plan) -> bool:
        return False

    def backward(self, step: Step, entries: Entries) -> Backward:
        back = through_step(step, entries)
        if step.plan.train.preact != "none":
            back = with_preact_loss(step, entries, back)
        if step.plan.train.log_threshold:
            assert back.extra is not None
            return back._replace(extra={"threshold": back.extra["threshold"] * theta(step)})
        return back

    def mean_l0(self, step: Step, centred: Tensor, rows: int) -> Tensor | None:
        if step.plan.train.penalty != "target_l0" or rows >= len(centred):
            return None
        active = [number_open(step, self.select(step, part), len(part)) for part in centred.split(rows)]
        return torch.stack(active).sum().to(step.c.sparsity.dtype) / len(centred)

    def bound(self, extra: dict[str, Tensor], norms: Tensor | None, b_enc: Tensor) -> Tensor:
        bound = extra["threshold"].clamp_min(0)
        return bound if norms is None else bound / positive(norms)


def first_threshold(sae: SAEConfig, norm_of_rows: float) -> float:
    """Of a fresh SAE, in the units of the scaled input."""
    return sae.init_threshold or 0.001 * norm_of_rows


def theta(step: Step) -> Tensor:
    """[F]."""
    value = step.extra["threshold"].value
    return value.exp() if step.plan.train.log_threshold else value


def number_open(step: Step, code: Code, n_tokens: int) -> Tensor:
    """[]: how often H is 1, an integer."""
    threshold = theta(step)
    if code.norms is not None:
        threshold = threshold / code.norms
    open_ = code.pre_acts > code.of(threshold)
    if step.plan.train.straight_through != "acts":
        return open_.sum()
    below = threshold < 0
    return (open_ & ~code.of(below)).sum() + n_tokens * below.sum()


def through_step(step: Step, entries: Entries) -> Backward:
    """The gradients of the reconstruction and of the penalty, through H with its straight-through estimate."""
    code, slope, c, train, n_tokens = entries.code, entries.slope, step.c, step.plan.train, entries.n_tokens
    threshold, half = theta(step), c.bandwidth / 2
    if code.norms is not None:
        threshold, half = threshold / code.norms, code.of(half / code.norms)
    threshold = code.of(threshold)
    open_, inside = code.pre_acts > threshold, (code.pre_acts - threshold).abs() < half
    if train.straight_through == "positive":
        inside = inside & (code.pre_acts > 0)
    band = inside.to(slope.dtype) / c.bandwidth
    added = penalty(step, code, code.acts, entries.penalty_norms(step.plan))
    value, of_norms = added.value, None if added.norms is None else entries.sums(added.norms)
    if added.acts is not None:
        slope = slope + added.acts
    to_theta = threshold * slope
    if train.penalty in ("l0", "target_l0"):
        l0 = number_open(step, code, n_tokens).to(c.sparsity.dtype) / n_tokens  # of integers: fp32
        if train.penalty == "l0":
            value, of_step = c.sparsity * n_tokens * l0, c.sparsity
        else:
            assert train.target_l0 is not None
            l0 = l0 if code.mean_l0 is None else code.mean_l0
            excess = l0 / train.target_l0 - 1
            value = c.sparsity * n_tokens * excess.square()
            of_step = c.sparsity * 2 * excess / train.target_l0
        if train.straight_through == "acts":  # where a latent is not active, its activation is 0
            at_zero = (theta(step).abs() < c.bandwidth / 2).to(band.dtype) / c.bandwidth
            to_theta = to_theta * band + of_step * where(open_, band - code.of(at_zero))
            of_theta = entries.sums(-to_theta) + -n_tokens * of_step * at_zero
            return Backward(where(open_, slope), value, of_norms, extra={"threshold": of_theta})
        to_theta = to_theta + of_step
    to_theta = to_theta * band
    grad_pre = where(open_, slope)
    if train.straight_through == "all":
        grad_pre = grad_pre + to_theta
    return Backward(grad_pre, value, of_norms, extra={"threshold": entries.sums(-to_theta)})


def with_preact_loss(step: Step, entries: Entries, back: Backward) -> Backward:
    """The pre-activation loss with its gradients: all tokens, minus those where the latent is active."""
    code, n_tokens, b_enc, rows = (
        entries.code,
        entries.n_tokens,
        step.weights.b_enc.value,
        entries.sum_of_rows,
    )
    assert entries.row_norms is not None and back.extra is not None
    threshold, wide = theta(step), rows.dtype
    weight = step.c.inactive.to(b_enc.dtype).expand_as(b_enc)
    if step.plan.train.preact == "dead":
        weight = weight * (step.silent_for >= step.plan.train.dead_feature_threshold)
    pre_acts = [part.to(wide) @ rows for part in step.weights.enc.shadow.split(2**14)]
    open_ = code.pre_acts > code.of(threshold)
    short = where(open_, code.of(threshold) - code.pre_acts)
    missing = n_tokens * (threshold - b_enc) - torch.cat(pre_acts) - entries.sums(short)
    n_inactive = n_tokens - entries.sums(open_.to(wide))
    per_entry, of_norms = weight * entries.row_norms, weight * missing
    return Backward(
        back.grad_pre + where(open_, code.of(per_entry)),
        back.penalty + (per_entry * missing).sum(),
        of_norms if back.norms is None else back.norms + of_norms,
        {"threshold": back.extra["threshold"] + per_entry * n_inactive},
        push=-per_entry,
    )
