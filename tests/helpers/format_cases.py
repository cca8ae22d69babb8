"""SAEs to write in the formats of other projects."""

import torch

from saefast import SAE, SAEConfig

D_IN, D_SAE = 6, 20
JUMP, GATED = {"activation": "jumprelu"}, {"activation": "gated"}
TRANSCODER = {"d_out": D_IN, "pre_bias": False}
NESTED = {"activation": "matryoshka", "k": 3, "group_sizes": (5, 20)}

# what each format holds as it is: a round trip gives the same bits
EXACT = [
    ("sae_lens", {"k": 3}),
    ("sae_lens", {"k": 3, "scale_by_norm": True}),
    ("sae_lens", {"k": 3, "pre_bias": False}),
    ("sae_lens", {"k": 3, "input_norm": "layer_norm"}),
    ("sae_lens", {"activation": "relu", "input_norm": "constant_norm"}),
    ("sae_lens", JUMP),
    ("sae_lens", GATED),
    ("sae_lens", {"activation": "relu", "d_out": 4, "pre_bias": False}),
    ("sae_lens", {"activation": "relu", "d_out": 4, "pre_bias": False, "skip": True}),
    ("sae_lens", JUMP | {"d_out": 4, "pre_bias": False}),
    ("sae_lens", JUMP | {"d_out": 4, "pre_bias": False, "skip": True}),
    ("sparsify", {"k": 3}),
    ("sparsify", {"k": 4, "activation": "group_max"}),
    ("sparsify", {"k": 3} | TRANSCODER),
    ("sparsify", {"k": 3, "skip": True} | TRANSCODER),
    ("dictionary_learning", {"k": 3}),
    ("dictionary_learning", {"activation": "relu"}),
    ("dictionary_learning", {"activation": "relu", "pre_bias": False}),
    ("dictionary_learning", GATED),
    ("dictionary_learning", {"activation": "batch_topk", "k": 3}),
    ("dictionary_learning", NESTED),
    ("dictionary_learning", JUMP | {"pre_bias": False}),
    ("openai", {"k": 3, "input_norm": "layer_norm"}),
    ("openai", {"activation": "relu"}),
    ("gemma_scope", JUMP | {"pre_bias": False}),
    ("gemma_scope", JUMP | {"d_out": 4, "pre_bias": False}),
    ("gemma_scope", JUMP | {"d_out": 4, "pre_bias": False, "skip": True}),
    ("llamascopium", {"activation": "relu", "pre_bias": False}),
    ("llamascopium", {"k": 3, "scale_by_norm": True, "pre_bias": False}),
    ("llamascopium", {"k": 3, "pre_bias": False, "input_norm": "constant_norm"}),
    ("llamascopium", {"k": 3} | TRANSCODER),
]


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
