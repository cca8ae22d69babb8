"""SAELens: its trainer with the steps of our engine.

    from saefast.adapters.sae_lens import SAETrainer        in place of sae_lens's

    with saefast.adapters.sae_lens.patched():               or for the runners, which make their own trainer
        LanguageModelSAETrainingRunner(cfg).run()

Schedules, statistics, logging, checkpoints and the saved SAE are SAELens's own code; see docs/drop-in/sae_lens.md.
Written for and tested with sae-lens 6.54.12.
"""

import logging
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from sae_lens.saes.sae import T_TRAINING_SAE, T_TRAINING_SAE_CONFIG
from sae_lens.training.sae_trainer import SAETrainer as Stock
from torch import Tensor

from saefast.adapters.linked import during
from saefast.adapters.sae_lens_engine import Engine, StepOutput
from saefast.adapters.sae_lens_recipe import recipe, unusual
from saefast.errors import InputError

__all__ = ["SAETrainer", "patch", "patched"]
STEPS_BETWEEN_BAR_UPDATES = 100  # of SAELens's progress bar, which shows the losses
log = logging.getLogger("saefast")


class SAETrainer(Stock[T_TRAINING_SAE, T_TRAINING_SAE_CONFIG]):
    """`sae_lens.SAETrainer` (same arguments, `fit`, `step`), with the steps of our engine.

    What the engine cannot do exactly as SAELens is done by SAELens's own step, and said once in a warning of the logger
    "saefast". While it trains, `sae.W_enc` is a transposed view of our memory; `state_dict()` and everything that is
    saved are contiguous, and so is the SAE that `fit` returns.

    What a step returns holds `sae_in`, `loss`, `metrics` and, but for Matryoshka and JumpReLU with "tanh" and a
    pre-activation loss, `losses`. `losses`, `sae_out` and `feature_acts` are all kept in the steps that are logged to
    wandb and in every 100th. In the others reading them is an AttributeError, unless `full_output` is True.

    Attributes:
        full_output: keep everything that SAELens's step returns, in every step: costs another forward pass, and
            `hidden_pre` a matrix [B, d_sae].
    """

    full_output = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._engine: Engine | None = None
        self._refused: str | None = None
        self._said: set[str] = set()

    def fit(self) -> Any:
        """As SAELens's."""
        try:
            return super().fit()
        finally:
            self._release()

    def _train_step(self, sae: Any, sae_in: Tensor) -> Any:
        engine = self._engine_for(sae_in)
        if engine is None:
            return super()._train_step(sae, sae_in)
        sae.train()
        rows = sae_in.detach().to(sae.dtype)
        sparsity = next(iter(self.get_coefficients().values()), 0.0)  # there is at most one
        engine.prepare(self.optimizer.param_groups[0]["lr"], sparsity, self.n_forward_passes_since_fired)
        known: dict[str, Any] = {"sae_in": sae_in}
        seen = None
        shown = (self.n_training_steps + 1) % STEPS_BETWEEN_BAR_UPDATES == 0
        if self.full_output or shown or self._is_logging_step():
            seen = engine.see(rows)
            known |= {"sae_out": seen.sae_out, "feature_acts": seen.feature_acts}
        if self.full_output:
            known["hidden_pre"] = engine.hidden_pre(rows)

        metrics = engine.step(rows, checked=True)
        engine.move_threshold()
        fired = engine.state.fired
        self.n_forward_passes_since_fired += 1
        self.n_forward_passes_since_fired.masked_fill_(fired > 0, 0)
        self.act_freq_scores += fired
        self.n_frac_active_samples += self.cfg.train_batch_size_samples
        self.optimizer.zero_grad()
        self.optimizer.step()  # there is no gradient: it moves nothing, but the schedulers see that it was called
        self.lr_scheduler.step()
        for scheduler in self.coefficient_schedulers.values():
            scheduler.step()

        losses = engine.losses(metrics, seen)
        if losses is not None:
            known["losses"] = losses
        threshold = getattr(sae, "topk_threshold", None)
        more = {} if threshold is None else {"topk_threshold": threshold}
        return StepOutput(loss=metrics.loss, metrics=more, **known)

    def _engine_for(self, sae_in: Tensor) -> Engine | None:
        """None: this step is SAELens's."""
        linked = self._engine is not None and self._engine.is_linked
        options = None
        if not linked and self._refused is None:
            try:
                options = recipe(self.sae, self.cfg, self.optimizer)
            except InputError as error:
                self._refused = str(error)
        reason = self._refused or unusual(self.sae, sae_in)
        if reason is None:
            if options is not None:
                self._release()
                self._engine = Engine(self.sae, self.optimizer, *options)
                self._engine.save_contiguous()
            return self._engine
        if reason not in self._said:
            self._said.add(reason)
            log.warning(f"SAELens's own step is used, not saefast's: {reason}")
        return None

    def _release(self) -> None:
        """The SAE becomes an ordinary one again."""
        if self._engine is not None:
            self._engine.release()
        self._engine = None


def _replace(old: type, new: type) -> None:
    """In every module of SAELens that was imported."""
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] == "sae_lens" and vars(module).get("SAETrainer") is old:
            module.SAETrainer = new  # type: ignore[attr-defined]


def patch() -> Callable[[], None]:
    """Until the returned function is called, SAELens's runners (`LanguageModelSAETrainingRunner`,
    `MultiSAETrainingRunner`, those of synthetic data) make `SAETrainer` of this module."""
    _replace(Stock, SAETrainer)
    return lambda: _replace(SAETrainer, Stock)


def patched() -> AbstractContextManager[None]:
    """`patch` for the length of a with statement."""
    return during(patch)
