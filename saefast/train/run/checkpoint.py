"""The run folder: one atomic checkpoint that holds everything, the metrics, the config.

RUN/run.json                 the two configs, the source, versions, see `saefast.train.run.run_folder`
RUN/checkpoint.safetensors   the latest state of training: `--resume` goes on from it, bit for bit
RUN/metrics.jsonl            one line per log step
RUN/sae.safetensors, config.json   the SAE (`SAE.from_pretrained(RUN)`), written at the end and when the run is stopped
RUN/curves.png               plots, written at the end

The SAE in the folder is always that of the checkpoint: while a run goes on there is none. `saefast export-checkpoint` makes
the SAE of any checkpoint (`saefast.train.run.export`).
"""

import logging
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from saefast.activations.buffer import ShuffleBuffer
from saefast.engine.state import State
from saefast.errors import InputError, check
from saefast.files import load_tensors, save_tensors
from saefast.train.run import run_folder

log = logging.getLogger("saefast")

CHECKPOINT, METRICS = "checkpoint.safetensors", "metrics.jsonl"


def check_new(folder: Path, resume: bool) -> None:
    """Raise InputError if there is something in the folder, and resume is False."""
    new = resume or not folder.is_dir() or not any(folder.iterdir())
    check(new, f"out: expected a new folder, {folder} exists; go on with --resume or choose another")


def open_run(
    folder: Path, now: dict[str, Any], resume: bool, bytes_needed: int
) -> tuple[bool, run_folder.Described]:
    """Begin a run in the folder, or check that `resume` fits what it holds. Whether there is a checkpoint to go on from, and
    what the folder describes.

    now: what `run_folder.describe` says of the run that is to begin or to go on.

    Raises:
        InputError: the folder exists and resume is False; a config differs from the run's; too little disk space.
        OSError: the folder cannot be written.
    """
    check_new(folder, resume)
    started = (folder / CHECKPOINT).exists()
    if started:
        described = run_folder.compare(folder, run_folder.read(folder), now)
        if not described.id:  # of a run before runs had one
            described.fields["id"] = now["id"]
            run_folder.write(folder, described.fields)
    else:  # a new run, or one that was stopped before its first checkpoint
        run_folder.write(folder, now)
        described = run_folder.Described(now, {})
    free = shutil.disk_usage(folder).free
    check(
        free > bytes_needed,
        f"out: {folder} needs {bytes_needed / 1e9:.2f} GB of disk, {free / 1e9:.2f} GB are free",
    )
    return started, described


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
) -> None:
    """Replace the checkpoint atomically. tensors: of the trainer, with those of its state."""
    tensors = dict(tensors)
    buffer_tensors, buffer_numbers = buffer.state_dict()
    tensors |= {f"buffer.{name}": tensor for name, tensor in buffer_tensors.items()}
    meta = {
        "step": state.step,
        "fired_tokens": state.fired_tokens,
        "dead_capacity": state.dead_capacity,
        "dense": state.dense,
        "input_scale": scales[0],
        "output_scale": scales[1],
        "buffer": buffer_numbers,
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


def load(folder: Path, state: State) -> Loaded:
    """Restore `state` (in place, on its device) from the checkpoint."""
    path = folder / CHECKPOINT
    tensors, meta, _ = load_tensors(path)
    for name, target in state.tensors().items():
        found = (list(tensors[name].shape), tensors[name].dtype) if name in tensors else None
        expected = (list(target.shape), target.dtype)
        if found != expected:
            raise InputError(f"{path}: {name}: expected shape and dtype {expected}, got {found}")
        target.copy_(tensors[name])
    state.step, state.fired_tokens = meta["step"], meta["fired_tokens"]
    state.dead_capacity = meta.get("dead_capacity", 0)  # 0.1.0 before the GPU engine had none
    state.dense = meta.get("dense", False)  # 0.1.0 had TopK only
    state.refresh()
    prefix = "buffer."
    buffer_tensors = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    return Loaded(
        (meta["input_scale"], meta.get("output_scale", 1.0)), tensors, (buffer_tensors, meta["buffer"])
    )
