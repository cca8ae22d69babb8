"""The run folder: one atomic checkpoint that holds everything, the metrics, the config.

RUN/run.json                 the two configs, the source, versions
RUN/checkpoint.safetensors   the latest state of training: `--resume` goes on from it, bit for bit
RUN/metrics.jsonl            one line per log step
RUN/sae.safetensors, config.json   the trained SAE (`SAE.from_pretrained(RUN)`), written at the end
RUN/curves.png               plots, written at the end
"""

import json
import logging
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import saefast
from saefast.activations.buffer import ShuffleBuffer
from saefast.config.train import SAEConfig, TrainConfig
from saefast.engine.state import State
from saefast.errors import InputError, check
from saefast.files import load_tensors, read_json, save_tensors, write_atomic, write_json

log = logging.getLogger("saefast")

MAY_CHANGE = ("nonfinite", "checkpoint_every", "loggers")  # on resume: nothing already done depends on them
RUN, CHECKPOINT, METRICS = "run.json", "checkpoint.safetensors", "metrics.jsonl"


def open_run(
    folder: Path, sae: SAEConfig, train: TrainConfig, source: dict[str, Any], resume: bool, bytes_needed: int
) -> bool:
    """Make the run folder, or check that `resume` fits what it holds; True if there is a checkpoint to go on from.

    source: what the batches depend on: the source's description, the seed of the shuffling, the columns taken.

    Raises:
        InputError: the folder exists and resume is False; a config differs from the run's; too little disk space.
        OSError: the folder cannot be written.
    """
    # through JSON, so that tuples compare with what was read back
    configs = json.loads(json.dumps({"sae": asdict(sae), "train": asdict(train)}))
    described = {
        "source": json.loads(json.dumps(source)),
        "versions": {"saefast": saefast.__version__, "torch": torch.__version__},
        "threads": torch.get_num_threads(),  # matrix products differ in the last bit between thread counts
    }
    if folder.exists() and any(folder.iterdir()):
        check(resume, f"out: expected a new folder, {folder} exists; go on with --resume or choose another")
    started = (folder / CHECKPOINT).exists()
    if started:
        found = read_json(folder / RUN)
        found["source"] = {"seed": found["train"]["seed"], "columns": None} | found["source"]  # older runs
        for part, fields in configs.items():
            for name, value in fields.items():
                if name in MAY_CHANGE or name not in found.get(part, {}):  # an option younger than the run
                    continue
                was = found[part][name]
                check(was == value, f"{name}: the run in {folder} was started with {was!r}, got {value!r}")
        for name, value in described["source"].items():
            was = found["source"].get(name)
            same = was == value or name == "path"  # a folder may move
            check(same, f"source: the run in {folder} was started with {name} = {was!r}, got {value!r}")
        if found["threads"] != described["threads"]:
            log.warning(
                f"the run was started with {found['threads']} threads, now there are {described['threads']}: "
                "it goes on, but not to the same bits"
            )
    else:  # a new run, or one that was stopped before its first checkpoint
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / RUN, configs | described)
    free = shutil.disk_usage(folder).free
    check(
        free > bytes_needed,
        f"out: {folder} needs {bytes_needed / 1e9:.2f} GB of disk, {free / 1e9:.2f} GB are free",
    )
    return started


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


def truncate_metrics(folder: Path, step: int) -> None:
    """Drop the lines after `step` (and a half-written last one): the resumed run writes them again."""
    path = folder / METRICS
    kept = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            fields: dict[str, Any] = json.loads(line)
        except json.JSONDecodeError:
            break
        if fields["step"] > step:
            break
        kept.append(line + "\n")
    write_atomic(path, lambda temporary: temporary.write_text("".join(kept)))
