"""What makes one kind of SAE different from another: which pre-activations become active, what is added to the loss,
and the parameters for it. All else (decoding, the gradients of rows, Adam) is shared.

A file here has `select` (pre-activations to the code of a batch, in training) and, where the gradient of an entry is not
just that of the reconstruction, `backward`. What follows the batches without a gradient (BatchTopK's threshold) is in
`seen`, numbers of a code that add up over the parts of a batch where it can be cut, and `observe_`. `inference.py` has
the code of a trained SAE, in one place for all.
"""

from types import ModuleType

import torch
from torch import Tensor

from saefast.config.train import SAEConfig
from saefast.engine.architectures import batch_topk, gated, group_max, jumprelu, relu, topk

MODULES: dict[str, ModuleType] = {
    "topk": topk,
    "batch_topk": batch_topk,
    "matryoshka": batch_topk,
    "group_max": group_max,
    "relu": relu,
    "jumprelu": jumprelu,
    "gated": gated,
}
DENSE = ("relu", "jumprelu", "gated")  # how many are active is not bounded: their codes may be dense
IN_DATA_UNITS = ("threshold", "b_mag")  # extra parameters that grow with the activations


def extra_parameters(config: SAEConfig, device: str | torch.device = "cpu") -> dict[str, Tensor]:
    """The parameters besides W_enc, b_enc, W_dec, b_dec, fp32, at the values of a fresh SAE."""
    found: dict[str, Tensor] = {}
    if config.activation == "jumprelu":
        found["threshold"] = torch.full((config.d_sae,), config.init_threshold, device=device)
    elif config.activation in ("batch_topk", "matryoshka"):
        found["threshold"] = torch.zeros((), device=device)
    elif config.activation == "gated":
        found["r_mag"], found["b_mag"] = (torch.zeros(config.d_sae, device=device) for _ in range(2))
    if config.skip:
        found["W_skip"] = torch.zeros(config.width_out, config.d_in, device=device)
    return found
