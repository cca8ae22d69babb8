"""Gated SAE (Rajamanoharan et al. 2024, arXiv 2404.16014): one product decides what is active and how much.

    dot  = W_enc (x - b_dec)           pre_acts = dot + b_enc            (the gate)
    acts = relu(exp(r_mag) * dot + b_mag) where pre_acts > 0, else 0
    loss = reconstruction(acts) + sparsity * sum of relu(pre_acts) + ||b_dec + relu(pre_acts) W_dec - x||^2

with the decoder held constant in the last term, so that it only teaches the gate.
"""

import torch
from torch import Tensor

from saefast.config.sae import SAEConfig
from saefast.config.train import TrainConfig
from saefast.engine.architecture import Architecture, Entries, Step, threshold_code
from saefast.engine.architectures.penalties import penalty
from saefast.engine.code import Backward, Code, Extra, where
from saefast.engine.entry_grads import slopes
from saefast.engine.plan import Plan
from saefast.engine.reconstruct import reconstruct


class Gated(Architecture):
    unbounded = True

    def extra_parameters(self, sae: SAEConfig, device: str | torch.device) -> dict[str, Tensor]:
        return {n: torch.zeros(sae.d_sae, dtype=torch.float32, device=device) for n in ("r_mag", "b_mag")}

    def in_data_units(self, name: str, train: TrainConfig) -> bool:
        return name == "b_mag"

    def enlarge_(self, extra: Extra, sae: SAEConfig, train: TrainConfig, norms: Tensor) -> None:
        extra["b_mag"].value.mul_(norms)

    def select(self, step: Step, centred: Tensor) -> Code:
        W_enc, b_enc = step.weights.enc.shadow, step.weights.b_enc.value
        indices = row_offsets = size = None
        if step.plan.dense:
            pre_acts = step.ops.encode_dense(centred, W_enc, b_enc)
        else:
            pre_acts, indices, row_offsets, size = threshold_code(step, centred, torch.zeros_like(b_enc[0]))
        listed = (pre_acts > 0).to(pre_acts.dtype)
        values = {name: vector.value for name, vector in step.extra.items()}
        acts = self.acts_of(pre_acts, values, b_enc, None if indices is None else indices.long())
        acts = where(pre_acts > 0, acts).to(pre_acts.dtype)
        return Code(acts, indices, row_offsets, pre_acts, listed, size)

    def update_finds_gradient(self, plan: Plan) -> bool:
        return False

    def backward(self, step: Step, entries: Entries) -> Backward:
        code, extra, b_enc, plan = entries.code, step.extra, step.weights.b_enc.value, step.plan
        gate_code = code._replace(acts=code.pre_acts.relu())
        gate = reconstruct(step, gate_code, entries.target)
        gate_slope = entries.grad_scale * slopes(step, code, gate.error)
        added = penalty(step, code, code.pre_acts.relu(), entries.penalty_norms(plan))
        if added.acts is not None:
            gate_slope = gate_slope + added.acts
        gain, of_mag = code.of(extra["r_mag"].value).exp(), where(code.acts > 0, entries.slope)
        grad_gate, through_mag = where(code.pre_acts > 0, gate_slope), of_mag * gain
        dot = where(code.pre_acts > 0, code.pre_acts - code.of(b_enc))
        return Backward(
            grad_gate + through_mag,
            added.value + gate.squares.sum() * entries.grad_scale / 2,
            None if added.norms is None else entries.sums(added.norms),
            {"r_mag": entries.sums(through_mag * dot), "b_mag": entries.sums(of_mag)},
            bias=entries.sums(-through_mag),  # pre_acts holds b_enc, which the magnitudes do not see
        )

    def acts_of(
        self, pre_acts: Tensor, extra: dict[str, Tensor], b_enc: Tensor, latents: Tensor | None
    ) -> Tensor:
        gain, b_mag = extra["r_mag"], extra["b_mag"]
        if latents is not None:
            gain, b_mag, b_enc = gain[latents], b_mag[latents], b_enc[latents]
        return (gain.exp() * (pre_acts - b_enc) + b_mag).relu()
