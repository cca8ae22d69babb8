"""Runs that are killed and resumed: where they run, what they read, and every bit that they leave behind."""

import json
import multiprocessing
import time

import torch

import saefast
from saefast.activations.sources import IterableSource, TensorSource
from saefast.files import load_tensors

# A fork server that has torch loaded: each of the many short-lived runs starts in milliseconds.
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["torch", "saefast"])


STEPS = 60


def make_source(kind):
    generator = torch.Generator().manual_seed(5)
    rows = torch.randn(900, 16, generator=generator) @ torch.randn(16, 16, generator=generator) + 2
    return TensorSource(rows) if kind == "random access" else IterableSource(list(rows.split(37)), 16)


def trainer_of(k=4, lr=3e-3):
    config = saefast.TrainConfig(
        total_tokens=STEPS * 64,
        batch_size=64,
        buffer_tokens=256,
        lr=lr,
        log_every=3,
        checkpoint_every=2,
        dead_feature_threshold=200,
        k_aux=4,
    )
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
