"""The threads of the streaming buffer under AddressSanitizer, UBSan and ThreadSanitizer."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = [path for path in sorted(ROOT.glob("csrc/stream/*.cpp")) if path.name != "bind.cpp"]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_clean_under(tmp_path, sanitizers):
    program, data = tmp_path / "check", tmp_path / "data"
    data.mkdir()
    flags = ["-std=c++17", "-O1", "-g", "-pthread", f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all"]
    check = ROOT / "tests/native/stream_check.cpp"
    subprocess.run(["g++", *flags, "-o", program, check, *SOURCES], check=True)
    done = subprocess.run([program, data], capture_output=True, text=True, timeout=200, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "ok"), done.stderr
