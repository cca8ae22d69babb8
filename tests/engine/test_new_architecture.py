"""Adding an architecture is one file and its name. Here one whose activations are the squares of the k largest
pre-activations: it trains, is saved, read and evaluated without a change anywhere else."""

import json
from typing import Literal, get_args

import pytest
import torch

import saefast
from saefast.config import sae as sae_config
from saefast.engine.architecture import Architecture
from saefast.engine.architectures import ARCHITECTURES
from saefast.engine.code import Backward, Code


class SquaredTopK(Architecture):
    """acts = pre_acts^2 of the k largest pre-activations, after ReLU: the gradient of an entry is 2 pre_acts times the slope."""

    def update_finds_gradient(self, plan):
        return False

    def select(self, step, centred):
        W_enc, b_enc = step.weights.enc.shadow, step.weights.b_enc.value
        pre_acts, indices = step.ops.encode_topk(centred, W_enc, b_enc, step.plan.k)
        return Code(pre_acts.square(), indices, None, pre_acts, pre_acts)

    def backward(self, step, entries):
        return Backward(2 * entries.code.pre_acts * entries.slope, torch.zeros_like(entries.grad_scale))

    def encode(self, ops, centred, params, extra, sae, norms):
        pre_acts, indices = ops.encode_topk(centred, params.W_enc, params.b_enc, sae.top_k)
        return pre_acts.square(), indices

    def dense_acts(self, pre_acts, params, extra, sae, norms):
        least = pre_acts.detach().topk(sae.top_k, dim=1).values[:, -1:]
        return pre_acts.relu().square() * (pre_acts >= least)


@pytest.fixture
def named(monkeypatch):
    monkeypatch.setitem(ARCHITECTURES, "squared_topk", SquaredTopK())
    kinds = Literal[(*get_args(sae_config.Activation), "squared_topk")]
    monkeypatch.setattr(sae_config.SAEConfig.__dataclass_fields__["activation"], "type", kinds)
    monkeypatch.setattr(sae_config, "WITH_K", (*sae_config.WITH_K, "squared_topk"))


def data(n):
    """Rows of a few directions each."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(48, 32, generator=generator), dim=1)
    active = (torch.rand(n, 48, generator=generator) < 0.05).float()
    return (torch.rand(n, 48, generator=generator) * active) @ directions


@pytest.mark.parametrize("backend", ["reference", "native"])
def test_it_trains_is_saved_and_read(named, backend, tmp_path):
    if saefast.backend.unavailable(backend):
        pytest.skip(saefast.backend.unavailable(backend))
    x = data(6000)
    sae = saefast.SAE(saefast.SAEConfig(d_in=32, d_sae=128, k=4, activation="squared_topk"))
    config = saefast.TrainConfig(total_tokens=120_000, batch_size=200, lr=3e-3, log_every=1, backend=backend)
    saefast.Trainer(sae, config).fit(x, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    trained = saefast.evaluate(sae, x)
    assert trained.fvu < 0.8 * lines[0]["fvu"] and trained.l0 <= 4
    again = saefast.SAE.from_pretrained(tmp_path / "run")
    assert again.config.activation == "squared_topk"
    assert float(again(x).fvu) == pytest.approx(trained.fvu, rel=1e-4)


def test_its_gradients_are_those_of_autograd(named):
    sae = saefast.SAE(saefast.SAEConfig(d_in=32, d_sae=64, k=3, activation="squared_topk"), seed=1).double()
    config = saefast.TrainConfig(
        total_tokens=1000, batch_size=50, lr=1e-3, backend="reference", auxk_alpha=0.0, normalize_input=False
    )
    x, before = data(50).double(), {name: p.clone() for name, p in sae.named_parameters()}
    copy = saefast.SAE.of(sae.config, before)
    copy(x).fvu.backward()
    found = {}
    trainer = saefast.Trainer(sae, config)
    trainer._own_step = lambda grads, extra, factor: found.update(zip(before, grads))
    trainer.step(x)
    names = ("W_enc", "b_enc", "W_dec", "b_dec")
    got = dict(zip(names, found.values()))
    for name in names:
        want = getattr(copy, name).grad
        if name == "W_dec":
            want = want - (want * copy.W_dec).sum(1, keepdim=True) * copy.W_dec
        torch.testing.assert_close(got[name], want.detach(), rtol=1e-9, atol=1e-12)
