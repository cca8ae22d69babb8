"""saefast._cuda with tests/native/fake_cuda in place of a GPU, and `DeviceBuffer` over it: tensors of the CPU are its
"device" memory, and every stream is a thread that takes its time."""

import atexit
import ctypes
import functools
import importlib.util
import shutil
import subprocess
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from saefast.activations import device_buffer

ROOT = Path(__file__).parents[2]


@functools.cache
def build():
    """-> the module, its shared library (for the functions of the fake)."""
    folder = Path(tempfile.mkdtemp(prefix="saefast-fake-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    includes = [
        ROOT / "tests/native/fake_cuda",
        Path(torch.__file__).parent / "include",
        sysconfig.get_paths()["include"],
    ]
    flags = [
        "-std=c++17",
        "-O1",
        "-fPIC",
        "-fvisibility=hidden",
        "-pthread",
        *(f"-I{path}" for path in includes),
    ]
    sources = [path for path in ROOT.glob("csrc/stream/*.cpp") if not path.name.startswith("bind")]
    sources += [*ROOT.glob("csrc/cuda/*.cpp"), ROOT / "tests/native/fake_cuda/fake_cuda.cpp"]
    objects = [folder / f"{i}.o" for i in range(len(sources))]

    def compile_one(source, to):
        subprocess.run(["g++", *flags, "-c", "-o", to, source], check=True)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(compile_one, sources, objects))
    path = folder / f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    subprocess.run(["g++", "-shared", "-pthread", "-o", path, *objects], check=True)
    spec = importlib.util.spec_from_file_location("_cuda", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module, ctypes.CDLL(str(path))


class FakeDeviceBuffer(device_buffer.DeviceBuffer):
    """Stream 0 of the fake is awaited before a tensor is looked at; a real one is awaited by torch."""

    def __init__(self, *args, **options):
        super().__init__(*args, **({"device": "cpu"} | options))

    def _handle(self):
        return 0

    def _current_device(self):
        return 0

    def __iter__(self):
        for batch in super().__iter__():
            build()[1].cudaDeviceSynchronize()
            yield batch

    def sample(self, n):
        if self._native.numbers()["batches"]:  # back to the last one delivered, as there
            self.load_state_dict(*self.state_dict())
        self._native.fill(0, self.timeout)
        build()[1].cudaDeviceSynchronize()
        return super().sample(n)

    def load_state_dict(self, *state):
        self._native.pause(0)
        build()[
            1
        ].cudaDeviceSynchronize()  # kernels may still be in the stream in which torch copies at once here
        super().load_state_dict(*state)
