"""`saefast train MODEL TEXT` and `saefast sweep MODEL TEXT`: the language model as the source, without a cache."""

import json
import os
import signal
import threading
from collections import Counter
from contextlib import suppress

import pytest
import torch

import saefast
from saefast.activations.live_source import Background, LiveSource
from saefast.activations.lm import ModelSource
from saefast.activations.shards import read_index
from saefast.activations.text_source import TextSource
from saefast.files import load_tensors, write_json_checked
from saefast.sae import SAE
from tests.helpers.stopped_runs import Killed, assert_same, at_step, result
from tests.helpers.tiny_world import CACHE, TRAIN, run

pytestmark = pytest.mark.usefixtures("no_curves")

LONG = TRAIN.replace("1280", "3840") + " --checkpoint-every 7"  # 60 steps, more than three passes


@pytest.fixture
def live(world):
    return f"{world}/model {world}/text {CACHE}"


@pytest.fixture
def cache(world, tmp_path):
    """The same rows on disk, as the model gives them."""
    run(f"cache {world}/model {world}/text {CACHE} --out {tmp_path}/cache --dtype float32")
    return tmp_path / "cache"


def without_rows(out):
    """All bits of a run but those that say where its rows come from."""
    tensors, meta, lines, sae = result(out)
    meta["buffer"].pop("mark", None)
    meta.pop("key")
    return {name: t for name, t in tensors.items() if name != "buffer.rows"}, meta, lines, sae


def killed():
    raise Killed


# -- the same rows as a cache


def test_it_has_the_bits_of_a_run_from_a_cache_in_fp32(live, cache, tmp_path):
    run(f"train {live} --out {tmp_path}/a {LONG}")
    run(f"train {cache} --out {tmp_path}/b {LONG}")
    assert_same(without_rows(tmp_path / "a"), without_rows(tmp_path / "b"))
    of_run, of_cache = (json.loads((tmp_path / x).read_text()) for x in ("a/run.json", "cache/index.json"))
    del of_cache["notes"]["skip_tokens"]
    assert of_run["source"]["notes"].items() >= of_cache["notes"].items()
    assert of_run["source"]["model"] == of_cache["model"]


def test_in_bf16_too_and_neither_goes_on_in_another_format(live, world, tmp_path, capsys):
    train, cache = f"train {live} --out {tmp_path}/a {TRAIN}", f"cache {world}/model {world}/text {CACHE}"
    run(f"{train} --model-dtype bf16")
    run(f"{cache} --out {tmp_path}/cache --dtype float32 --model-dtype bf16")
    run(f"train {tmp_path}/cache --out {tmp_path}/b {TRAIN}")
    assert_same(without_rows(tmp_path / "a"), without_rows(tmp_path / "b"))
    index = read_index(tmp_path / "cache")
    assert index["notes"]["model_dtype"] == "bf16"
    with pytest.raises(SystemExit):
        run(f"{train} --resume")
    assert "was started with model_dtype = 'bf16', got None" in capsys.readouterr().err
    write_json_checked(tmp_path / "cache/index.json", index | {"complete": False})
    with pytest.raises(SystemExit):
        run(f"{cache} --out {tmp_path}/cache --dtype float32")
    assert "was begun with notes" in (error := capsys.readouterr().err) and "bf16" in error


def test_the_sae_knows_its_model_text_and_place(world, live, tmp_path):
    run(f"train {live} --out {tmp_path}/a {TRAIN}")
    metadata = SAE.from_pretrained(tmp_path / "a").metadata
    assert metadata == {
        "model_name": f"{world}/model",
        "hook_name": "model.layers.1",
        "context_size": 16,
        "dataset_path": f"{world}/text",
        "prepend_bos": False,
        "exclude_special_tokens": [0, 1],
    }


def test_a_transcoder_from_two_hook_points(world, tmp_path):
    hooks = (
        "--hook model.layers.1.mlp:in model.layers.1.mlp --context-length 16 --keep-special --sink-ratio None"
    )
    run(f"train {world}/model {world}/text {hooks} --out {tmp_path}/a --d-out 32 --no-pre-bias {TRAIN}")
    found = SAE.from_pretrained(tmp_path / "a")
    source = json.loads((tmp_path / "a" / "run.json").read_text())["source"]
    assert (found.config.d_in, found.config.d_out) == (32, 32)
    assert source["hook"] == ["model.layers.1.mlp:in", "model.layers.1.mlp"]
    assert (source["notes"]["dropped_ids"], source["notes"]["max_norm"]) == ([], None)


# -- stopped, killed, gone on with


@pytest.mark.parametrize("step", [3, 31, 46])
@pytest.mark.parametrize("end", [killed, lambda: os.kill(os.getpid(), signal.SIGTERM)], ids=["kill", "stop"])
def test_it_goes_on_to_the_same_bits_without_running_earlier_batches(live, tmp_path, monkeypatch, step, end):
    run(f"train {live} --out {tmp_path}/want {LONG}")
    command = f"train {live} --out {tmp_path}/got {LONG} --resume"
    with monkeypatch.context() as patch:
        at_step(patch, step, end)
        with suppress(Killed):
            run(command)
    expected = 0
    if (tmp_path / "got" / "checkpoint.safetensors").exists():
        _, meta, _ = load_tensors(tmp_path / "got" / "checkpoint.safetensors")
        assert meta["step"] == (step if end is not killed else step // 7 * 7)
        expected, next_row = meta["buffer"]["mark"]["batch"], meta["buffer"]["next_row"]
        first = meta["buffer"]["mark"]["row"]
        assert expected > 0 and 0 <= next_row - first <= 64  # the row is in this batch of 4 contexts of 16
    started, real = [], ModelSource.model_batches

    def model_batches(self, start=0):
        started.append(start)
        return real(self, start)

    monkeypatch.setattr(ModelSource, "model_batches", model_batches)
    run(command)
    assert started[0] == expected and not any(started[1:])  # later passes begin at the beginning
    assert_same(result(tmp_path / "got"), result(tmp_path / "want"))


@pytest.mark.parametrize("end", [killed, lambda: os.kill(os.getpid(), signal.SIGTERM)], ids=["kill", "stop"])
def test_a_sweep_from_the_model_goes_on_to_the_bits_of_one_from_a_cache(world, tmp_path, monkeypatch, end):
    model, hooks = f"{world}/model {world}/text", f"--hook model.layers.0 {CACHE}"
    own = "--d-sae 32 --k 2 4 --tokens 1280 --batch-size 64 --buffer-tokens 256 --log-every 5 --lr 3e-3"
    run(f"cache {model} {hooks} --out {tmp_path}/cache --dtype float32")
    run(f"sweep {tmp_path}/cache --out {tmp_path}/want {own}")
    command = f"sweep {model} {hooks} --out {tmp_path}/got {own} --checkpoint-every 3 --resume"
    with monkeypatch.context() as patch:
        at_step(patch, 4 * 11 + 2, end)  # two hook points and two values of k
        with suppress(Killed):
            run(command)
    assert not (tmp_path / "got" / "table.json").exists()
    run(command)
    rows = [json.loads((tmp_path / x / "table.json").read_text())["rows"] for x in ("got", "want")]
    assert len(rows[0]) == 4 and {tuple(row["columns"]) for row in rows[0]} == {(0, 32), (32, 64)}
    for got, want in zip(*rows, strict=True):
        a, b = (SAE.from_pretrained(tmp_path / x / row["name"]) for x, row in (("got", got), ("want", want)))
        assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


# -- beside the steps


def test_the_model_runs_while_the_trainer_is_in_a_step(live, tmp_path, monkeypatch):
    """Each step lets the model do one more batch, and waits inside of the step until it is done."""
    asked, given, real, came = threading.Semaphore(0), threading.Semaphore(0), ModelSource.model_batches, []

    def model_batches(self, start=0):
        for number, batch in enumerate(real(self, start)):
            if number >= 6:  # those before fill the buffer of 256 rows and the places of the first batch
                assert asked.acquire(timeout=60)
                given.release()
            yield batch

    def step(trainer, x, **options):
        asked.release(1 if len(came) < 9 else 100)
        came.append(given.acquire(timeout=60))
        return real_step(trainer, x, **options)

    real_step = saefast.Trainer.step
    monkeypatch.setattr(ModelSource, "model_batches", model_batches)
    monkeypatch.setattr(saefast.Trainer, "step", step)
    run(f"train {live} --out {tmp_path}/a {TRAIN.replace('1280', '640')}")
    assert came == [True] * 10


@pytest.mark.parametrize("end", [None, killed, lambda: os.kill(os.getpid(), signal.SIGTERM)])
@pytest.mark.parametrize("command", ["train", "sweep"])
def test_the_thread_of_the_model_ends_with_the_run(live, tmp_path, monkeypatch, command, end):
    """However it ends: a model that still runs when the process exits would abort it."""
    start, rows, threads, passes = LiveSource.start, Background.rows, [], []

    def starting(self, *producers):
        threads.extend(found := start(self, *producers))
        return found

    def kept(self, first=0):  # it is not left to the collector of garbage
        passes.append(rows(self, first))
        return passes[-1]

    monkeypatch.setattr(LiveSource, "start", starting)
    monkeypatch.setattr(Background, "rows", kept)
    at_step(monkeypatch, 5, end or (lambda: None))
    with suppress(Killed):
        run(f"{command} {live} --out {tmp_path}/a {TRAIN}")
    assert threads and not any(thread.is_alive() for thread in threads)


def test_few_rows_wait_however_fast_the_model_is(live, tmp_path, monkeypatch):
    made, real, real_step, ahead = Counter(), ModelSource.model_batches, saefast.Trainer.step, []

    def model_batches(self, start=0):
        for batch in real(self, start):
            made["rows"] += len(batch.activations)
            yield batch

    def step(trainer, x, **options):
        threading.Event().wait(0.02)  # the model would be far ahead
        ahead.append(made["rows"] - 64 * trainer.state.step)
        return real_step(trainer, x, **options)

    monkeypatch.setattr(ModelSource, "model_batches", model_batches)
    monkeypatch.setattr(saefast.Trainer, "step", step)
    run(f"train {live} --out {tmp_path}/a {TRAIN.replace('1280', '640')}")
    assert 256 < max(ahead) <= 256 + 64 + 128 + 2 * 64  # held, for the batch, waiting, in hand


# -- the source in Python


def test_every_option_of_the_text_acts(world):
    """On the rows themselves, in Python."""

    def rows(**options):
        options = {"context_length": 16, "contexts_per_batch": 4} | options
        source = TextSource(str(world / "model"), world / "text", "model.layers.1", **options)
        return torch.cat(list(source.rows()))

    want = rows()
    assert torch.equal(want, rows(contexts_per_batch=4)) and want.dtype == torch.float32
    for options in ({"context_length": 8}, {"contexts_per_batch": 7}, {"separator": "none"}):
        assert not torch.equal(want, rows(**options)), options
    assert len(rows(keep_special=True)) > len(want) > len(rows(sink_ratio=1.0)) > 0


def test_a_start_in_the_middle_is_the_same_rows(world):
    options = {"context_length": 16, "contexts_per_batch": 4}
    source = TextSource(str(world / "model"), world / "text", "model.layers.1", **options)
    want = torch.cat(list(source.rows()))
    for start in (0, 1, 63, 64, 65, 500, len(want) - 1, len(want)):
        mark = source.mark(start)
        assert torch.equal(torch.cat([*source.rows(start), want[:0]]), want[start:])
        other = TextSource(str(world / "model"), world / "text", "model.layers.1", **options)
        other.go_on(mark)
        assert torch.equal(torch.cat([*other.rows(start), want[:0]]), want[start:])
        assert torch.equal(torch.cat(list(other.rows())), want)  # the pass after it
    with pytest.raises(saefast.errors.InputError, match="resume: expected numbers of 0 or more"):
        source.go_on({"batch": -1, "row": 0})
    with pytest.raises(saefast.errors.InputError, match="resume: expected numbers of 0 or more"):
        source.go_on("3")
