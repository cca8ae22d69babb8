"""`make gpu`: the measurements that can falsify the design. What was predicted, from a cost model, before a GPU ran anything.

1 cuBLAS   2 torch.topk   3 group maxima and selection   4 fused product against cuBLAS   5 decode and loss   6 update
7 Adam alone in each storage format   8 transpose of the code   9 eager against graph. (10, the peers, is the part `peers`.)
Predictions were made for an H200 with 4.3 TB/s and 790 TFLOP/s; each result is compared with plain PyTorch before it is timed.
5 and 8 are read from the part `stages`, 9 from the part `step`.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.gpu.common import (
    CASES,
    DEVICE,
    DTYPE,
    REHEARSAL,
    Item,
    Part,
    Report,
    Result,
    device_of,
    expect,
    free,
    kernel_ms,
    make_sae,
    relative_error,
    rng,
    uniform_code,
)
from benchmarks.gpu.stages import GRADIENT, gradient_errors, numbers_of
from benchmarks.shapes import Shape
from saefast import reference
from saefast import triton_kernels as ops
from saefast.engine.state import State
from saefast.reference import Params
from saefast.storage import load_weight
from saefast.triton_kernels.pre_acts import pre_acts_and_maxima
from saefast.triton_kernels.storage import state_bytes
from saefast.triton_kernels.topk import group_maxima, select_topk

H200 = {"copies": 4.3e12, "products": 790e12}  # bytes/s and FLOP/s that were assumed


class Prediction(NamedTuple):
    """A range for each case, for an H200; on another GPU milliseconds are as many times longer as what bounds them."""

    unit: str
    bound: str  # "copies" or "products"
    A: tuple[float, float]
    B: tuple[float, float]
    C: tuple[float, float]

    def beside(self, case: str, measured: float, report: Report) -> Result:
        device = device_of(report)
        here = {"copies": device.bandwidth, "products": device.flops}[self.bound]
        slower = H200[self.bound] / here if self.unit == "ms" and not REHEARSAL else 1.0
        low, high = (round(slower * value, 4) for value in getattr(self, case))
        within = low <= measured <= high
        found = {"prediction": [low, high], "measured": round(measured, 4)}
        return found | {"unit": self.unit, "within": within}


PREDICTIONS = {
    "1 cublas": Prediction("ms", "products", (0.45, 0.55), (3.3, 3.8), (23, 25)),
    "2 torch.topk": Prediction("ms", "copies", (0.45, 1.8), (1.2, 4.8), (4.75, 19)),
    "3 group maxima and select": Prediction("ms", "copies", (0.10, 0.14), (0.25, 0.35), (0.9, 1.3)),
    "4 fused product": Prediction("of cuBLAS speed", "products", (0.80, 0.92), (0.80, 0.92), (0.80, 0.92)),
    "5 decode and loss": Prediction("ms", "copies", (0.08, 0.12), (0.5, 0.7), (0.9, 1.2)),
    "6 update": Prediction("ms", "copies", (0.35, 0.5), (2.5, 3.5), (15, 18)),
    "7 adam": Prediction("of copy speed", "copies", (0.9, 1.0), (0.9, 1.0), (0.9, 1.0)),
    "8 transpose": Prediction("ms", "copies", (0.03, 0.05), (0.03, 0.05), (0.03, 0.05)),
    "9 graph": Prediction("of the eager step saved", "copies", (0.15, 0.25), (0.0, 0.1), (0.0, 0.05)),
}
ADAM_FORMATS = [("fp32", "fp32"), ("fp32", "bf16"), ("fp32", "int8"), ("split", "int8"), ("bf16", "int8")]


def normal(seed: int, *size: int, dtype: torch.dtype = DTYPE) -> Tensor:
    return torch.randn(size, device=DEVICE, generator=rng(seed), dtype=dtype)


def operands(shape: Shape) -> tuple[Tensor, Tensor, Tensor]:
    """centred, W_enc, b_enc."""
    B, D, F, _ = shape
    return normal(1, B, D), normal(2, F, D).mul_(D**-0.5), normal(3, F, dtype=torch.float32).mul_(0.1)


def cublas(case: str, shape: Shape, report: Report) -> Result:
    centred, W_enc, _ = operands(shape)
    out = torch.empty(shape.B, shape.F, device=DEVICE, dtype=DTYPE)
    timing = kernel_ms(lambda: torch.mm(centred, W_enc.T, out=out))
    tflops = 2e-9 * shape.B * shape.D * shape.F / timing["median_ms"]
    return (
        PREDICTIONS["1 cublas"].beside(case, timing["median_ms"], report) | timing | {"tflops": round(tflops)}
    )


def torch_topk(case: str, shape: Shape, report: Report) -> Result:
    found: Result = {}
    for name, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16)):
        pre_acts = normal(1, shape.B, shape.F, dtype=dtype)
        found[name] = kernel_ms(lambda z=pre_acts: torch.topk(z, shape.K, dim=1, sorted=False))
        del pre_acts
    return PREDICTIONS["2 torch.topk"].beside(case, found["bf16"]["median_ms"], report) | found


def selection(case: str, shape: Shape, report: Report) -> Result:
    pre_acts, K = normal(1, shape.B, shape.F), shape.K
    maxima = group_maxima(pre_acts)
    acts, _ = select_topk(pre_acts, maxima, K)
    want = torch.topk(pre_acts, K, dim=1).values.relu_()
    expect(
        torch.equal(acts.sort(dim=1, descending=True).values, want),
        "select_topk: other values than torch.topk",
    )
    both = kernel_ms(lambda: select_topk(pre_acts, group_maxima(pre_acts), K))
    apart = {
        "group_maxima": kernel_ms(lambda: group_maxima(pre_acts)),
        "select_topk": kernel_ms(lambda: select_topk(pre_acts, maxima, K)),
    }
    gigabytes = pre_acts.nbytes / 1e9
    apart["group_maxima"]["gb_per_s"] = round(1e3 * gigabytes / apart["group_maxima"]["median_ms"])
    return PREDICTIONS["3 group maxima and select"].beside(case, both["median_ms"], report) | both | apart


def fused(case: str, shape: Shape, report: Report) -> Result:
    centred, W_enc, b_enc = operands(shape)
    some = slice(0, 16)
    exact = centred[some].double() @ W_enc.double().T + b_enc.double()
    out = torch.empty(shape.B, shape.F, device=DEVICE, dtype=DTYPE)
    torch.mm(centred, W_enc.T, out=out)
    theirs = relative_error(out[some] + b_enc.to(DTYPE), exact)
    routes: Result = {"cublas alone": kernel_ms(lambda: torch.mm(centred, W_enc.T, out=out))}
    for route in ("triton", "cublas"):
        pre_acts, maxima = pre_acts_and_maxima(centred, W_enc, b_enc, route=route)
        error = relative_error(pre_acts[some], exact)
        expect(error <= 2 * theirs + 1e-6, f"{route}: error {error} against cuBLAS's {theirs}")
        expect(
            torch.equal(maxima, group_maxima(pre_acts)),
            f"{route}: the maxima are not those of the pre-activations",
        )
        del pre_acts, maxima
        routes[route] = kernel_ms(lambda r=route: pre_acts_and_maxima(centred, W_enc, b_enc, route=r))
        routes[route]["relative_error"] = error
    faster = routes["cublas alone"]["median_ms"] / routes["triton"]["median_ms"]
    best = min(("triton", "cublas"), key=lambda route: routes[route]["median_ms"])
    return PREDICTIONS["4 fused product"].beside(case, faster, report) | routes | {"best_route": best}


def update(case: str, shape: Shape, report: Report) -> Result:
    B, D, F, _ = shape
    found: Result = {}
    state = State.fresh(make_sae(shape).params, compute_dtype=DTYPE)
    centred, error = normal(1, B, D), normal(2, B, D)
    scale, one = torch.tensor(1 / (B * D), device=DEVICE), torch.ones((), dtype=torch.int64, device=DEVICE)
    before, still = state.weights.enc.weight[:64].clone(), numbers_of(shape, 0.0)
    for name in ("uniform", "zipf"):
        acts, indices = uniform_code(shape, name == "zipf")
        groups = ops.group_by_latent(acts, indices, F)
        code = acts, indices, None, groups
        run = partial(ops.update_, state.weights, centred, error, *code, scale, None, still, one)
        for matrix in (state.weights.enc, state.weights.dec):
            matrix.exp_avg.zero_()
        run()
        latents = indices[0, :4]  # with zipf the first is active in every token
        errors = gradient_errors(state, centred, error, scale, acts, indices, latents)
        expect(max(errors) < GRADIENT, f"{name}: gradients have relative errors {errors}")
        found[name] = kernel_ms(run) | {"hottest_latent": int(groups[0].diff().max())}
    expect(torch.equal(before, state.weights.enc.weight[:64]), "lr = 0 changed a weight")
    found["zipf_over_uniform"] = round(found["zipf"]["median_ms"] / found["uniform"]["median_ms"], 3)
    return PREDICTIONS["6 update"].beside(case, found["uniform"]["median_ms"], report) | found


def adam(case: str, shape: Shape, report: Report) -> Result:
    """Gradients are read too, 4 bytes per parameter more than the formats themselves."""
    _, D, F, _ = shape
    copy, found = device_of(report).bandwidth, {}
    grads = tuple(
        normal(i, *size, dtype=torch.float32) for i, size in enumerate(((F, D), (F,), (F, D), (D,)))
    )
    factor, one = torch.ones((), device=DEVICE), torch.ones((), dtype=torch.int64, device=DEVICE)
    for formats in ADAM_FORMATS if case == "B" or REHEARSAL else ADAM_FORMATS[:1]:
        params = make_sae(shape).params
        some = State.fresh(
            Params(*(p[:64].clone() for p in params[:3]), params.b_dec.clone()), *formats, DTYPE
        )
        state = State.fresh(params, *formats, DTYPE)
        del params
        rest = factor, numbers_of(shape, 1e-4), one
        run = partial(ops.adam_rows_, state.weights, grads, *rest)
        run()
        reference.adam_rows_(some.weights, (*(g[:64] for g in grads[:3]), grads[3]), *rest)
        for got, want in zip(state.weights[:2], some.weights[:2], strict=True):
            distance = relative_error(load_weight(got)[:64], load_weight(want))
            expect(
                distance <= (1e-3 if formats[0] == "bf16" else 1e-5),
                f"{formats}: {distance} from the reference",
            )
        n_bytes = F * D * sum(4 + state_bytes(matrix) for matrix in (state.weights.enc, state.weights.dec))
        timing = kernel_ms(run)
        speed = 1e3 * n_bytes / timing["median_ms"]
        rates = {"gb_per_s": round(speed / 1e9), "of_copy": round(speed / copy, 3)}
        found["-".join(formats)] = timing | {"bytes_per_parameter": n_bytes / (2 * F * D)} | rates
        del state, run
        free()
    return PREDICTIONS["7 adam"].beside(case, found["fp32-fp32"]["of_copy"], report) | found


def from_stages(name: str, stage: str, case: str, shape: Shape, report: Report) -> Result:
    """An op that the part `stages` has compared with plain PyTorch and timed."""
    timing = report.get("stages", {}).get(case, {}).get(stage)
    if timing is None:
        return {"error": "the part stages has not measured it"}
    return PREDICTIONS[name].beside(case, timing["median_ms"], report) | timing


def graph(case: str, shape: Shape, report: Report) -> Result:
    """From the part `step`."""
    steps = report.get("step", {})
    both = [steps.get(f"{case} {name}", {}).get(name, {}).get("median_ms") for name in ("triton", "eager")]
    if None in both:
        return {"error": "the part step has not measured both"}
    saved = PREDICTIONS["9 graph"].beside(case, 1 - both[0] / both[1], report)
    return saved | {"graph_ms": both[0], "eager_ms": both[1]}


MEASUREMENTS: list[tuple[str, Callable[[str, Shape, Report], Result]]] = [
    ("1 cublas", cublas),
    ("2 torch.topk", torch_topk),
    ("3 group maxima and select", selection),
    ("4 fused product", fused),
    ("5 decode and loss", partial(from_stages, "5 decode and loss", "decode")),
    ("6 update", update),
    ("7 adam", adam),
    ("8 transpose", partial(from_stages, "8 transpose", "group")),
    ("9 graph", graph),
]
ITEMS: dict[str, Item] = {
    f"{name} {case}": partial(measure, case, shape)
    for name, measure in MEASUREMENTS
    for case, shape in CASES.items()
}
PREDICTED = Part(ITEMS, item_seconds=40)
