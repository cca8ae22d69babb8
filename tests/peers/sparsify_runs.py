"""Runs of sparsify's trainer, its own and ours, on the same rows, for the tests in tests/peers."""

import os
import sys
from contextlib import contextmanager
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn

os.environ["SPARSIFY_DISABLE_TRITON"] = "1"  # read on import: its kernels need a GPU
pytest.importorskip("sparsify")

import sparsify.trainer as stock
from sparsify import sparse_coder
from sparsify.config import SparseCoderConfig, TrainConfig
from sparsify.fused_encoder import EncoderOutput

from tests.peers.nudged import assert_within, nudge

SMALL = {"num_latents": 301, "k": 9}
OF_CODER = SparseCoderConfig.__dataclass_fields__


def narrow(real_rows):
    """[2000, 96]: fewer columns of the real activations, so that a step is quick."""
    return real_rows[:2000, :96].contiguous()


class Model(nn.Module):
    """A language model to sparsify's trainer: the token ids are numbers of rows. `lookup` gives the rows, `mlp` is a
    module with an input and an output to transcode."""

    def __init__(self, rows):
        super().__init__()
        self.dtype = rows.dtype
        self.device, self.dummy_inputs = rows.device, {"input_ids": torch.zeros(1, 1, dtype=torch.int64)}
        self.lookup = nn.Embedding.from_pretrained(rows)
        width = rows.shape[1]
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
            self.head = nn.Linear(width, 50)

    @property
    def base_model(self):
        return self

    def forward(self, input_ids, labels=None):
        logits = self.head(self.mlp(self.lookup(input_ids)))
        loss = None if labels is None else F.cross_entropy(logits.flatten(0, 1), labels.flatten() % 50)
        return SimpleNamespace(logits=logits, loss=loss)


class Data:
    """Sequences of row numbers; reading past `end` is Ctrl-C."""

    def __init__(self, batches, end=None):
        self.batches, self.end = batches, len(batches) if end is None else end

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, i):
        if i >= self.end:
            raise KeyboardInterrupt
        return {"input_ids": self.batches[i]}

    def select(self, indices):
        return Data([self.batches[i] for i in indices])


class Run(NamedTuple):
    trainer: stock.Trainer
    logs: list[dict]  # what it sends to wandb, one for each optimizer step

    @property
    def coders(self):
        return self.trainer.saes

    def curve(self, key):
        return torch.tensor([log[key] for log in self.logs])


def make(cls, rows, folder, steps=20, length=257, end=None, **options):
    """A trainer on `steps` batches of one sequence of `length` tokens. options: of either config."""
    generator = torch.Generator().manual_seed(1)
    batches = [torch.randint(0, len(rows), (length,), generator=generator) for _ in range(steps)]
    of_coder = SMALL | {name: options.pop(name) for name in list(options) if name in OF_CODER}
    defaults = {
        "batch_size": 1,
        "optimizer": "adam",
        "lr": 2e-3,
        "lr_warmup_steps": 5,
        "hookpoints": ["lookup"],
        "save_every": 10**9,
        "save_dir": str(folder / getattr(cls, "__module__", "other")),
    }
    config = TrainConfig(SparseCoderConfig(**of_coder), **defaults | options)
    return cls(config, Data(batches, end), Model(rows))


def fit(trainer):
    logs, wandb = [], sys.modules.get("wandb")
    sys.modules["wandb"] = SimpleNamespace(init=lambda **_: None, log=lambda info, step: logs.append(info))
    try:
        trainer.fit()
    finally:
        del sys.modules["wandb"]
        if wandb is not None:
            sys.modules["wandb"] = wandb
    return Run(trainer, logs)


def run(cls, rows, folder, seed=None, **options):
    """With a seed, from nudged weights."""
    trainer = make(cls, rows, folder, **options)
    for coder in trainer.saes.values() if seed is not None else ():
        nudge(coder, seed)
    return fit(trainer)


@contextmanager
def repaired():
    """sparsify without three defects: gradients go through pre_acts, so that AuxK and Multi-TopK train the encoder; a
    latent that is selected with activation 0 gets no gradient, and has not fired; with Multi-TopK, what fires is
    what is selected by k."""
    coder = sparse_coder.SparseCoder
    kept = sparse_coder.fused_encoder, coder.forward
    selected = []

    def encoder(x, weight, bias, k, activation):
        pre_acts = F.linear(x, weight, bias).relu()
        if activation == "topk":
            acts, indices = pre_acts.topk(k, dim=-1, sorted=False)
        else:
            acts, indices = pre_acts.unflatten(-1, (k, -1)).max(dim=-1)
            indices = indices + torch.arange(0, len(weight), len(weight) // k)
        selected[:] = [indices[acts > 0]]
        return EncoderOutput(acts, indices, pre_acts)

    def forward(self, *args, **kwargs):
        out = kept[1](self, *args, **kwargs)
        return out._replace(latent_indices=selected[0])

    sparse_coder.fused_encoder, coder.forward = encoder, forward
    try:
        yield
    finally:
        sparse_coder.fused_encoder, coder.forward = kept


def differences(want, got, rtol, weights):
    """Between two runs, each with its tolerance: every number logged at every step; dead latents; the parameters, W_dec
    with the rows of unit norm that it has at the next step."""
    assert len(want.logs) == len(got.logs) > 0
    found = {}
    for step, (a, b) in enumerate(zip(want.logs, got.logs)):
        assert a.keys() == b.keys()
        for key, value in a.items():
            found[f"step {step}: {key}"] = abs(b[key] - value), rtol * abs(value) + 1e-9
    for name, coder in want.coders.items():
        ours = got.coders[name]
        since = [run.trainer.num_tokens_since_fired[name] for run in (want, got)]
        found[f"{name}: dead latents"] = int((since[0] != since[1]).sum()), 0
        if coder.cfg.normalize_decoder and not coder.cfg.transcode:
            coder.set_decoder_norm_to_unit_norm()
            ours.set_decoder_norm_to_unit_norm()
        for (key, param), other in zip(coder.named_parameters(), ours.parameters()):
            found[f"{name}: {key}"] = float((param - other).detach().norm() / param.detach().norm()), weights
    return found


def assert_same(want, got, rtol=1e-5, weights=1e-5, nudged=None):
    """Two runs are; nudged: for a seed, the nudged run of sparsify's trainer that `got` may differ like."""
    of_nudged = nudged and (lambda seed: differences(want, nudged(seed=seed), rtol, weights))
    assert_within(differences(want, got, rtol, weights), of_nudged)
