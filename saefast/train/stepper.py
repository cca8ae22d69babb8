"""One SAE in training, a step at a time: what shapes the step, its numbers, and the state that it changes."""

import logging
import math
from collections import deque

import torch
from torch import Tensor

from saefast.config.train import TrainConfig
from saefast.engine import auxk
from saefast.engine.graph import GraphedSteps
from saefast.engine.numbers import Scheduled, numbers_of
from saefast.engine.plan import CPU_DENSITY, GPU_DENSITY, Plan, stays_dense
from saefast.engine.stages import Metrics, OptimizerStep
from saefast.engine.step import train_step
from saefast.errors import InputError, check
from saefast.reference import Grads
from saefast.sae import SAE
from saefast.train import schedules
from saefast.train.checks import check_mode, check_range
from saefast.train.later import Later
from saefast.train.memory import out_of_memory_help
from saefast.train.optimizers import step_with
from saefast.train.prepared import Prepared

STEPS_BETWEEN_COUNTS = 16  # of dead and active latents, on a GPU
log = logging.getLogger("saefast")


class Stepper(Prepared):
    """Trains `sae` in place, a step at a time; `saefast.Trainer` is this with whole runs.

    Args:
        sae: on the device where training is to happen, fp32 (fp64 works with the reference backend). With
            another param_dtype than "fp32" its weight matrices become bf16.
        config: see `TrainConfig`.

    Raises:
        InputError: the backend cannot run here; too little memory; an option of another architecture.
    """

    def __init__(self, sae: SAE, config: TrainConfig) -> None:
        super().__init__(sae, config)
        self._graphs = GraphedSteps() if self.on_gpu and self.ops.RECORDABLE and config.cuda_graph else None
        self._own_step: OptimizerStep | None = None if config.optimizer == "adam" else self._apply
        self._watched: deque[tuple[int, torch.cuda.Event, Tensor]] = deque()
        self._dead_ahead: Later | None = None  # asked for in the first step of an interval, for the next one
        self._counted_at = -1

    def _apply(self, grads: Grads, extra_grads: dict[str, Tensor], factor: Tensor) -> None:
        lr = self.lr(self.state.step + 1)
        step_with(
            self.optimizer, self.state, self.config, self.arch, grads, extra_grads, factor, lr, self.frozen
        )

    def step(self, x: Tensor, target: Tensor | None = None, checked: bool = False) -> Metrics:
        """One optimizer step on x [B, d_in], any B > 0. Metrics are those of x before the update.

        Unlike `fit` it leaves b_dec where it is; the first x sets the scale of `normalize_input`.

        Args:
            target: [B, d_out], for a transcoder only.
            checked: x is [B, row_width], with a transcoder's target in it, of a source that checks its rows itself, and
                the scales are set. The SAE is then only brought up to date by `sync`.

        Raises:
            InputError: wrong shape, dtype or device, an empty batch, NaN or Inf in x or target. On a GPU the step does
                not wait to see: such a batch changes no weight, and a later call raises.
        """
        rows = self.frame.rows(x if checked else self._checked(x, target))
        config, state, step = self.config, self.state, self.state.step + 1
        self._raise_for_earlier_steps()
        check_mode(state)
        plan = self.plan(len(rows))
        numbers = self.numbers(plan, step, len(rows))
        if self.ema is not None:  # as OpenAI's code, before the optimizer's step
            self.ema.update(self._trained())
        device, precise = torch.cuda.device_of(rows), torch.autocast(rows.device.type, enabled=False)
        with torch.no_grad(), device, precise, out_of_memory_help(self.sae.config, config):
            rows, own = rows.detach().contiguous(), self._own_step
            if self._graphs is None or own is not None:
                metrics = train_step(self.ops, state, rows, plan, numbers, own)
            elif (graph := self._graphs.find(plan, rows)) is not None:
                metrics = graph.replay(rows, numbers)
            else:
                with self._graphs.first(plan, rows, numbers) as now:
                    now.metrics = train_step(self.ops, state, now.x, plan, now.numbers)
                metrics = now.result()
        state.step, state.fired_tokens = step, state.fired_tokens + len(rows)
        self._follow(plan, metrics)
        if not checked:
            self.sync()
        return metrics

    def _checked(self, x: Tensor, target: Tensor | None) -> Tensor:
        """The rows of a user's batch. The first one sets the scales."""
        rows = self.sae.rows(x, target)
        check(len(x) > 0, f"x: expected at least one row, got {list(x.shape)}")
        if not self.on_gpu:  # a step would wait for it
            check_range(rows)
        if self.input_scale is None:
            self.set_scales(rows)
        return rows

    def _follow(self, plan: Plan, metrics: Metrics) -> None:
        """What the host does after a step: whether the next code is dense; on a GPU, the loss that is looked at later."""
        state, sae, step = self.state, self.sae, self.state.step
        self._restore()
        if self.arch.unbounded and step % self._interval == 0:
            between, room = GPU_DENSITY if self.on_gpu else CPU_DENSITY, plan.code_capacity
            state.dense = stays_dense(plan.dense, float(metrics.l0) / sae.config.d_sae, between)
            if not plan.dense and room is not None and (found := int(metrics.code_size)) > room:
                log.warning(f"step {step}: {found} active entries, room for {room}: the others were left out")
        if self.on_gpu:
            loss, event = metrics.loss.to("cpu", non_blocking=True), torch.cuda.Event()
            event.record()
            self._watched.append((step, event, loss))

    @property
    def _interval(self) -> int:
        return STEPS_BETWEEN_COUNTS if self.on_gpu else 1

    def scheduled(self, step: int) -> Scheduled:
        """What the schedules say of `step`, counted from 1."""
        return schedules.scheduled_at(self.config, self.sae.config, step, self.scale, self.output_scale)

    def numbers(self, plan: Plan, step: int, batch_size: int) -> Tensor:
        """The numbers of `step` on the device."""
        listed = numbers_of(plan, self.scheduled(step), step, batch_size)
        numbers = torch.tensor(listed, dtype=self.ops.NUMBERS_DTYPE, device="cpu")
        return numbers.pin_memory().to(self.sae.b_dec.device, non_blocking=True) if self.on_gpu else numbers

    def lr(self, step: int) -> float:
        """Learning rate of `step`, counted from 1."""
        return schedules.lr_at(self.config, step, self.sae.config.d_sae)

    def plan(self, batch_size: int) -> Plan:
        """Of the next step."""
        sae, config, state = self.sae.config, self.config, self.state
        if config.auxk_alpha and state.step % self._interval == 0:
            self._count_dead(batch_size)
        room = math.ceil(2 * GPU_DENSITY[1] * sae.d_sae) * batch_size  # above that density no list is made
        return Plan(
            sae,
            config,
            k=schedules.k_at(config, sae, state.step + 1),
            compute_dtype=self.compute_dtype,
            dense=state.dense,
            dead_capacity=state.dead_capacity,
            code_capacity=room if self.on_gpu and self.arch.unbounded else None,
            frozen=self.frozen,
        )

    def _count_dead(self, batch_size: int) -> None:
        """Make room for the latents that can be dead until this is called next."""
        state, d_sae = self.state, self.sae.config.d_sae
        silent_for, threshold = state.num_tokens_since_fired, self.config.dead_feature_threshold
        if self.on_gpu:  # a small batch now says nothing of those until the end of the next interval
            batch_size = max(batch_size, self.config.batch_size)
        ahead = (self._interval - 1 + self.config.count_before_auxk) * batch_size
        if not self.on_gpu:
            state.dead_capacity = auxk.capacity(silent_for, threshold, ahead)
        elif self._counted_at != state.step:
            known = state.dead_ahead if self._dead_ahead is None else int(self._dead_ahead)
            if known is None:  # the first interval
                known = auxk.capacity(silent_for, threshold, ahead)
            state.dead_capacity, self._counted_at = auxk.rounded(known, d_sae), state.step
            ahead += self._interval * batch_size
            self._dead_ahead = Later(auxk.can_be_dead(silent_for, threshold, ahead))

    def tensors(self) -> dict[str, Tensor]:
        if self._dead_ahead is not None:
            self.state.dead_ahead = int(self._dead_ahead)
        return super().tensors()

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        self._dead_ahead, self._counted_at = None, -1  # what was asked before is not of this state
        super().load_tensors(tensors)

    def _raise_for_earlier_steps(self) -> None:
        """What the device has finished by now is looked at, without waiting for the rest."""
        while self._watched and self._watched[0][1].query():
            step, _, loss = self._watched.popleft()
            check(
                math.isfinite(loss), f"x: NaN or Inf in the batch of step {step}, or lr too high: loss {loss}"
            )

    def check_loss(self, metrics: Metrics) -> None:
        """Raise before a diverged state is logged or saved."""
        if not math.isfinite(metrics.loss):  # waits for the device
            peak = schedules.peak_lr(self.config, self.sae.config.d_sae)
            raise InputError(
                f"lr: the loss is {float(metrics.loss)} at step {self.state.step}: training diverged; "
                f"expected a learning rate below {peak:.3g}; checkpoints hold the state before"
            )
