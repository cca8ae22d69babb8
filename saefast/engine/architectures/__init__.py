"""The kinds of SAE by name, each in a file of its own. What a file may say is in `saefast.engine.architecture`."""

import torch
from torch import Tensor

from saefast.config.sae import SAEConfig
from saefast.engine.architecture import Architecture
from saefast.engine.architectures.batch_topk import BatchTopK
from saefast.engine.architectures.gated import Gated
from saefast.engine.architectures.group_max import GroupMax
from saefast.engine.architectures.jumprelu import JumpReLU
from saefast.engine.architectures.relu import ReLU
from saefast.engine.architectures.topk import TopK

ARCHITECTURES: dict[str, Architecture] = {
    "topk": TopK(),
    "batch_topk": BatchTopK(),
    "matryoshka": BatchTopK(),
    "group_max": GroupMax(),
    "relu": ReLU(),
    "jumprelu": JumpReLU(),
    "gated": Gated(),
}


def architecture_of(sae: SAEConfig) -> Architecture:
    return ARCHITECTURES[sae.activation]


def extra_parameters(sae: SAEConfig, device: str | torch.device = "cpu") -> dict[str, Tensor]:
    """The parameters besides W_enc, b_enc, W_dec, b_dec, fp32, at the values of a fresh SAE."""
    found = architecture_of(sae).extra_parameters(sae, device)
    if sae.skip:
        found["W_skip"] = torch.zeros(sae.width_out, sae.d_in, dtype=torch.float32, device=device)
    return found
