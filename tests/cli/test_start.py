"""`saefast train --start SAE`: going on from an SAE of any format."""

import json
import os
import re
import shutil
import signal

import pytest
import torch

import saefast
from saefast import formats
from saefast.sae import SAE
from tests.helpers.stopped_runs import assert_same, result
from tests.helpers.tiny_world import TRAIN, run

pytestmark = pytest.mark.usefixtures("no_curves")

GO_ON = "--tokens 1280 --batch-size 64 --buffer-tokens 256 --log-every 5 --seed 1 --checkpoint-every 3"
TO = ["saefast", "sae_lens", "sparsify", "dictionary_learning"]


@pytest.mark.parametrize("to", TO)
def test_it_is_the_run_of_python_from_any_format(world, tmp_path, to):
    formats.save(SAE.from_pretrained(world / "run"), tmp_path / "start", to)
    run(f"train {world}/cache --start {tmp_path}/start --out {tmp_path}/a {GO_ON} --lr 1e-3")
    sae = SAE.from_pretrained(tmp_path / "start")
    options = {"total_tokens": 1280, "batch_size": 64, "buffer_tokens": 256, "seed": 1, "lr": 1e-3}
    saefast.Trainer(sae, saefast.TrainConfig(**options)).fit(saefast.open_source(world / "cache"))
    found = SAE.from_pretrained(tmp_path / "a")
    assert found.config == sae.config
    for name, value in sae.named_parameters():
        assert torch.equal(found.get_parameter(name), value), name


@pytest.mark.parametrize("to", ["saefast", "sae_lens"])
def test_with_a_rate_of_0_it_is_the_sae_that_it_was(world, tmp_path, to):
    formats.save(SAE.from_pretrained(world / "run"), tmp_path / "start", to)
    run(f"train {world}/cache --start {tmp_path}/start --out {tmp_path}/a {GO_ON} --lr 0")
    a, b = SAE.from_pretrained(tmp_path / "start"), SAE.from_pretrained(tmp_path / "a")
    for name, value in a.named_parameters():  # decoder rows are of unit norm again, up to rounding
        assert torch.allclose(b.get_parameter(name), value, rtol=0, atol=2e-7), name


def test_run_json_says_from_what_and_it_is_resumed_to_the_same_bits(world, tmp_path, fails, monkeypatch):
    command = f"train {world}/cache --start {world}/run {GO_ON} --lr 1e-3"
    run(f"{command} --out {tmp_path}/want")
    real = saefast.Trainer.step

    def step(trainer, x, **options):
        if trainer.state.step == 10:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(trainer, x, **options)

    with monkeypatch.context() as patch:
        patch.setattr(saefast.Trainer, "step", step)
        run(f"{command} --out {tmp_path}/got")
    assert json.loads((tmp_path / "got" / "run.json").read_text())["start"] == f"{world}/run"
    line = fails(
        f"train {world}/cache --d-sae 64 --k 4 {GO_ON} --lr 1e-3 --out {tmp_path}/got --resume", tmp_path
    )
    assert line == f"start: the run in {tmp_path}/got was started with '{world}/run', got None"
    shutil.copytree(world / "run", tmp_path / "other")
    other = command.replace(f"--start {world}/run", f"--start {tmp_path}/other")
    line = fails(f"{other} --out {tmp_path}/got --resume", tmp_path)
    assert line == f"start: the run in {tmp_path}/got was started with '{world}/run', got '{tmp_path}/other'"
    run(f"{command} --out {tmp_path}/got --resume")
    assert_same(result(tmp_path / "got"), result(tmp_path / "want"))


CONTRADICTIONS = {
    "--d-sae 128": "d_sae: the SAE in --start has 64, got 128",
    "--d-sae=128": "d_sae: the SAE in --start has 64, got 128",
    "--k 8": "k: the SAE in --start has 4, got 8",
    "--k None": "k: the SAE in --start has 4, got None",
    "--activation batch_topk": "activation: the SAE in --start has 'topk', got 'batch_topk'",
    "--no-pre-bias": "pre_bias: the SAE in --start has True, got False",
    "--d-in 31": "d_in: the SAE in --start has 32, got 31",
    "--d-out 32": "d_out: the SAE in --start has None, got 32",
    "--recipe batchtopk --k 4": "activation: the SAE in --start has 'topk', got 'batch_topk' by the recipe batchtopk",
}


@pytest.mark.parametrize("flag", CONTRADICTIONS)
@pytest.mark.parametrize("before", [True, False])
def test_a_shape_that_contradicts_it_is_refused_with_both_values(world, tmp_path, fails, flag, before):
    flags = f"{flag} --start {world}/run" if before else f"--start={world}/run {flag}"
    assert fails(f"train {world}/cache --out {tmp_path}/a {GO_ON} {flags}", tmp_path) == CONTRADICTIONS[flag]


def test_our_default_is_refused_too_where_the_sae_has_something_else(world, tmp_path, fails):
    """The parser says what was given, not the value."""
    flags = "--activation relu --d-sae 64 --penalty l1 --sparsity-coefficient 0.01"
    run(f"train {world}/cache --out {tmp_path}/relu {GO_ON} --lr 1e-3 {flags}")
    flags = f"--start {tmp_path}/relu --penalty l1 --sparsity-coefficient 0.01"
    line = fails(f"train {world}/cache --out {tmp_path}/a {GO_ON} {flags} --activation topk", tmp_path)
    assert line == "activation: the SAE in --start has 'relu', got 'topk'"
    run(f"train {world}/cache --out {tmp_path}/a {GO_ON} {flags} --activation relu --d-sae 64")
    assert SAE.from_pretrained(tmp_path / "a").config.activation == "relu"


def test_the_recipe_trains_it_where_the_shapes_agree(world, tmp_path):
    run(
        f"train {world}/cache --out {tmp_path}/a {GO_ON} --start {world}/run --recipe openai-topk-2024 --k 4 --k-aux 8"
    )
    assert json.loads((tmp_path / "a" / "run.json").read_text())["train"]["ema_decay"] == 0.999


BAD = {
    "{tmp}/none": ".*none.*",
    "{world}/cache": ".*",
    "{world}/text": ".*",
}


@pytest.mark.parametrize("start", BAD)
def test_what_is_no_sae_is_one_line(world, tmp_path, fails, start):
    start = start.format(world=world, tmp=tmp_path)
    line = fails(f"train {world}/cache --out {tmp_path}/a {GO_ON} --start {start}", tmp_path)
    assert start in line and not (tmp_path / "a").exists()


def test_without_it_the_number_of_latents_is_needed(world, tmp_path, fails):
    line = fails(f"train {world}/cache --out {tmp_path}/a {GO_ON}", tmp_path)
    assert re.fullmatch(r"d_sae: expected a number of latents \(--d-sae\), or --start SAE, got none", line)
    assert "--start" not in TRAIN


def test_in_bf16(world, tmp_path):
    run(f"train {world}/cache --start {world}/run --out {tmp_path}/a {GO_ON} --lr 1e-3 --param-dtype bf16 "
        "--backend reference")  # fmt: skip
    a, b = SAE.from_pretrained(world / "run"), SAE.from_pretrained(tmp_path / "a")
    assert not torch.equal(a.W_dec, b.W_dec) and torch.allclose(a.W_dec, b.W_dec, atol=0.1)
