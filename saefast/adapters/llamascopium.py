"""llamascopium's `Trainer`, with the engine behind its training step: the line that changes is the import.

    from saefast.adapters.llamascopium import Trainer      # was: from llamascopium import Trainer

or, for a run described by settings, `from saefast.adapters.llamascopium import train_sae`. All of `fit` is
the stock code: schedules, normalisation, checkpoints, evaluation. Where it calls `sae.compute_loss` to train,
the engine makes the whole step, the update with it, on memory that both share: parameters, Adam's moments,
counts of dead latents. So a stock step is possible at any time; a step whose metrics are logged is one.

A recipe that the engine does not have is trained by the stock code, with a warning; what that is, and what
differs, is in docs/drop-in/llamascopium.md. Of llamascopium 2.0.0b34.
"""

import logging
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from saefast.adapters.linked import Linked, during, replace
from saefast.adapters.llamascopium_recipe import link, unsupported
from saefast.engine.plan import CPU_DENSITY
from saefast.errors import check

try:
    from llamascopium import metrics as stock_metrics
    from llamascopium.runners import train as runner
    from llamascopium.trainer import Trainer as StockTrainer
except ImportError as error:
    raise ImportError(
        f"saefast.adapters.llamascopium: expected llamascopium, install it with `pip install llamascopium "
        f"'transformer-lens<4'` (importing it failed: {error})"
    ) from error

__all__ = ["Trainer", "patched", "train_sae"]
log = logging.getLogger("saefast")


class Trainer(StockTrainer):
    """`llamascopium.trainer.Trainer`. Afterwards the SAE and the optimizer are as after a stock run."""

    tokens_since_last_activation: Tensor | None
    _engine: Linked | None = None
    _in_use = False  # the engine knows the recipe
    _stepped = False  # the engine has made the step of this iteration
    _hook: Any = None  # of the optimizer

    def fit(self, sae: Any, *args: Any, **kwargs: Any) -> bool | None:
        """As the stock trainer.

        Raises:
            InputError: NaN or Inf in the activations, or a batch without tokens, with which the stock code
                would go on; another optimizer than its own.
        """
        reason = unsupported(sae, self.cfg)
        if reason is not None:
            log.warning(f"llamascopium: the stock code trains, without the engine: {reason}")
        self._in_use = reason is None
        try:
            found: bool | None = super().fit(sae, *args, **kwargs)
            return found
        finally:
            self._release()

    def _training_step(self, sae: Any, batch: dict[str, Tensor]) -> dict[str, Any]:
        """Its schedules decide on k and the coefficients, and it calls `sae.compute_loss`, for now ours."""
        ours = {"compute_loss": partial(self._loss, sae, sae.compute_loss)} if self._in_use else {}
        with during(partial(replace, sae, **ours)):
            found: dict[str, Any] = super()._training_step(sae, batch)
            return found

    def _loss(self, sae: Any, stock: Any, batch: dict[str, Tensor], **options: Any) -> dict[str, Any]:
        """The losses of a step of the engine, already made; or of the stock code, whose step is to follow."""
        if self._engine is None or not self._engine.is_linked:
            self._take(sae, batch)
        engine, counts = self._engine, self.tokens_since_last_activation
        assert engine is not None
        engine.follow()
        if counts is not None:  # a stock step puts a new tensor there
            self.tokens_since_last_activation = engine.shared_counts(counts)
        if self._is_for_the_stock_code(sae, batch, engine):
            found: dict[str, Any] = stock(batch, **options)
            return found
        engine.lr_now = self.optimizer.param_groups[0]["lr"]
        engine.sparsity_now = options["l1_coefficient"]
        engine.k_now = sae.current_k if engine.sae.config.k else None
        metrics = engine.step(*_tokens(batch, sae.cfg.hook_point_in, sae.cfg.hook_point_out))
        config, aux = engine.config, engine.config.auxk_alpha * metrics.auxk_loss
        self._stepped = True
        sae.b_E.grad = torch.zeros_like(sae.b_E)  # `fit` wants the norm of some gradient before the update
        return {
            "loss": metrics.loss.clone().requires_grad_(),  # for its `backward`
            "l_rec": metrics.loss - metrics.penalty - aux,
            "l_s": metrics.penalty if config.penalty != "none" and config.preact == "none" else None,
            "l_p": metrics.penalty if config.penalty == "none" and config.preact != "none" else None,
            "l_aux": aux if config.auxk_alpha else None,
            "explained_variance": 1 - metrics.fvu,
        }

    def _is_for_the_stock_code(self, sae: Any, batch: dict[str, Tensor], engine: Linked) -> bool:
        is_logged = (self.cur_step + 1) % self.cfg.log_frequency == 0 or not self.metrics
        if is_logged and not self.cfg.skip_metrics_calculation:
            return True
        if engine.sae.config.k is None:
            return False
        k, most = sae.current_k, CPU_DENSITY[0] * sae.cfg.d_sae
        if k != sae.cfg.top_k and (engine.on_gpu or k > most):  # each k is a graph of its own; or dense
            return True
        if engine.sae.config.activation == "topk":
            return False
        mask, n_tokens = batch.get("mask"), batch[sae.cfg.hook_point_in].shape[:-1].numel()
        if mask is not None and not mask.all():  # such tokens are left out of the loss, not of the choice
            return True
        return bool(engine.config.auxk_alpha) and engine.dead_room(n_tokens) > self.cfg.k_aux

    def _take(self, sae: Any, batch: dict[str, Tensor]) -> None:
        """Make the engine around `sae` and the optimizer as they are."""
        self._release()
        ok, got = type(self.optimizer) is torch.optim.Adam, type(self.optimizer).__name__
        check(ok, f"optimizer: expected the torch.optim.Adam that llamascopium makes, got {got}")
        same_shapes = batch[sae.cfg.hook_point_in].ndim == 2
        self._engine = link(sae, self.cfg, self.optimizer, graph=same_shapes)
        self._engine.save_contiguous()

        def no_gradients(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
            if self._stepped:
                optimizer.zero_grad()  # so that its step changes nothing
            self._stepped = False

        self._hook = self.optimizer.register_step_pre_hook(no_gradients)

    def _release(self) -> None:
        if self._engine is not None:
            self._hook.remove()
            self._engine.release()
        self._engine, self._hook, self._stepped = None, None, False

    @torch.no_grad()
    def _log(self, sae: Any, ctx: dict[str, Any]) -> None:
        """The stock code logs what it computed itself. Of the steps in between it gets what the engine
        counts: losses, explained variance, L0, how often each latent was active."""
        if "feature_acts" in ctx:
            if self._engine is not None and self.metrics:
                self._tell(self._engine)
            super()._log(sae, ctx)
            return
        for metric in self.metrics:
            if isinstance(metric, stock_metrics.LossMetric):
                metric.update(ctx)
            elif isinstance(metric, stock_metrics.ExplainedVarianceMetric):
                metric.explained_variance.update(ctx["explained_variance"])

    def _tell(self, engine: Linked) -> None:
        state = engine.state
        for metric in self.metrics if state.fired_tokens else []:
            if isinstance(metric, stock_metrics.FrequencyMetric):
                metric.act_freq_scores.update(state.fired.float(), state.fired_tokens)
            elif isinstance(metric, stock_metrics.L0Metric):
                metric.l0.update(state.fired.sum().float(), state.fired_tokens)
        state.fired.zero_()
        state.fired_tokens = 0


def _tokens(batch: dict[str, Tensor], into: str, out: str) -> tuple[Tensor, Tensor | None]:
    """The input [n, d_model] fp32 of the tokens that `mask` keeps, and what it is to become where that is another."""
    parts = [batch[name].flatten(0, -2).float() for name in ([into] if into == out else [into, out])]
    if (mask := batch.get("mask")) is not None:
        kept = mask.flatten().bool()
        check(bool(kept.any()), "mask: expected at least one token, got none")
        parts = [part[kept] for part in parts]
    return parts[0], parts[1] if into != out else None


def patched() -> AbstractContextManager[None]:
    """Inside, llamascopium's runners (`train_sae`, the sweeps) use the `Trainer` of this module."""
    return during(partial(replace, runner, Trainer=Trainer))


def train_sae(settings: Any) -> None:
    """`llamascopium.train_sae`, with the `Trainer` of this module."""
    with patched():
        runner.train_sae(settings)
