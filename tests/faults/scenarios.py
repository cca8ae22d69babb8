"""What is killed, and what fails: small pieces of work that go on when they are started again, and every bit they leave."""

import hashlib
import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

import saefast
from saefast import files
from saefast.activations.shards import INDEX, ShardSource, ShardWriter
from saefast.activations.sources import IterableSource, Source, TensorSource
from saefast.files import read_json_checked
from saefast.sweep import Member, pareto, sweep
from saefast.train.run import plots
from saefast.train.run.export import export_checkpoint
from tests.faults.looked import looked, recorded

STEPS, BATCH, WIDTH = 15, 64, 16
SKETCH = "drawn"


def rows() -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    mixing = torch.randn(WIDTH, WIDTH, generator=generator)
    return torch.randn(900, WIDTH, generator=generator) @ mixing + 2


def source_of(kind: str, place: Path) -> Source:
    """place: a folder beside those of the runs, for a source that is on disk."""
    if kind == "iterable":
        return IterableSource(list(rows().split(37)), WIDTH)
    if kind == "tensor":
        return TensorSource(rows())
    if not (place / "shards" / "done").exists():
        write_shards(place / "shards")
        (place / "shards" / "done").touch()
    return ShardSource(place / "shards")


def write_shards(folder: Path, shard_tokens: int = 200) -> None:
    """As `saefast cache` does it: what is written already is not made again."""
    if (folder / INDEX).exists() and read_json_checked(folder / INDEX)["complete"]:
        return
    writer = ShardWriter(folder, WIDTH, torch.float32, shard_tokens=shard_tokens)
    for part in rows()[writer.n_tokens :].split(50):
        writer.append(part)
    writer.close()


def config(**options) -> saefast.TrainConfig:
    fields = {"batch_size": BATCH, "buffer_tokens": 256, "lr": 3e-3, "log_every": 2, "checkpoint_every": 3}
    fields |= {"total_tokens": STEPS * BATCH, "dead_feature_threshold": 200, "k_aux": 4}
    return saefast.TrainConfig(**fields | options)


def train(out: Path, kind: str, **options) -> None:
    sae = saefast.SAE(saefast.SAEConfig(d_in=WIDTH, d_sae=96, k=4))
    saefast.Trainer(sae, config(**options)).fit(source_of(kind, out.parent), out / "run", resume=True)


def members() -> list[Member]:
    return [Member(saefast.SAEConfig(d_in=WIDTH, d_sae=96, k=k), config()) for k in (4, 6)]


def train_and_draw(out: Path) -> None:
    """With real curves, which the others only sketch: drawing takes longer than their steps."""
    plots.curves = REAL_CURVES
    train(out, "tensor", total_tokens=6 * BATCH)


def export(out: Path) -> None:
    train(out, "tensor", total_tokens=6 * BATCH)
    if not (out / "sae").exists():
        export_checkpoint(out / "run", out / "sae")
    export_checkpoint(out / "run")


def sketch(folder: Path) -> None:
    plots.read_lines(folder / "metrics.jsonl")
    files.write_atomic(folder / "curves.png", lambda temporary: temporary.write_text(SKETCH))


REAL_CURVES = plots.curves
SCENARIOS: dict[str, Callable[[Path], object]] = {
    f"train, {kind}, {backend}": lambda out, kind=kind, backend=backend: train(out, kind, backend=backend)
    for kind in ("tensor", "iterable", "shards")
    for backend in ("native", "reference")
}
SCENARIOS |= {
    "cache": lambda out: write_shards(out / "acts"),
    "sweep": lambda out: sweep(members(), TensorSource(rows()), out, TensorSource(rows()[:200]), resume=True),
    "export": export,
    "curves": train_and_draw,
    "records": recorded,
    "look": looked,
}


def quiet() -> None:
    """For a child: one thread, no progress bars, sketches in place of drawings."""
    torch.set_num_threads(1)
    os.environ["TQDM_DISABLE"] = "1"
    plots.curves = sketch
    pareto.plot = lambda path, rows: files.write_atomic(path, lambda temporary: temporary.write_text(SKETCH))


def result(out: Path) -> dict[str, str]:
    """A checksum of each file that a scenario leaves, without what may differ: times, and the name of the run."""
    found = {}
    for path in sorted(out.rglob("*")):
        name = str(path.relative_to(out))
        if path.is_dir():
            continue
        data = path.read_bytes()
        if path.name == "metrics.jsonl":
            lines = [json.loads(line) for line in data.splitlines()]
            data = json.dumps(
                [{k: v for k, v in line.items() if k != "tokens_per_second"} for line in lines]
            ).encode()
        if path.name == "run.json":
            data = json.dumps({k: v for k, v in read_json_checked(path).items() if k != "id"}).encode()
        if path.suffix == ".png" and data[:4] == b"\x89PNG":
            data = b"a picture"  # of times, too
        found[name] = hashlib.sha256(data).hexdigest()
    return found


class Operations:
    """Counts the operations on files below a folder, and does something at one of them.

    Python names each to its audit hooks: open, rename, remove, mkdir, chmod. A hook cannot be taken away again: there is one
    for the process. Writes and flushes have no such event: `write_tensors`, `write_line` and `sync` are counted here.
    """

    EVENTS = frozenset(("open", "os.rename", "os.remove", "os.mkdir", "os.chmod", "os.rmdir", "os.truncate"))

    def __init__(self) -> None:
        self.folder, self.n, self.at = "", 0, 0
        self.act: Callable[[str], None] = lambda what: None
        self.names: list[str] = []
        self._save_file, self._fsync = files.save_file, os.fsync
        files.save_file, os.fsync = self._write_tensors, self._sync
        sys.addaudithook(self._hook)

    def watch(self, folder: Path, at: int = 0, act: Callable[[str], None] = lambda what: None) -> None:
        """From now on, at operation number `at` below the folder, counted from 1: `act(its name)`."""
        self.folder, self.n, self.at, self.act, self.names = str(folder), 0, at, act, []

    def stop(self) -> int:
        """How many there were."""
        self.folder = ""
        return self.n

    def _count(self, what: str, path: object) -> bool:
        if not self.folder or not str(path).startswith(self.folder):
            return False
        self.n += 1
        self.names.append(f"{what} {path}")
        return self.n == self.at

    def _hook(self, event: str, arguments: tuple) -> None:
        if event in self.EVENTS and self._count(event, arguments[0]):
            self.act(event)

    def _write_tensors(self, tensors, path, metadata=None) -> None:
        """A write that is cut: half of the file is there."""
        if self._count("write", path):
            self._save_file(tensors, path, metadata=metadata)
            os.truncate(path, os.path.getsize(path) // 2)
            self.act("write")
        self._save_file(tensors, path, metadata=metadata)

    def _sync(self, handle: int) -> None:
        if self._count("fsync", os.readlink(f"/proc/self/fd/{handle}")):
            self.act("fsync")
        self._fsync(handle)


def kill_self(what: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def in_child(function: Callable[[], object], delay: float | None = None) -> int:
    """Run it in a forked process, which is killed after `delay` seconds. Returns its exit status, -9 if it was killed."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            quiet()
            function()
            status = 0
        except BaseException:  # noqa: BLE001 (said, and the status)
            traceback.print_exc()
        finally:
            os._exit(status)
    if delay is not None:
        wait_until(pid, delay)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def wait_until(pid: int, delay: float) -> None:
    time.sleep(delay)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def choose(rng: random.Random, names: list[str]) -> str:
    """Scenarios with real pictures take long: every twentieth."""
    return rng.choice([name for name in names for _ in range(1 if name == "curves" else 2)])
