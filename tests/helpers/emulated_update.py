"""csrc/update on the host: the binding and the kernels, with tests/native/emulated in place of a multiprocessor."""

import atexit
import ctypes
import functools
import importlib.util
import itertools
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import torch

ROOT = Path(__file__).parents[2]
SOURCE, EMULATED = ROOT / "csrc/update", ROOT / "tests/native/emulated"
FLAGS = (
    "-std=c++17",
    "-O1",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-gnu-unique",
    "-Wall",
    "-Wextra",
    "-Werror",
)
FLAGS += ("-Wno-unknown-pragmas",)
FAULTS = {  # file of csrc/update, text that stands there once, in its place
    "no wait for a copy": (
        "kernel.h",
        "load_bf16<V>(ring.slot(ahead), place)",
        "load_bf16<V>(ring.shared.slots + ahead.slot * ring.slot_bytes, place)",
    ),
    "no wait for a free slot": (
        "ring.h",
        "wait(shared.empty + cursor.slot, cursor.parity ^ 1);\n        shared.notes[cursor.slot] = note;",
        "shared.notes[cursor.slot] = note;",
    ),
    "wrong parity": ("ring.h", "wait(shared.full + at.slot, at.parity);", "wait(shared.full + at.slot, 0);"),
    "released before it is read": (
        "kernel.h",
        "add(grads.enc, grad_pre, load_bf16<V>(ring.here() + 2 * place.D, place));\n                ring.release(place);",
        "const auto* at = ring.here(); ring.release(place); meet(place.threads);\nadd(grads.enc, grad_pre, load_bf16<V>(at + 2 * place.D, place));",
    ),
    "threads do not meet": ("rows.h", "        meet(place.threads);\n", ""),
    "one half of the room": ("rows.h", "turn ^= 1;", ""),
    "fewer bytes expected": ("ring.h", "first.bytes + second.bytes)", "first.bytes)"),
    "a warp too few releases": (
        "kernel.h",
        "computing / WARP);\n        }",
        "computing / WARP - 1);\n        }",
    ),
}
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


def linked(*objects: Path) -> Path:
    path = folder() / f"_update_cuda-{next(_numbers)}.so"
    subprocess.run(["g++", "-shared", "-pthread", "-o", path, *objects], check=True)
    return path


@functools.cache
def build() -> ModuleType:
    """The extension."""
    include = Path(torch.__file__).parent / "include"
    binding = compiled(SOURCE / "bind.cpp", include, sysconfig.get_paths()["include"])
    path = linked(binding, compiled(EMULATED / "launch.cpp", SOURCE, EMULATED))
    spec = importlib.util.spec_from_file_location("_update_cuda", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Faulty:
    """The extension with a fault: `text`, which stands once in a file of csrc/update, is something else."""

    def __init__(self, file: str, text: str, in_its_place: str) -> None:
        source = folder() / f"source-{next(_numbers)}"
        shutil.copytree(SOURCE, source)
        before = (source / file).read_text()
        assert before.count(text) == 1, f"{file}: {text!r} stands there {before.count(text)} times"
        (source / file).write_text(before.replace(text, in_its_place))
        self._launch = ctypes.CDLL(
            str(linked(compiled(EMULATED / "launch.cpp", source, EMULATED)))
        ).launch_update
        self._launch.restype = ctypes.c_char_p

    def update(self, pointers: Sequence[int], sizes: Sequence[int], stream: int) -> None:
        fields = (ctypes.c_int64 * (len(pointers) + len(sizes)))(*pointers, *sizes)
        if failed := self._launch(fields, ctypes.c_void_p(stream)):
            raise RuntimeError(failed.decode())
