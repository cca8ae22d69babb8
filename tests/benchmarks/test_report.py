"""The tables of `python -m benchmarks.report`, from made-up results; README and docs are compared with the real ones in
test_readme.py."""

import json
import re

import pytest

from benchmarks.gpu import tables as gpu
from benchmarks.report import __main__ as report
from benchmarks.report import tables

MACHINE = {
    "device": "Some CPU",
    "threads": 2,
    "commit": "abc",
    "date": "2026-01-01",
    "versions": {"torch": "2.13", "sae-lens": "6.54"},
}
SHAPE = {"B": 8, "d_in": 4, "d_sae": 16, "k": 2}


def cells(text, first, last=False):
    """Of the first or the last row that begins with `first`."""
    rows = [line for line in text.splitlines() if line.startswith(f"| {first}")]
    return [cell.strip() for cell in rows[-1 if last else 0].strip("|").split("|")]


def test_quality_is_time_to_equal_quality():
    curves = {
        "saefast": [[1.0, 10, 0.5], [2.0, 20, 0.3]],
        "saefast, long": [[1.5, 10, 0.6], [3.0, 40, 0.1]],
        "SAELens": [[5.0, 10, 0.6], [10.0, 20, 0.2]],
        "SAELens sparse": [[5.0, 10, 0.6], [9.0, 20, 0.2]],
        "plain PyTorch": [[4.0, 10, 0.5], [8.0, 20, 0.31]],
        "never": [[4.0, 10, 0.5], [8.0, 20, 0.05]],
    }
    found = {
        "machine": MACHINE,
        "shape": SHAPE | {"tokens": 20},
        "lr": dict.fromkeys(curves, 1e-3),
        "long": "saefast, long",
        "[seconds, tokens, FVU]": curves,
    }
    about, at_the_end, to_the_target = tables.quality(found)
    assert about.startswith(
        "`benchmarks/peers/quality.py`; Some CPU, 2 threads, torch 2.13, commit abc, 2026-01-01."
    )
    # ours is at 0.31 or better after 2 s, at 0.2 only with more tokens, after 3 s
    assert cells(at_the_end, "plain PyTorch")[1:] == ["0.001", "0.3100", "8.0", "2.0", "4.0"]
    assert cells(at_the_end, "SAELens (6.54)")[2:] == ["0.2000", "10.0", "3.0", "3.3"]
    assert cells(at_the_end, "never")[4:] == ["never", ""]
    assert cells(at_the_end, "saefast")[2:] == ["0.3000", "2.0", "", ""]
    assert "seconds to FVU 0.31" in to_the_target
    assert cells(to_the_target, "plain PyTorch")[1:] == ["8.0", "4.0"]
    assert cells(to_the_target, "SAELens (6.54)")[1:] == ["10.0", "5.0"]


def test_the_readme_shows_the_best_of_each_project():
    curves = {
        "saefast, long": [[3.0, 40, 0.1]],
        "saefast": [[2.0, 20, 0.3]],
        "SAELens": [[10.0, 20, 0.2]],
        "SAELens sparse": [[9.0, 20, 0.2]],
    }
    found = {"machine": MACHINE, "[seconds, tokens, FVU]": curves}
    text = tables.target_table(found, best_only=True)
    rows = ["| saefast | 2.0 | 1.0 |", "| SAELens sparse (6.54) | 9.0 | 4.5 |"]
    assert text.splitlines()[2:] == rows


def test_a_step_has_a_second_table_with_the_spreads():
    row = {"seconds": [0.01, 0.01, 0.02], "times ours": [1.0, 1.0, 1.0]}
    other = {"seconds": [1.057, 0.04, 0.06], "times ours": [5.0, 4.0, 6.0]}
    kept = other | {"times ours": [3.0, 2.0, 7.0]}
    case = {
        "shape": SHAPE,
        "glibc": {"contenders": {"saefast": row, "SAELens": other}},
        "glibc, keeping": {"contenders": {"saefast": row, "SAELens": kept}},
        "peak MiB": {"saefast": 7.2},
    }
    _, shape, text = tables.step({"machine": MACHINE, "shapes": {"demo": case}})
    assert shape == "B 8, d_in 4, d_sae 16, k 2:"
    assert cells(text, "saefast")[1:] == ["10", "1.0", "10", "1.0", "7"]
    assert cells(text, "SAELens (6.54)")[1:] == ["1,060", "5.0", "1,060", "3.0", ""]
    assert cells(text, "SAELens (6.54)", last=True)[1:] == ["4.0 to 6.0", "2.0 to 7.0"]


def test_what_was_left_out_is_said_once():
    results = [
        {"left out": {"flexsae": "needs a GPU"}},
        {"left out": {"flexsae": "needs a GPU", "other": "why"}},
    ]
    assert tables.left_out(*results) == ["- flexsae: needs a GPU\n- other: why"]


def test_drop_in_on_its_own_page_and_among_all():
    case = {"seconds": 0.14, "stock over ours": [12.7, 10.0, 13.6]}
    projects = {"sae_lens": {"version": "6.54", "TopK": case}, "pytorch": {"version": "2.13", "TopK": case}}
    machine = {"cpu": "Some CPU", "threads": 2, "torch": "2.13"}
    found = {"machine": machine, "shape": SHAPE, "projects": projects}
    _, text = tables.drop_in(found)
    assert cells(text, "[SAELens 6.54](drop-in/sae_lens.md)")[1:] == ["TopK", "12.7", "140"]
    assert cells(text, "[plain PyTorch loop, torch 2.13](drop-in/pytorch.md)")[1] == "TopK"
    about, text = tables.drop_in(found, "sae_lens")
    assert "version 6.54" in about
    assert cells(text, "TopK")[1:] == ["12.7", "140"] and cells(text, "TopK", last=True)[1:] == [
        "10.0 to 13.6"
    ]
    assert text.count("| TopK") == 2


def test_gpu_tables_only_of_what_was_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "RESULTS", tmp_path)
    (tmp_path / "cpu").mkdir()
    assert gpu.reports() == []
    mine = {"median_ms": 1.5, "peak_gb": 0.8, "share_of_floor": 0.5}
    steps = {
        "seconds": 3.0,
        "A triton": {"triton": mine},
        "A plain": {"plain": {"median_ms": 6.0, "peak_gb": 2.0}, "error": "loss 1 is another"},
    }
    parts = {
        "machine": {"commit": "abc"},
        "step": steps,
        "stages": {"A": {"decode": {"median_ms": 0.3, "floor_ms": 0.2}}},
        "profile": {
            "A": {
                "step_ms": 2.0,
                "busy_ms": 1.5,
                "gaps_ms": 0.5,
                "launches": 12,
                "kernels": [{"name": "mm", "us": 7}],
            }
        },
        "peers": {
            "sparsify A": {"median_ms": 3.0, "peak_gb": 1.25},
            "openai A": {"missing": "sparse_autoencoder"},
        },
        "predictions": {
            "1 cublas A": {"prediction": [0.45, 0.55], "measured": 0.5, "unit": "ms", "within": True},
            "2 topk A": {"prediction": [0.45, 0.55], "measured": None, "unit": "ms", "within": False},
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
    (found,) = gpu.reports()
    short = gpu.step_table(found)
    assert cells(short, "saefast")[1:] == ["1.5"] and cells(short, "sparsify, Adam")[1:] == ["3"]
    assert "plain" not in short and "openai" not in short and "NVIDIA H200" in short
    section = gpu.section(found)
    times, peaks, floor = section.split("A training step")[2:5]
    assert cells(times, "saefast")[1:] == ["1.0"] and cells(times, "sparsify, Adam")[1:] == ["2.0"]
    assert cells(peaks, "saefast")[1:] == ["0.8"] and cells(peaks, "sparsify, Adam")[1:] == ["1.2"]
    assert cells(floor, "saefast")[1:] == ["50%"]
    assert cells(section, "decode")[1:] == ["0.3", "0.2"] and cells(section, "encode")[1:] == ["", ""]
    assert cells(section, "A |")[1:] == ["2", "1.5", "0.5", "12"] and cells(section, "A |", last=True)[
        1:
    ] == ["mm", "7"]
    assert cells(section, "1 cublas A")[1:] == ["0.45", "0.55", "0.5", "ms", "yes"]
    assert "2 topk A" not in section
    assert cells(section, "update A")[1:] == ["0.4", "0.3", "25.0%", "R 4"]
    assert cells(section, "largest: d_sae 3,145,728, d_in 4096")[1:] == ["300", "130.0", "27,000"]
    assert "**engine, tests**: 1 failed" in section and "**step, A plain**: loss 1 is another" in section


def test_ops_beside_plain():
    def row(contender, speed):
        return {
            "op": "decode",
            "shape": [8, 4, 16, 2],
            "contender": contender,
            "seconds": [0.001, 0.001, 0.002],
            "share of floor": 0.5,
            "GB/s": 3.0,
            "times as fast as plain": [speed, speed, speed + 1],
            "peak MiB": 2.0,
        }

    rows = [row("plain", 1.0), row("compiled", 1.5), row("native", 4.0)]
    _, text, _, others = tables.ops({"machine": MACHINE, "device": {"GB/s of a copy": 10}, "rows": rows})
    first = ["decode", "8 4 16 2"]
    assert cells(text, "decode") == [*first, "1", "1", "4.00", "50%", "3", "", "2", "2"]
    assert cells(text, "decode", last=True) == [*first, "4.00 to 5.00"]
    assert cells(others, "decode") == [*first, "compiled", "1.50"]


@pytest.mark.parametrize("page", report.pages(), ids=lambda page: page.name)
def test_a_cell_holds_one_number(page):
    """But for the tables of spreads."""
    text = re.sub(r"<details>.*?</details>", "", report.pages()[page], flags=re.DOTALL)
    for line in text.splitlines():
        for cell in line.split("|") if line.startswith("|") else ():
            assert not re.search(r"\d ?[a-zA-Z%]*[;(]|\d \(|\d to \d|±", cell), cell


@pytest.mark.parametrize("name", report.PICTURES)
def test_pictures_are_of_the_results(name):
    picture = (report.DOCS / f"bench_{name}.png").read_bytes()
    assert report.fingerprint(name).encode() in picture, f"bench_{name}.png is older than {name}.json"
