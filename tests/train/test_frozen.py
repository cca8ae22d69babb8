"""A parameter with requires_grad False is not changed by training, to the last bit; the others are."""

import pytest
import torch

import saefast
from saefast.config.sae import SAEConfig
from saefast.config.train import TrainConfig
from saefast.errors import InputError

pytestmark = pytest.mark.usefixtures("no_curves")
SAES = {
    "topk": ({"k": 4}, {}),
    "topk without bias of the input": ({"k": 4, "pre_bias": False}, {}),
    "relu": ({"activation": "relu"}, {"penalty": "l1", "sparsity_coefficient": 0.1}),
    "jumprelu": (
        {"activation": "jumprelu", "init_threshold": 0.1},
        {"penalty": "l0", "sparsity_coefficient": 0.1, "bandwidth": 1.0},
    ),
    "gated": ({"activation": "gated"}, {"penalty": "l1", "sparsity_coefficient": 0.1}),
    "matryoshka": ({"activation": "matryoshka", "k": 4}, {}),
    "skip transcoder": ({"k": 4, "d_out": 8, "pre_bias": False, "skip": True}, {}),
}
CASES = [
    (kind, name)
    for kind, (options, _) in SAES.items()
    for name, param in saefast.SAE(SAEConfig(d_in=16, d_sae=64, **options)).named_parameters()
    if param.ndim
]


def make(kind, *frozen):
    sae = saefast.SAE(SAEConfig(d_in=16, d_sae=64, **SAES[kind][0]))
    for name in frozen:
        getattr(sae, name).requires_grad_(False)
    return sae, 3 + torch.randn(512, sae.config.row_width, generator=torch.Generator().manual_seed(1))


def config(kind, **options):
    size = {"total_tokens": 2048, "batch_size": 128, "buffer_tokens": 512, "lr": 1e-2}
    return TrainConfig(**size | SAES[kind][1] | options)


@pytest.mark.parametrize("backend", ["reference", "native"])
@pytest.mark.parametrize(("kind", "name"), CASES)
def test_a_frozen_parameter_keeps_its_bits(kind, name, backend):
    sae, x = make(kind, name)
    before = {key: value.clone() for key, value in sae.tensors.items()}
    trainer = saefast.Trainer(sae, config(kind, backend=backend))
    trainer.step(x[:, :16].contiguous(), x[:, 16:] if sae.config.d_out else None)
    assert saefast.Trainer(sae, config(kind, backend=backend)).fit(x)
    assert torch.equal(sae.tensors[name], before.pop(name))
    # r_mag and b_mag are both magnitudes, and a threshold is only reached by what is near it
    assert all(not torch.equal(sae.tensors[key], value) for key, value in before.items() if value.ndim)


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "signum"])
@pytest.mark.parametrize("name", ["W_enc", "b_enc", "W_dec", "b_dec"])
def test_of_other_optimizers(name, optimizer, tmp_path):
    sae, x = make("topk", name)
    before = sae.tensors[name].clone()
    assert saefast.Trainer(sae, config("topk", optimizer=optimizer)).fit(x, tmp_path / "run")
    assert torch.equal(sae.tensors[name], before)
    assert torch.equal(saefast.SAE.from_pretrained(tmp_path / "run").tensors[name], before)


def test_rows_of_a_frozen_decoder_need_no_unit_norm():
    sae, x = make("topk", "W_dec")
    with torch.no_grad():
        sae.W_dec.mul_(torch.linspace(0.1, 3, 64)[:, None])
    before = sae.W_dec.detach().clone()
    fvu = saefast.evaluate(sae, x).fvu
    assert saefast.Trainer(sae, config("topk", ema_decay=0.5)).fit(x)
    assert torch.equal(sae.W_dec, before) and saefast.evaluate(sae, x).fvu < fvu


def test_a_frozen_encoder_cannot_take_up_the_norms_of_the_decoder():
    sae, x = make("relu", "W_enc")
    with torch.no_grad():
        sae.W_dec.mul_(0.1)
    with pytest.raises(
        InputError, match=r"^unit_norm: expected False .* \(W_enc may not change: requires_grad is False\)"
    ):
        saefast.Trainer(sae, config("relu")).fit(x)


def test_frozen_parameters_are_not_resampled():
    sae, _ = make("relu", "W_enc")
    with pytest.raises(InputError, match=r"^resample_steps: expected \(\), W_enc may not change"):
        saefast.Trainer(sae, config("relu", resample_steps=(3,)))
