"""How items are run: several one after another in a process, each result saved as it comes, whatever becomes of the rest.

An item that fails, hangs or spoils CUDA for its process costs itself and no other: the next process goes on after it. The
file of results is replaced as a whole, so a kill at any moment leaves what was there before.
"""

import contextlib
import hashlib
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.gpu import extensions
from benchmarks.gpu.common import REHEARSAL, ROOT, Report, Result, free, synchronize, what_failed
from benchmarks.gpu.parts import ALSO_USED, NEED_EXTENSIONS, PARTS, modules_of

PATIENCE = 4 if REHEARSAL else 1  # times the limits: a machine without a GPU may be shared
STARTING = 60  # seconds for a process to load torch
SPOILT = 3  # exit code of a process that can no longer use the GPU


class Task(NamedTuple):
    """One item to run."""

    part: str
    item: str
    limit: float = math.inf  # seconds after which it is stopped, if the part has no lower limit

    @property
    def name(self) -> str:
        return f"{self.part}: {self.item}"

    @property
    def patience(self) -> float:
        return PATIENCE * min(self.limit, PARTS[self.part].item_seconds)


def attempt(task: Task, report: Report) -> Result:
    try:
        found = PARTS[task.part].items[task.item](report)
        return found | what_failed()
    except Exception as error:  # noqa: BLE001 what comes after it must run in any case
        what_failed()
        causes = (error, error.__cause__)
        if any(isinstance(cause, torch.OutOfMemoryError) for cause in causes):
            return {"out_of_memory": str(error).splitlines()[0][:300]}
        where = "".join(traceback.format_exception(error)[-4:])
        return {"error": f"{type(error).__name__}: {error}"[:3000], "where": where[-3000:]}


def die_with(supervisor: int) -> None:
    """End this process group when nobody waits for its results any more: the GPU is wanted by the next run."""
    while os.getppid() == supervisor:
        time.sleep(1)
    os.killpg(0, signal.SIGKILL)


def work(path: Path, log: Path, names: list[list[str]]) -> int:
    """A process: a line of JSON for its start, and for each item of `names`, pairs of part and item."""
    report: Report = json.loads(path.read_text())["parts"]
    threading.Thread(target=die_with, args=[os.getppid()], daemon=True).start()
    with log.open("a", buffering=1) as lines:
        lines.write("[]\n")  # it has started
        for task in (Task(*name) for name in names):
            began = time.monotonic()
            result = attempt(task, report) | {"took_s": round(time.monotonic() - began, 2)}
            report.setdefault(task.part, {})[task.item] = result
            lines.write(json.dumps([result]) + "\n")
            try:
                synchronize()
                free()
            except RuntimeError:  # a fault in a kernel, maybe of an item that went before
                return SPOILT
    return 0


def supervise(tasks: list[Task], path: Path, deadline: float) -> Iterator[tuple[Task, Result]]:
    """Run tasks in a process and yield results as they come, until it ends or one must be stopped."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        log.write_text("")
        names = json.dumps([task[:2] for task in tasks])
        command = [sys.executable, "-m", "benchmarks.gpu", "--work", str(path), str(log), names]
        environment = os.environ | {"SAEFAST_RESULTS": str(path.parent)}  # for what is no figure
        # a session of its own: it is killed with what it started
        process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
        left, n_read, began, limit = list(tasks), 0, time.monotonic(), float(STARTING)
        try:
            while True:
                running = process.poll() is None
                lines = log.read_text().rpartition("\n")[0].splitlines()
                for line in lines[n_read:]:
                    for result in json.loads(line):
                        yield left.pop(0), result
                    n_read, began = n_read + 1, time.monotonic()
                    limit = left[0].patience if left else STARTING
                if not running:
                    if left and process.returncode not in (0, SPOILT):
                        yield left[0], {"error": f"its process ended with exit code {process.returncode}"}
                    return
                if time.monotonic() > deadline:
                    return
                if left and time.monotonic() - began > limit:
                    yield left[0], {"error": f"stopped after {limit:.0f} s"}
                    return
                time.sleep(0.05)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def digest(names: list[str]) -> str:
    """A hash of modules and folders of the repository: it tells states of the tree apart without git."""
    found = hashlib.sha256()
    for name in names:
        one = ROOT / f"{name}.py"
        whole = (
            path for path in sorted((ROOT / name).rglob("*")) if path.suffix in {".py", ".cpp", ".h", ".cu"}
        )
        for path in [one] if one.exists() else whole:
            found.update(path.read_bytes())
    return found.hexdigest()[:12]


def up_to_date(name: str, full: Result) -> Result:
    """The results of a part; those of other sources, or of another version of the part, are dropped."""
    found = full["parts"].setdefault(name, {})
    modules = modules_of(name)
    files = [*(module.replace(".", "/") for module in modules), "benchmarks/gpu/common"]
    files += sorted({folder for module, folder in ALSO_USED.items() if module in modules})
    sources = f"{full['sources']} {digest(files)}"
    if found.get("sources") != sources:
        found.clear()
    found |= {"sources": sources, "commit": full["commit"]}
    return found


def save(path: Path, full: Result) -> None:
    new = path.with_suffix(".new")
    new.write_text(json.dumps(full, indent=1) + "\n")
    os.replace(new, path)


def run(
    groups: list[list[Task]], path: Path, full: Result, deadline: float, say: Callable[[Task, Result], None]
) -> list[str]:
    """Run what is missing, a process for each group, and save each result. -> what failed or was not reached, by name.

    Within a group what is missing comes first, and then what failed in an earlier call.
    """
    unfinished = []
    waits_for_build = any(task.part in NEED_EXTENSIONS for group in groups for task in group)
    for group in groups:
        for name in {task.part for task in group}:
            up_to_date(name, full)
        known = {task: full["parts"][task.part].get(task.item) for task in group}
        again = [task for task, one in known.items() if one and {"error", "missing"} & one.keys()]
        pending = [task for task, one in known.items() if one is None] + again
        if len(pending) < len(group):
            parts = ", ".join(dict.fromkeys(task.part for task in group))
            print(f"{parts}: {len(group) - len(pending)} of {len(group)} done earlier", flush=True)
        if any(task.part in NEED_EXTENSIONS for task in pending):
            extensions.wait(deadline)
        save(path, full)
        while pending and time.monotonic() < deadline:
            for task, result in supervise(pending, path, deadline):
                full["parts"][task.part][task.item] = result
                save(path, full)
                pending = pending[pending.index(task) + 1 :]
                unfinished += [task.name] * ("error" in result)
                say(task, result)
                if (
                    waits_for_build and task.part != "compile"
                ):  # nothing is built before the first measurement
                    extensions.begin(path.parent.parent)
        unfinished += [task.name for task in pending]
        if pending:
            print(f"not reached in time: {', '.join(task.name for task in pending)}", flush=True)
    return unfinished
