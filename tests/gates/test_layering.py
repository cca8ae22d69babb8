"""Which module may import which, and that importing the package does nothing."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gates import house

ROOT = Path(__file__).parents[2]
ARROWS = house.graph(ROOT)
# The rooms of saefast/ from the bottom to the top. A room imports rooms of the lines above its own here, and no others.
FLOORS = """
    errors  storage
    files  config  reference
    native
    instructions
    backend
    engine  activations  autograd  optim
    formats
    sae
    interp
    train
    sweep  adapters  study
    cli
    __main__
"""


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or "."


@pytest.mark.parametrize("path", sorted(ROOT.glob("triton_kernels/*.py")), ids=lambda path: path.name)
def test_kernels_import_torch_and_triton_only(path):
    allowed = ("torch", "triton", "dataclasses", "typing", "collections", "math", "saefast.triton_kernels")
    assert [name for name in imports(path) if not name.startswith(allowed)] == []


def test_every_room_imports_rooms_below_it_only():
    """Imports inside of functions and modules named in strings count too."""
    floor = {room: i for i, line in enumerate(FLOORS.split("\n")) for room in line.split()}
    rooms = house.rooms(ARROWS)
    assert floor.keys() == rooms.keys()
    upward = [(room, other) for room in rooms for other in rooms[room] if floor[other] >= floor[room]]
    assert upward == []


def test_no_modules_import_each_other_in_a_circle():
    assert house.circles(ARROWS) == []


def test_nobody_inside_uses_what_the_package_exports():
    """`saefast` imports everything: its modules take its version, nothing else. No import hides from the tests above."""
    for name, path in house.modules(ROOT).items():
        nodes = list(ast.walk(ast.parse(path.read_text())))
        attributes = [node for node in nodes if isinstance(node, ast.Attribute)]
        used = {node.attr for node in attributes if getattr(node.value, "id", None) == "saefast"}
        assert used <= {"__version__", "_C", "_cuda"}, path
        for node in nodes:
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0 and node.names[0].name != "*", path
                if node.module == "saefast" and name != "saefast":
                    assert {f"saefast.{alias.name}" for alias in node.names} <= ARROWS.keys(), path


def test_triton_code_lives_in_triton_kernels_only():
    for path in (*ROOT.glob("saefast/**/*.py"), *ROOT.glob("examples/*.py")):
        assert "triton" not in {name.split(".")[0] for name in imports(path)}, path


def test_every_kernel_has_a_test_of_its_name():
    """Parts of the update's kernels (`*_kernels.py`) are tested with what launches them."""
    for path in ROOT.glob("triton_kernels/[!_]*.py"):
        name = path.stem.removesuffix("_kernels")
        assert (ROOT / f"tests/kernels/test_{name}.py").exists(), path


def test_tests_import_what_they_share_from_helpers():
    for path in ROOT.glob("tests/**/*.py"):
        assert not [name for name in imports(path) if re.match(r"tests\.(\w+\.)*test_", name)], path


@pytest.mark.parametrize("folder", ["saefast", "triton_kernels", "tests", "benchmarks", "examples"])
def test_files_are_short_and_nobody_imports_the_bare_name(folder):
    for path in ROOT.glob(f"{folder}/**/*.py"):
        longest = 650 if path.name == "reference.py" else 300  # the specification is one file
        assert len(path.read_text().splitlines()) <= longest, path
        assert not any(name.split(".")[0] == "triton_kernels" for name in imports(path)), path


def test_import_is_silent_and_leaves_optional_packages_alone():
    code = """
import sys, saefast
print([name for name in ("transformers", "matplotlib", "wandb", "tyro", "triton") if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-P", "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_the_way_from_the_trainer_to_a_kernel_is_short():
    """Every function of it is found, and calls the next one by its name."""
    found = {name: n for name, n, _ in house.ways(ROOT)}
    assert len(found) == 4 and all(0 < n <= 5 for n in found.values()), found
