"""The engine on 64-bit Arm: built by a cross-compiler and run in an emulator, which tells what it computes, not how fast.

On Debian: apt-get install g++-aarch64-linux-gnu qemu-user
"""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GXX, OBJDUMP, QEMU = "aarch64-linux-gnu-g++", "aarch64-linux-gnu-objdump", "qemu-aarch64"
FLAGS = [
    "-std=c++17",
    "-O3",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-psabi",
]
CPUS = ["max", "neoverse-n1", "cortex-a72"]  # with i8mm, with the dot product alone, with neither
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not all(map(shutil.which, (GXX, QEMU))), reason=f"needs {GXX} and {QEMU}"),
]


def compiled(source: Path, folder: Path, csrc: Path = ROOT / "csrc") -> Path:
    made = folder / f"{source.stem}.o"
    subprocess.run([GXX, *FLAGS, "-pthread", f"-I{csrc}", "-c", "-o", made, source], check=True)
    return made


def ran(objects: list[Path], cpu: str, program: Path) -> subprocess.CompletedProcess[str]:
    subprocess.run([GXX, "-static", "-pthread", "-o", program, *objects], check=True)
    command = [QEMU, "-cpu", cpu, program]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The object files of csrc/cpu/, by name."""
    folder = tmp_path_factory.mktemp("arm")
    sources = [path for path in sorted(ROOT.glob("csrc/cpu/*.cpp")) if not path.name.startswith("bind")]
    return {path.stem: compiled(path, folder) for path in sources}


@pytest.fixture(scope="module")
def checks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checks")
    return {name: compiled(ROOT / f"tests/native/{name}_check.cpp", folder) for name in ("tiles", "cpu")}


@pytest.mark.parametrize("cpu", CPUS)
@pytest.mark.parametrize("check", ["tiles", "cpu"])
def test_every_op_on_every_instruction_set(
    engine: dict[str, Path], checks: dict[str, Path], tmp_path: Path, check: str, cpu: str
) -> None:
    """The sums are those of the integers, the bounds hold, and the screened encoder finds what scoring everything finds."""
    done = ran([checks[check], *engine.values()], cpu, tmp_path / "check")
    assert (done.returncode, done.stdout.strip()) == (0, "ok"), done.stderr


@pytest.mark.parametrize(
    "change, cpu",
    [
        (("add_quads<3, 2>(w", "add_quads<2, 2>(w"), "neoverse-n1"),
        (("add_squares<1, 6>(w", "add_squares<1, 4>(w"), "max"),
        (("r % 2 ? vzip2q_s64", "r % 2 ? vzip1q_s64"), "max"),
        (("getauxval(AT_HWCAP) & ASIMDDP", "ASIMDDP"), "cortex-a72"),
    ],
    ids=["bytes of the dot product", "bytes of i8mm", "rows of i8mm", "an instruction that is not there"],
)
def test_what_is_wrong_is_noticed(
    engine: dict[str, Path], tmp_path: Path, change: tuple[str, str], cpu: str
) -> None:
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    (path,) = (p for p in (tmp_path / "csrc/cpu").iterdir() if change[0] in p.read_text())
    path.write_text(path.read_text().replace(*change))
    sources = tmp_path / "csrc/cpu/tiles_arm.cpp", ROOT / "tests/native/tiles_check.cpp"
    changed = {source.stem: compiled(source, tmp_path, tmp_path / "csrc") for source in sources}
    assert ran(list((engine | changed).values()), cpu, tmp_path / "check").returncode != 0


def test_a_tile_keeps_its_sums_in_registers(engine: dict[str, Path]) -> None:
    """Each loop over d_in: its products of bytes, and besides them few instructions, none of which goes to the stack."""
    listing = subprocess.run(
        [OBJDUMP, "-d", "--no-show-raw-insn", "-C", engine["tiles_arm"]],
        capture_output=True,
        text=True,
        check=True,
    )
    besides = {}
    for name, body in re.findall(
        r"^[0-9a-f]+ <.*?(\w+<\d)ul>\(.*>:\n((?:.+\n)+)", listing.stdout, re.MULTILINE
    ):
        lines = {int(line.split(":")[0], 16): line.split("\t")[1:] for line in body.splitlines()}
        for place, words in lines.items():
            begin = int(words[1].split()[0], 16) if words[0].startswith("b.") else place
            loop = [words for at, words in lines.items() if begin <= at <= place]
            if begin < place and any(words[0] in ("sdot", "smmla") for words in loop):
                assert not any("[sp" in words[1] for words in loop if len(words) > 1), name
                besides[name] = sum(words[0] not in ("sdot", "smmla") for words in loop)
    assert len(besides) == 12 and max(besides.values()) <= 24, besides
