"""Training on a CUDA device: the same numbers as on the CPU, the same bits twice, resume. Run by `make gpu`."""

import pytest
import torch

import saefast
from saefast.sources import TensorSource

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU was found"),
]


def data():
    generator = torch.Generator().manual_seed(5)
    return torch.randn(3000, 64, generator=generator) @ torch.randn(64, 64, generator=generator) + 2


def train(device, out=None, steps=60, stop_after=None, resume=False, backend="auto"):
    config = saefast.TrainConfig(
        total_tokens=steps * 256, batch_size=256, buffer_tokens=1024, lr=1e-3, log_every=5, checkpoint_every=10,
        dead_feature_threshold=2000, k_aux=16, backend=backend,
    )  # fmt: skip
    trainer = saefast.Trainer(saefast.SAE(saefast.SAEConfig(d_in=64, d_sae=512, k=8)).to(device), config)
    if stop_after:
        step = trainer._step
        trainer._step = lambda x: step(x) if trainer.state.step < stop_after else pytest.fail("stop here")
    trainer.fit(TensorSource(data()), out, resume)
    return trainer.sae.params


def test_training_on_the_gpu_follows_the_cpu():
    cpu, gpu = train("cpu", backend="reference"), train("cuda")
    for a, b in zip(cpu, gpu):
        torch.testing.assert_close(b.cpu(), a, rtol=2e-2, atol=2e-3)


def test_the_same_bits_twice():
    assert all(torch.equal(a, b) for a, b in zip(train("cuda"), train("cuda")))


def test_resume_on_the_gpu_gives_the_same_bits(tmp_path):
    whole = train("cuda", tmp_path / "whole")
    with pytest.raises(pytest.fail.Exception, match="stop here"):
        train("cuda", tmp_path / "run", stop_after=25)
    assert all(torch.equal(a, b) for a, b in zip(whole, train("cuda", tmp_path / "run", resume=True)))


def test_evaluation_on_the_gpu_equals_the_cpu():
    sae = saefast.SAE(saefast.SAEConfig(d_in=64, d_sae=512, k=8))
    on_cpu = saefast.evaluate(sae, data())
    on_gpu = saefast.evaluate(sae.to("cuda"), data())
    assert on_gpu.fvu == pytest.approx(on_cpu.fvu, rel=1e-3) and on_gpu.l0 == pytest.approx(
        on_cpu.l0, rel=1e-3
    )
