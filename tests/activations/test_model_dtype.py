"""A model that multiplies in bf16: its rows, what stays fp32, and what is said where that is slower."""

import logging

import pytest
import torch

from saefast import InputError
from saefast.activations import model_dtype
from saefast.activations.hooks import capture_all
from saefast.activations.lm import ModelSource
from saefast.activations.text_source import TextSource
from tests.helpers import tiny_lm

OPTIONS = {"context_length": 16, "contexts_per_batch": 2, "sink_ratio": None, "keep_special": True}


@pytest.fixture(scope="module")
def model():
    return tiny_lm.model()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    tiny_lm.save(folder / "model")
    (folder / "text.txt").write_text(tiny_lm.text(300))
    return folder


@pytest.fixture
def not_slower(monkeypatch):
    monkeypatch.setattr(model_dtype, "time_of_bf16", lambda device: 0.5)
    model_dtype.say_if_slower.cache_clear()
    yield
    model_dtype.say_if_slower.cache_clear()


def source_of(world, hook="model.layers.1", **options):
    return TextSource(str(world / "model"), world / "text.txt", hook, **OPTIONS | options)


def batches():
    ids = torch.randint(2, 64, (3, 2, 10), generator=torch.Generator().manual_seed(1), dtype=torch.int64)
    return list(ids)


def test_rows_are_those_of_autocast_in_fp32_and_near_those_of_fp32(model, not_slower):
    hooks = ["model.layers.1", "model.layers.1.mlp", "model.layers.2.mlp.down_proj:in"]
    found = ModelSource(model, hooks, batches(), sink_ratio=None, model_dtype="bf16")
    exact = ModelSource(model, hooks, batches(), sink_ratio=None)
    for batch, rows, near in zip(batches(), found.rows(), exact.rows(), strict=True):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            want = [part.flatten(0, 1).float() for part in capture_all(found.points, batch)]
        assert torch.equal(rows, torch.cat(want, dim=1)) and rows.dtype == torch.float32
        off = (rows - near).norm() / near.norm()
        assert 1e-4 < off < 5e-2, off
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_the_residual_stream_is_not_rounded(model, not_slower):
    rows = next(ModelSource(model, "model.layers.1", batches(), model_dtype="bf16").rows())
    assert not torch.equal(rows, rows.bfloat16().float())
    rows = next(ModelSource(model, "model.layers.1.mlp", batches(), model_dtype="bf16").rows())
    assert torch.equal(rows, rows.bfloat16().float())  # what a module multiplied is


def test_only_the_pass_of_the_model_is_in_bf16(model, not_slower):
    source = ModelSource(model, "model.layers.1", batches(), model_dtype="bf16")
    for _ in source.model_batches():
        assert not torch.is_autocast_enabled("cpu")


def test_a_start_in_the_middle_has_the_same_bits(world, not_slower):
    source = source_of(world, model_dtype="bf16")
    want = torch.cat(list(source.rows()))
    for start in (1, 33, 100):
        other = source_of(world, model_dtype="bf16")
        other.go_on(source.mark(start))
        assert torch.equal(torch.cat(list(other.rows(start))), want[start:]), start


def test_only_bf16_is_noted(world, not_slower):
    assert source_of(world, model_dtype="bf16").notes["model_dtype"] == "bf16"
    assert source_of(world, model_dtype="bf16").describe()["notes"]["model_dtype"] == "bf16"
    assert "model_dtype" not in source_of(world).notes  # as of every cache before


def test_a_device_on_which_it_is_slower_is_named_once(model, monkeypatch, caplog):
    for ratio, lines in ((0.6, 0), (38.2, 1)):
        monkeypatch.setattr(model_dtype, "time_of_bf16", lambda device, ratio=ratio: ratio)
        model_dtype.say_if_slower.cache_clear()
        with caplog.at_level(logging.WARNING, "saefast"):
            for _ in range(2):
                assert len(list(ModelSource(model, "model.layers.1", batches(), model_dtype="bf16"))) == 3
        assert len(caplog.messages) == lines
    assert "38.2 times as long as in fp32 on this CPU" in caplog.messages[0]
    caplog.clear()
    ModelSource(model, "model.layers.1", batches())
    assert not caplog.messages
    model_dtype.say_if_slower.cache_clear()


def test_both_products_are_timed():
    assert 0.01 < model_dtype.time_of_bf16("cpu", size=32, rounds=2) < 1000


def test_another_format_is_refused(model):
    expected = "model_dtype: expected one of ['fp32', 'bf16'], got 'int8'"
    with pytest.raises(InputError) as raised:
        ModelSource(model, "model.layers.1", batches(), model_dtype="int8")
    assert str(raised.value) == expected
