"""Edits by hand, and models whose text is known: each token of a vocabulary has a direction, and a latent writes it."""

import torch
import transformers as hf
from torch import nn

from saefast import SAE, SAEConfig
from saefast.interp.steering import Edit
from tests.helpers.effects_cases import sae_of

N, D = 40, 64  # tokens of the cycle, width
PLACE = "place"
EDITS = [Edit(3, 4.0), Edit(7, -2.0, "add"), Edit(11, 2.5, "scale"), Edit(0, 0.0)]


def cycle(tokens):
    """The token that follows most often."""
    return (tokens * 7 + 3) % N


class CycleLM(nn.Module):
    """Embedding -> place -> logits: after token t comes cycle(t) with probability 0.6, any other one with the rest alike. The
    embedding of t is a unit vector of its own, and the map to logits reads it."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        directions = torch.linalg.qr(torch.randn(D, D, generator=generator)).Q[:N]
        self.embed = nn.Embedding(N, D)
        self.place = nn.Identity()
        self.unembed = nn.Linear(D, N, bias=False)
        self.embed.weight.data.copy_(directions)
        p = torch.full((N, N), 0.4 / (N - 1))
        p[torch.arange(N), cycle(torch.arange(N))] = 0.6
        self.unembed.weight.data.copy_((directions.T @ p.log()).T)

    def get_input_embeddings(self):
        return self.embed

    def forward(self, input_ids):
        return self.unembed(self.place(self.embed(input_ids)))


def cycle_text(m, length, seed=0):
    """Contexts that are as the model says."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, N, (m, length), generator=generator)
    for i in range(1, length):
        follows = torch.rand(m, generator=generator) < 0.6 - 0.4 / (N - 1)
        tokens[:, i] = torch.where(follows, cycle(tokens[:, i - 1]), tokens[:, i])
    return tokens


def rows_as_latents(directions, activation="relu"):
    """An SAE with a latent for each of these rows [n, d]: active with x @ row where that is positive."""
    n, d = directions.shape
    sae = SAE(SAEConfig(d_in=d, d_sae=n, activation=activation, pre_bias=False))
    sae.W_enc.data.copy_(directions)
    sae.W_dec.data.copy_(directions)
    return sae


def writer(n_embd=32):
    """A GPT-2 of one block and 64 tokens, without a final bias, and the SAE whose latent t is the direction that the logit of
    token t reads, at the output of the block."""
    config = hf.GPT2Config(
        vocab_size=64, n_embd=n_embd, n_layer=1, n_head=4, n_positions=96, bos_token_id=0, eos_token_id=0
    )
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = hf.GPT2LMHeadModel(config).eval()
        for param in model.parameters():
            if param.ndim > 1:
                param.data.normal_(0, 0.1)
    rows = model.lm_head.weight.detach()
    rows /= rows.norm(dim=1, keepdim=True)
    sae = rows_as_latents(rows.clone())
    rows *= 4
    return model, sae


def made(width=32, **options):
    sae = sae_of(width, 40, **options)
    for name, value in sae.extra.items():
        if name == "threshold":
            value.fill_(0.7)
    return sae


def edited(sae, x, edits=EDITS):
    """x + decode(edited code) - decode(code), by whole dense codes."""
    acts, indices = sae.encode(x)
    code = torch.zeros(len(x), sae.config.d_sae).scatter_add(1, indices.long(), acts)
    new = code.clone()
    for latent, value, how, _ in edits:
        old = code[:, latent]
        new[:, latent] = {"set": old * 0 + value, "add": old + value, "scale": old * value}[how]
    every = torch.arange(sae.config.d_sae).expand(len(x), -1)
    return (sae.decode(new, every, x) - sae.decode(code, every, x)).detach()


def logits_of(model, ids, **more):
    with torch.no_grad():
        return model(ids, **more).logits
