"""The C++ code under AddressSanitizer, UBSan and ThreadSanitizer: a program of its own for each folder of csrc/."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NEEDS = {"cuda": ("cuda", "stream")}  # folders besides the part's own
FAKE = ROOT / "tests/native/fake_cuda"


def run(part, sanitizers, folder, *arguments):
    program, data = folder / "check", folder / "data"
    data.mkdir()
    flags = ["-std=c++17", "-O1", "-g", "-pthread", f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all"]
    flags += ["-Wno-psabi", f"-I{ROOT / 'csrc'}", f"-I{FAKE}"]
    sources = [path for name in NEEDS.get(part, (part,)) for path in sorted(ROOT.glob(f"csrc/{name}/*.cpp"))]
    sources = [path for path in sources if not path.name.startswith("bind")]
    sources += [FAKE / "fake_cuda.cpp"] * (part == "cuda")
    subprocess.run(
        ["g++", *flags, "-o", program, ROOT / f"tests/native/{part}_check.cpp", *sources], check=True
    )
    return subprocess.run(
        [program, data, *arguments], capture_output=True, text=True, timeout=200, check=False
    )


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
@pytest.mark.parametrize("part", ["cpu", "stream", "cuda"])
def test_clean_under(tmp_path, part, sanitizers):
    done = run(part, sanitizers, tmp_path)
    assert (done.returncode, done.stdout.strip()) == (0, "ok"), done.stderr


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_streams_that_do_not_wait_for_each_other_are_a_data_race(tmp_path):
    """Else `cuda_check` under ThreadSanitizer would show nothing."""
    done = run("cuda", "thread", tmp_path, "ignore")
    assert done.returncode != 0 and "data race" in done.stderr
