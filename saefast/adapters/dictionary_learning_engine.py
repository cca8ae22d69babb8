"""What the trainers of `saefast.adapters.dictionary_learning` share: `update` on the engine, and the memory they share
with the stock code."""

import logging
from typing import Any

import torch
from torch import Tensor

from saefast.adapters.linked import COMPUTE_DTYPES, Linked
from saefast.config.sae import SAEConfig
from saefast.config.train import TrainConfig
from saefast.errors import check

try:
    from dictionary_learning.trainers.trainer import ConstrainedAdam
except ImportError as error:
    raise ImportError(
        "saefast.adapters.dictionary_learning: expected dictionary_learning, install it with "
        f"`pip install dictionary-learning` (importing it failed: {error})"
    ) from error

OVERRIDABLE = ("loss", "get_auxiliary_loss", "update_threshold")  # methods in whose place the engine acts
log = logging.getLogger("saefast")


class OnEngine:
    """In front of a stock trainer among the bases: its `update`, and what the engine has to know of it."""

    _stock: Any  # the stock trainer
    _dictionary: Any  # its class of `ae`
    _names: dict[str, str]  # of the parameters of `ae`, see `Linked`
    _weight: str | None = None  # the attribute that is the weight of the penalty
    _engine: Linked | None = None
    _warned: frozenset[str] = frozenset()

    ae: Any
    optimizer: Any
    scheduler: Any
    sparsity_warmup_fn: Any
    num_tokens_since_fired: Tensor

    def _architecture(self) -> dict[str, Any]:
        """Options of SAEConfig."""
        raise NotImplementedError

    def _recipe(self) -> dict[str, Any]:
        """Options of TrainConfig; asked for at every step, for attributes of a trainer may be set."""
        raise NotImplementedError

    def _stock_because(self) -> str | None:
        """Why this step must be a stock one, or None."""
        ae, optimizer, kind = self.ae, self.optimizer, type(self)
        if type(ae) is not self._dictionary:
            return f"dict_class is {type(ae).__name__}, not {self._dictionary.__name__}"
        for name in OVERRIDABLE:
            if name in vars(self) or getattr(kind, name, None) is not getattr(self._stock, name, None):
                return f"{name} is not that of dictionary_learning"
        group, *others = optimizer.param_groups
        if type(optimizer) not in (torch.optim.Adam, ConstrainedAdam) or others:
            return "the optimizer is not that of dictionary_learning"
        if group["weight_decay"] or group["amsgrad"] or group["maximize"]:
            return "the optimizer has options that dictionary_learning does not set"
        if any(param.dtype != torch.float32 for param in ae.parameters()):
            return "parameters are not fp32"
        return None

    def update(self, step: int, x: Tensor) -> float | Tensor | None:
        """One training step on x [B, activation_dim] of any float dtype and device, B > 0; `step` counts from 0.

        Returns:
            The loss before the update: a float on a CPU; a 0-dimensional tensor on a GPU, which nothing waits for. A
            stock step returns what it returns.

        Raises:
            InputError: wrong shape, an empty batch, NaN or Inf in x (on a GPU: at a later call).
        """
        reason = self._stock_because()
        if reason is not None and reason not in self._warned:
            self._warned |= {reason}
            log.warning(f"{type(self).__name__}: step {step} and others alike are stock steps: {reason}")
        if reason is None:
            width = self.ae.activation_dim
            check(x.ndim == 2 and x.shape[1] == width, f"x: expected [B, {width}], got {list(x.shape)}")
        if reason is not None or self._engine is None or step == 0 or not self.optimizer.state:
            return self._stock_step(step, x, reason is None)
        engine = self._current(self._engine)
        engine.follow()
        if hasattr(self, "num_tokens_since_fired"):
            self.num_tokens_since_fired = engine.shared_counts(self.num_tokens_since_fired)
        engine.lr_now = self.optimizer.param_groups[0]["lr"]
        if self._weight is not None:
            engine.sparsity_now = getattr(self, self._weight) * self.sparsity_warmup_fn(step)
        metrics = engine.step(x.to(self._device, torch.float32))
        self._finish(step, x, engine)
        return metrics.loss if engine.on_gpu else float(metrics.loss)

    def _finish(self, step: int, x: Tensor, engine: Linked) -> None:
        """What follows the optimizer's step."""
        self.scheduler.step()

    def _stock_step(self, step: int, x: Tensor, ours: bool) -> float | None:
        """ours: the engine could do this step too, and the next one."""
        loss: float | None = super().update(step, x)  # type: ignore[misc]
        self.optimizer.zero_grad()  # trainers that begin with it would keep the gradients
        if self._engine is None and ours:
            self._engine = self._make()
        return loss

    @property
    def _device(self) -> torch.device:
        device: torch.device = self.ae.get_parameter(self._names["b_dec"]).device
        return device

    def _options(self) -> dict[str, Any]:
        """All options of TrainConfig. Products are in the format in which autocast would have them."""
        group, kind = self.optimizer.param_groups[0], self._device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
        options = {
            "total_tokens": 1,
            "loss": "mse",
            "normalize_input": False,
            "auxk_alpha": 0.0,
            "betas": group["betas"],
            "eps": group["eps"],
            "compute_dtype": COMPUTE_DTYPES[dtype],
        }
        return options | self._recipe()

    def _make(self) -> Linked:
        sae = SAEConfig(d_in=self.ae.activation_dim, d_sae=self.ae.dict_size, **self._architecture())
        engine = Linked(self.ae, self._names, sae, TrainConfig(**self._options()), self.optimizer)
        engine.counts_per_step = 2  # once for the step, and on a log step once more
        if sae.k:
            engine.state.smallest = torch.zeros((), dtype=torch.float32, device=self._device)
        return engine

    def _current(self, engine: Linked) -> Linked:
        """With the options as they are now; another engine if the format of the products or what it trains is another."""
        options = self._options()
        is_other = engine.theirs is not self.ae or engine.their_optimizer is not self.optimizer
        if is_other or options["compute_dtype"] != engine.config.compute_dtype:
            self._engine = engine = self._make()
        elif any(getattr(engine.config, name) != value for name, value in options.items()):
            engine.config, engine.recount_at = TrainConfig(**options), 0
        return engine
