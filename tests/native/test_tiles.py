"""The products of bytes are those of the integers, on every instruction set of this machine: `tiles_check.cpp`."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = [ROOT / "csrc/cpu" / name for name in ("tiles.cpp", "tiles_x86.cpp", "round8.cpp")]
FLAGS = ["-std=c++17", "-O1", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi"]
pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


def check(folder: Path, change: tuple[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """change: a text of csrc/cpu/, which stands there once, and what to put in its place."""
    shutil.copytree(ROOT / "csrc/cpu", folder / "csrc/cpu")
    if change:
        (path,) = (p for p in (folder / "csrc/cpu").iterdir() if change[0] in p.read_text())
        path.write_text(path.read_text().replace(*change))
    sources = [folder / path.relative_to(ROOT) for path in SOURCES]
    program = folder / "check"
    command = ["g++", *FLAGS, f"-I{folder / 'csrc'}", "-o", program, ROOT / "tests/native/tiles_check.cpp"]
    subprocess.run([*command, *sources], check=True)
    return subprocess.run([program], capture_output=True, text=True, check=False)


def test_the_sums_are_those_of_the_integers(tmp_path: Path) -> None:
    done = check(tmp_path)
    assert (done.returncode, done.stdout.strip()) == (0, "ok")


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        (
            "constexpr Levels X{127, 32767 / (2 * LEVELS)}",
            "constexpr Levels X{127, 32767 / (2 * LEVELS) + 1}",
        ),
        ("largest_half(v, width) / static_cast<float>(levels.sum - 4)", "0.0f"),
    ],
    ids=["a sum that may pass 16 bits", "rows rounded without a thought for it"],
)
def test_what_would_overflow_is_noticed(tmp_path: Path, change: tuple[str, str]) -> None:
    assert check(tmp_path, change).returncode == 1
