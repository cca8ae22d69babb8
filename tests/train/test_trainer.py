"""`Trainer.fit`: what it does with sources, data and configuration."""

import json
import sys
from dataclasses import replace

import pytest
import torch

import saefast
from saefast.activations.lm import ModelSource
from saefast.activations.sources import TensorSource
from saefast.sae import geometric_median
from saefast.train import schedules
from tests.helpers import dense, tiny_lm


def data(n=2000, d_in=16):
    generator = torch.Generator().manual_seed(5)
    return torch.randn(n, d_in, generator=generator) @ torch.randn(d_in, d_in, generator=generator) + 2


def make(d_sae=96, **options):
    options = {
        "total_tokens": 64 * 50,
        "batch_size": 64,
        "buffer_tokens": 512,
        "lr": 3e-3,
        "log_every": 5,
    } | options
    sae = saefast.SAE(saefast.SAEConfig(d_in=16, d_sae=d_sae, k=4))
    return saefast.Trainer(sae, saefast.TrainConfig(**options))


@pytest.mark.parametrize(
    "source",
    [data(), data().half(), data().double(), list(data().split(33)), TensorSource(data())],
    ids=["tensor", "fp16", "fp64", "list", "source"],
)
def test_fit_takes_any_iterable_of_rows_in_any_precision(source):
    trainer = make()
    assert trainer.fit(source)
    assert trainer.state.step == 50
    assert saefast.evaluate(trainer.sae, source).fvu < 0.5


def test_batches_of_fit_are_those_of_the_buffer_and_the_curve_is_autograds(tmp_path):
    """The whole of fit (initialisation, schedule, buffer, update) against the dense oracle, in fp32."""
    trainer = make(normalize_input=True, log_every=1)
    start = [p.clone() for p in trainer.sae.params]
    trainer.fit(data(), tmp_path / "run")
    fvu = [json.loads(line)["fvu"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]

    from saefast.activations.buffer import ShuffleBuffer

    config = trainer.config
    buffer = ShuffleBuffer(TensorSource(data()), 64, 512, seed=config.seed)
    sample = buffer.sample(32768)
    start[0] *= config.init_encoder_scale
    start[3] = geometric_median(sample)
    centred = sample.double() - sample.double().mean(dim=0)
    scale = float((16 / centred.square().sum(dim=1).mean()).sqrt())
    oracle = dense.Trainer(start, 4, config.lr, config.eps, bias_scale=scale)
    for step, (x, got) in enumerate(zip(buffer, fvu), 1):
        oracle.set_lr(schedules.lr_at(config, step, 96), scale)
        assert got == pytest.approx(oracle.step(x), rel=2e-4), step
    assert len(fvu) == 50


def test_metrics_lines_hold_what_a_reader_plots(tmp_path):
    make().fit(data(), tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(5, 51, 5))
    for line in lines:
        assert line["tokens"] == 64 * line["step"]
        assert 0 < line["fvu"] < 2 and 0 < line["l0"] <= 4 and line["tokens_per_second"] > 0
    assert lines[-1]["fvu"] < lines[0]["fvu"]
    assert sum(lines[-1]["density_histogram"]) == 96 and lines[-1]["density_tokens"] == 64 * 50
    assert (tmp_path / "run" / "curves.png").stat().st_size > 10_000
    assert saefast.evaluate(saefast.SAE.from_pretrained(tmp_path / "run"), data()).fvu < 0.5


@pytest.mark.parametrize("init", ["geometric_median", "mean", "none"])
def test_b_dec_starts_at_the_centre_of_the_data(init):
    trainer = make(init_b_dec=init, lr=1e-12, total_tokens=64)
    trainer.fit(data())
    want = {
        "geometric_median": geometric_median(data()[:512]),
        "mean": data()[:512].mean(0),
        "none": torch.zeros(16),
    }
    torch.testing.assert_close(trainer.sae.b_dec.data, want[init], rtol=1e-4, atol=1e-5)


def test_a_trained_sae_is_not_initialised_again():
    first = make()
    first.fit(data())
    before = [p.clone() for p in first.sae.params]
    second = saefast.Trainer(first.sae, saefast.TrainConfig(total_tokens=64, batch_size=64, lr=1e-12))
    second.fit(data())
    for a, b in zip(before, first.sae.params):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_nan_in_the_data_stops_or_is_skipped_and_reported(tmp_path):
    x = data()
    x[700] = float("nan")
    with pytest.raises(saefast.InputError, match="source: row 700 holds NaN or Inf"):
        make().fit(x)
    make(nonfinite="skip").fit(x, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])["rows_skipped"] >= 1


@pytest.mark.parametrize("backend", ["reference", "native"])
def test_divergence_stops_with_an_error_and_saves_nothing_bad(tmp_path, backend):
    if saefast.backend.unavailable(backend):
        pytest.skip(saefast.backend.unavailable(backend))
    trainer = make(lr=1e30, backend=backend, checkpoint_every=1)
    with pytest.raises(saefast.InputError, match="lr"):
        trainer.fit(data(), tmp_path / "run")
    assert not (tmp_path / "run" / "sae.safetensors").exists()


def test_a_generator_that_ends_early_ends_the_run_with_a_warning(tmp_path, caplog):
    trainer = make()
    trainer.fit((chunk for chunk in data(640).split(50)), tmp_path / "run")
    assert trainer.state.step == 10 and "cannot be read twice" in caplog.text


def test_entries_that_find_no_room_are_reported(monkeypatch, caplog):
    """As on a GPU, where the room of a list without bound is reserved beforehand."""
    config = saefast.TrainConfig(total_tokens=1000, batch_size=100, lr=1e-3, backend="reference")
    trainer = saefast.Trainer(saefast.SAE(saefast.SAEConfig(d_in=8, d_sae=64, activation="relu")), config)
    plan = replace(trainer.plan(100), dense=False)
    for room, said in ((10_000, False), (50, True)):
        caplog.clear()
        monkeypatch.setattr(trainer, "plan", lambda n, room=room: replace(plan, code_capacity=room))
        found = int(trainer.step(torch.randn(100, 8, generator=torch.Generator().manual_seed(0))).code_size)
        assert 50 < found < 10_000
        assert (f"{found} active entries, room for 50" in caplog.text) == said


def test_wrong_width_is_refused():
    with pytest.raises(saefast.InputError, match="source: expected activations of width d_in = 16, got 5"):
        make().fit(torch.randn(10, 5))


def test_too_little_disk_is_said_before_training(tmp_path, monkeypatch):
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 100, 0))
    trainer = make()
    with pytest.raises(saefast.InputError, match="out: .* GB are free"):
        trainer.fit(data(), tmp_path / "run")
    assert trainer.state.step == 0


def test_training_memory_is_what_the_step_needs():
    """Of the CPU engine: parameters, moments and 10 %. No gradients, no dense pre-activations of a batch."""
    import subprocess

    code = r"""
import re, torch, saefast
B, d_in, d_sae = 2048, 256, 16384
sae = saefast.SAE(saefast.SAEConfig(d_in=d_in, d_sae=d_sae, k=16))
trainer = saefast.Trainer(sae, saefast.TrainConfig(total_tokens=B * 9, batch_size=B, lr=1e-4))
x = torch.randn(B, d_in)
torch.randn(512, 512) @ torch.randn(512, 512)  # loads the matrix library
status = lambda key: int(re.search(key + r":\s+(\d+)", open("/proc/self/status").read())[1]) / 1024
open("/proc/self/clear_refs", "w").write("5")  # resets the peak, VmHWM
before = status("VmRSS")
for _ in range(3): trainer.step(x)
print(status("VmHWM") - before)
"""
    if reason := saefast.backend.unavailable("native"):
        pytest.skip(reason)
    command = [sys.executable, "-P", "-c", code]
    peak = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    mib = 2**20
    params, pre_acts = 2 * 256 * 16384 * 4 / mib, 2048 * 16384 * 4 / mib
    # The parameters are there before the step; zeroed moments may take memory only when they are first written.
    allowed = 1.1 * 2 * params
    print(f"peak {peak:.0f} MiB above the parameters, allowed {allowed:.0f} MiB")
    assert 0 < peak < allowed < pre_acts


def test_training_on_a_live_model_and_resuming_it(tmp_path):
    """No cache in between: the model runs while the SAE trains; its source cannot be read at random, only again."""
    generator = torch.Generator().manual_seed(1)
    batches = list(torch.randint(2, 64, (12, 2, 16), generator=generator))

    def train(out, stop_after=None):
        source = ModelSource(tiny_lm.model(), "model.layers.1", batches)
        sae = saefast.SAE(saefast.SAEConfig(d_in=source.d_in, d_sae=64, k=4))
        config = saefast.TrainConfig(
            total_tokens=32 * 30, batch_size=32, buffer_tokens=128, lr=3e-3, log_every=5, checkpoint_every=4
        )
        trainer = saefast.Trainer(sae, config)
        step = trainer.step
        trainer.step = lambda x, **_: (
            pytest.fail("stop here") if trainer.state.step == stop_after else step(x, checked=True)
        )
        trainer.fit(source, out, resume=True)
        return sae.params

    whole = train(tmp_path / "whole")
    with pytest.raises(pytest.fail.Exception, match="stop here"):
        train(tmp_path / "run", stop_after=18)
    assert all(torch.equal(a, b) for a, b in zip(whole, train(tmp_path / "run")))
