"""The products of bytes are those of the integers, on every instruction set of this machine: `tiles_check.cpp`."""

import shutil
import subprocess
from pathlib import Path

import pytest

_C = pytest.importorskip("saefast._C", reason="the C++ extension saefast._C is not built")
ROOT = Path(__file__).parents[2]
SOURCES = [ROOT / "csrc/cpu" / name for name in ("tiles.cpp", "tiles_x86.cpp", "tiles_arm.cpp", "round8.cpp")]
FLAGS = ["-std=c++17", "-O1", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi"]
pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


def check(folder: Path, *changes: tuple[str, str]) -> subprocess.CompletedProcess[str]:
    """changes: a text of csrc/cpu/, which stands in one file, and what to put in its place."""
    shutil.copytree(ROOT / "csrc/cpu", folder / "csrc/cpu")
    for change in changes:
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


@pytest.mark.skipif(shutil.which("objdump") is None, reason="needs objdump")
@pytest.mark.skipif("vnni" not in _C.isas(), reason="needs AVX-512 VNNI, which has the same instruction")
def test_avx_vnni_in_the_encoding_of_avx512(tmp_path: Path) -> None:
    """So its tiles run where only AVX-512 has the instruction; their own encoding is looked at."""
    changes = [
        ('"%{vex%} vpdpbusd"', '"vpdpbusd"'),
        ('cpu_supports("avxvnni")', 'cpu_supports("avx512vnni")'),
    ]
    done = check(tmp_path, *changes)
    assert (done.returncode, done.stdout.strip()) == (0, "ok")
    encoded = tmp_path / "tiles_x86.o"
    subprocess.run(
        ["g++", *FLAGS, f"-I{ROOT / 'csrc'}", "-c", "-o", encoded, ROOT / "csrc/cpu/tiles_x86.cpp"],
        check=True,
    )
    listed = subprocess.run(["objdump", "-d", encoded], capture_output=True, text=True, check=True).stdout
    of_ymm = [line for line in listed.splitlines() if "vpdpbusd" in line and "%zmm" not in line]
    assert of_ymm and all("{vex}" in line and "\tc4 " in line for line in of_ymm)


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        ("X{127, 32767 / LEVELS}", "X{127, 32767 / LEVELS + 8}"),
        ("largest_half(v, width) / static_cast<float>(levels.sum - 8)", "0.0f"),
    ],
    ids=["a sum that may pass 16 bits", "rows rounded without a thought for it"],
)
def test_what_would_overflow_is_noticed(tmp_path: Path, change: tuple[str, str]) -> None:
    assert check(tmp_path, change).returncode == 1


def test_the_environment_bounds_the_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    isas = _C.isas()
    monkeypatch.setenv("SAEFAST_ISA", "plain")
    assert _C.isas() == ["plain"]
    if isas[0] != "plain":
        with pytest.raises(ValueError, match=f"isa: expected 'auto' or one of .*, got '{isas[0]}'"):
            _C.ScreenedEncoder(isas[0])
    monkeypatch.setenv("SAEFAST_ISA", "sse9")
    with pytest.raises(ValueError, match=f"SAEFAST_ISA: expected one of {', '.join(isas)}, got 'sse9'"):
        _C.isas()
    monkeypatch.setenv("SAEFAST_ISA", "")
    assert _C.isas() == isas
