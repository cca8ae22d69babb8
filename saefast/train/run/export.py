"""The SAE of a checkpoint: the bits that a run which is stopped there writes, for one that was killed or still goes on."""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from saefast import formats
from saefast.errors import InputError, check
from saefast.formats.contents import Contents, Origin, source_metadata
from saefast.sae import SAE
from saefast.train.memory import first_dtype, out_of_memory_help
from saefast.train.run import checkpoint, run_folder
from saefast.train.stepper import Stepper


class Exported(NamedTuple):
    folder: Path
    step: int
    of: int  # steps of the whole run


def export_checkpoint(run: str | Path, out: str | Path | None = None) -> Exported:
    """Write the SAE of RUN/checkpoint.safetensors, on the CPU.

    Args:
        run: a run folder.
        out: a folder, made if it does not exist; None: the run folder.

    Raises:
        InputError: no run or no checkpoint, a damaged one; `out` holds an SAE, or is a run that is being trained.
        OSError: `out` cannot be written.
    """
    run = Path(run)
    out = run if out is None else Path(out)
    check(
        run.is_dir(), f"run: expected a run folder, found {'a file' if run.exists() else 'nothing'} at {run}"
    )
    path = run / checkpoint.CHECKPOINT
    check(
        path.exists(), f"run: {run} has no {checkpoint.CHECKPOINT}: the run was stopped before the first one"
    )
    fields = run_folder.read(run)
    sae_config, config = run_folder.configs_of(fields, run / run_folder.RUN)
    # what the weights are does not depend on what runs a step
    config = replace(config, backend="auto", cuda_graph=False, rescore=0)
    tensors, _ = checkpoint.read(run)
    with out_of_memory_help(sae_config, config):
        sae = SAE(sae_config, 0, "cpu", first_dtype(config))
        if (kept := tensors.get("params.b_dec")) is not None and kept.dtype == torch.float64:
            sae, config = sae.double(), replace(config, backend="reference")
        trainer = Stepper(sae, config)
    (trainer.input_scale, trainer.output_scale), tensors, *_ = checkpoint.load(
        run, trainer.state, fields["key"]
    )
    trainer.load_tensors(tensors)
    sae.metadata = source_metadata(fields["source"]) | fields["metadata"]
    try:
        sae.origin = Origin(**fields["origin"]) if fields["origin"] else None
    except TypeError as error:
        raise InputError(f"{run / run_folder.RUN}: origin: expected that of an SAE, got {error}") from None
    if out.resolve() == run.resolve():
        release = run_folder.lock(run)
        try:
            sae.save_pretrained(run, trainer.exported())
        finally:
            release()
    else:
        free = not out.exists() or (out.is_dir() and not any(out.iterdir()))
        check(free, f"out: expected a new folder, {out} exists and nothing is overwritten")
        formats.save(Contents(sae_config, trainer.exported(), sae.metadata, sae.origin), out, "saefast")
    return Exported(out, trainer.state.step, config.total_steps)
