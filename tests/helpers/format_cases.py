"""SAEs to write in the formats of other projects."""

import torch

from saefast import SAE, SAEConfig

D_IN, D_SAE = 6, 20
JUMP, GATED = {"activation": "jumprelu"}, {"activation": "gated"}
TRANSCODER = {"d_out": D_IN, "pre_bias": False}
NESTED = {"activation": "matryoshka", "k": 3, "group_sizes": (5, 20)}


def make(options, d_in=D_IN, d_sae=D_SAE):
    """All parameters random, decoder rows of any norm, thresholds that keep about half."""
    sae = SAE(SAEConfig(d_in=d_in, d_sae=d_sae, **options), seed=1)
    generator = torch.Generator().manual_seed(2)
    for name, param in sae.named_parameters():
        noise = torch.randn(param.shape, generator=generator)
        param.data.copy_(0.3 + 0.1 * noise.abs() if name == "threshold" else param + 0.3 * noise)
    sae.metadata = {"model_name": "some-model", "hook_name": "layers.3"}
    return sae


def label(case):
    format, options = case[:2]
    return "-".join([format, *(f"{v}" for v in options.values())])


def rows(n=64, d_in=D_IN):
    return 2 * torch.randn(n, d_in, generator=torch.Generator().manual_seed(3)) + 1
