"""`make gpu`: where a step's time goes. Its ops one by one at A, B and C, beside the floor of each.

The ops run in the order of `saefast.engine.step.train_step` on the results of the ones before. What they compute is compared with
plain PyTorch first: the loss over the batch, the groups exactly, and gradients of some latents in fp64.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.gpu.common import (
    CASES,
    DEVICE,
    DTYPE,
    LOSS,
    Part,
    Report,
    Result,
    batches,
    close,
    exact_loss,
    expect,
    floors,
    free,
    kernel_ms,
    make_sae,
    relative_error,
    uniform_code,
)
from benchmarks.shapes import Shape
from saefast import SAEConfig, TrainConfig, reference
from saefast import triton_kernels as ops
from saefast.engine import numbers as engine_numbers
from saefast.engine.plan import Plan
from saefast.engine.state import State
from saefast.reference import Groups
from saefast.triton_kernels.pre_acts import encode_route, pre_acts_and_maxima
from saefast.triton_kernels.topk import select_topk

BETAS = (0.9, 0.999)
GRADIENT = 1e-4  # relative; both sides have the same bf16 inputs, and sum in fp32 or fp64


def numbers_of(shape: Shape, lr: float, step: int = 1) -> Tensor:
    train = TrainConfig(total_tokens=1, betas=BETAS, eps=1e-8)
    plan = Plan(SAEConfig(d_in=shape.D, d_sae=shape.F, k=shape.K), train, k=shape.K, compute_dtype=DTYPE)
    listed = engine_numbers.numbers_of(plan, engine_numbers.Scheduled(lr), step, shape.B)
    return torch.tensor(listed, dtype=torch.float32, device=DEVICE)


class Chain:
    """One step at `shape`, op by op; `calls` repeats each op on the inputs that it had.

    heavy_tailed: what follows the selection gets a code in which latent 0 is active in every token and most are in few.
    """

    def __init__(self, shape: Shape, heavy_tailed: bool = False) -> None:
        self.shape, F, K = shape, shape.F, shape.K
        sae = make_sae(shape)
        self.state = State.fresh(sae.params, compute_dtype=DTYPE)
        (x,) = batches(shape, 1)
        self.exact: float | None = exact_loss(sae.params, x, K)
        weights, step = self.state.weights, torch.ones((), dtype=torch.int64, device=DEVICE)
        W_enc, W_dec, b_enc, b_dec = (
            weights.enc.shadow,
            weights.dec.shadow,
            weights.b_enc.value,
            weights.b_dec.value,
        )
        self.calls: dict[str, Callable[[], object]] = {}

        centred, variance = self._run("centre", lambda: ops.centre(x, b_dec, DTYPE))
        pre_acts, maxima = self._run("encode", lambda: pre_acts_and_maxima(centred, W_enc, b_enc))
        acts, indices = self._run("select", lambda: select_topk(pre_acts, maxima, K))
        acts = acts.to(b_enc.dtype)
        if heavy_tailed:
            acts, indices = uniform_code(shape, zipf=True)
            self.exact = None  # nothing else computes the loss of such a code
        error, squares = self._run("decode", lambda: ops.decode_error(acts, indices, W_dec, b_dec, x, DTYPE))
        groups: Groups = self._run("group", lambda: ops.group_by_latent(acts, indices, F))
        self.fvu, grad_scale, still = squares.sum() / variance, 2 / variance, numbers_of(shape, 0.0)
        code = acts, indices, None, groups
        self.update = weights, centred, error, *code, grad_scale, None, still, step
        self._run("update", lambda: ops.update_(*self.update))
        self.maxima, self.decode = (pre_acts, maxima), (acts, indices, W_dec, b_dec, x, DTYPE)
        self.centred, self.error, self.grad_scale = centred, error, grad_scale
        self.acts, self.indices, self.groups, self.W_enc, self.b_enc = acts, indices, groups, W_enc, b_enc

    def _run(self, name, call):  # type: ignore[no-untyped-def]
        self.calls[name] = call
        return call()

    def check(self, n_latents: int = 32) -> Result:
        if self.exact is not None:
            close("loss", float(self.fvu), self.exact, LOSS)
        F = len(self.state.weights.b_enc.value)
        names, wanted = ("offsets", "pairs", "tokens"), reference.group_by_latent(self.acts, self.indices, F)
        for name, got, want in zip(names, self.groups, wanted, strict=True):
            used = slice(None) if name == "offsets" else slice(0, int(self.groups[0][-1]))
            expect(torch.equal(got[used], want[used]), f"group_by_latent: {name} differ")
        acts, indices, W_dec, b_dec, x, _ = self.decode
        some = slice(0, 64)
        rows = W_dec[indices[some].long()].double()
        x_hat = b_dec.double() + torch.einsum("bk,bkd->bd", acts[some].double(), rows)
        distance = relative_error(self.error[some], x_hat - x[some].double())
        expect(distance <= 2e-3, f"decode_error: relative error {distance}")
        latents = self.indices.flatten()[:: max(1, self.indices.numel() // n_latents)].unique()
        of = self.centred, self.error, self.grad_scale, self.acts, self.indices
        errors = gradient_errors(self.state, *of, latents)
        expect(max(errors) < GRADIENT, f"gradients of {len(latents)} latents: relative errors {errors}")
        return {"fvu": float(self.fvu), "exact_fvu": self.exact, "gradient_errors": errors}


def gradient_errors(
    state: State,
    centred: Tensor,
    error: Tensor,
    grad_scale: Tensor,
    acts: Tensor,
    indices: Tensor,
    latents: Tensor,
) -> list[float]:
    """Relative errors of the gradients of W_enc and W_dec, some rows of them, against fp64; lr was 0.

    exp_avg was 0 before the step, so it is (1 - beta1) times the gradient.
    """
    of_enc, of_dec = [], []
    for f in latents.tolist():
        token, slot = ((indices == f) & (acts > 0)).nonzero(as_tuple=True)
        W_dec = state.weights.dec.weight[f].double()
        errors, inputs = error[token].double(), centred[token].double()
        grad = grad_scale.double() * acts[token, slot].double() @ errors
        of_dec.append(grad - (grad @ W_dec) * W_dec)
        of_enc.append(grad_scale.double() * (errors @ W_dec) @ inputs)
    rest = 1 - BETAS[0]
    got = (
        matrix.exp_avg[latents.long()].double() / rest for matrix in (state.weights.enc, state.weights.dec)
    )
    return [relative_error(a, torch.stack(b)) for a, b in zip(got, (of_enc, of_dec), strict=True)]


def heavy_tailed(name: str, report: Report) -> Result:
    """The ops whose work depends on how often latents are active. The stages of `name` are without hot latents."""
    chain, beside = Chain(CASES[name], heavy_tailed=True), report.get("stages", {}).get(name, {})
    result: Result = {"hottest_latent": int(chain.groups[0].diff().max())} | chain.check()
    for op in ("decode", "group", "update"):
        result[op] = kernel_ms(chain.calls[op])
        if op in beside:
            result[op]["over_uniform"] = round(result[op]["median_ms"] / beside[op]["median_ms"], 3)
    del chain
    free()
    return result


def stages_of(name: str, report: Report) -> Result:
    shape = CASES[name]
    B, D, F, _ = shape
    chain = Chain(shape)
    result: Result = {"shape": list(shape)} | chain.check()
    capability = torch.cuda.get_device_capability() if DEVICE == "cuda" else (9, 0)
    result["route"] = encode_route(B, D, F, DTYPE, capability)
    parts, floor, total = floors(report, shape, route=result["route"])
    for part in parts:
        timing = kernel_ms(chain.calls[part.name])
        seconds = timing["median_ms"] / 1e3
        result[part.name] = timing | {
            "floor_ms": round(floor[part.name], 4),
            "gb_per_s": round(part.bytes / seconds / 1e9),
            "tflops": round(part.flops / seconds / 1e12, 1),
        }
    # in the state in which the update leaves the L2 cache, as within a run
    result["encode after update"] = kernel_ms(chain.calls["encode"], before=chain.calls["update"])
    result["sum_ms"] = round(sum(result[part.name]["median_ms"] for part in parts), 4)
    result["floor_ms"] = round(total, 4)
    step = report.get("step", {}).get(f"{name} triton", {}).get("triton")
    if step:
        result["step_ms"] = step["median_ms"]
        result["outside_of_ops_ms"] = round(step["median_ms"] - result["sum_ms"], 4)
    del chain
    free()
    return result


ITEMS = {name: partial(stages_of, name) for name in CASES}
ITEMS |= {f"{name} heavy-tailed": partial(heavy_tailed, name) for name in CASES}
STAGES = Part(ITEMS, item_seconds=40)
