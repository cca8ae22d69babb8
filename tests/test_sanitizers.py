"""The C++ code under AddressSanitizer, UBSan and ThreadSanitizer: a program of its own for each folder of csrc/."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
@pytest.mark.parametrize("part", ["cpu", "stream"])
def test_clean_under(tmp_path, part, sanitizers):
    program, data = tmp_path / "check", tmp_path / "data"
    data.mkdir()
    flags = ["-std=c++17", "-O1", "-g", "-pthread", f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all"]
    flags += ["-Wno-psabi", f"-I{ROOT / 'csrc'}"]
    sources = [path for path in sorted(ROOT.glob(f"csrc/{part}/*.cpp")) if not path.name.startswith("bind")]
    subprocess.run(
        ["g++", *flags, "-o", program, ROOT / f"tests/native/{part}_check.cpp", *sources], check=True
    )
    done = subprocess.run([program, data], capture_output=True, text=True, timeout=200, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "ok"), done.stderr
