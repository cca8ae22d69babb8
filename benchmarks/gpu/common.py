"""What the parts of `make gpu` share: the shapes, inputs made on the device, what is exact, and two ways to time.

`kernel_ms` is the device's own time with a cold L2 cache: the device sleeps while the host launches, so slow launches do
not count. `step_ms` is the pace of many steps in a row, launches included, as a training run has it.
"""

import functools
import gc
import itertools
import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import checkout
from benchmarks.roofline import Device, Stage, floor_ms, stages
from benchmarks.shapes import SHAPES as REAL_SHAPES
from benchmarks.shapes import Shape
from saefast import SAE, SAEConfig, TrainConfig, reference
from saefast.reference import Params
from tests.gates import quick_interpreter, strict_interpreter

quick_interpreter.install()  # for the rehearsal; otherwise they do nothing
strict_interpreter.install()
ROOT = checkout.ROOT
REHEARSAL = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if REHEARSAL else "cuda"
DTYPE = torch.bfloat16  # the format of the products
LOSS = 2e-3  # relative error allowed of a first loss: in bf16 x_hat has errors of 2^-9, of either sign
TOYS = os.environ.get(
    "SAEFAST_TOYS", "A"
)  # the shapes that are rehearsed; all of them are one in the rehearsal
SHAPES = dict.fromkeys(TOYS, Shape(B=4, D=24, F=24, K=2)) if REHEARSAL else REAL_SHAPES
CASES = {name: shape for name, shape in SHAPES.items() if name in "ABC"}

Result = dict[str, Any]
Report = dict[str, dict[str, Any]]  # part -> item -> result, of the items done so far
Item = Callable[[Report], Result]


@dataclass(frozen=True)
class Part:
    """A group of measurements."""

    items: dict[str, Item]  # run in this order
    item_seconds: int  # one that takes longer is stopped


def said(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, **options)


def rng(seed: int) -> torch.Generator:
    return torch.Generator(DEVICE).manual_seed(seed)


def make_sae(shape: Shape, dtype: torch.dtype = torch.float32, seed: int = 0) -> SAE:
    """An SAE made on the device: `SAE` draws its weights on the CPU, half a minute for case C."""
    _, D, F, K = shape
    sae = SAE(SAEConfig(d_in=D, d_sae=K, k=K)).to(DEVICE)
    sae.config = SAEConfig(d_in=D, d_sae=F, k=K)
    W_dec = torch.randn(F, D, device=DEVICE, dtype=dtype, generator=rng(seed)).mul_(D**-0.5)
    for rows in W_dec.split(2**16):  # a few at a time: there may be no memory for a copy
        reference.normalize_rows_(rows)
    # Else the mean of the batch, which every token has, makes the same few latents active in all of them.
    sae.b_dec = nn.Parameter(mean_of(shape))
    # Not equal to W_dec: for one latent the loss does not feel a small error in the size of x_hat then.
    sae.W_dec, sae.W_enc = nn.Parameter(W_dec), nn.Parameter(W_dec * 0.6)
    sae.b_enc = nn.Parameter(torch.zeros(F, device=DEVICE))
    return sae


def mean_of(shape: Shape) -> Tensor:
    """The mean of the rows that `batches` draws."""
    return torch.randn(shape.D, device=DEVICE, generator=rng(6))


def batches(shape: Shape, n: int) -> Tensor:
    """[n, B, D] with a mean, as activations have."""
    return torch.randn(n, shape.B, shape.D, device=DEVICE, generator=rng(5)) + mean_of(shape)


def heavy_tailed_(sae: SAE) -> SAE:
    """b_enc such that latent j is active in about k / (H r) of the tokens of `batches`, r its rank in a random order and
    H the sum of all 1 / r: some in every token, most in few, as in dictionaries trained on language models."""
    F = sae.config.d_sae
    share = 1 / torch.arange(1, F + 1, device=DEVICE, dtype=torch.float64)
    share = (share * (sae.config.k / share.sum())).clamp_max(1 - 1e-6)
    spread = (
        sae.W_enc.data[:64].norm(dim=1).mean()
    )  # of a pre-activation, where those before b_enc are normal
    order = torch.randperm(F, device=DEVICE, generator=rng(7))
    sae.b_enc.data[order] = (spread * torch.special.ndtri(share)).float()
    return sae


def train_config(shape: Shape, **options: Any) -> TrainConfig:
    settings = {
        "total_tokens": 10**9,
        "batch_size": shape.B,
        "lr": 1e-4,
        "warmup_fraction": 0,
        "decay_fraction": 0,
        "normalize_input": False,
        "backend": "triton",
        "compute_dtype": "bf16",
    }
    return TrainConfig(**settings | options)


def uniform_code(shape: Shape, zipf: bool = False) -> tuple[Tensor, Tensor]:
    """acts [B, K] fp32, indices [B, K] int32: slot j takes a latent j + K r, so no token has one twice.

    zipf: the probability of r is proportional to 1 / (r + 1), and latent 0 is active in every token.
    """
    B, _, F, K = shape
    acts = torch.rand(B, K, device=DEVICE, generator=rng(1)) + 0.1
    r = torch.randint(F // K, (B, K), device=DEVICE, generator=rng(2))
    if zipf:
        weights = 1 / torch.arange(1, F // K + 1, device=DEVICE)
        r = torch.multinomial(weights, B * K, replacement=True, generator=rng(2)).view(B, K)
        r[:, 0] = 0
    return acts, (r * K + torch.arange(K, device=DEVICE)).to(torch.int32)


def exact_loss(params: Params, x: Tensor, k: int, rows: int = 1024) -> float:
    """FVU of x before a step by plain fp32 PyTorch, some rows at a time."""
    squares = torch.zeros((), device=x.device)
    for part in x.split(rows):
        acts, indices = (reference.encode(part, params.W_enc, params.b_enc, params.b_dec)).topk(k, dim=1)
        error = reference.decode(acts.relu(), indices.to(torch.int32), params.W_dec, params.b_dec) - part
        squares += error.square().sum()
    return float(squares / reference.total_variance(x))


def relative_error(got: Tensor, exact: Tensor) -> float:
    return float((got.double() - exact.double()).norm() / exact.double().norm())


_failed: list[str] = []


def expect(condition: bool, what: str) -> None:
    """An assertion after which the item goes on: its figures are kept, beside the error, and it is done again."""
    if not condition:
        _failed.append(what)


def close(what: str, got: float, want: float, rtol: float) -> None:
    expect(abs(got - want) <= rtol * abs(want), f"{what}: {got} against {want}, more than {rtol} apart")


def what_failed() -> Result:
    """The failed expectations since the last call, as an error."""
    found = "; ".join(_failed)
    _failed.clear()
    return {"error": found[:3000]} if found else {}


def autocast() -> torch.autocast:
    """How others train in bf16."""
    return torch.autocast(DEVICE, dtype=torch.bfloat16)


def synchronize() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def free() -> None:
    """Give what nobody holds any more back to the device."""
    gc.collect()
    if DEVICE == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_gb() -> Result:
    if DEVICE == "cpu":
        return {"peak_gb": 0.0, "reserved_gb": 0.0}
    return {
        "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 3),
        "reserved_gb": round(torch.cuda.max_memory_reserved() / 1e9, 3),
    }


def summary(times: list[float]) -> Result:
    p10, median, p90 = torch.tensor(times).quantile(torch.tensor([0.1, 0.5, 0.9])).tolist()
    names = {"median_ms": median, "mean_ms": sum(times) / len(times), "p10_ms": p10, "p90_ms": p90}
    return {name: round(value, 4) for name, value in names.items()} | {"samples": len(times)}


def host_ms(run: Callable[[], object]) -> float:
    synchronize()
    began = time.perf_counter()
    run()
    synchronize()
    return 1e3 * (time.perf_counter() - began)


def count(one_ms: float, seconds: float) -> int:
    """How many runs of `one_ms` to take: as many as fit in `seconds`, from 5 to 100."""
    return int(min(100, max(5, 1e3 * seconds / max(one_ms, 1e-3))))


@functools.cache
def scratch() -> Tensor:
    return torch.empty(2**28, dtype=torch.int8, device=DEVICE)  # more than any L2 cache holds


def clear_cache() -> None:
    scratch().zero_()


def kernel_ms(
    run: Callable[[], object], seconds: float = 0.5, before: Callable[[], object] = clear_cache
) -> Result:
    """`before` runs ahead of each run and is not timed: it decides what is in the L2 cache."""
    if DEVICE == "cpu":
        return summary([host_ms(run)])
    run()
    n = count(host_ms(run) + 1, seconds)
    pairs = []
    for _ in range(n):
        before()
        torch.cuda._sleep(2_000_000)  # cycles, about a millisecond
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        pairs.append((start, end))
        end.synchronize()
    return summary([start.elapsed_time(end) for start, end in pairs])


def step_ms(run: Callable[[], object], seconds: float = 2.0) -> Result:
    if DEVICE == "cpu":
        return summary([host_ms(run)])
    n = count(min(host_ms(run) for _ in range(3)), seconds)
    events = [torch.cuda.Event(enable_timing=True) for _ in range(n + 1)]
    events[0].record()
    for event in events[1:]:
        run()
        event.record()
    synchronize()
    return summary([a.elapsed_time(b) for a, b in itertools.pairwise(events)])


def ceilings() -> Result:
    """What this device reaches on a large copy and on a large product."""
    rows, size = (2**28, 8192) if DEVICE == "cuda" else (2**10, 64)
    source = torch.randn(rows, device=DEVICE)
    target = torch.empty_like(source)
    copy = kernel_ms(lambda: target.copy_(source))
    left, right = (torch.randn(size, size, device=DEVICE).to(DTYPE) for _ in range(2))
    product = kernel_ms(lambda: torch.mm(left, right))
    found = {
        "gb_per_s": round(2e-6 * source.nbytes / copy["median_ms"], 6),
        "tflops": round(2e-9 * size**3 / product["median_ms"], 6),
        "l2_bytes": 2**20,
        "memory_bytes": 2**30,
    }
    if DEVICE == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {"l2_bytes": properties.L2_cache_size, "memory_bytes": properties.total_memory}
    return found


def device_of(report: Report) -> Device:
    found = report.get("machine", {}).get("ceilings")
    if not found or "error" in found:
        found = ceilings()
    return Device(
        "this", 1e9 * found["gb_per_s"], 1e12 * found["tflops"], found["l2_bytes"], found["memory_bytes"]
    )


def floors(report: Report, shape: Shape, **options: Any) -> tuple[list[Stage], dict[str, float], float]:
    """The stages of a step, the floor of each and of all of them on this device: see `roofline.stages`, `roofline.floor_ms`."""
    device = device_of(report)
    found = stages(*shape, compute_bytes=DTYPE.itemsize, l2=device.l2, **options)
    return found, *floor_ms(found, device)
