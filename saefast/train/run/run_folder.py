"""The description of a run, RUN/run.json: what may be another when it goes on, and what that does; one process at a time.

A run goes on to the same bits if nothing but `FREE` differs. `total_tokens` and `lr` may be others too: from the step at
which the run goes on, the new schedule holds, as if it always had. Where the run goes on (another machine, another
backend) is no part of the config; it is said, because sums are then rounded in another way. All else is refused by name.
"""

import json
import logging
import math
import os
import secrets
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

import saefast
from saefast.activations.shards import ShardSource
from saefast.activations.sources import Source
from saefast.config.train import SAEConfig, TrainConfig
from saefast.errors import InputError, check
from saefast.files import digest, json_checksum, read_json_checked, write_json_checked
from saefast.train import schedules

log = logging.getLogger("saefast")

RUN = "run.json"
# nothing already done depends on these
FREE = ("nonfinite", "checkpoint_every", "log_every", "loggers", "cuda_graph")
ROUNDING = ("backend", "micro_batch_size")  # they compute the same, rounded in another way
SCHEDULE = ("total_tokens", "lr")
FINGERPRINT_ROWS = 64
OLD_DEFAULT = (
    0.001,
    None,
)  # of init_threshold and bandwidth, which only JumpReLU has: what older runs hold, and the default now

Changes = dict[str, tuple[Any, Any]]  # of a field of TrainConfig: what it was, what it is now


class Described(NamedTuple):
    """What run.json holds, and what differs from it now."""

    fields: dict[str, Any]
    changes: Changes
    unwritten: bool = False  # whether run.json does not hold `fields` yet

    @property
    def id(self) -> str:
        """Of the run, for services that keep its curves: it stays the same when the run goes on."""
        return str(self.fields["id"])


def describe(sae: Any, train: TrainConfig, source: dict[str, Any], machine: dict[str, Any]) -> dict[str, Any]:
    """What run.json holds of a run that begins now. sae: the `SAE` that is trained."""
    origin = sae.origin and sae.origin._replace(tensors={}, exact={})._asdict()
    found = {
        "sae": asdict(sae.config),
        "train": asdict(train),
        "source": source,
        "versions": {"saefast": saefast.__version__, "torch": torch.__version__},
        "threads": torch.get_num_threads(),  # matrix products differ in the last bit between thread counts
        **machine,
        "id": secrets.token_hex(4),
        "metadata": sae.metadata,  # of an SAE that was trained before, as `origin`
        "origin": origin,
    }
    found = dict(json.loads(json.dumps(found)))  # so that tuples compare with what was read back
    return found | {"key": key_of(found)}


def key_of(fields: dict[str, Any]) -> str:
    """Checksum of what stays as it is when a run goes on: a checkpoint has that of its run."""
    train = {
        name: value for name, value in fields["train"].items() if name not in (*FREE, *ROUNDING, *SCHEDULE)
    }
    source = {name: value for name, value in fields["source"].items() if name != "path"}
    kept = {name: fields.get(name) for name in ("sae", "metadata", "origin", "start")}
    return digest({}, json.dumps(kept | {"train": train, "source": source}, sort_keys=True))[:32]


def read(folder: Path) -> dict[str, Any]:
    """What RUN/run.json holds.

    Raises:
        InputError: it is missing or damaged, or describes no run.
    """
    found = read_json_checked(folder / RUN)
    is_run = all(isinstance(found.get(part), dict) for part in ("sae", "train", "source"))
    is_run = (
        is_run and isinstance(found.get("metadata", {}), dict) and isinstance(found.get("changes", []), list)
    )
    check(is_run, f"{folder / RUN}: expected the description of a run")
    found["source"] = {"seed": found["train"].get("seed"), "columns": None} | found["source"]  # older runs
    return {"id": "", "metadata": {}, "origin": None, "key": None} | found


def write(folder: Path, fields: dict[str, Any]) -> None:
    write_json_checked(folder / RUN, fields)


def configs_of(fields: dict[str, Any], where: Path) -> tuple[SAEConfig, TrainConfig]:
    """The two configs of a run. Raises InputError if they are of another version."""
    try:
        parts: list[dict[str, Any]] = [
            {name: tuple(v) if isinstance(v, list) else v for name, v in fields[part].items()}
            for part in ("sae", "train")
        ]
        return SAEConfig(**parts[0]), TrainConfig(**parts[1])
    except TypeError as error:
        raise InputError(f"{where}: expected the configs of a run of this version, got {error}") from None


def compare(folder: Path, found: dict[str, Any], now: dict[str, Any]) -> Described:
    """What differs between run.json and the run that is to go on with it.

    Raises:
        InputError: something that may not; names it and both values.
    """
    changes: Changes = {}
    for part in ("sae", "train"):
        for name, value in now[part].items():
            if name not in found[part] or found[part][name] == value:  # or an option younger than the run
                continue
            was = found[part][name]
            if (was, value) == OLD_DEFAULT and now["sae"]["activation"] != "jumprelu":
                continue
            free = part == "train" and name in (*FREE, *ROUNDING, *SCHEDULE)
            # a forgotten --lr must not change the rate
            free = free and not (name == "lr" and value is None)
            check(free, f"{name}: the run in {folder} was started with {was!r}, got {value!r}")
            changes[name] = was, value
    of_source, before = _flat(now["source"]), _flat(found["source"])
    gone = {name: None for name in before if name not in of_source and name not in found["source"]}
    for name, value in (gone | of_source).items():  # a note that is gone says more than what follows from it
        was = before.get(name)
        # a folder may move, and the notes are compared one by one
        same = was == value or name in ("path", "notes")
        same = same or (name == "rows" and name not in before)  # older runs
        same = same or (name == "max_norm" and _close(was, value))
        check(same, f"source: the run in {folder} was started with {name} = {was!r}, got {value!r}")
    was, value = found.get("start"), now.get("start")
    check(was == value, f"start: the run in {folder} was started with {was!r}, got {value!r}")
    other = [
        f"{name} {found[name]}, now {now[name]}"
        for name in ("threads", "backend", "device", "versions")
        if name in found and found[name] != now[name]
    ]
    if other:
        log.warning(f"the run was started with {'; '.join(other)}: it goes on, but not to the same bits")
    if not found["id"]:  # of a run before runs had one
        return Described(found | {"id": now["id"]}, changes, unwritten=True)
    return Described(found, changes)


def _flat(source: dict[str, Any]) -> dict[str, Any]:
    """What describes a source, with its notes beside the rest."""
    notes = source.get("notes")
    return source | (notes if isinstance(notes, dict) else {})


def _close(was: Any, now: Any) -> bool:
    """Whether medians of the same rows, which another machine has rounded in another way."""
    a, b = ([x] if isinstance(x, float) else x if isinstance(x, list) else [] for x in (was, now))
    both = bool(a) and len(a) == len(b) and all(isinstance(x, float) for x in (*a, *b))
    return both and all(math.isclose(x, y, rel_tol=1e-3) for x, y in zip(a, b, strict=True))


def record(folder: Path, described: Described, train: TrainConfig, step: int) -> None:
    """Write what is new at `step` to run.json, and say what a change does."""
    if described.unwritten:
        write(folder, described.fields)
    if not described.changes:
        return
    fields, changes = described.fields, described.changes
    asked = json.loads(json.dumps(asdict(train)))
    history = [
        *fields.get("changes", []),
        {"step": step} | {name: list(pair) for name, pair in changes.items()},
    ]
    write(folder, fields | {"train": fields["train"] | asked, "changes": history})
    acting = {name: pair for name, pair in changes.items() if name not in SCHEDULE}
    if acting:
        said = ", ".join(f"{name} is {now!r} in place of {was!r}" for name, (was, now) in acting.items())
        bits = "" if acting.keys() <= set(FREE) else "; it goes on, but not to the same bits"
        log.warning(f"from step {step}: {said}{bits}")
    if changes.keys() & set(SCHEDULE):
        sae, _ = configs_of(fields, folder / RUN)
        log.warning(consequence(sae, train, changes, step))


def consequence(sae: SAEConfig, train: TrainConfig, changes: Changes, step: int) -> str:
    """In one line: what the schedules say of the next step, and what they said before `changes`."""
    old = replace(train, **{name: was for name, (was, _) in changes.items() if name in SCHEDULE})
    was_n, n, next_step = old.total_steps, train.total_steps, step + 1
    named = [
        f"{name} {now!r} in place of {was!r}" for name, (was, now) in changes.items() if name in SCHEDULE
    ]
    length = f"step {step} of {n}" + (f", was of {was_n}" if n != was_n else "")
    line = f"{', '.join(named)}: {length}; "
    if step >= n:
        return f"{line}the run is longer already: no step is made, and the SAE is that of step {step}"
    before = _values(old, sae, next_step) if step < was_n else {"lr": 0.0}
    parts = []
    for name, value in _values(train, sae, next_step).items():
        if name == "lr" or value != before.get(name, value):
            parts.append(f"{name} {value:.3g} instead of {before[name]:.3g}")
    line += "from here on " + ", ".join(parts)
    reached = schedules.lr_at(old, step, sae.d_sae) if step else 0.0
    falls = step > was_n * (1 - old.decay_fraction) and reached < schedules.peak_lr(old, sae.d_sae)
    if falls and schedules.lr_at(train, next_step, sae.d_sae) > reached:
        line += f"; the decay that was done (to {reached:.3g}) is not undone, and there is no second warm-up"
    return line


def _values(train: TrainConfig, sae: SAEConfig, step: int) -> dict[str, float]:
    """What the schedules say of `step`."""
    found: dict[str, float] = {"lr": schedules.lr_at(train, step, sae.d_sae)}
    if train.penalty != "none":
        found["sparsity_coefficient"] = schedules.sparsity_at(train, step)
    if train.penalty == "lp":
        found["p"] = schedules.exponent_at(train, step)
    return found | ({"k": schedules.k_at(train, sae, step)} if sae.k is not None else {})


def fingerprint(source: Source) -> str | None:
    """Of the rows: of all of a shard folder's, of a few of those of another source; None where none can be fetched."""
    if isinstance(source, ShardSource):
        return json_checksum({"shards": [shard["sha256"] for shard in source.index["shards"]]})
    if not source.random_access or not hasattr(source, "__len__"):
        return None
    n = len(source)
    index = (
        torch.arange(min(n, FINGERPRINT_ROWS), dtype=torch.int64, device="cpu")
        * n
        // min(n, FINGERPRINT_ROWS)
    )
    return digest({"rows": source.take(index).cpu()})


def lock(folder: Path) -> Callable[[], None]:
    """Make the folder, and let no other process train in it until the returned function is called or this one ends.

    Raises:
        InputError: another process does; a file is there.
        OSError: it cannot be made.
    """
    check(folder.is_dir() or not folder.exists(), f"out: expected a folder, {folder} is a file")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl  # here, because Windows has none
    except ImportError:
        return lambda: None
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise InputError(
            f"out: expected a folder that no other process trains in, {folder} is in use"
        ) from None
    except OSError:  # a file system without locks
        pass
    return lambda: os.close(handle)
