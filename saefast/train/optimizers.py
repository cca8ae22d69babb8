"""Optimizers of other libraries, for recipes other than Adam. The engine's Adam is one pass over the weights with the
backward in it (`saefast.engine.step`); these need the gradients in memory, fp32 weights and fp32 moments.

    adamw    torch.optim.AdamW, fused
    muon     torch.optim.Muon for the matrices: Newton-Schulz steps make the momentum nearly orthogonal, in bf16, scaled
             to the size of Adam's update (0.2 sqrt(max(F, D)), Liu et al. 2025, arXiv 2502.16982), so that a learning
             rate is in Adam's units; AdamW for the vectors. torch has it from 2.9 on
    signum   the sign of the gradient inside `schedulefree.ScheduleFreeWrapper`, momentum 0.95 (Defazio et al. 2024,
             arXiv 2405.15682): no schedule, the average of the steps is what is evaluated and saved

muon and signum are what EleutherAI's sparsify (1.3.3) calls by these names. Its schedules: adam rises linearly over 1000
steps and falls linearly to 0 at the end; muon's matrices fall from the first step on, its vectors rise first; signum's
rate is constant. Its rates are our defaults, see `saefast.train.schedules.peak_lr`. Unlike it, saving leaves the parameters
of signum as they were to the last bit: it takes `eval()`, saves, and takes `train()`, which rounds.
"""

import math
from collections.abc import Collection, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from saefast.config.train import TrainConfig
from saefast.engine.architecture import Architecture
from saefast.engine.state import State
from saefast.errors import InputError, check
from saefast.reference import Grads, Params, normalize_rows_
from saefast.storage import Matrix

Name = Literal["adamw", "muon", "signum"]
MOMENTUM = 0.95  # of muon and signum
PREFIX = "optimizer."
ADAM_STATE = ("step", "exp_avg", "exp_avg_sq")


class Optimizer:
    """Updates `params` in place.

    Args:
        params: fp32, contiguous, on one device: matrices and vectors by name. The order is part of nothing.
        lr_of: m trains the parameter p as if it were p / m: its learning rate is m times that of the step, and epsilon
            is divided by m. With 1 / s for a bias it is the s of `saefast.engine.numbers`. Default 1.
        betas, eps: of AdamW.
        weight_decay: of the matrices, decoupled: W -= lr * weight_decay * W. A bias is never decayed.

    Unit norm and the projection of W_dec's gradient are the caller's, and so is skipping a step that is not finite.

    Raises:
        InputError: another dtype; a torch without Muon; `schedulefree` is missing; weight decay with signum.
    """

    def __init__(
        self,
        name: Name,
        params: Mapping[str, Tensor],
        lr_of: Mapping[str, float] | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 6.25e-10,
        weight_decay: float = 0.0,
    ) -> None:
        check(name in get_args(Name), f"optimizer: expected one of {list(get_args(Name))}, got {name!r}")
        for key, param in params.items():
            ok = param.dtype == torch.float32 and param.is_contiguous()
            got = f"{param.dtype} with strides {param.stride()}"
            check(ok, f"{key}: expected contiguous torch.float32 with optimizer = {name!r}, got {got}")
        self.name, self.params, self.lr_of = name, dict(params), dict(lr_of or {})
        strangers = sorted(self.lr_of.keys() - self.params.keys())
        check(not strangers, f"lr_of: expected names of parameters, got {strangers}")

        by_muon = [key for key, param in params.items() if name == "muon" and param.ndim == 2]
        others = [key for key in params if key not in by_muon]
        self._parts: list[tuple[Any, list[str]]] = []
        if name == "signum":
            check(
                weight_decay == 0, f"weight_decay: expected 0 with optimizer = 'signum', got {weight_decay}"
            )
            self._parts.append((_schedule_free(self._groups(others)), others))
        elif others:
            groups = self._groups(others, eps, weight_decay)
            self._parts.append((torch.optim.AdamW(groups, lr=1.0, betas=betas, fused=True), others))
        if by_muon:
            self._parts.append((_muon(self._groups(by_muon, weight_decay=weight_decay)), by_muon))

    def _groups(
        self, names: list[str], eps: float | None = None, weight_decay: float = 0.0
    ) -> list[dict[str, Any]]:
        """One group each, so that each has its own learning rate."""
        groups: list[dict[str, Any]] = [{"params": [self.params[name]]} for name in names]
        for group, name in zip(groups, names, strict=True):
            group |= {"weight_decay": weight_decay if self.params[name].ndim == 2 else 0.0}
            group |= {} if eps is None else {"eps": eps / self.lr_of.get(name, 1.0)}
        return groups

    def step(self, grads: Mapping[str, Tensor], lr: float) -> None:
        """One step. grads: of all parameters, in their shapes; signum overwrites them with their signs."""
        check(grads.keys() == self.params.keys(), f"grads: expected {list(self.params)}, got {list(grads)}")
        check(0 <= lr < math.inf, f"lr: expected 0 or a positive number, got {lr!r}")
        for optimizer, names in self._parts if lr > 0 else ():
            for group, name in zip(optimizer.param_groups, names, strict=True):
                group["lr"] = lr * self.lr_of.get(name, 1.0)
                self.params[name].grad = grads[name].sign_() if self.name == "signum" else grads[name]
            optimizer.step()
            optimizer.zero_grad()  # the tensors are the caller's again

    def averaged(self) -> dict[str, Tensor]:
        """The parameters to evaluate and to save: with signum new tensors, the average of the steps, whose W_dec is
        only about of unit norm; else those that are trained."""
        if self.name != "signum":
            return self.params
        found = {}
        for name, param in self.params.items():
            z = self._parts[0][0].state[param].get("z", param)
            found[name] = param.lerp(
                z, 1 - 1 / MOMENTUM
            )  # what `ScheduleFreeWrapper.eval` makes of it in place
        return found

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds besides the parameters, by flat names; nothing before the first step."""
        found: dict[str, Tensor] = {}
        for optimizer, names in self._parts:
            for group, name in zip(optimizer.param_groups, names, strict=True):
                kept: dict[str, Any] = optimizer.state.get(self.params[name], {})
                kept = kept | {key: _number(group[key]) for key in _numbers(self.name) if key in group}
                found |= {f"{PREFIX}{key}.{name}": value for key, value in kept.items() if value is not None}
        return found

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from `tensors()`; others, without the prefix, are ignored. The caller restores the parameters.

        Raises:
            InputError: one is missing, or does not fit its parameter.
        """
        started = any(name.startswith(PREFIX) for name in tensors)
        for optimizer, names in self._parts:
            described = optimizer.state_dict()
            for i, name in enumerate(names if started else []):
                keys = self._state(name)
                kept = {key: self._checked(tensors, key, name) for key in (*keys, *_numbers(self.name))}
                described["state"][i] = {key: kept[key].clone() for key in keys}
                described["param_groups"][i] |= {key: kept[key].item() for key in _numbers(self.name)}
            optimizer.load_state_dict(described)

    def _state(self, name: str) -> tuple[str, ...]:
        if self.name == "signum":
            return ("z",)
        return ("momentum_buffer",) if self.name == "muon" and self.params[name].ndim == 2 else ADAM_STATE

    def _checked(self, tensors: Mapping[str, Tensor], key: str, name: str) -> Tensor:
        full = f"{PREFIX}{key}.{name}"
        check(full in tensors, f"{full}: expected a tensor, found none: saved by another optimizer?")
        scalar = key == "step" or key in _numbers(self.name)
        expected, got = [] if scalar else list(self.params[name].shape), list(tensors[full].shape)
        check(got == expected, f"{full}: expected shape {expected}, got {got}")
        return tensors[full]


def _numbers(name: Name) -> tuple[str, ...]:
    """What schedulefree keeps in a group: the steps, the sum of their weights, the largest learning rate."""
    return ("k", "weight_sum", "lr_max") if name == "signum" else ()


def _number(value: float) -> Tensor:
    dtype = torch.int64 if isinstance(value, int) else torch.float64
    return torch.tensor(value, dtype=dtype, device="cpu")


def _muon(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    if not hasattr(torch.optim, "Muon"):
        raise InputError(f"optimizer: 'muon' needs torch 2.9 or newer, got {torch.__version__}")
    return torch.optim.Muon(groups, momentum=MOMENTUM, adjust_lr_fn="match_rms_adamw")


def _schedule_free(groups: list[dict[str, Any]]) -> Any:
    try:
        from schedulefree import ScheduleFreeWrapper
    except ImportError as error:
        raise InputError(f"optimizer: 'signum' needs `pip install saefast[signum]` ({error})") from None
    # SGD of gradients that are signs already
    wrapper = ScheduleFreeWrapper(torch.optim.SGD(groups, lr=1.0), momentum=MOMENTUM)
    wrapper.train()
    return wrapper


def make_optimizer(
    config: TrainConfig,
    trained: Mapping[str, Tensor | Matrix],
    arch: Architecture,
    input_scale: float,
    output_scale: float,
    frozen: Collection[str] = (),
) -> Optimizer:
    """trained: every parameter by name. Those in the units of the data get their learning rate over the scale; those in
    `frozen`, or with a rate of 0, are left out."""
    rates = {name: getattr(config, f"lr_{name}", config.lr_extra) for name in trained}
    lr_of = {name: rate for name, rate in rates.items() if rate and name not in frozen}
    params = {name: p.weight if isinstance(p := trained[name], Matrix) else p for name in lr_of}
    for name in params:
        if name in ("b_enc", "b_dec") or arch.in_data_units(name, config):
            lr_of[name] /= output_scale if name == "b_dec" else input_scale
    assert config.optimizer != "adam"
    return Optimizer(config.optimizer, params, lr_of, config.betas, config.eps, config.weight_decay)


def step_with(
    optimizer: Optimizer,
    state: State,
    config: TrainConfig,
    arch: Architecture,
    grads: Grads,
    extra_grads: dict[str, Tensor],
    factor: Tensor,
    lr: float,
    frozen: Collection[str] = (),
) -> None:
    """One step with `factor` times the gradients, then unit norm, and thresholds that are not below 0. A factor of NaN
    changes nothing.

    Waits for the device, and overwrites the gradients.
    """
    if not math.isfinite(factor):
        return
    found = dict(zip(Params._fields, grads, strict=True)) | extra_grads
    clipped = {name: found[name].to(torch.float32).mul_(factor) for name in optimizer.params}
    optimizer.step(clipped, lr)
    if config.unit_norm:
        normalize_rows_(state.weights.dec.weight)
    for name in extra_grads:
        if name not in frozen and (least := arch.smallest_value(name, config)) is not None:
            state.extra[name].value.clamp_min_(least)
    step, state.step = state.step, int(state.counter)  # `refresh` sets the counter from the step
    state.refresh()
    state.step = step
