"""The trainer: `step(x)` for one batch, `fit(source)` for a whole run."""

import logging
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from saefast.config.compatible import check_acts, unreached
from saefast.config.train import TrainConfig
from saefast.errors import check
from saefast.sae import SAE
from saefast.train import loop
from saefast.train.stepper import Stepper

log = logging.getLogger("saefast")


class Trainer(Stepper):
    """Trains `sae` in place: `step(x)` for one batch, `fit(source)` for a whole run.

    Args:
        sae: on the device where training is to happen, fp32 (fp64 works with the reference backend). With
            another param_dtype than "fp32" its weight matrices become bf16.
        config: see `TrainConfig`.

    Raises:
        InputError: the backend cannot run here; too little memory; an option of another architecture, or one that has
            no effect here.
    """

    def __init__(self, sae: SAE, config: TrainConfig) -> None:
        super().__init__(sae, config)
        check_acts(sae.config, self.config)
        ok, got = self.compute_dtype.itemsize == 2, f"{config.rescore} with {self.compute_dtype}"
        check(ok or not config.rescore, f"rescore: expected 0 without 16-bit products, got {got}")
        if sae.config.scale_by_norm and self.config.unit_norm and sae.config.layers == 1:
            fresh = sae.W_enc.shape == sae.W_dec.shape and torch.equal(sae.W_enc, sae.W_dec)
            check(not fresh, "scale_by_norm: expected False with unit_norm True (all norms are 1), got True")

    def fit(
        self, source: Iterable[Tensor] | Tensor, out: str | Path | None = None, resume: bool = False
    ) -> bool:
        """Train for `config.total_tokens` on a source: any iterable of tensors [n, d_in] (see `saefast.activations.sources`); for a
        transcoder [n, d_in + d_out], the target behind the input.

        Args:
            out: run folder for checkpoints, metrics, the trained SAE and its curves (see `saefast.train.run.checkpoint`).
                None writes nothing.
            resume: go on from the checkpoint in `out` if there is one; the result is the same bits as a run that
                was never interrupted (same machine, same number of threads). With another `total_tokens` or `lr` the new
                schedule holds from there on, and a warning says what that changes; `saefast.train.run.run_folder` says what
                else may differ.

        Returns:
            True if complete; False if SIGTERM or Ctrl-C stopped it, after saving checkpoint and SAE, or the source ended.

        Raises:
            InputError: the source or the folder do not fit; NaN or Inf in the data; the loss diverged.
            OSError: `out` cannot be written. The last checkpoint is intact in every case.
        """
        ok = out is not None or not self.config.loggers
        check(ok, f"loggers: expected () without a run folder in `out`, got {self.config.loggers}")
        for line in unreached(self.config):
            log.warning(line)
        return loop.fit([self], source, [out], resume)
