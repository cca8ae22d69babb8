"""Runs that are killed and resumed: where they run, what they read, and every bit that they leave behind."""

import json
import multiprocessing
import os
import signal
import time
from collections import Counter

import torch

import saefast
from saefast.activations.open import open_buffer
from saefast.activations.sources import IterableSource, TensorSource
from saefast.files import load_tensors
from saefast.train.loop import INIT_ROWS
from saefast.train.memory import first_dtype

# A fork server that has torch loaded: each of the many short-lived runs starts in milliseconds.
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["torch", "saefast"])


STEPS = 60


def make_source(kind):
    generator = torch.Generator().manual_seed(5)
    rows = torch.randn(900, 16, generator=generator) @ torch.randn(16, 16, generator=generator) + 2
    return TensorSource(rows) if kind == "random access" else IterableSource(list(rows.split(37)), 16)


def trainer_of(k=4, steps=STEPS, **options):
    fields = {"batch_size": 64, "buffer_tokens": 256, "lr": 3e-3, "log_every": 3, "checkpoint_every": 2}
    fields |= {"total_tokens": steps * 64, "dead_feature_threshold": 200, "k_aux": 4}
    config = saefast.TrainConfig(**fields | options)
    return saefast.Trainer(saefast.SAE(saefast.SAEConfig(d_in=16, d_sae=96, k=k)), config)


def train(out, kind, resume=True, pause=0.0):
    torch.set_num_threads(1)
    trainer = trainer_of()
    if pause:
        step = trainer.step
        trainer.step = lambda x, **_: (time.sleep(pause), step(x, checked=True))[1]
    return trainer.fit(make_source(kind), out, resume)


def result(out):
    """Every bit a run leaves behind, except the times."""
    tensors, meta, _ = load_tensors(out / "checkpoint.safetensors")
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        del line["tokens_per_second"]
    return tensors, meta, lines, (out / "sae.safetensors").read_bytes()


def assert_same(got, want):
    assert got[1:] == want[1:]
    assert got[0].keys() == want[0].keys()
    for name, tensor in want[0].items():
        assert torch.equal(got[0][name], tensor), name


# -- runs in this process

ROWS = make_source("random access").tensor
KINDS = {
    "topk": ({}, {}),
    # by then the threshold has followed long enough not to be measured
    "batch_topk": ({"activation": "batch_topk"}, {"threshold_rate": 0.5}),
    "matryoshka": ({"activation": "matryoshka"}, {"threshold_rate": 0.5}),
    "group_max": ({"activation": "group_max"}, {}),
    "relu": ({"activation": "relu", "k": None}, {"penalty": "l1", "sparsity_coefficient": 0.01}),
    "gated": ({"activation": "gated", "k": None}, {"penalty": "l1", "sparsity_coefficient": 0.01}),
    "jumprelu": ({"activation": "jumprelu", "k": None}, {"penalty": "l0", "sparsity_coefficient": 0.01}),
    "jumprelu, log": (
        {"activation": "jumprelu", "k": None},
        {"penalty": "l0", "sparsity_coefficient": 0.01, "log_threshold": True, "bandwidth": 0.5},
    ),
    "ema": ({}, {"ema_decay": 0.9}),
    "muon": ({}, {"optimizer": "muon"}),
    "split": ({}, {"param_dtype": "split", "state_dtype": "int8", "backend": "reference"}),
    "split24": ({}, {"param_dtype": "split24", "state_dtype": "int8", "backend": "reference"}),
}


def make(sae=None, **options):
    options = {"total_tokens": 20 * 64, "batch_size": 64, "buffer_tokens": 256, "log_every": 1} | options
    options = {"lr": 3e-3, "checkpoint_every": 3, "dead_feature_threshold": 200, "k_aux": 4} | options
    config = saefast.TrainConfig(**options)
    own = saefast.SAEConfig(**({"d_in": 16, "d_sae": 96, "k": 4} | (sae or {})))
    return saefast.Trainer(saefast.SAE(own, 0, "cpu", first_dtype(config)), config)


def stopped_at(trainer, step, out, end=lambda: os.kill(os.getpid(), signal.SIGTERM), **options):
    """A run in `out` that `end` comes to in step number `step`; a signal ends it after this step."""
    take = trainer.step

    def one_step(x, **kwargs):
        if trainer.state.step + 1 == step:
            end()
        return take(x, **kwargs)

    trainer.step = one_step
    return trainer.fit(ROWS, out, **options)


class Killed(BaseException):
    pass


def kill():
    raise Killed


def at_step(monkeypatch, number, act):
    """`act` is called when step `number` begins, counted from 1 in each process."""
    real, calls = saefast.Trainer.step, Counter()

    def step(trainer, *args, **options):
        calls["steps"] += 1
        if calls["steps"] == number:
            act()
        return real(trainer, *args, **options)

    monkeypatch.setattr(saefast.Trainer, "step", step)


def by_hand(trainers, steps):
    """The SAE of `fit`, step by step, where from steps[i] on the next trainer's config holds."""
    first = trainers[0]
    buffer = open_buffer(TensorSource(ROWS), 64, 256, first.config.seed, dtype=torch.float32)
    first.initialize(buffer.sample(INIT_ROWS).to(first.sae.b_dec))
    batches = iter(buffer)
    for trainer, upto in zip(trainers, steps):
        first.config = trainer.config
        while first.state.step < upto:
            first.step(next(batches).to(first.sae.b_dec), checked=True)
    return first.exported()


def assert_is(folder, want):
    tensors, _, _ = load_tensors(folder / "sae.safetensors")
    assert tensors.keys() == want.keys()
    for name, tensor in want.items():
        assert torch.equal(tensors[name], tensor), name
