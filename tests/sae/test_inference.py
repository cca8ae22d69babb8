"""The code of a trained SAE of every architecture: as a module, by the ops of each backend, from files."""

import pytest
import torch

import saefast
from saefast import reference
from saefast.backend import load_backend, unavailable
from saefast.sae.inference import decode, encode, listed
from tests.helpers.architecture_cases import CASES, set_up

NAMES = ["relu", "topk", "topk-by-norm", "multi-topk", "batch-topk", "batch-topk-by-norm", "matryoshka"]
NAMES += ["group-max", "jumprelu", "jumprelu-untied-mse", "gated", "crosscoder", "transcoder"]
NAMES += ["skip-transcoder", "transcoder-jumprelu"]


def trained(name, dtype=torch.float64):
    setup = set_up(CASES[name], dtype)
    for _ in range(3):
        setup.trainer.step(setup.rows, checked=True)
    return setup.trainer.sae, setup.rows


def dense_code(sae, x):
    """The formulas of the papers, over all latents."""
    config, pre = sae.config, sae.pre_acts(x)
    norms = sae.W_dec.norm(dim=1) if config.scale_by_norm else 1
    if config.activation == "topk":
        kth = (pre * norms).topk(config.k, dim=1).values[:, -1:]
        return pre.relu() * (pre * norms >= kth)
    if config.activation == "group_max":
        groups = pre.unflatten(1, (config.k, -1))
        return (pre * (groups == groups.amax(dim=2, keepdim=True)).flatten(1)).relu()
    if config.activation in ("batch_topk", "matryoshka"):
        return pre.relu() * (pre * norms > sae.threshold)
    if config.activation == "jumprelu":
        return pre * (pre > sae.threshold)
    if config.activation == "gated":
        return (sae.r_mag.exp() * (pre - sae.b_enc) + sae.b_mag).relu() * (pre > 0)
    return pre.relu()


@pytest.mark.parametrize("name", NAMES)
def test_module_and_evaluation_follow_the_formula(name):
    sae, rows = trained(name)
    x, target = rows[:, : sae.config.d_in], rows[:, -sae.config.width_out :]
    with torch.no_grad():
        acts = dense_code(sae, x)
        x_hat = acts @ sae.W_dec + sae.b_dec + (x @ sae.W_skip.T if sae.config.skip else 0)
        out = sae(x, target if sae.config.d_out else None)
        torch.testing.assert_close(out.x_hat, x_hat)
        result = saefast.evaluate(sae, rows, "reference")
    assert 0 < result.l0 < sae.config.d_sae
    assert result.l0 == pytest.approx(float((acts > 0).sum(dim=1).double().mean()))
    fvu = (x_hat - target).square().sum() / (target - target.mean(dim=0)).square().sum()
    assert result.fvu == pytest.approx(float(fvu), rel=1e-9) == float(out.fvu.double())


@pytest.mark.parametrize("name", NAMES)
def test_the_native_ops_give_the_same_code(name):
    if unavailable("native"):
        pytest.skip(unavailable("native"))
    sae, rows = trained(name, torch.float32)
    x = rows[:, : sae.config.d_in].contiguous()
    with torch.no_grad():
        want = dense_code(sae, x)
        acts, indices = encode(load_backend("native", "cpu"), sae.params, sae.extra, sae.config, x)
        got = torch.zeros_like(want).scatter_add_(1, indices.long(), acts)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_files_hold_everything(name, tmp_path):
    sae, rows = trained(name, torch.float32)
    x = rows[:, : sae.config.d_in]
    sae.save_pretrained(tmp_path)
    loaded = saefast.SAE.from_pretrained(tmp_path)
    assert loaded.config == sae.config and loaded.extra.keys() == sae.extra.keys()
    for got, want in zip(loaded(x), sae(x)):
        assert torch.equal(got, want) or got.isnan().all()


def test_autograd_through_a_jumprelu_reaches_what_is_active():
    sae, rows = trained("jumprelu")
    sae.threshold.data[::2] += 100
    sae(rows).x_hat.sum().backward()
    active = (dense_code(sae, rows) > 0).any(dim=0)
    assert 0 < active.sum() < len(active)
    assert torch.equal((sae.W_enc.grad != 0).any(dim=1), active)


def test_a_code_of_nothing():
    acts, indices = listed(torch.zeros(3, 5), None)
    assert acts.shape == indices.shape == (3, 0)
    sae = saefast.SAE(saefast.SAEConfig(d_in=4, d_sae=8, activation="relu"))
    sae.b_enc.data -= 100
    out = sae(torch.randn(3, 4))
    assert torch.equal(out.x_hat, sae.b_dec.expand(3, 4)) and out.top_acts.shape == (3, 0)
    assert saefast.evaluate(sae, torch.randn(3, 4)).l0 == 0
    assert saefast.evaluate(sae, torch.randn(3, 4), "reference").l0 == 0


def test_what_a_transcoder_is_given_is_checked():
    sae = saefast.SAE(saefast.SAEConfig(d_in=4, d_sae=8, k=2, d_out=3, pre_bias=False))
    trainer = saefast.Trainer(sae, saefast.TrainConfig(total_tokens=100))
    with pytest.raises(saefast.InputError, match="target: expected a tensor"):
        trainer.step(torch.randn(5, 4))
    with pytest.raises(saefast.InputError, match="target: expected 5 rows as x, got 6"):
        trainer.step(torch.randn(5, 4), torch.randn(6, 3))
    assert trainer.step(torch.randn(5, 4), torch.randn(5, 3)).loss.isfinite()
    plain = saefast.Trainer(saefast.SAE(saefast.SAEConfig(d_in=4, d_sae=8, k=2)), trainer.config)
    with pytest.raises(saefast.InputError, match="target: expected None"):
        plain.step(torch.randn(5, 4), torch.randn(5, 4))


def test_ops_are_launched_on_the_device_of_the_sae(monkeypatch):
    """Triton takes the current device, whatever device its tensors are on."""
    seen = []

    class Recorded(torch.cuda.device_of):
        def __init__(self, tensor):
            seen.append(tensor)
            super().__init__(tensor)

    monkeypatch.setattr(torch.cuda, "device_of", Recorded)
    sae = saefast.SAE(saefast.SAEConfig(d_in=8, d_sae=16, k=2))
    x = torch.randn(3, 8)
    acts, indices = encode(reference, sae.params, sae.extra, sae.config, x)
    decode(reference, sae.params, sae.extra, sae.config, acts, indices, x)
    assert seen[0] is x and seen[1] is acts and len(seen) == 2
    saefast.Trainer(sae, saefast.TrainConfig(total_tokens=3, batch_size=3)).step(x)
    assert torch.equal(seen[-1], x)
