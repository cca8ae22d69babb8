"""A run that meets another one, a clock that jumps, a change of the folder, or damaged metrics."""

import contextlib
import os
import shutil
import signal
import subprocess

import pytest

import saefast
from saefast.files import load_tensors
from tests.faults.scenarios import in_child
from tests.helpers.stopped_runs import ROWS, assert_same, make, result, stopped_at

pytestmark = pytest.mark.usefixtures("no_curves")


def test_two_runs_in_one_folder_are_refused(tmp_path):
    def again():
        with pytest.raises(
            saefast.InputError, match="out: expected a folder that no other process trains in"
        ):
            make().fit(ROWS, tmp_path / "run", resume=True)
        os.kill(os.getpid(), signal.SIGTERM)

    stopped_at(make(), 7, tmp_path / "run", again)
    assert make().fit(ROWS, tmp_path / "run", resume=True)  # free again


def test_a_relative_folder_stays_where_it_was(tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path)
    assert stopped_at(make(), 7, "run", lambda: os.chdir(tmp_path / "there"))
    assert (tmp_path / "run" / "sae.safetensors").exists() and not list((tmp_path / "there").iterdir())


def test_the_clock_may_jump(tmp_path, monkeypatch):
    import itertools
    import time

    make().fit(ROWS, tmp_path / "whole")
    jumps, real = itertools.cycle([0, -3600, 10 * 365 * 86400, 5, -(10**9)]), time.time()
    monkeypatch.setattr(time, "time", lambda: real + next(jumps))
    monkeypatch.setattr(time, "perf_counter", lambda: 5.0)  # and one that is too coarse to see a step
    assert make().fit(ROWS, tmp_path / "run")
    assert_same(result(tmp_path / "run"), result(tmp_path / "whole"))


@pytest.mark.parametrize("damage", ["bit", "line", "cut"])
def test_damaged_metrics_are_named_and_a_cut_line_is_written_again(tmp_path, damage):
    stopped_at(make(), 7, tmp_path / "run")
    path = tmp_path / "run" / "metrics.jsonl"
    whole = path.read_bytes()
    lines = whole.split(b"\n")
    if damage == "bit":
        assert b'"step": 3' in lines[2]
        lines[2] = lines[2].replace(b'"fvu": 0.', b'"fvu": 1.')
    if damage == "line":
        lines[2] = b"{"
    path.write_bytes(b"\n".join(lines) if damage != "cut" else whole[:-5])
    if damage == "cut":
        assert make().fit(ROWS, tmp_path / "run", resume=True)
        return
    with pytest.raises(saefast.InputError, match=r"metrics.jsonl: line 3 is damaged"):
        make().fit(ROWS, tmp_path / "run", resume=True)


def test_a_folder_that_is_removed_while_the_run_goes_on_is_one_line(tmp_path):
    with pytest.raises(OSError, match="run/checkpoint.safetensors: could not be written at step 9") as error:
        stopped_at(make(), 8, tmp_path / "run", lambda: shutil.rmtree(tmp_path / "run"))
    assert "there is no previous one" in str(error.value) and "\n" not in str(error.value)
    assert make().fit(ROWS, tmp_path / "run", resume=True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_at_once_and_the_last_checkpoint_goes_on(tmp_path, number):
    def twice():
        os.kill(os.getpid(), number)
        signal.raise_signal(number)  # the first one has been seen by now

    def stopped():
        # A shell that begins this in the background has it ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        stopped_at(make(), 8, tmp_path / "run", twice)

    status = in_child(stopped)
    assert status == (-signal.SIGTERM if number == signal.SIGTERM else 1)  # Ctrl-C: KeyboardInterrupt
    make().fit(ROWS, tmp_path / "whole")
    assert load_tensors(tmp_path / "run" / "checkpoint.safetensors")[1]["step"] == 6
    assert make().fit(ROWS, tmp_path / "run", resume=True)
    assert_same(result(tmp_path / "run"), result(tmp_path / "whole"))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_a_line_of_metrics_that_does_not_fit_names_its_file():
    from pathlib import Path

    from saefast.train.run.loggers import jsonl

    log = jsonl(Path("/dev/full"))
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
        log({"step": 1})
    log.close()


def test_a_disk_that_fills_up_during_a_run(tmp_path):
    """What does not fit first is a line of metrics."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs leave to mount a file system")
    try:
        full = disk / "full"

        def fill():
            with full.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while file.write(bytes(4096)):
                    pass

        with pytest.raises(OSError, match=f"{disk}/run/.*No space left|No space left.*{disk}/run/"):
            stopped_at(make(), 8, disk / "run", fill)
        assert load_tensors(disk / "run" / "checkpoint.safetensors")[1]["step"] == 6
        full.unlink()
        assert make().fit(ROWS, disk / "run", resume=True)
        make().fit(ROWS, tmp_path / "whole")
        assert_same(result(disk / "run"), result(tmp_path / "whole"))
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)
