"""Who may import whom, and that importing does nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


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


def test_triton_code_lives_in_triton_kernels_only():
    for path in (*ROOT.glob("saefast/**/*.py"), *ROOT.glob("examples/*.py")):
        assert "triton" not in {name.split(".")[0] for name in imports(path)}, path


@pytest.mark.parametrize("folder", ["saefast", "triton_kernels", "tests", "benchmarks", "examples"])
def test_files_are_short_and_nobody_imports_the_bare_name(folder):
    for path in ROOT.glob(f"{folder}/**/*.py"):
        longest = 600 if path.name == "reference.py" else 300  # the specification is one file
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
