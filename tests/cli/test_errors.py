"""What bad input gets: one line that names it, exit status 2, nothing overwritten."""

import json
import re
import signal
import subprocess
import sys

import numpy as np
import pytest

from tests.helpers import tiny_lm
from tests.helpers.tiny_world import CACHE, TRAIN, contents, run


def matrix(folder, array):
    np.save(folder / "x.npy", array)
    return folder / "x.npy"


def empty(path):
    path.touch()
    return path


BAD_SOURCES = {
    "dtype": (
        lambda f: matrix(f, np.ones((50, 32), np.int64)),
        "expected a floating-point dtype of torch, got <i8",
    ),
    "dimensions": (lambda f: matrix(f, np.ones(50, np.float32)), r"expected shape \[n, d_in\], got \[50\]"),
    "no rows": (lambda f: matrix(f, np.ones((0, 32), np.float32)), "expected at least one row"),
    "empty file": (lambda f: empty(f / "x.npy"), "x.npy is not a readable .npy file"),
    "empty safetensors": (lambda f: empty(f / "x.safetensors"), "not a readable safetensors"),
    "unknown path": (
        lambda f: f / "none.npy",
        "expected a shard folder, .npy or .safetensors file, found nothing",
    ),
    "unknown kind": (lambda f: empty(f / "x.txt"), "expected a shard folder, .npy or .safetensors"),
    "no index": (lambda f: f, r"index\.json: expected a JSON file, found none"),
}


@pytest.mark.parametrize("make,message", BAD_SOURCES.values(), ids=BAD_SOURCES)
def test_bad_sources_are_named_by_every_command(world, tmp_path, fails, make, message):
    path = make(tmp_path)
    for command in (
        f"train {path} --out {tmp_path}/out {TRAIN}",
        f"evaluate {world}/run {path}",
        f"info {path}",
    ):
        if not command.startswith("info") or path.exists():
            line = fails(command)
            assert re.search(message, line) and str(path) in line
    assert not (tmp_path / "out").exists()


def test_another_width_is_refused(world, tmp_path, fails):
    path = matrix(tmp_path, np.ones((50, 31), np.float32))
    assert fails(f"evaluate {world}/run {path}") == "source: expected activations of width d_in = 32, got 31"


@pytest.mark.parametrize("damage", ["truncated", "bit", "missing"])
def test_a_damaged_shard_is_named(world, tmp_path, fails, damage):
    for path, data in contents(world / "cache").items():
        (tmp_path / path.name).write_bytes(data)
    shard = tmp_path / "shard-00000.safetensors"
    if damage == "truncated":
        shard.write_bytes(shard.read_bytes()[:-5])
    elif damage == "bit":
        data = bytearray(shard.read_bytes())
        data[len(data) // 2] ^= 1
        shard.write_bytes(data)
    else:
        shard.unlink()
    for command in (f"evaluate {world}/run {tmp_path}", f"train {tmp_path} --out {tmp_path}/out {TRAIN}"):
        assert fails(command).startswith(f"{shard}: ")
    assert not (tmp_path / "out" / "sae.safetensors").exists()


def with_nan(folder):
    x = np.random.default_rng(0).normal(size=(300, 32)).astype(np.float32)
    x[[7, 200], 3] = np.nan, np.inf
    return matrix(folder, x)


def test_nan_rows_stop_or_are_skipped_and_counted(world, tmp_path, fails, capsys):
    path = with_nan(tmp_path)
    line = fails(f"train {path} --out {tmp_path}/stopped {TRAIN}")
    assert line.startswith("source: row 7 holds NaN or Inf") and "--nonfinite skip" in line
    assert not (tmp_path / "stopped" / "sae.safetensors").exists()
    run(f"train {path} --out {tmp_path}/skipped {TRAIN} --nonfinite skip")
    last = json.loads((tmp_path / "skipped" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["rows_skipped"] >= 8  # 1280 tokens: more than four passes with two bad rows each
    capsys.readouterr()
    run(f"evaluate {tmp_path}/skipped {path} --json")
    result = json.loads(capsys.readouterr().out)
    assert result["rows_skipped"] == 2 and result["n_tokens"] == 298


@pytest.mark.parametrize(
    "flag,value,message",
    [
        ("k", 65, "k: expected at most d_sae = 64, got 65"),
        *(
            (name, value, f"{name.replace('-', '_')}: expected a positive integer, got {value}")
            for name in ("k", "d-sae", "batch-size", "buffer-tokens", "log-every")
            for value in (0, -3)
        ),
        ("tokens", 0, "total_tokens: expected a positive integer, got 0"),
        ("lr", "nan", "lr: expected 0 or a positive number, or None, got nan"),
        ("seed", -1, "seed: expected an integer from 0 to 2^63 - 1, got -1"),
        ("device", "cuda:99", "device: expected a device of this machine, got 'cuda:99'"),
        ("device", "toaster", "device: expected a device of this machine, got 'toaster'"),
    ],
)
def test_bad_values_of_train_make_no_folder(world, tmp_path, fails, flag, value, message):
    assert fails(f"train {world}/x.npy --out {tmp_path}/out {TRAIN} --{flag} {value}") == message
    assert not (tmp_path / "out").exists()


def test_an_existing_run_is_kept_and_resumed_only_with_its_own_shape(world, fails):
    command = f"train {world}/cache --out {world}/run {TRAIN}"
    assert fails(command) == (
        f"out: expected a new folder, {world}/run exists; go on with --resume or choose another"
    )
    for change, name, was, now in (
        ("--d-sae 128", "d_sae", 64, 128),
        ("--k 5", "k", 4, 5),
        ("--seed 2", "seed", 1, 2),
    ):
        line = fails(f"{command} --resume {change}")
        assert line == f"{name}: the run in {world}/run was started with {was}, got {now}"
    line = fails(f"train {world}/x.npy --out {world}/run {TRAIN} --resume")
    assert line.startswith(f"source: the run in {world}/run was started with ")


@pytest.mark.parametrize("out", ["file/out", "file"])
def test_an_unwritable_out_is_named_before_any_work(world, tmp_path, fails, out):
    (tmp_path / "file").write_text("not a folder")
    for command in (
        f"train {world}/x.npy --out {tmp_path}/{out} {TRAIN}",
        f"cache {world}/model {world}/text {CACHE} --out {tmp_path}/{out}",
    ):
        assert str(tmp_path / "file") in fails(command, keep=tmp_path)


BAD_CACHE = {
    "unknown hook": (
        "--hook model.layer.1",
        "hook: expected a module path or path:in, got 'model.layer.1'; near it: .*model.layers.1",
    ),
    "hook twice": (
        "--hook model.layers.1",
        r"hook: expected one or more different hook points, got \['model.layers.1', 'model.layers.1'\]",
    ),
    "tokens": ("--tokens 0", "tokens: expected a positive integer, got 0"),
    "context length": ("--context-length -1", "context_length: expected a positive integer, got -1"),
    "positions": (
        "--context-length 65",
        "context_length: expected at most 64, the positions of the model, got 65",
    ),
    "bos": ("--bos always", "bos: the tokenizer has no bos token; --bos chooses another way"),
    "separator": ("--separator bos", "separator: the tokenizer has no bos token; --separator chooses"),
    "text field": ("--text-field body", "text_field: .*text is plain text, which has no field 'body'"),
    "contexts per batch": (
        "--contexts-per-batch 0",
        "contexts_per_batch: expected a positive integer, got 0",
    ),
    "skip": ("--skip-tokens -1", "skip_tokens: expected 0 or more, got -1"),
    "sink ratio": ("--sink-ratio 0", "sink_ratio: expected a positive number or None, got 0"),
    "too little text": (
        "--context-length 64 --contexts-per-batch 100",
        "text: expected at least 6400 tokens for one batch, got 1204",
    ),
    "device": ("--device toaster", "device: expected a device of this machine, got 'toaster'"),
}


@pytest.mark.parametrize("flags,message", BAD_CACHE.values(), ids=BAD_CACHE)
def test_bad_values_of_cache_make_no_folder(world, tmp_path, fails, flags, message):
    line = fails(f"cache {world}/model {world}/text {CACHE} --out {tmp_path}/out {flags}")
    assert re.match(message, line), line
    assert not (tmp_path / "out").exists()


def test_bad_models_and_texts_and_a_finished_cache(world, tmp_path, fails):
    tiny_lm.model().save_pretrained(tmp_path / "no-tokenizer")
    rest = f"{CACHE} --out {tmp_path}/out"
    for command, message in (
        (
            f"cache {tmp_path}/no-tokenizer {world}/text {rest}",
            "model: '.*no-tokenizer' has no usable tokenizer: ",
        ),
        (
            f"cache {tmp_path}/none {world}/text {rest}",
            "model: expected a Hugging Face causal language model at ",
        ),
        (f"cache {world}/model {tmp_path}/none.txt {rest}", "text: expected a file, a folder or a .jsonl"),
        (
            f"cache {world}/model {world}/text {CACHE} --out {world}/cache",
            "out: expected a new folder, .*finished",
        ),
        (
            f"cache {world}/model {world}/text {CACHE} --out {world}/text",
            "out: expected a new or empty folder",
        ),
    ):
        assert re.match(message, fails(command))
    assert not (tmp_path / "out").exists()


def test_bad_input_of_evaluate_and_info(world, tmp_path, fails):
    (tmp_path / "run.json").write_text('{"train": 5}')
    for command, message in (
        (
            f"evaluate {world}/cache {world}/x.npy",
            "path: expected an SAE, one of ['saefast', 'sae_lens', ",
        ),
        (f"convert {world}/run {world}/run --to sparsify", "path: expected a new folder, "),
        (
            f"convert {world}/run {tmp_path}/new --to gemma_scope",
            "sae: the format gemma_scope has no activation 'topk'",
        ),
        (
            f"convert {world}/run {tmp_path}/new --to sparsify --format openai",
            f"{world}/run/autoencoder.pt: expected a file",
        ),
        (
            f"evaluate {world}/run {world}/x.npy --in-model",
            "in_model: expected a shard folder of `saefast cache`",
        ),
        (
            f"evaluate {world}/run {world}/cache --in-model --contexts 0",
            "contexts: expected a positive integer, got 0",
        ),
        (
            f"info {tmp_path}/none",
            "path: expected a run, an SAE, records, a shard folder or an activation file, found nothing",
        ),
        (f"info {tmp_path}", f"{tmp_path}/run.json: expected the description of a run"),
    ):
        assert fails(command).startswith(message)


@pytest.mark.parametrize("command", ["train --help", "recipes"])
def test_a_reader_that_has_seen_enough_is_no_error(command):
    """As in `saefast train --help | head`: nobody reads."""
    program = [sys.executable, "-P", "-m", "saefast", *command.split()]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        said = process.stderr.read()
    assert process.returncode == 128 + signal.SIGPIPE and said == b""
