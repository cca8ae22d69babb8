"""The compiled parts of saefast on a lent machine, built beside the measurements that do not need them.

Few do: `parts.NEED_EXTENSIONS`. An installed saefast has them; a checkout on a machine without a network builds them with what is
there (scikit-build-core, pybind11, CMake, nvcc), at the lowest priority.
"""

import importlib.util
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.gpu.common import REHEARSAL, ROOT

_building: list[subprocess.Popen[bytes]] = []


def begin(folder: Path) -> None:
    """Start the build once, where it is needed; what it says goes to build.log in `folder`."""
    if _building or REHEARSAL or importlib.util.find_spec("saefast._cuda"):
        return
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-build-isolation"]
    command = ["nice", "-n", "19", *pip, "--no-deps", "-e", str(ROOT)]
    with (folder / "build.log").open("wb") as log:
        _building.append(subprocess.Popen(command, stdout=log, stderr=log))


def wait(deadline: float) -> None:
    """Until the build has ended or time is up. A failed build is what the items that need it then report."""
    for process in _building:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
