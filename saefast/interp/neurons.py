"""Neurons as a dictionary: everything that looks at latents looks at the coordinates of the activations too."""

import torch

from saefast.config.sae import SAEConfig
from saefast.sae import SAE
from saefast.storage import FP32


def neurons(d_in: int) -> SAE:
    """The identity as an SAE: latent i is active with x[i] where that is positive."""
    sae = SAE.of(
        SAEConfig(d_in=d_in, d_sae=d_in, activation="relu", pre_bias=False),
        {
            "W_enc": torch.eye(d_in, **FP32),
            "W_dec": torch.eye(d_in, **FP32),
            "b_enc": torch.zeros(d_in, **FP32),
            "b_dec": torch.zeros(d_in, **FP32),
        },
    )
    sae.metadata["dictionary"] = "neurons"
    return sae
