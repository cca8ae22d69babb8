import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import saefast
from tests.gates import chance
from tests.helpers import seeds, tiny_lm

ROOT = Path(__file__).parents[2]
PRINT = """
import saefast
from tests.helpers import tiny_lm
print(tiny_lm.text(20, seed=3))
print(float(saefast.SAE(saefast.SAEConfig(d_in=8, d_sae=16, k=2), 5).W_enc.detach().sum()))
"""


@pytest.mark.slow
def test_seeds_of_tests_move_and_those_of_the_package_stay():
    environment = os.environ | {"SEED_SHIFT": str(seeds.SHIFT + 1)}
    done = subprocess.run(
        [sys.executable, "-c", PRINT], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    text, total = done.stdout.splitlines()
    assert text == tiny_lm.text(20, seed=4) != tiny_lm.text(20, seed=3)
    sae = saefast.SAE(saefast.SAEConfig(d_in=8, d_sae=16, k=2), 5)
    assert float(total) == float(sae.W_enc.detach().sum())


def test_what_failed_is_read_from_the_output_of_pytest():
    said = "x\nFAILED tests/a.py::test_a[1 - 2] - assert 3 < 2\nERROR tests/b.py::test_b\nFAILED tests/c.py::test_c\n"
    assert chance.FAILED.findall(said) == [
        "tests/a.py::test_a[1 - 2]",
        "tests/b.py::test_b",
        "tests/c.py::test_c",
    ]


def test_runs_differ_in_seed_threads_and_instructions():
    runs = [chance.environment(run) for run in range(12)]
    assert len({run["SEED_SHIFT"] for run in runs}) == 12
    assert len({(run["OMP_NUM_THREADS"], run.get("ATEN_CPU_CAPABILITY")) for run in runs}) == 6


def test_the_run_of_today_has_the_number_of_the_day_and_says_how_to_make_it_again(monkeypatch, capsys):
    asked = []

    def failures(run, arguments):
        asked.append((run, arguments))
        return ["tests/a.py::test_a[1 - 2]"], "1 failed"

    clock = SimpleNamespace(time=lambda: 86_400 * 20_787 + 5, perf_counter=lambda: 0)
    monkeypatch.setattr(chance, "failures", failures)
    monkeypatch.setattr(chance, "time", clock)
    monkeypatch.setattr(sys, "argv", ["chance", "--today", "-n", "auto", "tests/a.py"])
    with pytest.raises(SystemExit) as end:
        chance.main()
    assert end.value.code == 1 and asked == [(20_787, ["-n", "auto", "tests/a.py"])]
    again = "again: python -m tests.gates.chance --runs 1 --first 20787 'tests/a.py::test_a[1 - 2]'"
    assert again in capsys.readouterr().out
