"""Tiny language models of three families with norms that do something, and records made from them."""

from functools import cache

import torch
import transformers as hf

from saefast import SAE, SAEConfig
from saefast.activations.lm import ModelSource
from saefast.interp.records import RecordsConfig, record
from tests.helpers.tiny_models import tokens

SMALL = RecordsConfig(
    n_top=3, n_intervals=2, per_interval=2, n_quantiles=2, per_quantile=2, before=3, after=2
)
HOOKS = {"llama": "model.layers.1", "gpt2": "transformer.h.1", "neox": "gpt_neox.layers.1"}
NORMS = {"llama": "model.norm", "gpt2": "transformer.ln_f", "neox": "gpt_neox.final_layer_norm"}
HIDDEN = {
    "llama": ("model.layers.1.mlp.down_proj", 48),
    "gpt2": ("transformer.h.1.mlp.c_proj", 128),
    "neox": ("gpt_neox.layers.1.mlp.dense_4h_to_h", 48),
}


@cache
def language_model(kind):
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 64}
    sizes |= {"intermediate_size": 48, "max_position_embeddings": 32, "bos_token_id": 0, "eos_token_id": 0}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        if kind == "llama":
            model = hf.LlamaForCausalLM(hf.LlamaConfig(**sizes, num_key_value_heads=2))
        elif kind == "neox":
            model = hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**sizes))
        else:
            config = hf.GPT2Config(
                vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=32, bos_token_id=0, eos_token_id=0
            )
            model = hf.GPT2LMHeadModel(config)
        for param in model.parameters():
            param.data.normal_(0, 0.3)
        norm = model.get_submodule(NORMS[kind])
        norm.weight.data.uniform_(0.5, 2)
    return model.eval()


def sae_of(d_in=32, d_sae=19, seed=3, **options):
    sae = SAE(SAEConfig(d_in=d_in, d_sae=d_sae, **({"k": 4} | options)), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    sae.W_dec.data *= torch.rand(d_sae, 1, generator=generator) + 0.5
    sae.W_enc.data.copy_(torch.randn(sae.W_enc.shape, generator=generator))
    return sae


def text():
    return [tokens(3, 12, seed=seed) for seed in range(3)]


def recorded(folder, sae, kind="llama", hook=None, config=SMALL):
    model = language_model(kind)
    source = ModelSource(model, hook or HOOKS[kind], text())
    return record(sae, source, folder, config), source, model
