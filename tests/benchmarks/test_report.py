"""The tables of `python -m benchmarks.report`, from made-up results; README and docs are compared with the real ones in
test_readme.py."""

import json

import pytest

from benchmarks.report import cost as report_cost
from benchmarks.report import gpu as report_gpu
from benchmarks.report import peers as report_peers

MACHINE = {
    "device": "Some CPU", "threads": 2, "commit": "abc", "date": "2026-01-01",
    "versions": {"torch": "2.13", "sae-lens": "6.54"},
}  # fmt: skip
SHAPE = {"B": 8, "d_in": 4, "d_sae": 16, "k": 2}


def cells(table, first):
    row = next(line for line in table.splitlines() if line.startswith(f"| {first}"))
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_quality_is_time_to_equal_quality():
    curves = {
        "saefast": [[1.0, 10, 0.5], [2.0, 20, 0.3]],
        "saefast, long": [[1.5, 10, 0.6], [3.0, 40, 0.1]],
        "SAELens": [[5.0, 10, 0.6], [10.0, 20, 0.2]],
        "plain PyTorch": [[4.0, 10, 0.5], [8.0, 20, 0.31]],
        "never": [[4.0, 10, 0.5], [8.0, 20, 0.05]],
    }
    found = {
        "machine": MACHINE, "shape": SHAPE | {"tokens": 20}, "lr": dict.fromkeys(curves, 1e-3),
        "long": "saefast, long", "[seconds, tokens, FVU]": curves, "left out": {"flexsae": "needs a GPU"},
    }  # fmt: skip
    table = report_peers.quality_table(found)
    # ours is at 0.31 or better after 2 s, at 0.2 only with more tokens, after 3 s
    assert cells(table, "plain PyTorch")[2:] == ["0.3100", "8.0", "2.0 s", "4.0", "8.0 (4.0 times ours)"]
    assert cells(table, "SAELens (6.54)")[2:6] == ["0.2000", "10.0", "3.0 s", "3.3"]
    assert cells(table, "never")[4:6] == ["not", ""]
    assert cells(table, "flexsae")[1] == "left out: needs a GPU"


def test_step_lists_what_was_left_out():
    row = {"seconds": [0.01, 0.01, 0.02], "times ours": [1.0, 1.0, 1.0]}
    other = {"seconds": [0.05, 0.04, 0.06], "times ours": [5.0, 4.0, 6.0]}
    both = {"contenders": {"saefast": row, "SAELens": other}}
    case = {"shape": SHAPE, "glibc": both, "glibc, keeping": both, "peak MiB": {"saefast": 7.2}}
    found = {"machine": MACHINE, "shapes": {"demo": case}, "left out": {"flexsae": "needs a GPU"}}
    table = report_peers.step_table(found)
    assert cells(table, "saefast")[1] == "0.010 s; 0.010 s; 7 MiB"
    assert cells(table, "SAELens (6.54)")[1] == "5.0 (4.0 to 6.0); 5.0 (4.0 to 6.0)"
    assert cells(table, "flexsae")[1] == "left out: needs a GPU"


def test_gpu_tables_only_of_what_was_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(report_gpu, "RESULTS", tmp_path)
    (tmp_path / "cpu").mkdir()
    assert report_gpu.reports() == []
    mine = {"median_ms": 1.5, "peak_gb": 0.8, "share_of_floor": 0.5}
    steps = {
        "seconds": 3.0,
        "A triton": {"triton": mine},
        "A plain": {"plain": {"median_ms": 6.0, "peak_gb": 2.0}, "error": "loss 1 is another"},
    }
    parts = {
        "machine": {"commit": "abc"},
        "step": steps,
        "peers": {
            "sparsify A": {"median_ms": 3.0, "peak_gb": 1.25},
            "openai A": {"missing": "sparse_autoencoder"},
        },
        "predictions": {
            "1 cublas A": {"prediction": [0.45, 0.55], "measured": 0.5, "unit": "ms", "within": True}
        },
        "tune": {"update A": {"default_ms": 0.4, "best_ms": 0.3, "saved": 0.25, "said": "R 4"}},
        "formats": {
            "largest": {"median_ms": 300.0, "peak_gb": 130.0, "tokens_per_s": 27_000, "d_sae": 3_145_728}
        },
        "engine": {"tests": {"error": "1 failed"}},
    }
    (tmp_path / "h200").mkdir()
    text = json.dumps({"device": "NVIDIA H200", "versions": {"torch": "2.11"}, "parts": parts})
    (tmp_path / "h200" / "gpu.json").write_text(text)
    (report,) = report_gpu.reports()
    table = report_gpu.step_table(report)
    assert cells(table, "saefast")[1] == "1.5 ms, 0.8 GB, 50% of the floor"
    assert cells(table, "sparsify, Adam")[1] == "3 ms, 1.2 GB, 2.0 times"
    assert "plain" not in table and "openai" not in table and "NVIDIA H200" in table
    section = report_gpu.section(report)
    assert cells(section, "1 cublas A")[1:] == ["0.45 to 0.55 ms", "0.5", "True"]
    assert cells(section, "update A")[1:] == ["0.4 ms", "0.3 ms", "25.0%", "R 4"]
    assert cells(section, "largest: d_sae 3,145,728, d_in 4096")[1:] == ["300", "130.0", "27,000"]
    assert "**engine, tests**: 1 failed" in section and "**step, A plain**: loss 1 is another" in section


def test_ops_beside_plain(monkeypatch):
    def row(contender, speed, **more):
        return {
            "op": "decode", "shape": [8, 4, 16, 2], "contender": contender, "seconds": [0.001, 0.001, 0.002],
            "share of floor": 0.5, "GB/s": 3.0, "times as fast as plain": [speed, speed, speed], "rounds": 5,
            "peak MiB": 2.0,
        } | more  # fmt: skip

    rows = [row("plain", 1.0), row("compiled", 1.5), row("native", 4.0)]
    found = {"machine": MACHINE, "device": {"GB/s of a copy": 10}, "rows": rows}
    monkeypatch.setattr(report_cost, "read", lambda name: found)
    assert cells(report_cost.ops_table(), "decode; 8 4 16 2")[1:] == [
        "1 ms", "compiled 1.50", "1 ms", "4.00 (4.00 to 4.00)", "50%", "3 GB/s", "2 (2)",
    ]  # fmt: skip


@pytest.mark.parametrize("name", report_peers.PICTURES)
def test_pictures_are_of_the_results(name):
    picture = (report_peers.DOCS / f"bench_{name}.png").read_bytes()
    assert report_peers.fingerprint(name).encode() in picture, f"bench_{name}.png is older than {name}.json"
