"""One op, several ways to compute it: each result is checked, then each contender is timed beside the plain one.

A round is one call of the plain formulation and one of the contender, so a noisy neighbour slows both, and their ratio is
taken within the round. Plain is a contender, too: its ratio to itself says how much of a ratio is noise.

The floor is that of `roofline.py`: the bytes an op has to move over the bandwidth of a large copy, or its FLOPs over the
rate of a large product in the format of the products, whichever takes longer, both measured at the start of the session. A
share above 100% is no mistake: data that is still in cache moves faster than a copy of main memory, and the native encoder
excludes most latents by products of bytes. On a busy machine the floor is too low, and shares say little.

Peak memory is that of one call above what is held before it. What a contender keeps from call to call (the engine's scratch
memory, the optimizer's moments) is held already, and not in it.
"""

import os
import shutil
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from benchmarks import shapes
from benchmarks.measuring import DEVICE, peak_mib, ratio, reset_peak, seconds_of, spread
from benchmarks.roofline import DEVICES, Device, Stage, floor_ms, stages
from saefast import reference
from saefast.backend import MODULES, load_backend, unavailable

ON_GPU = DEVICE == "cuda"
DTYPE = torch.bfloat16 if ON_GPU else torch.float32  # the format of the products
TOLERANCE = 2e-2 if ON_GPU else 1e-5  # times the largest value
Shape = tuple[int, int, int, int]  # B, d_in, d_sae, k
SMOKE: Shape = (256, 64, 1024, 8)
DEMO: dict[str, Shape] = {"demo": (1024, 576, 4608, 32)}
OF_GPU: dict[str, Shape] = {name: shapes.SHAPES[name] for name in "AB"}
SHAPES = {"smoke": SMOKE} | (OF_GPU if ON_GPU else DEMO | {"residual": (4096, 576, 9216, 32)})
FEWER_SHAPES = {"smoke": SMOKE} | (OF_GPU if ON_GPU else DEMO)  # for what takes a CPU long
NO_GPU = "Triton's interpreter says nothing about speed"
BUDGET, LEAST, MOST = 0.3, 5, 100  # seconds for a contender and the plain one together; rounds
Contenders = Mapping[str, Callable[..., Any] | str]  # the op, or why it cannot run here


@dataclass(frozen=True)
class Case:
    """An op at a shape: what every contender is given, and what must come out."""

    op: str
    shape: Sequence[int]
    inputs: tuple[Any, ...]
    check: Callable[..., None]  # raises unless it is given the right result
    stages: Sequence[Stage]
    calls: int = 1  # in a row, the results of which `check` takes together
    checked: dict[str, float] = field(
        default_factory=dict
    )  # contenders that were right: seconds of a warm call


def backends(op: str, n_inputs: int | None = None) -> dict[str, Callable[..., Any] | str]:
    """The op of each backend, or why it cannot run here. n_inputs: how many of a case's inputs it takes."""
    found = {name: _of_backend(name, op) for name in MODULES}
    if n_inputs is None:
        return found
    return {name: run if isinstance(run, str) else first(n_inputs, run) for name, run in found.items()}


def first(n_inputs: int, run: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *inputs: run(*inputs[:n_inputs])


def _of_backend(name: str, op: str) -> Callable[..., Any] | str:
    if name == "triton" and not ON_GPU:
        return NO_GPU
    if name == "native" and ON_GPU:
        return "the native backend runs on the CPU"
    if reason := unavailable(name):
        return reason
    found = getattr(load_backend(name, DEVICE), op, None)
    if found is None:
        return f"{MODULES[name]} has no {op} of its own"
    if name == "native" and found is getattr(reference, op):
        return f"the native backend takes {op} from the reference"
    return found


def compiled(run: Callable[..., Any]) -> Callable[..., Any] | str:
    if not shutil.which(os.environ.get("CXX", "g++")):
        return "torch.compile needs a C++ compiler"
    return torch.compile(run, dynamic=False)


def stages_of(shape: Shape) -> list[Stage]:
    """The stages of a training step on this device."""
    return stages(*shape, compute_bytes=DTYPE.itemsize, l2=last_cache())


def stage(name: str, shape: Shape) -> Stage:
    return next(one for one in stages_of(shape) if one.name == name)


def random_code(shape: Shape) -> tuple[Tensor, Tensor]:
    """[B, K], [B, K] int32: latents are equally likely, as the floors take them to be."""
    B, _, F, K = shape
    return reference.topk(torch.randn(B, F, device=DEVICE), K)


def unit_rows(n: int, d_in: int) -> Tensor:
    """[n, D] in the format of the products."""
    return reference.normalize_rows_(torch.randn(n, d_in, device=DEVICE)).to(DTYPE)


def exactly(run: Callable[..., Any], *inputs: Any) -> Any:
    """The op in fp64."""
    return run(*(t.double() if torch.is_tensor(t) and t.is_floating_point() else t for t in inputs))


def close_to(*exact: Tensor) -> Callable[..., None]:
    """A check: every number of every result within TOLERANCE of the largest there is."""

    def check(got: Tensor | Sequence[Tensor]) -> None:
        for one, want in zip((got,) if torch.is_tensor(got) else got, exact, strict=True):
            assert one.shape == want.shape, f"shape {tuple(one.shape)}, expected {tuple(want.shape)}"
            off = float((one.double() - want).abs().max() / want.abs().max())
            assert off <= TOLERANCE, f"off by {off:.1e} of the largest value, {TOLERANCE:.0e} allowed"

    return check


def equal_to(*exact: Tensor) -> Callable[..., None]:
    def check(got: Sequence[Tensor]) -> None:
        for one, want in zip(got, exact, strict=True):
            assert torch.equal(one, want), "not equal"

    return check


def compete(
    case: Case, contenders: Contenders, name: str, benchmark: BenchmarkFixture, device: Device | None
) -> dict[str, Any] | None:
    """A row of results for one of `contenders`, one of which is "plain"; None where nothing is timed (device None)."""
    run, plain = contenders[name], contenders["plain"]
    if isinstance(run, str):
        benchmark.skipped = True
        pytest.skip(run)
    assert not isinstance(plain, str)
    call, call_plain = partial(run, *case.inputs), partial(plain, *case.inputs)
    for each, its_call in (("plain", call_plain), (name, call)):
        if each not in case.checked:
            case.check(*(its_call() for _ in range(case.calls)))
            case.checked[each] = seconds_of(its_call)
    if device is None:
        benchmark.pedantic(lambda: None)
        return None

    plain_seconds = list[float]()

    def plain_turn() -> None:
        plain_seconds.append(seconds_of(call_plain))

    def timed() -> None:
        call()
        if ON_GPU:
            torch.cuda.synchronize()

    rounds = min(MOST, max(LEAST, int(BUDGET / (case.checked["plain"] + case.checked[name]))))
    benchmark.pedantic(timed, setup=plain_turn, rounds=rounds, warmup_rounds=1)
    before = reset_peak()
    result = call()  # kept, as it is part of the peak
    peak = peak_mib(before)
    del result
    row = row_of(case, name, device, benchmark.stats.stats.data, plain_seconds[1:], peak)
    benchmark.extra_info |= row
    return row


def row_of(
    case: Case, name: str, device: Device, seconds: Sequence[float], plain: Sequence[float], peak: float
) -> dict[str, Any]:
    median = statistics.median(seconds)
    flops, n_bytes = (sum(part) for part in list(zip(*case.stages, strict=True))[1:])
    by_flops = flops / device.flops > n_bytes / device.bandwidth
    rate = {"GFLOP/s": flops} if by_flops else {"GB/s": n_bytes}
    return {
        "op": case.op,
        "shape": list(case.shape),
        "contender": name,
        "seconds": spread(seconds, digits=7),
        "share of floor": round(floor_ms(list(case.stages), device)[1] / 1e3 / median, 3),
        **{unit: round(amount / median / 1e9, 2) for unit, amount in rate.items()},
        "times as fast as plain": ratio(plain, seconds),
        "rounds": len(seconds),
        "peak MiB": peak,
    }


def line_of(row: Mapping[str, Any]) -> str:
    median, low, high = (1e3 * value for value in row["seconds"])
    unit = "GB/s" if "GB/s" in row else "GFLOP/s"
    return (
        f"{row['op']:17} {' '.join(map(str, row['shape'])):17} {row['contender']:18} "
        f"{median:9.3f} ms ({low:.3f} to {high:.3f})".ljust(75)
        + f"{row['share of floor']:6.0%} of floor {row[unit]:8.1f} {unit:7} "
        + "{:7.2f} x plain ({:.2f} to {:.2f})".format(*row["times as fast as plain"]).ljust(33)
        + f"{row['peak MiB']:8.1f} MiB"
    )


def last_cache() -> int:
    """Bytes of the last-level cache."""
    if ON_GPU:
        return torch.cuda.get_device_properties(0).L2_cache_size
    sizes = [path.read_text() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max((int(size.strip().rstrip("K")) * 2**10 for size in sizes), default=2**25)


def measured_device() -> Device:
    """This machine, with the threads that torch has: the best of several large copies and products."""
    if ON_GPU and (known := next((DEVICES[n] for n in DEVICES if n in torch.cuda.get_device_name()), None)):
        return known
    side, cache = (8192 if ON_GPU else 2048), last_cache()
    source = torch.ones(max(2**28, 2 * cache), dtype=torch.uint8, device=DEVICE)
    target, (a, b, c) = torch.empty_like(source), torch.ones(3, side, side, dtype=DTYPE, device=DEVICE)
    copy = min(seconds_of(partial(target.copy_, source)) for _ in range(7))
    product = min(seconds_of(partial(torch.mm, a, b, out=c)) for _ in range(7))
    return Device("this machine", 2 * source.numel() / copy, 2 * side**3 / product, cache, float("inf"))
