"""One optimizer step beside the same step in fp64: from the same state, on the same batch, with the same selection.

What a selection takes or leaves jumps: the k-th against the next pre-activation, and for AuxK also 0, where a latent
begins to get a gradient. Two correct steps may differ there by their rounding, and training amplifies it without bound.
So a step is judged in two parts: `Selected.doubt` says how far, in units of rounding, the choices that fp64 would not
have made lie from where it is indifferent; and with the same choices, the loss and everything that the step changed
have to be those of fp64 within rounding (`errors`).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import ModuleType, SimpleNamespace
from typing import NamedTuple

import torch
from torch import Tensor

from saefast import reference
from saefast.backend import OPS
from saefast.engine.state import State
from saefast.engine.step import Metrics, Plan, train_step
from saefast.storage import Matrix, Vector, Weights
from tests.helpers import dense

EPS = torch.finfo(torch.float32).eps
# what a step may be off: the loss, relative; its rms errors, over the other's; a choice, in units of rounding
LOSS, ERROR, DOUBT = 1e-6, 2.0, 2.0


class Selected(NamedTuple):
    """Which entries a step took for active, and where fp64 would have decided otherwise."""

    indices: Tensor  # [B, K]
    active: Tensor  # [B, K] bool
    aux: Tensor | None  # [B, number of the dead] bool
    doubt: Sequence[Tensor] = ()  # [n] for top-k and AuxK: distance from indifference / (eps |x| |w|)


def copied(state: State, dtype: torch.dtype = torch.float32) -> State:
    """A state that shares nothing with `state`, which must be kept in whole precision."""

    def matrix(m: Matrix) -> Matrix:
        weight, exp_avg, exp_avg_sq = (t.to(dtype, copy=True) for t in (m.weight, m.exp_avg, m.exp_avg_sq))
        return Matrix(weight, None, weight, exp_avg, exp_avg_sq, None)

    def vector(v: Vector) -> Vector:
        return Vector(*(t.to(dtype, copy=True) for t in v))

    enc, dec, b_enc, b_dec = state.weights
    weights = Weights(matrix(enc), matrix(dec), vector(b_enc), vector(b_dec))
    counts = (t.clone() for t in (state.num_tokens_since_fired, state.fired, state.counter))
    return State(weights, *counts, state.fired_tokens, state.step, state.dead_capacity)


def step_of(
    ops: ModuleType, state: State, x: Tensor, plan: Plan, numbers: Tensor
) -> tuple[Metrics, State, Selected]:
    """A step of a backend on a copy of `state`."""
    code: list[tuple[Tensor, Tensor]] = []
    aux: list[Tensor] = []

    def noted(into: list, op: Callable) -> Callable:
        def call(*args: object, **options: object) -> object:
            into.append(op(*args, **options))
            return into[-1]

        return call

    watched = SimpleNamespace(**{name: getattr(ops, name) for name in OPS})
    watched.encode_topk, watched.keep_topk = noted(code, ops.encode_topk), noted(aux, ops.keep_topk)
    after = copied(state)
    with torch.no_grad():
        metrics = train_step(watched, after, x, plan, numbers)  # type: ignore[arg-type]
    ((acts, indices),) = code
    return metrics, after, Selected(indices.long(), acts > 0, aux[0] > 0 if aux else None)


def step_of_dense(trainer: dense.Trainer, x: Tensor) -> tuple[float, State, Selected]:
    """A step of autograd and torch's Adam, in place (see `put_into`); also its FVU."""
    W_enc, b_enc, _, b_dec = (param.detach() for param in trainer.params)
    pre_acts = (x - b_dec) @ W_enc.T + b_enc  # the same bits as in the step
    top = pre_acts.sort(dim=1, descending=True, stable=True)
    top_acts, indices = top.values[:, : trainer.k], top.indices[:, : trainer.k]
    _, k_aux, threshold = trainer.aux
    dead = trainer.since_fired >= threshold
    aux = None
    if dead.any():
        aux = pre_acts[:, dead] * dense.topk_mask(pre_acts[:, dead], min(k_aux, int(dead.sum()))) > 0
    fvu = trainer.step(x)
    adam = trainer.optimizer.state
    moments = [(p.detach(), adam[p]["exp_avg"], adam[p]["exp_avg_sq"]) for p in trainer.params]
    enc, dec = (Matrix(m[0], None, m[0], m[1], m[2], None) for m in moments[::2])
    weights = Weights(enc, dec, *(Vector(*m) for m in moments[1::2]))
    zeros = torch.zeros_like(trainer.since_fired)
    return fvu, State(weights, trainer.since_fired, zeros, zeros[0]), Selected(indices, top_acts > 0, aux)


def put_into(trainer: dense.Trainer, state: State, lr: float, bias_scale: float) -> None:
    """Give `trainer` the weights, moments and counters of `state`, and `lr` for its next step."""
    enc, dec, b_enc, b_dec = state.weights
    parts = (enc.weight, *enc[3:5]), tuple(b_enc), (dec.weight, *dec[3:5]), tuple(b_dec)
    for param, (value, exp_avg, exp_avg_sq) in zip(trainer.params, parts, strict=True):
        param.data.copy_(value)
        moments = {"exp_avg": exp_avg.clone(), "exp_avg_sq": exp_avg_sq.clone()}
        trainer.optimizer.state[param] = {"step": torch.tensor(float(state.step))} | moments
    trainer.since_fired.copy_(state.num_tokens_since_fired)
    trainer.set_lr(lr, bias_scale)


def exact_step(
    state: State, x: Tensor, plan: Plan, numbers: Tensor, selected: Selected
) -> tuple[Metrics, State, Selected]:
    """The step in fp64 from the same state with the choices of `selected`, and what fp64 makes of them."""
    doubt: list[Tensor] = []

    def judge(pre_acts: Tensor, active: Tensor, k: int, unit: Tensor) -> None:
        """pre_acts, active, unit [B, n]: active should be the k largest of each row, if above 0. What was taken too much
        is measured from the k-th, what was left out from the one after it."""
        largest = pre_acts.topk(min(k + 1, pre_acts.shape[1]), dim=1).values.clamp_min(0)
        bound = largest[:, min(k, pre_acts.shape[1]) - 1, None]
        after = largest[:, k, None] if k < pre_acts.shape[1] else torch.zeros_like(bound)
        wrong = active != ((pre_acts >= bound) & (pre_acts > 0))
        doubt.append((torch.where(active, bound - pre_acts, pre_acts - after) / unit)[wrong])

    def unit(centred: Tensor, W_enc: Tensor) -> Tensor:
        return EPS * centred.norm(dim=1, keepdim=True) * W_enc.norm(dim=1)

    def encode_topk(
        centred: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, scale: None = None, rescore: int = 0
    ) -> tuple[Tensor, Tensor]:
        pre_acts = torch.addmm(b_enc, centred, W_enc.T)
        active = torch.zeros_like(pre_acts, dtype=torch.bool).scatter_(1, selected.indices, selected.active)
        judge(pre_acts, active, k, unit(centred, W_enc))
        return forced(pre_acts.gather(1, selected.indices), selected.active), selected.indices.to(torch.int32)

    def keep(pre_acts: Tensor, k: int, count: Tensor) -> Tensor:
        assert selected.aux is not None and selected.aux.shape == pre_acts.shape, "others are dead"
        dead = state.num_tokens_since_fired >= plan.train.dead_feature_threshold
        centred, W_enc = x.double() - weights.b_dec.value, weights.enc.weight[dead]
        judge(pre_acts, selected.aux, k, unit(centred, W_enc))
        return forced(pre_acts, selected.aux)

    ops = SimpleNamespace(**{name: getattr(reference, name) for name in OPS})
    ops.encode_topk, ops.keep_topk = encode_topk, keep
    after = copied(state, torch.float64)
    weights = copied(state, torch.float64).weights
    with torch.no_grad():
        metrics = train_step(ops, after, x.double(), replace(plan, compute_dtype=torch.float64), numbers)  # type: ignore[arg-type]
    return metrics, after, selected._replace(doubt=doubt)


def forced(pre_acts: Tensor, active: Tensor) -> Tensor:
    """Their values where active, if only just above 0; 0 elsewhere."""
    return torch.where(active, pre_acts.clamp_min(torch.finfo(pre_acts.dtype).tiny), 0)


def errors(got: State, exact: State) -> dict[str, tuple[float, float]]:
    """Largest and root mean square of got - exact, of every tensor that a step changes."""
    assert torch.equal(got.num_tokens_since_fired, exact.num_tokens_since_fired), "not the same latents fired"
    out = {}
    for part, mine, best in zip(Weights._fields, got.weights, exact.weights, strict=True):
        for name, one, other in zip(mine._fields, mine, best, strict=True):
            if name in ("weight", "value", "exp_avg", "exp_avg_sq"):
                off = one.double() - other
                out[f"{part} {name}"] = float(off.abs().max()), float(off.square().mean().sqrt())
    return out


class SameState:
    """What one contender's steps from some states are off from fp64."""

    def __init__(self) -> None:
        self.fvu, self.loss = list[float](), list[float]()  # for each step: as reported; its relative error
        self.flips, self.doubt = [0, 0], 0.0  # by top-k, AuxK; the largest
        self.errors: dict[str, list[tuple[float, float]]] = {}  # largest, root mean square

    def add(self, fvu: float, after: State, exact: Metrics, best: State, selected: Selected) -> None:
        self.fvu.append(fvu)
        self.loss.append(abs(fvu / float(exact.fvu) - 1))
        for i, doubt in enumerate(selected.doubt):
            self.flips[i] += len(doubt)
            self.doubt = max(self.doubt, *doubt.tolist(), 0.0)
        for name, off in errors(after, best).items():
            self.errors.setdefault(name, []).append(off)

    def rms_over(self, other: "SameState") -> dict[str, float]:
        """Root mean square error of each tensor over that of the other."""
        mine, theirs = (
            {name: math.hypot(*(step[1] for step in steps)) for name, steps in found.errors.items()}
            for found in (self, other)
        )
        return {name: round(value / theirs[name], 3) for name, value in mine.items()}

    def follows(self, other: "SameState") -> bool:
        off = max(self.loss), max(self.rms_over(other).values()), self.doubt
        return all(
            value <= bound for value, bound in zip(off, (LOSS, ERROR, DOUBT), strict=True)
        )  # NaN does not

    def summary(self) -> dict[str, object]:
        return {
            "loss, largest relative error": max(self.loss),
            "choices unlike fp64's: top-k, AuxK": self.flips,
            "the furthest of them from indifference, in eps |x| |w|": round(self.doubt, 3),
            "largest errors": {name: max(step[0] for step in steps) for name, steps in self.errors.items()},
        }
