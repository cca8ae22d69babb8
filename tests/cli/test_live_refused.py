"""`saefast train MODEL TEXT`: what does not fit is one line, by name, and nothing is written."""

import os
import re
import shutil
import signal

import pytest

from tests.helpers.stopped_runs import at_step
from tests.helpers.tiny_world import CACHE, TRAIN, run

pytestmark = pytest.mark.usefixtures("no_curves")


@pytest.fixture
def live(world):
    return f"{world}/model {world}/text {CACHE}"


OTHERS = {
    "context_length": ("--context-length 8", "16, got 8"),
    "contexts_per_batch": ("--contexts-per-batch 2", "4, got 2"),
    "sink_ratio": ("--sink-ratio 5", "10.0, got 5.0"),
    "dropped_ids": ("--keep-special", r"\[0, 1\], got \[\]"),
    "separator": ("--separator none", "0, got None"),
    "hook": ("--hook model.layers.0", r"'model.layers.1', got \['model.layers.1', 'model.layers.0'\]"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_rows_are_refused_by_name_when_it_goes_on(live, tmp_path, fails, monkeypatch, name):
    with monkeypatch.context() as patch:
        at_step(patch, 10, lambda: os.kill(os.getpid(), signal.SIGTERM))
        run(f"train {live} --out {tmp_path}/a {TRAIN}")
    flags, values = OTHERS[name]
    width = "d_in: the run in .* was started with 32, got 64" if name == "hook" else None
    line = fails(f"train {live} {flags} --out {tmp_path}/a {TRAIN} --resume", tmp_path)
    wanted = f"source: the run in .* was started with {name} = {values}"
    assert re.fullmatch(width or wanted, line), line


def test_another_text_in_the_same_place_is_refused(world, tmp_path, fails, monkeypatch):
    shutil.copytree(world / "text", tmp_path / "text")
    command = f"train {world}/model {tmp_path}/text {CACHE} --out {tmp_path}/a {TRAIN}"
    with monkeypatch.context() as patch:
        at_step(patch, 10, lambda: os.kill(os.getpid(), signal.SIGTERM))
        run(command)
    last = tmp_path / "text" / "3.txt"
    last.write_text(last.read_text() + " w1")
    assert "was started with text_bytes = " in fails(f"{command} --resume", tmp_path)


# -- what cannot be

BAD = {
    "no text": ("{model} {tmp}/none --hook model.layers.1", "text: expected a file, a folder or .*none"),
    "empty text": ("{model} {tmp}/empty.txt --hook model.layers.1", "text: expected some text, .* is empty"),
    "short text": ("{model} {tmp}/short.txt " + CACHE, "text: expected at least 64 tokens for one batch.*"),
    "no model": ("{tmp}/nothing {text} --hook model.layers.1", "model: expected a Hugging Face causal .*"),
    "no tokenizer": ("{tmp}/bare {text} " + CACHE, "model: '.*bare' has no usable tokenizer: .*"),
    "unknown hook": (
        "{model} {text} --hook model.layers.9 --context-length 16",
        "hook: .*model.layers.9.*",
    ),
    "no hook": ("{model} {text}", "hook: expected at least one --hook, got none"),
    "no bos": ("{model} {text} " + CACHE + " --bos always", "bos: the tokenizer has no bos token.*"),
    "long": ("{model} {text} --hook model.layers.1", "context_length: expected at most 64, .*, got 256"),
    "size": (
        "{model} {text} --hook a --contexts-per-batch 0",
        "contexts_per_batch: expected a posi.*, got 0",
    ),
    "field": ("{model} {text} --hook a --text-field body", "text_field: .* has no field 'body'"),
    "device": ("{model} {text} " + CACHE + " --lm-device nowhere", "device: expected .*, got 'nowhere'"),
    "width": ("{model} {text} " + CACHE + " --d-in 31", "source: expected .* d_in = 31, got 32"),
}


@pytest.mark.parametrize("command", ["train", "sweep"])
@pytest.mark.parametrize("kind", BAD)
def test_what_does_not_fit_is_one_line_before_anything_is_written(world, tmp_path, fails, command, kind):
    (tmp_path / "empty.txt").touch()
    (tmp_path / "short.txt").write_text("w1 w2 w3")
    shutil.copytree(world / "model", tmp_path / "bare", ignore=shutil.ignore_patterns("*token*"))
    flags, message = BAD[kind]
    rows = flags.format(model=world / "model", text=world / "text", tmp=tmp_path)
    if (command, kind) == ("sweep", "width"):
        message = "d_in: expected 32, the columns it is given, got 31"
    line = fails(f"{command} {rows} --out {tmp_path}/out {TRAIN}", tmp_path)
    assert re.fullmatch(message, line), line
    assert not (tmp_path / "out").exists()


WITHOUT_A_MODEL = {
    "context_length": ("128", "256"),
    "contexts_per_batch": ("8", "4"),
    "sink_ratio": ("5", "10.0"),
    "text_field": ("body", "'text'"),
    "bos": ("never", "'auto'"),
    "separator": ("eos", "'auto'"),
    "keep_special": ("", "False"),
    "lm_device": ("cpu", "None"),
    "hook": ("a", r"\(\)"),
}


@pytest.mark.parametrize("name", WITHOUT_A_MODEL)
@pytest.mark.parametrize("command", ["train", "sweep"])
def test_flags_of_the_text_are_refused_without_one(world, tmp_path, fails, command, name):
    value, default = WITHOUT_A_MODEL[name]
    line = fails(
        f"{command} {world}/cache --{name.replace('_', '-')} {value} --out {tmp_path}/out {TRAIN}", tmp_path
    )
    if (command, name) == ("sweep", "hook"):  # it names one of a cache of several there
        assert line == "hook: expected one of those of the source, ['model.layers.1'], got 'a'"
    else:
        assert re.fullmatch(f"{name}: expected {default} without MODEL and TEXT, got .*", line), line
