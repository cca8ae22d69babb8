"""SAEs with known outputs, and what a language model does with them, by plain hooks."""

from functools import cache

import torch
import torch.nn.functional as F
import transformers as hf

from saefast import SAE, SAEConfig
from tests.helpers.tiny_models import tokens


@cache
def gpt2():
    """Its MLPs are ReLU(x W_1 + b_1) W_2 + b_2: what a ReLU transcoder computes."""
    config = hf.GPT2Config(
        vocab_size=64,
        n_embd=32,
        n_layer=3,
        n_head=4,
        n_positions=16,
        activation_function="relu",
        initializer_range=0.3,
        resid_pdrop=0.5,
        bos_token_id=0,
        eos_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = hf.GPT2LMHeadModel(config).eval()
        for block in model.transformer.h:
            block.mlp.c_fc.bias.data.normal_(0, 0.2)
            block.mlp.c_proj.bias.data.normal_(0, 0.2)
    return model


def zero(config):
    sae = SAE(config)
    sae.W_dec.data.zero_()
    return sae


def random(config, seed=3):
    sae, generator = SAE(config, seed=seed), torch.Generator().manual_seed(seed)
    sae.b_dec.data += 0.3 * torch.randn(config.width_out, generator=generator)
    return sae


def perfect(width, layers=1):
    """relu(x) and relu(-x) along the axes: the reconstruction is x."""
    sae = SAE(SAEConfig(d_in=width, d_sae=2 * width, k=width, layers=layers))
    both = torch.cat([torch.eye(width), -torch.eye(width)])
    sae.W_dec.data.copy_(both)
    sae.W_enc.data.copy_(both)
    return sae


def batches(n=2, length=12):
    return [tokens(3, length, seed=seed) for seed in range(n)]


def hidden_of(value):
    return value if torch.is_tensor(value) else value[0]


def like(value, new):
    return new if torch.is_tensor(value) else (new, *value[1:])


def captured(model, paths, **given):
    """Oracle: what these modules give, by plain hooks; with path:in, what they take."""
    found, handles = {}, []
    for name in paths:
        path, _, side = name.partition(":")
        module = model.get_submodule(path)
        if side:
            keep = lambda module, args, name=name: found.update({name: args[0].clone()})
            handles.append(module.register_forward_pre_hook(keep))
        else:
            keep = lambda module, args, out, name=name: found.update({name: hidden_of(out).clone()})
            handles.append(module.register_forward_hook(keep))
    with torch.no_grad():
        output = model(**given)
    for handle in handles:
        handle.remove()
    return found, output.logits


def logits_with(model, new, **given):
    """Oracle: the logits with new[path] as what these modules give."""
    handles = [
        model.get_submodule(path).register_forward_hook(lambda module, args, out, x=x: like(out, x))
        for path, x in new.items()
    ]
    with torch.no_grad():
        logits = model(**given).logits
    for handle in handles:
        handle.remove()
    return logits


def cross_entropy(logits, ids, is_real=None):
    """Sum over the predictions of a token from a token, and how many."""
    is_real = torch.ones_like(ids) if is_real is None else is_real
    valid = (is_real[:, 1:] * is_real[:, :-1]).bool()
    return float(F.cross_entropy(logits[:, :-1][valid].double(), ids[:, 1:][valid], reduction="sum")), int(
        valid.sum()
    )


def kl(clean, spliced):
    clean, spliced = (x[:, :-1].double().log_softmax(dim=-1) for x in (clean, spliced))
    return float((clean.exp() * (clean - spliced)).sum(dim=-1).mean())
