"""The run folder: one atomic checkpoint that holds everything, the metrics, the config.

RUN/run.json                 the two configs, the source, versions, see `saefast.train.run.run_folder`
RUN/checkpoint.safetensors   the latest state of training: `--resume` goes on from it, bit for bit
RUN/metrics.jsonl            one line per log step
RUN/sae.safetensors, config.json   the SAE (`SAE.from_pretrained(RUN)`), written at the end and when the run is stopped
RUN/curves.png               plots, written at the end

The SAE in the folder is always that of the checkpoint: while a run goes on there is none. `saefast export-checkpoint` makes
the SAE of any checkpoint (`saefast.train.run.export`).
"""

import shutil
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from saefast.activations.buffer import ShuffleBuffer
from saefast.engine.state import State
from saefast.errors import InputError, check
from saefast.files import load_tensors, save_tensors
from saefast.formats import saefast as own_format
from saefast.train.run import run_folder
from saefast.train.run.loggers import Curve

CHECKPOINT, METRICS = "checkpoint.safetensors", "metrics.jsonl"
# 0.1.0 before the GPU engine had no dead_capacity, and TopK only
OLD: dict[str, Any] = {"dead_capacity": 0, "dead_ahead": None, "dense": False, "output_scale": 1.0}
KINDS: dict[str, Any] = {
    "step": int,
    "fired_tokens": int,
    "dead_capacity": int,
    "dead_ahead": int | None,
    "dense": bool,
    "buffer": dict,
}
KINDS |= {"input_scale": float, "output_scale": float}


def check_new(folder: Path, resume: bool) -> None:
    """Raise InputError if there is something in the folder, and resume is False."""
    new = resume or not folder.is_dir() or not any(folder.iterdir())
    check(new, f"out: expected a new folder, {folder} exists; go on with --resume or choose another")


def open_run(
    folder: Path, now: dict[str, Any], resume: bool, bytes_needed: int, lines: list[dict[str, Any]]
) -> tuple[bool, run_folder.Described]:
    """Check that a run can begin in the folder, or that `resume` fits what it holds. Whether there is a checkpoint to go on
    from, and what is to be in run.json. Nothing is written.

    now: what `run_folder.describe` says of the run that is to begin or to go on. lines: of metrics.jsonl.

    Raises:
        InputError: the folder exists and resume is False; a config differs from the run's; its checkpoint is gone; too
            little disk space.
    """
    check_new(folder, resume)
    started = (folder / CHECKPOINT).exists()
    if started:
        described = run_folder.compare(folder, run_folder.read(folder), now)
    else:  # a new run, or one that was stopped before its first checkpoint
        check_had_none(folder, lines)
        described = run_folder.Described(now, {}, unwritten=True)
    free = shutil.disk_usage(folder).free
    check(
        free > bytes_needed,
        f"out: {folder} needs {bytes_needed / 1e9:.2f} GB of disk, {free / 1e9:.2f} GB are free",
    )
    return started, described


def check_had_none(folder: Path, lines: list[dict[str, Any]]) -> None:
    """Raise InputError if a folder without a checkpoint is not that of a run that was stopped before its first one: a run
    from the beginning would delete what there is. lines: of its metrics.jsonl."""
    saved = [name for name in (own_format.WEIGHTS, own_format.CONFIG) if (folder / name).exists()]
    if lines:  # the first checkpoint comes right after the line of its step
        every = run_folder.read(folder)["train"].get("checkpoint_every")
        saved += [METRICS] if not isinstance(every, int) or lines[-1]["step"] > every else []
    missing = f"out: expected {CHECKPOINT} beside {', '.join(saved)} in {folder}, found none"
    check(not saved, f"{missing}; restore it, or begin in another folder")


def bytes_needed(state: State, buffer: ShuffleBuffer, averages: int = 0) -> int:
    """averages: how many more copies of the weights a checkpoint has. Disk for two checkpoints (the new one is whole before the old one goes) and the exported SAE in fp32."""
    exported = 4 * sum(tensor.numel() for tensor in state.params)
    saved = sum(tensor.nbytes for tensor in state.tensors().values()) + averages * exported
    row = 8 if buffer.source.random_access else 8 + 4 * buffer.source.d_in
    return 2 * (saved + row * buffer.capacity) + exported + 2**20


def save(
    folder: Path,
    state: State,
    tensors: dict[str, Tensor],
    scales: tuple[float, float],
    buffer: ShuffleBuffer,
    key: str | None,
    curve: Curve,
) -> None:
    """Replace the checkpoint atomically. tensors: of the trainer, with those of its state. key: of run.json. curve: the
    lines of metrics up to here."""
    tensors = dict(tensors)
    buffer_tensors, buffer_numbers = buffer.state_dict()
    tensors |= {f"buffer.{name}": tensor for name, tensor in buffer_tensors.items()}
    meta = {
        "step": state.step,
        "fired_tokens": state.fired_tokens,
        "dead_capacity": state.dead_capacity,
        "dead_ahead": state.dead_ahead,
        "dense": state.dense,
        "input_scale": scales[0],
        "output_scale": scales[1],
        "buffer": buffer_numbers,
        "key": key,
        "curve": list(curve),
    }
    try:
        save_tensors(folder / CHECKPOINT, tensors, meta)
    except Exception as error:  # safetensors raises its own class for a full disk
        kept = "the previous one is intact" if (folder / CHECKPOINT).exists() else "there is no previous one"
        raise OSError(
            f"{folder / CHECKPOINT}: could not be written at step {state.step} ({error}); {kept}"
        ) from error


class Loaded(NamedTuple):
    """What a checkpoint holds besides the state."""

    scales: tuple[float, float]  # of input and output
    tensors: dict[str, Tensor]  # all of them
    buffer: tuple[dict[str, Tensor], dict[str, Any]]  # for its load_state_dict
    curve: Curve | None  # None: of a run before checkpoints had it


def read(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and numbers of the checkpoint.

    Raises:
        InputError: it is missing, any bit of it is wrong, or it is another file; the message names it.
    """
    path = folder / CHECKPOINT
    tensors, meta, _ = load_tensors(path)
    fits = isinstance(meta, dict)
    if fits:
        meta = OLD | meta
        fits = all(isinstance(meta.get(name), kind) for name, kind in KINDS.items()) and meta["step"] >= 0
    check(fits, f"{path}: expected the checkpoint of a run, got another file of saefast")
    return tensors, meta


def load(folder: Path, state: State, key: str | None) -> Loaded:
    """Restore `state` (in place, on its device) from the checkpoint. key: of run.json, the same in all checkpoints of a run.

    Raises:
        InputError: see `read`; it is of another run.
    """
    path = folder / CHECKPOINT
    tensors, meta = read(folder)
    same = key is None or meta.get("key", key) == key
    check(
        same, f"{path}: expected a checkpoint of the run of {folder / run_folder.RUN}, got one of another run"
    )
    targets = state.tensors()
    for name, target in targets.items():
        found = (list(tensors[name].shape), tensors[name].dtype) if name in tensors else None
        expected = (list(target.shape), target.dtype)
        if found != expected:
            raise InputError(f"{path}: {name}: expected shape and dtype {expected}, got {found}")
    for name, target in targets.items():
        target.copy_(tensors[name])
    state.step, state.fired_tokens = meta["step"], meta["fired_tokens"]
    state.dead_capacity, state.dead_ahead, state.dense = (
        meta[name] for name in ("dead_capacity", "dead_ahead", "dense")
    )
    state.refresh()
    prefix = "buffer."
    buffer_tensors = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    scales, curve = (meta["input_scale"], meta["output_scale"]), meta.get("curve")
    return Loaded(scales, tensors, (buffer_tensors, meta["buffer"]), None if curve is None else Curve(*curve))
