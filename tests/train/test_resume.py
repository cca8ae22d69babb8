"""A run that is killed, stopped or fails goes on to the same bits as one that was not."""

import os
import random
import signal
import time

import pytest
import torch

import saefast
from saefast.files import load_tensors
from tests.helpers.stopped_runs import STEPS, assert_same, context, make_source, result, train

pytestmark = pytest.mark.usefixtures("no_curves")


def inode(path):
    """Changes when a run begins: it writes its metrics anew."""
    return path.stat().st_ino if path.exists() else None


def kill_repeatedly(out, kind, n_kills, seed):
    """Start, SIGKILL at a random moment, resume, ... then let it finish; returns the step on disk after each kill.

    The moment is some checkpoints after the start, and a little: it does not depend on how busy the machine is.
    """
    rng, steps = random.Random(seed), []
    while len(steps) < n_kills:
        child = context.Process(target=train, args=(out, kind, True, 0.004))
        before = inode(out / "metrics.jsonl")
        child.start()
        if rng.random() < 0.8:  # the others may hit it while it starts
            while child.is_alive() and inode(out / "metrics.jsonl") == before:
                time.sleep(0.001)
            for _ in range(rng.randrange(12)):
                before = inode(out / "checkpoint.safetensors")
                while child.is_alive() and inode(out / "checkpoint.safetensors") == before:
                    time.sleep(0.001)
        time.sleep(rng.uniform(0.0, 0.02))
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        if child.exitcode == 0:  # finished before the kill: begin another run
            break
        started = (out / "checkpoint.safetensors").exists()
        steps.append(load_tensors(out / "checkpoint.safetensors")[1]["step"] if started else 0)
    train(out, kind)
    return steps


@pytest.mark.parametrize("kind", ["random access", "iterable"])
def test_killed_runs_resume_to_the_same_bits(tmp_path, kind):
    _kill_test(tmp_path, kind, n_points=5)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["random access", "iterable"])
def test_fifty_random_kill_points(tmp_path, kind):
    _kill_test(tmp_path, kind, n_points=50)


def _kill_test(tmp_path, kind, n_points):
    train(tmp_path / "whole", kind)
    want = result(tmp_path / "whole")
    steps, run = [], 0
    while len(steps) < n_points:
        out = tmp_path / f"killed-{run}"
        steps += kill_repeatedly(out, kind, min(3, n_points - len(steps)), seed=run)
        assert_same(result(out), want)
        run += 1
    print(f"{kind}: {len(steps)} kill points in {run} runs, all bit-identical; last saved steps: {steps}")
    assert sum(0 < step < STEPS for step in steps) >= len(steps) / 3  # most kills are to hit a run under way


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stop_signals_save_and_exit_cleanly(tmp_path, number):
    train(tmp_path / "whole", "random access")
    child = context.Process(target=train, args=(tmp_path / "stopped", "random access", True, 0.3))
    child.start()
    while not (tmp_path / "stopped" / "checkpoint.safetensors").exists():  # under way, with 17 s to go
        assert child.is_alive()
        time.sleep(0.01)
    os.kill(child.pid, number)
    child.join()
    assert child.exitcode == 0
    _, meta, _ = load_tensors(tmp_path / "stopped" / "checkpoint.safetensors")
    assert 0 < meta["step"] < STEPS
    assert (tmp_path / "stopped" / "sae.safetensors").exists()  # see test_run_life.py
    assert train(tmp_path / "stopped", "random access")
    assert_same(result(tmp_path / "stopped"), result(tmp_path / "whole"))


def test_resume_of_a_finished_run_changes_nothing(tmp_path):
    train(tmp_path / "run", "random access")
    want = result(tmp_path / "run")
    assert train(tmp_path / "run", "random access")
    assert_same(result(tmp_path / "run"), want)


def test_an_existing_run_is_not_overwritten(tmp_path):
    train(tmp_path / "run", "random access")
    before = {file: file.read_bytes() for file in (tmp_path / "run").iterdir()}
    with pytest.raises(saefast.InputError, match="out: expected a new folder"):
        train(tmp_path / "run", "random access", resume=False)
    assert {file: file.read_bytes() for file in (tmp_path / "run").iterdir()} == before


@pytest.mark.parametrize("damage", ["nan", "shard"])
def test_bad_data_in_the_middle_of_a_run_loses_nothing(tmp_path, damage):
    """What was learnt before the bad row is saved; with it skipped, or repaired, the run goes on."""
    from saefast.activations.shards import ShardWriter

    rows = make_source("random access").tensor.repeat(4, 1)
    broken = rows.clone()
    broken[2500] = float("nan")
    for name, data in (("good", rows), ("bad", broken if damage == "nan" else rows)):
        writer = ShardWriter(tmp_path / name, 16, torch.float32, shard_tokens=500)
        for chunk in data.split(500):
            writer.append(chunk)
        writer.close()
    if damage == "shard":
        shard = tmp_path / "bad" / "shard-00005.safetensors"
        whole = shard.read_bytes()
        shard.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])

    def run(source, out, resume=False, **options):
        config = saefast.TrainConfig(
            total_tokens=STEPS * 64, batch_size=64, buffer_tokens=256, lr=3e-3, log_every=3, **options
        )
        trainer = saefast.Trainer(saefast.SAE(saefast.SAEConfig(d_in=16, d_sae=96, k=4)), config)
        return trainer.fit(saefast.open_source(source), out, resume)

    with pytest.raises(
        saefast.InputError, match="row 2500 holds NaN" if damage == "nan" else "shard-00005.*corrupt"
    ):
        run(tmp_path / "bad", tmp_path / "run")
    _, meta, _ = load_tensors(tmp_path / "run" / "checkpoint.safetensors")
    assert meta["step"] > 30
    if damage == "nan":
        run(tmp_path / "bad", tmp_path / "run", resume=True, nonfinite="skip")
        run(tmp_path / "bad", tmp_path / "whole", nonfinite="skip")
    else:
        shard.write_bytes(whole)
        run(tmp_path / "bad", tmp_path / "run", resume=True)
        run(tmp_path / "good", tmp_path / "whole")
    assert_same(result(tmp_path / "run"), result(tmp_path / "whole"))
