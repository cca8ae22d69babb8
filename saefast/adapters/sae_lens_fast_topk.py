"""An architecture "fast_topk" for SAELens: its TopK with our sparse operators, in its own trainer.

    register()                                              once, then
    LanguageModelSAERunnerConfig(sae=FastTopKTrainingSAEConfig(...))

For where the trainer must stay SAELens's: no dense code and no dense gradient of one is made, but the optimizer is
torch's, and weights have dense gradients. `saefast.adapters.sae_lens.SAETrainer` is the faster way. The saved inference
model is SAELens's "topk"; a checkpoint to go on from says "fast_topk", so `register` must be called before it is loaded.
"""

from dataclasses import dataclass
from typing import Any

import torch
from sae_lens import TopKSAEConfig, TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY, register_sae_training_class
from sae_lens.saes.sae import TrainStepOutput
from torch import Tensor

from saefast.adapters.sae_lens_recipe import NORMALIZED_OUTSIDE, unusual
from saefast.autograd import decode, encode_topk

NAME = "fast_topk"


@dataclass
class FastTopKTrainingSAEConfig(TopKTrainingSAEConfig):
    """As `TopKTrainingSAEConfig`."""

    @classmethod
    def architecture(cls) -> str:
        return NAME

    def get_inference_config_class(self) -> type[TopKSAEConfig]:
        return TopKSAEConfig


class FastTopKTrainingSAE(TopKTrainingSAE):
    """As `TopKTrainingSAE`, but for what a training step returns: `feature_acts` is a COO tensor without a gradient, and
    `hidden_pre` has no columns where no latent is dead (only AuxK needs it)."""

    def training_forward_pass(self, step_input: Any) -> Any:
        cfg, sae_in = self.cfg, step_input.sae_in
        if unusual(self, sae_in) or cfg.normalize_activations not in NORMALIZED_OUTSIDE:
            return super().training_forward_pass(step_input)
        x = sae_in.to(self.dtype)
        W_enc, b_enc, W_dec = self.W_enc.T, self.b_enc, self.W_dec
        b_dec = self.b_dec if cfg.apply_b_dec_to_input else torch.zeros_like(self.b_dec)
        if (
            cfg.rescale_acts_by_decoder_norm
        ):  # acts * norm in the code, / norm in the decoder: no gradient is left
            norms = W_dec.detach().norm(dim=1)
            W_enc, b_enc, W_dec = W_enc * norms[:, None], b_enc * norms, W_dec / norms[:, None]
        top_acts, top_indices = encode_topk(x, W_enc, b_enc, b_dec, cfg.k)
        sae_out = decode(top_acts, top_indices, W_dec, self.b_dec)
        mse_loss = self.mse_loss_fn(sae_out, sae_in).sum(dim=-1).mean()

        dead = step_input.dead_neuron_mask
        hidden_pre = x.new_empty(len(x), 0)
        if dead is not None and dead.any():
            hidden_pre = (x - b_dec) @ self.W_enc + self.b_enc
            if cfg.rescale_acts_by_decoder_norm:  # AuxK divides by the norm, with its gradient
                hidden_pre = hidden_pre * self.W_dec.norm(dim=-1)
        feature_acts = as_matrix(top_acts.detach(), top_indices, cfg.d_sae)
        losses = {"mse_loss": mse_loss}
        losses |= self.calculate_aux_loss(step_input, feature_acts, hidden_pre, sae_out)
        loss = sum(losses.values())
        return TrainStepOutput(sae_in, sae_out, feature_acts, hidden_pre, loss, losses)


def as_matrix(top_acts: Tensor, top_indices: Tensor, d_sae: int) -> Tensor:
    """[B, k] both -> COO [B, d_sae]."""
    B, k = top_acts.shape
    tokens = torch.arange(B, dtype=torch.int64, device=top_acts.device).repeat_interleave(k)
    places, values = torch.stack([tokens, top_indices.flatten().long()]), top_acts.flatten()
    return torch.sparse_coo_tensor(places, values, (B, d_sae), dtype=values.dtype, device=values.device)


def register() -> None:
    """Make `fast_topk` known to SAELens; again is no error."""
    if NAME not in SAE_TRAINING_CLASS_REGISTRY:
        register_sae_training_class(NAME, FastTopKTrainingSAE, FastTopKTrainingSAEConfig)
