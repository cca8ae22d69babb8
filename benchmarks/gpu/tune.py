"""`make gpu`: launch configurations of the kernels that decide the step, timed beside the one that is used.

Each candidate must give what the configuration in use gives, to rounding where its sums have another order. A result is a
list, the fastest first, with `default` where the one in use is. The function that chooses configurations is changed by
hand, where a candidate is faster at several shapes: select_config, decode_config, update_config, gemm_config; and
encode_route, where a route is.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from importlib import import_module
from itertools import islice, product
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor

from benchmarks.gpu.common import CASES, DTYPE, REHEARSAL, Part, Report, Result, expect, free, kernel_ms
from benchmarks.gpu.stages import Chain
from benchmarks.shapes import Shape
from saefast import triton_kernels as ops
from saefast.triton_kernels import gemm, pre_acts
from saefast.triton_kernels.occupancy import blocks_per_multiprocessor, most_registers
from saefast.triton_kernels.update import UpdateConfig, update_config

# modules that the package has functions of the same names beside
decode, topk = (import_module(f"saefast.triton_kernels.{name}") for name in ("decode", "topk"))
SECONDS = 0.15  # for timing one candidate
AGAIN = "update, heavy-tailed", "update and encode"  # candidates of "update" once more
SAME = 1e-2  # relative difference of results: sums in another order, rounded to bf16


class Candidate(NamedTuple):
    """A configuration, the values in modules that it stands for, and options of the op."""

    name: str
    patches: tuple[tuple[Any, str, Any], ...] = ()
    options: tuple[tuple[str, Any], ...] = ()

    def run(self, op: Callable[..., Any]) -> Any:
        with ExitStack() as patched:
            for patch in self.patches:
                patched.enter_context(mock.patch.object(*patch))
            return op(**dict(self.options))


TILES = [  # BLOCK_M, BLOCK_N, BLOCK_K, warps, stages, blocks on a multiprocessor
    (128, 256, 64, 8, 3, 1),
    (128, 256, 64, 8, 4, 1),
    (256, 128, 64, 8, 3, 1),
    (256, 128, 64, 8, 4, 1),
    (128, 128, 64, 8, 4, 1),
    (128, 128, 64, 4, 4, 1),
    (128, 128, 64, 4, 3, 2),
    (128, 128, 128, 8, 2, 1),
    (64, 256, 64, 4, 4, 1),
]


def beside(used: Any, found: Mapping[str, Any]) -> Iterator[Candidate]:
    """The configuration in use, and those of `found` that are others."""
    yield Candidate("default", options=(("config", used),))
    for name, config in found.items():
        if config != used:
            yield Candidate(name, options=(("config", config),))


def gemm_candidates(shape: Shape, device: torch.device) -> Iterator[Candidate]:
    used = gemm.gemm_config(shape.B, shape.F, shape.D, DTYPE, capability=gemm.device_capability(device))
    found = {}
    for m, n, k, warps, stages, blocks in TILES:
        config = replace(
            used, BLOCK_M=m, BLOCK_N=n, BLOCK_K=k, num_warps=warps, num_stages=stages, blocks=blocks
        )
        found[f"{m}x{n}x{k} {warps} warps {stages} stages" + (" 2 blocks" if blocks == 2 else "")] = config
    for group in (4, 16):
        found[f"{group} tiles down"] = replace(used, GROUP_M=group)
    yield from beside(used, found)


def group_maxima_candidates(shape: Shape, device: torch.device) -> Iterator[Candidate]:
    """After the library's product: its pass only reads it, as in `encode_topk`, or writes it back with the bias."""
    yield Candidate("default")
    yield Candidate("written back", options=(("write", True),))


def select_candidates(shape: Shape, device: torch.device) -> Iterator[Candidate]:
    yield Candidate("default")
    for n in (4, 8, 16):

        def select_config(n_groups: int, itemsize: int, n: int = n, of: Any = topk.select_config) -> Any:
            return replace(of(n_groups, itemsize), num_warps=n)

        yield Candidate(f"{n} warps", ((topk, "select_config", select_config),))


ROWS_AND_WARPS = (4, 1), (4, 2), (8, 1), (8, 2), (8, 4), (16, 4)


def decode_candidates(shape: Shape, device: torch.device) -> Iterator[Candidate]:
    used = decode.decode_config(shape.K, shape.D, DTYPE.itemsize)
    found = {}
    for columns, (rows, warps) in product((128, 256, 512, 1024), ROWS_AND_WARPS):
        if columns <= 2 * shape.D and columns // (32 * warps) in (2, 4, 8):
            config = decode.DecodeConfig(min(rows, shape.K), columns, warps)
            found[f"{rows} rows of {columns}, {warps} warps"] = config
    yield from beside(used, found)


def update_candidates(shape: Shape, device: torch.device) -> Iterator[Candidate]:
    used = update_config(shape.D, DTYPE.itemsize, device)
    found = {f"{stages} stages": replace(used, stages=stages) for stages in (1, 2, 3)}
    # copies into shared memory carry no hint for the cache, so that with more stages there is nothing to compare
    found["1 stage, gathered rows not kept"] = replace(used, stages=1, keep_gathered=False)
    found["state leaves the cache first"] = replace(used, pass_stored=True)
    found |= {f"R {R}": replace(used, R=R) for R in (1, 2, 4)}
    found |= {f"chunks of {chunk}": replace(used, chunk=chunk) for chunk in (64, 128, 256)}
    n, capability = used.num_warps, gemm.device_capability(device)
    for warps, least in ((n // 2, 152), (2 * n, 128), (n, 96)):
        if warps and (blocks := blocks_per_multiprocessor(warps, least, 0, capability)):
            registers = most_registers(warps, least, 0, capability)
            programs = gemm.multiprocessors(device) * blocks
            config = replace(used, num_warps=warps, maxnreg=registers, programs=programs)
            found[f"{warps} warps of {registers} registers"] = config
    found["twice as many programs"] = replace(used, programs=2 * used.programs)
    yield from beside(used, found)


def operations(chain: Any) -> dict[str, tuple[Callable[..., Any], Iterator[Candidate]]]:
    """Ops on what the step at a shape gives them: those that `Chain` has run, or tensors without memory."""
    shape, device = chain.shape, chain.centred.device
    product = chain.centred, chain.W_enc, chain.b_enc

    def update(config: UpdateConfig) -> Tensor:
        return ops.update_(*chain.update, config=config)

    def update_and_encode(config: UpdateConfig) -> tuple[Tensor, Tensor]:
        """What the update leaves in the L2 cache, the encoder of the next step finds there."""
        update(config)
        return pre_acts.pre_acts_and_maxima(*product)

    return {
        "encode, triton": (
            partial(pre_acts.pre_acts_and_maxima, *product, route="triton"),
            gemm_candidates(shape, device),
        ),
        "encode, cublas": (
            lambda write=False: pre_acts.products_and_maxima(*product, write=write)[1],
            group_maxima_candidates(shape, device),
        ),
        "select": (lambda: topk.select_topk(*chain.maxima, shape.K), select_candidates(shape, device)),
        "decode": (partial(ops.decode_error, *chain.decode), decode_candidates(shape, device)),
        "update": (update, update_candidates(shape, device)),
        "update, heavy-tailed": (update, update_candidates(shape, device)),
        "update and encode": (update_and_encode, update_candidates(shape, device)),
    }


def largest_difference(got: Any, want: Any) -> float:
    """The relative difference of tensors or tuples of them, some rows at a time: in fp32 C's pre-activations are 9 GB."""
    if isinstance(want, Tensor):
        apart, size = 0.0, 1e-30
        parts = zip(torch.atleast_1d(got).split(1024), torch.atleast_1d(want).split(1024), strict=True)
        for one, other in ((a.float(), b.float()) for a, b in parts):
            apart += float(
                (one - other).where(one != other, 0.0).square().sum()
            )  # equal infinities are not apart
            size += float(other.nan_to_num(posinf=0.0, neginf=0.0).square().sum())
        return (apart / size) ** 0.5
    return max(largest_difference(one, other) for one, other in zip(got, want, strict=True))


def timings(run: Callable[..., Any], candidates: Iterable[Candidate]) -> list[Result]:
    """Each candidate's time, and how far it is from the first."""
    timed: list[Result] = []
    want = None
    results: deque[Any] = deque(maxlen=1)  # the latest
    for candidate in candidates:
        try:
            timing = kernel_ms(
                lambda candidate=candidate: results.append(candidate.run(run)), seconds=SECONDS
            )
            got = results.pop()
            if want is None:
                want = got
            difference = largest_difference(got, want)
            expect(difference <= SAME, f"{candidate.name}: {difference} from the default")
            timed.append({"name": candidate.name, "median_ms": timing["median_ms"], "difference": difference})
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:  # noqa: BLE001 too much shared memory, say
            timed.append({"name": candidate.name, "said": f"{type(error).__name__}: {error}"[:200]})
        got = None
        results.clear()
    return timed


def tune(op: str, case: str, report: Report) -> Result:
    chain = Chain(CASES[case], heavy_tailed=op.endswith("heavy-tailed"))
    run, candidates = operations(chain)[op]
    timed = timings(run, islice(candidates, 2) if REHEARSAL and op in AGAIN else candidates)
    del chain, run, candidates
    free()
    timed.sort(key=lambda one: one.get("median_ms", float("inf")))
    default = next(
        (one["median_ms"] for one in timed if one["name"] == "default" and "median_ms" in one), None
    )
    found: Result = {"candidates": timed}
    if default and "median_ms" in timed[0]:
        found |= {
            "default_ms": default,
            "best_ms": timed[0]["median_ms"],
            "saved": round(1 - timed[0]["median_ms"] / default, 3),
        }
        found["said"] = timed[0]["name"]
    return found


OPS = (
    "encode, triton",
    "encode, cublas",
    "update",
    "update, heavy-tailed",
    "update and encode",
    "decode",
    "select",
)
ITEMS = {f"{op} {case}": partial(tune, op, case) for op in OPS for case in CASES}
TUNE = Part(ITEMS, item_seconds=60)
