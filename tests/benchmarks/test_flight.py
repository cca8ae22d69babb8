"""Calls on a lent machine: plans that fit into their time, results that a kill leaves, tables, inputs with hot latents."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks.checkout import ROOT
from benchmarks.gpu import counters, extensions, plans, running, tables
from benchmarks.gpu.common import batches, heavy_tailed_, make_sae
from benchmarks.shapes import PUBLISHED, Shape
from saefast import reference
from tests.helpers.batches import wait_for

RESULTS = "cpu-rehearsal/gpu.json"


@pytest.mark.parametrize("name, limit", [("first", 330), ("second", 480)])
def test_a_plan_fits_into_its_time(name, limit):
    plan = plans.PLANS[name]
    assert plan.limit == limit and plan.seconds < limit
    entries = [entry[:2] for group in plan.processes for entry in group]
    assert len(entries) == len(set(entries))
    assert plans.table(plan)[-1].endswith(f"{plan.seconds:.0f} s expected, of {limit}")


@pytest.mark.parametrize("name", plans.PLANS)
def test_a_plan_names_what_there_is(name):
    """In a process of its own, where nothing is a rehearsal."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-P", "-m", "benchmarks.gpu", "--plan", name, "--dry-run"]
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "not there" not in done.stdout


def processes(word):
    """Of the processes that measure, those with `word` in their command line."""
    commands = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended
            commands.append(path.read_text())
    return [command for command in commands if word in command and "--work" in command]


def measured(path):
    parts = json.loads(path.read_text())["parts"] if path.exists() else {}
    return [
        f"{name}: {item}" for name, part in parts.items() for item, one in part.items() if type(one) is dict
    ]


def test_a_killed_flight_leaves_what_it_measured(tmp_path):
    """Of an earlier call, too; and the process that measures ends with the flight, since the GPU is wanted."""
    earlier, out = tmp_path / "earlier", tmp_path / "out"
    earlier.mkdir()
    (earlier / "build.log").write_text("of an earlier call")
    environment = os.environ | {"PYTHON": sys.executable, "OUT": str(out), "EARLIER": str(earlier)}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    command = ["bash", "benchmarks/gpu/flight.sh", "--rehearse", "--only", "machine", "step"]
    flight = subprocess.Popen(
        command, cwd=ROOT, env=environment, start_new_session=True, stdout=subprocess.PIPE
    )
    deadline = time.monotonic() + 120
    try:
        while "machine: ceilings" not in measured(out / RESULTS):
            assert time.monotonic() < deadline and flight.poll() is None
            time.sleep(0.02)
        worker = processes(str(out / RESULTS))
    finally:
        os.killpg(flight.pid, signal.SIGKILL)
        flight.communicate()
    found = measured(out / RESULTS)
    assert "machine: ceilings" in found
    assert not any(name.startswith("step") for name in found)  # it was in the middle
    assert (out / "build.log").read_text() == "of an earlier call"
    assert worker
    wait_for(lambda: not processes(str(out / RESULTS)))


def test_results_are_replaced_as_a_whole(tmp_path):
    path = tmp_path / "gpu.json"
    running.save(path, {"parts": {}})
    before = path.stat().st_ino
    running.save(path, {"parts": {"machine": {}}})
    assert path.stat().st_ino != before  # another file took its name: at no moment was there half of one
    assert json.loads(path.read_text()) == {"parts": {"machine": {}}}


def test_extensions_are_built_after_the_first_measurement_and_before_the_stream(tmp_path, monkeypatch):
    said = []
    full = {"sources": "", "commit": "", "parts": {}}
    monkeypatch.setattr(extensions, "begin", lambda folder: said.append("begin"))
    monkeypatch.setattr(extensions, "wait", lambda deadline: said.append("wait"))

    def supervise(tasks, path, deadline):
        for task in tasks:
            said.append(task.part)
            yield task, {}

    monkeypatch.setattr(running, "supervise", supervise)
    names = [("compile", "steps and variants"), ("machine", "ceilings")], [("stream", "copies")]
    groups = [[running.Task(*name) for name in group] for group in names]
    path = tmp_path / "gpu" / "gpu.json"
    path.parent.mkdir()
    assert running.run(groups, path, full, time.monotonic() + 9, lambda task, result: None) == []
    assert said == ["compile", "machine", "begin", "wait", "stream", "begin"]
    assert running.run(groups, path, full, time.monotonic() + 9, lambda task, result: None) == []
    assert len(said) == 6  # all of it was done earlier


COUNTED = """==PROF== Connected to process 7
"ID","Kernel Name","dram__bytes.sum","dram__throughput.avg.pct_of_peak_sustained_elapsed","gpu__time_duration.sum","launch__registers_per_thread"
"","","byte","%","ns","register/thread"
"0","_update_kernel","1,930,000,000","71.5","481,920.00","126"
"1","_select_kernel","","12","24000","40"
==PROF== Disconnected
"""


def test_counters_are_read_from_the_table_of_ncu():
    update, select = counters.figures(COUNTED)
    want = {"name": "_update_kernel", "us": 481.92, "dram_gb": 1.93, "dram_percent": 71.5, "registers": 126.0}
    assert update == want
    assert select == {"name": "_select_kernel", "us": 24.0, "dram_percent": 12.0, "registers": 40.0}
    assert counters.figures("==ERROR== ERR_NVGPUCTRPERM\n") == []


@pytest.mark.parametrize(
    "program, said", [(None, "not installed"), ("echo no permission; exit 9", "exit code 9: no permission")]
)
def test_counters_may_fail(program, said, tmp_path, monkeypatch):
    monkeypatch.setenv("SAEFAST_RESULTS", str(tmp_path))
    monkeypatch.setattr(counters, "binary", lambda: program and str(tmp_path / "ncu"))
    if program:
        (tmp_path / "ncu").write_text(f"#!/bin/sh\n{program}\n")
        (tmp_path / "ncu").chmod(0o755)
    assert said in counters.counted("A", {})["said"]


def test_counters_of_a_table_that_ncu_wrote(tmp_path, monkeypatch):
    monkeypatch.setenv("SAEFAST_RESULTS", str(tmp_path))
    monkeypatch.setattr(counters, "binary", lambda: str(tmp_path / "ncu"))
    (tmp_path / "table").write_text(COUNTED)
    script = f'while [ "$1" != --log-file ]; do shift; done; cp {tmp_path / "table"} "$2"; exit 1'
    (tmp_path / "ncu").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "ncu").chmod(0o755)
    assert [kernel["us"] for kernel in counters.counted("A", {})["kernels"]] == [481.92, 24.0]
    assert (tmp_path / "counters-A.csv").read_text() == COUNTED  # the whole table stays


def test_a_heavy_tailed_sae_has_latents_in_every_token_and_most_in_few():
    shape = Shape(4096, 64, 1024, 16)
    sae, (x,) = heavy_tailed_(make_sae(shape)), batches(shape, 1)
    z = reference.encode(x, sae.W_enc, sae.b_enc, sae.b_dec)
    share = (z > 0).float().mean(dim=0).sort(descending=True).values
    wanted = (16 / torch.arange(1, 1025).reciprocal().sum() / torch.arange(1, 1025)).clamp_max(1)
    assert share[:2].min() > 0.99
    assert share.sum() == pytest.approx(float(wanted.sum()), rel=0.1)
    for rank in (4, 32, 256):
        assert share[rank] == pytest.approx(float(wanted[rank]), rel=0.25)


def test_tables_show_what_a_flight_measures():
    step = {"median_ms": 5.0, "tokens_per_s": 1_638_400, "peak_gb": 2.0}
    step["published"] = PUBLISHED["D"]._asdict() | {"times_published": 153.1}
    timing = {"median_ms": 0.25, "floor_ms": 0.125}
    parts = {
        "step": {"D triton": {"triton": step}},
        "stages": {"A": {"update": timing}, "A heavy-tailed": {"update": {"median_ms": 0.5}}},
        "counters": {"A": {"kernels": counters.figures(COUNTED)}, "C": {"said": "ncu is not installed"}},
    }
    triton, cuda = {"median_ms": 0.5}, {"median_ms": 0.4}
    parts["update in CUDA"] = {"A": {"triton": triton, "default": {"median_ms": 0.45}, "windows of 64": cuda}}
    report = {"device": "a GPU", "parts": parts}
    published = tables.published_table(report).splitlines()
    assert len(published) == 3
    assert "1,638,400" in published[-1] and "10,700" in published[-1] and "one A100" in published[-1]
    update = next(line for line in tables.stage_table(report).splitlines() if "update" in line[:9])
    assert [cell.strip() for cell in update.strip("|").split("|")] == ["update", "0.25", "0.125", "0.5"]
    bet = tables.tune_table(report).splitlines()[-1]
    assert all(cell in bet for cell in ("update A", "0.5", "0.4", "20.0%", "windows of 64"))
    assert "_update_kernel" in tables.counter_table(report) and "482" in tables.counter_table(report)
