"""csrc/update on the host: the binding and the kernels, with tests/native/emulated in place of a multiprocessor."""

import atexit
import functools
import importlib.util
import itertools
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from types import ModuleType

import torch

ROOT = Path(__file__).parents[2]
SOURCE, EMULATED = ROOT / "csrc/update", ROOT / "tests/native/emulated"
FLAGS = ("-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-fno-gnu-unique", "-Wall", "-Wextra", "-Werror")
FLAGS += ("-Wno-unknown-pragmas",)
_numbers = itertools.count()


@functools.cache
def folder() -> Path:
    path = Path(tempfile.mkdtemp(prefix="saefast-update-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


def compiled(source: Path, *includes: Path | str) -> Path:
    to = folder() / f"{source.stem}-{next(_numbers)}.o"
    paths = [f"-I{path}" for path in includes]
    subprocess.run(["g++", *FLAGS, *paths, "-c", "-o", to, source], check=True)
    return to


@functools.cache
def binding() -> Path:
    include = Path(torch.__file__).parent / "include"
    return compiled(SOURCE / "bind.cpp", include, sysconfig.get_paths()["include"])


@functools.cache
def build(file: str = "", text: str = "", in_its_place: str = "") -> ModuleType:
    """The extension; with a fault where `text`, which stands once in a file of csrc/update, is something else."""
    source = SOURCE
    if file:
        source = folder() / f"source-{next(_numbers)}"
        shutil.copytree(SOURCE, source)
        before = (source / file).read_text()
        assert before.count(text) == 1, f"{file}: {text!r} stands there {before.count(text)} times"
        (source / file).write_text(before.replace(text, in_its_place))
    path = folder() / f"_update_cuda-{next(_numbers)}.so"
    kernels = compiled(EMULATED / "launch.cpp", source, EMULATED)
    subprocess.run(["g++", "-shared", "-pthread", "-o", path, binding(), kernels], check=True)
    spec = importlib.util.spec_from_file_location("_update_cuda", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
