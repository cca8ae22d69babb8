"""What a checkpoint holds comes back, an older one's missing entries are what they were, and what does not fit is named."""

import shutil

import pytest
import torch

from saefast import InputError
from saefast.activations.open import open_buffer
from saefast.activations.sources import TensorSource
from saefast.files import load_tensors, read_json_checked, save_tensors, write_json
from saefast.train.run import checkpoint, run_folder
from saefast.train.run.loggers import Curve
from tests.helpers.stopped_runs import ROWS, make, stopped_at

pytestmark = pytest.mark.usefixtures("no_curves")


def saved(folder, scales=(2.0, 3.0)):
    """A checkpoint of three steps, and the trainer that made it."""
    trainer = make()
    buffer = open_buffer(TensorSource(ROWS), 64, 256)
    for _, batch in zip(range(3), buffer):
        trainer.step(batch)
    trainer.state.dead_capacity, trainer.state.dense = 5, True
    checkpoint.save(folder, trainer.state, trainer.tensors(), scales, buffer, "0123", Curve(3, 7))
    return trainer


def test_everything_that_is_saved_is_loaded(tmp_path):
    was, now = saved(tmp_path).state, make().state
    found = checkpoint.load(tmp_path, now, "0123")
    assert found.scales == (2.0, 3.0) and found.curve == Curve(3, 7)
    assert (now.step, now.fired_tokens, now.dead_capacity, now.dense) == (3, was.fired_tokens, 5, True)
    assert int(now.counter) == 3
    for name, tensor in was.tensors().items():
        assert torch.equal(now.tensors()[name], tensor) and torch.equal(found.tensors[name], tensor), name
    tensors, numbers = found.buffer
    again = open_buffer(TensorSource(ROWS), 64, 256)
    again.load_state_dict(tensors, numbers)
    want = list(zip(range(4), open_buffer(TensorSource(ROWS), 64, 256)))[3][1]
    assert tensors.keys() == {"row_of"} and torch.equal(next(iter(again)), want)


def test_an_older_checkpoint_has_what_there_was_then(tmp_path):
    saved(tmp_path)
    tensors, meta, _ = load_tensors(tmp_path / "checkpoint.safetensors")
    for name in ("dead_capacity", "dense", "output_scale", "key", "curve"):
        del meta[name]
    save_tensors(tmp_path / "checkpoint.safetensors", tensors, meta)
    state = make().state
    state.dead_capacity, state.dense = 9, True
    found = checkpoint.load(tmp_path, state, "any")
    assert found.scales == (2.0, 1.0) and found.curve is None
    assert state.dead_capacity == 0 and state.dense is False


@pytest.mark.parametrize(
    "value,got",
    [
        (None, "None"),
        (torch.zeros(95), r"\(\[95\], torch\.float32\)"),
        (torch.zeros(96, dtype=torch.float64), r"\(\[96\], torch\.float64\)"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(tmp_path, value, got):
    saved(tmp_path)
    tensors, meta, _ = load_tensors(tmp_path / "checkpoint.safetensors")
    del tensors["params.b_enc"]
    tensors |= {} if value is None else {"params.b_enc": value}
    save_tensors(tmp_path / "checkpoint.safetensors", tensors, meta)
    wanted = rf"params\.b_enc: expected shape and dtype \(\[96\], torch\.float32\), got {got}$"
    with pytest.raises(InputError, match=rf"checkpoint\.safetensors: {wanted}"):
        checkpoint.load(tmp_path, make().state, "0123")


def test_a_save_that_fails_says_whether_there_is_one_before(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_tensors", full)
    for kept in ("there is no previous one", "the previous one is intact"):
        wanted = r"checkpoint\.safetensors: could not be written at step 3 \(.*No space left on device\); "
        with pytest.raises(OSError, match=f"{wanted}{kept}$"):
            saved(tmp_path)
        (tmp_path / "checkpoint.safetensors").touch()


def test_a_disk_with_exactly_what_is_needed_is_not_enough(tmp_path, monkeypatch):
    free = shutil.disk_usage(tmp_path)._replace(free=5_000_000_000)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda folder: free)
    now = {"sae": {}, "train": {}, "source": {}, "id": "x"}
    started, described = checkpoint.open_run(tmp_path, now, False, 4_999_999_999, [])
    assert not started and described.fields == now and described.changes == {}
    with pytest.raises(InputError, match=r"^out: .* needs 5\.00 GB of disk, 5\.00 GB are free$"):
        checkpoint.open_run(tmp_path, now, True, 5_000_000_000, [])


def test_the_name_of_a_run_stays_and_one_without_gets_one(tmp_path):
    run = tmp_path / "run"
    stopped_at(make(), 4, run)
    began = read_json_checked(run / "run.json")
    make().fit(ROWS, run, resume=True)
    assert read_json_checked(run / "run.json")["id"] == began["id"]
    now = began | {"id": "0123abcd"}
    assert checkpoint.open_run(run, now, True, 0, [])[1].id == began["id"]
    write_json(run / "run.json", {name: value for name, value in began.items() if name != "id"})
    started, described = checkpoint.open_run(run, now, True, 0, [])
    assert started and described.id == "0123abcd" and "id" not in read_json_checked(run / "run.json")
    run_folder.record(run, described, make().config, 4)
    assert read_json_checked(run / "run.json")["id"] == "0123abcd"


def test_a_folder_is_new_if_there_is_nothing_in_it(tmp_path):
    checkpoint.check_new(tmp_path, False)
    checkpoint.check_new(tmp_path / "none", False)
    (tmp_path / "file").touch()
    checkpoint.check_new(tmp_path, True)
    for refused in (
        lambda: checkpoint.check_new(tmp_path, False),
        lambda: checkpoint.open_run(tmp_path, {"id": "x"}, False, 0, []),
    ):
        with pytest.raises(
            InputError, match="^out: expected a new folder, .* exists; go on with --resume or"
        ):
            refused()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_each_average_of_the_weights_takes_room_in_both_checkpoints():
    state, buffer = make().state, open_buffer(TensorSource(ROWS), 64, 256)
    alone = checkpoint.bytes_needed(state, buffer)
    weights = 2 * 16 * 96 + 96 + 16
    assert checkpoint.bytes_needed(state, buffer, 0) == alone
    assert checkpoint.bytes_needed(state, buffer, 2) - alone == 2 * 2 * 4 * weights
    # weights and two moments in fp32, two counters, the numbers of the rows; the SAE; a megabyte
    assert alone == 2 * (3 * 4 * weights + 2 * 8 * 96 + 8 * 256) + 4 * weights + 2**20
