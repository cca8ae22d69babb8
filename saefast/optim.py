"""Adam for an SAE in your own training loop, with what decoder rows of unit norm need around it.

    >>> W_dec = torch.nn.Parameter(torch.eye(3))
    >>> optimizer = Adam([W_dec], lr=0.1, unit_norm=[W_dec], max_grad_norm=1.0)
    >>> (W_dec[0] - torch.tensor([1.0, 2.0, 0.0])).square().sum().backward()
    >>> optimizer.step()
    >>> (W_dec.data[0] > 0).tolist(), round(float(W_dec.data[0].norm()), 5)
    ([True, True, False], 1.0)

In place of this, with the same numbers up to rounding:

    W.grad -= (W.grad * W).sum(1, keepdim=True) * W          for W in unit_norm
    torch.nn.utils.clip_grad_norm_(params, max_grad_norm)    if given
    torch.optim.Adam(params, lr, betas, eps).step()
    W /= W.norm(dim=1, keepdim=True)                         for W in unit_norm

The part of a gradient along its row would only change the norm of the row; left in, it would distort Adam's moments. A
matrix of `unit_norm` takes one pass over its weight, gradient and moments, without a temporary matrix. It is the
engine's `update_` (see `saefast.reference`), which gets the gradient as its AuxK part, and a code without an active
latent. Clipping needs the norm of all projected gradients first, which is one more pass. All other parameters go to
torch's fused Adam.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.adam import adam

from saefast.backend import Backend, launched, load_backend
from saefast.errors import check
from saefast.reference import Aux, Groups, Numbers, project_rows_
from saefast.storage import Matrix, Vector, Weights

__all__ = ["Adam"]

NOT_OFFERED = ("weight_decay", "amsgrad", "maximize")  # a checkpoint of torch.optim.Adam may have them


class Adam(torch.optim.Optimizer):
    """`torch.optim.Adam`, with the projection of gradients, unit norm of decoder rows, and clipping in the same step.

    Learning rate schedulers, parameter groups and closures work as with torch's Adam. The state has the same names
    (step, exp_avg, exp_avg_sq), so that each can load the `state_dict` of the other.

    Args:
        params: as for every torch optimizer: parameters, or groups with their own lr, betas, eps.
        lr, betas, eps: the learning rate, the decay rates of the two moments, and epsilon.
        unit_norm: the parameters [F, D] whose rows keep unit norm, contiguous, fp32 or fp64. Their rows must have unit
            norm before the first step.
        max_grad_norm: largest norm of all gradients together, after the projection; None does not clip.
        backend: which one updates the matrices of `unit_norm`, see `saefast.load_backend`.

    Raises:
        InputError: a number out of its range; a parameter of `unit_norm` that is not in `params` or does not fit; in the
            first step, rows without unit norm; a sparse gradient; an option of torch's Adam that is not offered here
            (weight_decay, amsgrad, maximize).
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        *,
        unit_norm: Iterable[Tensor] = (),
        max_grad_norm: float | None = None,
        backend: str = "auto",
    ) -> None:
        check(not isinstance(unit_norm, Tensor), "unit_norm: expected a list of parameters, got a tensor")
        ok = max_grad_norm is None or 0 < max_grad_norm < math.inf
        check(ok, f"max_grad_norm: expected a positive number or None, got {max_grad_norm!r}")
        self.unit_norm, self.max_grad_norm, self.backend = set(unit_norm), max_grad_norm, backend
        self._frames: dict[Tensor, _Frame] = {}
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0, "fused": True}
        super().__init__(params, defaults)
        known = {param for group in self.param_groups for param in group["params"]}
        for param in self.unit_norm:
            check(param in known, f"unit_norm: expected parameters in params, got another {_text(param)}")
            ok = param.ndim == 2 and param.dtype in (torch.float32, torch.float64) and param.is_contiguous()
            check(ok, f"unit_norm: expected contiguous fp32 matrices [F, D], got {_text(param)}")

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        _check_group({**self.defaults, **param_group})
        super().add_param_group(param_group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a `state_dict` of this class or of torch.optim.Adam."""
        for group in state_dict["param_groups"]:
            _check_group(group)
        super().load_state_dict(state_dict)

    def __getstate__(self) -> dict[str, Any]:
        own = {"unit_norm": self.unit_norm, "max_grad_norm": self.max_grad_norm, "backend": self.backend}
        return {**super().__getstate__(), **own, "_frames": {}}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step. A parameter without gradient stays as it is. Returns what `closure` returns.

        With max_grad_norm the gradients are projected and scaled where they are, as `clip_grad_norm_` does.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        params = [param for group in self.param_groups for param in group["params"]]
        grads = {param: param.grad for param in params if param.grad is not None}
        for param, grad in grads.items():
            check(not grad.is_sparse, f"params: expected dense gradients, got a sparse one of {_text(param)}")
        if self.max_grad_norm is not None:
            for param in self.unit_norm.intersection(grads):
                project_rows_(grads[param], param)
            torch.nn.utils.clip_grad_norm_(list(grads), self.max_grad_norm)
        for group in self.param_groups:
            found = [param for param in group["params"] if param in grads]
            for param in self.unit_norm.intersection(found):
                self._step_of_rows(param, grads[param].contiguous(), group)
            others = [param for param in found if param not in self.unit_norm]
            self._step_of_others(others, [grads[param] for param in others], group)
        return loss

    def _state(self, param: Tensor) -> dict[str, Tensor]:
        """Adam's state of `param`. The step is kept where it is read: torch's fused Adam reads it on the device."""
        state, where = self.state[param], "cpu" if param in self.unit_norm else param.device
        if not state:
            if param in self.unit_norm and len(param):
                off = float((param.norm(dim=1) - 1).abs().max())
                check(off < 1e-3, f"unit_norm: expected rows of norm 1, got {off:.3g} off in {_text(param)}")
            state |= {name: torch.zeros_like(param) for name in ("exp_avg", "exp_avg_sq")}
            state["step"] = torch.zeros((), dtype=torch.float32, device=where)
        state["step"] = state["step"].to(where)  # a `state_dict` may have it elsewhere
        return state

    def _step_of_others(self, params: list[Tensor], grads: list[Tensor], group: dict[str, Any]) -> None:
        states = [self._state(param) for param in params]
        exp_avg, exp_avg_sq, steps = ([s[key] for s in states] for key in ("exp_avg", "exp_avg_sq", "step"))
        (beta1, beta2), lr, eps = group["betas"], group["lr"], group["eps"]
        options: dict[str, Any] = {"lr": lr, "beta1": beta1, "beta2": beta2, "eps": eps, "weight_decay": 0}
        options |= {"fused": True, "amsgrad": False, "maximize": False}
        adam(params, grads, exp_avg, exp_avg_sq, [], steps, **options)

    def _step_of_rows(self, param: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state = self._state(param)
        state["step"] += 1
        if param not in self._frames:
            self._frames[param] = _frame_of(param, self.backend)
        frame, weight = self._frames[param], param.detach()
        dec = Matrix(weight, None, weight, state["exp_avg"], state["exp_avg_sq"], None)
        numbers = _numbers(group, int(state["step"]), param.device, frame.ops.NUMBERS_DTYPE)
        weights, aux = frame.weights._replace(dec=dec), frame.aux._replace(W_dec=grad)
        code = frame.acts, frame.indices, None, frame.groups
        update_ = launched(frame.ops.update_)
        update_(weights, frame.centred, frame.error, *code, frame.grad_scale, aux, numbers, frame.step)


class _Frame(NamedTuple):
    """What `update_` takes besides a decoder, all zero: an encoder of one column, biases, the code of one token."""

    ops: Backend
    weights: Weights  # dec is replaced
    centred: Tensor  # [1, 1]
    error: Tensor  # [1, D]
    acts: Tensor  # [1, 1]
    indices: Tensor  # [1, 1]
    groups: Groups
    grad_scale: Tensor  # []: 1
    aux: Aux  # one row for each latent; W_dec is replaced
    step: Tensor  # [] for stochastic rounding, which fp32 does not need


def _frame_of(param: Tensor, backend: str) -> _Frame:
    (F, D), zeros = param.shape, param.detach().new_zeros

    def integers(n: int) -> Tensor:
        return zeros(n, dtype=torch.int32)

    column, b_enc, b_dec = zeros(F, 1), Vector(*zeros(3, F)), Vector(*zeros(3, D))
    enc = Matrix(column, None, column, column.clone(), column.clone(), None)
    slots = torch.arange(F, dtype=torch.int32, device=param.device)
    return _Frame(
        load_backend("reference" if param.dtype == torch.float64 else backend, param.device.type),
        Weights(enc, enc, b_enc, b_dec),
        zeros(1, 1),
        zeros(1, D),
        zeros(1, 1),
        integers(1).view(1, 1),
        (integers(F + 1), integers(1), integers(1)),
        zeros(()) + 1,
        Aux(slots, zeros(F, 1), zeros(F), column, zeros(D)),
        zeros((), dtype=torch.int64),
    )


def _numbers(group: dict[str, Any], step: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """`Numbers` for a decoder alone."""
    (beta1, beta2), lr, eps = group["betas"], float(group["lr"]), group["eps"]
    numbers = Numbers(
        lr=0.0,
        lr_bias=0.0,
        eps=eps,
        eps_bias=1.0,
        beta1=beta1,
        beta1_rest=1 - beta1,
        beta2=beta2,
        beta2_rest=1 - beta2,
        correction1=1 / (1 - beta1**step),
        correction2=1 / (1 - beta2**step),
        l1=0.0,
        bias_norm=0.0,
        lr_dec=lr,
        lr_b_dec=0.0,
        unit=1.0,
        tied=0.0,
    )
    found = torch.tensor(numbers, dtype=dtype, device="cpu")
    return found.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else found


def _check_group(group: dict[str, Any]) -> None:
    lr, betas, eps = float(group["lr"]), group["betas"], group["eps"]
    check(0 <= lr < math.inf, f"lr: expected 0 or a positive number, got {group['lr']!r}")
    in_range = len(betas) == 2 and all(0 <= beta < 1 for beta in betas)
    check(in_range, f"betas: expected two numbers in [0, 1), got {betas!r}")
    check(0 <= eps < math.inf, f"eps: expected 0 or a positive number, got {eps!r}")
    for name in NOT_OFFERED:
        check(not group.get(name), f"{name}: not offered by saefast.optim.Adam, got {group.get(name)!r}")


def _text(param: Tensor) -> str:
    contiguous = "" if param.is_contiguous() else f" with strides {param.stride()}"
    return f"{str(param.dtype).removeprefix('torch.')} {list(param.shape)}{contiguous}"
