"""How fast can a TopK training step be on this device? Bytes and FLOPs of every stage, and the memory a run needs.

    python -m benchmarks.roofline                                      the cases A, B and C on an H200
    python -m benchmarks.roofline --d-in 4096 --d-sae 3000000 --param-dtype split24 --state-dtype int8
    python -m benchmarks.roofline --device mine --bandwidth 12e9 --flops 280e9 --compute-bytes 4    any other machine

A stage takes the longer of its bytes over the bandwidth of a large copy and its FLOPs over the rate of a large product;
the floor of a step is their sum, so nothing overlaps but within a stage. Rows that are gathered count once per use,
except from a matrix that takes at most half of the L2 cache: it stays there and counts once. So a step that finds more
of W_dec in L2 may beat its floor a little. Latents are taken as equally likely.

Where `python -m benchmarks.gpu` has measured a step of the shape, the share of the floor that it reached is printed. That
compares with the storage formats and the width of the products given here: pass those of the measurement.
"""

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import checkout  # noqa: F401
from benchmarks.shapes import SHAPES
from saefast.train.memory import GROUP, MOMENT_BYTES, WEIGHT_BYTES, copy_bytes, memory_bytes

RESULTS = Path(__file__).resolve().parent / "results"
CASES = {name: SHAPES[name] for name in "ABC"}


class Stage(NamedTuple):
    """What a part of the step computes and moves at least."""

    name: str
    flops: float
    bytes: float


@dataclass(frozen=True)
class Device:
    """What was measured on a device."""

    name: str
    bandwidth: float  # bytes/s of a large copy, read and written
    flops: float  # FLOP/s of a large dense product in bf16
    l2: float  # bytes
    memory: float  # bytes


DEVICES = {
    "H200": Device("H200", bandwidth=4.3e12, flops=790e12, l2=60 * 2**20, memory=141e9),
    "H100": Device("H100", bandwidth=3.0e12, flops=798e12, l2=50 * 2**20, memory=80e9),
}


def update_bytes(D: int, F: int, compute_bytes: int, param_dtype: str, state_dtype: str) -> int:
    """Both matrices and their moments, read and written once, and the copies, written: 52 P for fp32, 16 P at least."""
    per_weight = 2 * WEIGHT_BYTES[param_dtype] + copy_bytes(param_dtype, compute_bytes)
    per_weight += 2 * 2 * MOMENT_BYTES[state_dtype]
    scales = 2 * 8 * F if state_dtype == "int8" else 0  # two fp32 a row
    return 2 * (F * D * per_weight + scales)


def gathered_bytes(uses: int, rows: int, row_bytes: int, l2: float) -> int:
    """Bytes read from HBM for `uses` rows out of a matrix that has `rows` rows."""
    return min(uses, rows) * row_bytes if rows * row_bytes <= l2 / 2 else uses * row_bytes


def clip_bytes(B: int, D: int, F: int, K: int, compute_bytes: int) -> tuple[int, bool]:
    """What the exact global norm costs, and whether it is cheaper to keep the gradients than to compute them twice."""
    kept = 2 * 2 * F * D * 4  # two matrices in fp32, written and read
    twice = 2 * B * K * D * compute_bytes + F * D * compute_bytes
    return min(kept, twice), kept <= twice


def stages(
    B: int,
    D: int,
    F: int,
    K: int,
    *,
    compute_bytes: int = 2,
    input_bytes: int = 4,
    param_dtype: str = "fp32",
    state_dtype: str = "fp32",
    n_dead: int = 0,
    route: str = "triton",
    clip: bool = False,
    l2: float = DEVICES["H200"].l2,
) -> list[Stage]:
    """The stages of a TopK step in order.

    Args:
        compute_bytes, input_bytes: of an element of the products, and of x as it arrives.
        n_dead: latents that AuxK is computed for; 0 leaves it out.
        route: "triton" takes the maxima of the selection while the product is in registers, "cublas" reads the
            pre-activations once more for them.
        clip: with the exact global norm.
    """
    if route not in ("triton", "cublas"):
        raise ValueError(f"route: expected 'triton' or 'cublas', got {route!r}")
    c, N, P, Z = compute_bytes, B * K, F * D, B * F
    rows = gathered_bytes(
        2 * N, 2 * B, c * D, l2
    )  # rows of the error and of the centred input, read by latent
    decoded = gathered_bytes(N, F, c * D, l2)
    updated = update_bytes(D, F, c, param_dtype, state_dtype)
    selection = 2 * c * Z / GROUP + min(c * GROUP * N, c * Z) + 8 * N
    out = [
        Stage("centre", B * D, B * D * (input_bytes + c)),
        Stage("encode", 2 * B * F * D, c * (P + B * D + Z)),
        Stage("select", Z, selection + (c * Z if route == "cublas" else 0)),
        Stage("group", 0, 40 * N + 8 * F),
        Stage("decode", 2 * N * D + 4 * B * D, decoded + B * D * (input_bytes + c) + 8 * N),
        Stage("update", 6 * N * D + 32 * P, rows + 12 * N + updated),
    ]
    if clip:
        out.append(Stage("clip", 6 * N * D, clip_bytes(B, D, F, K, c)[0]))
    if n_dead:
        out.append(Stage("auxk", 10 * B * n_dead * D, 16 * n_dead * D + 6 * B * n_dead))
    return out


def floor_ms(stages: list[Stage], device: Device) -> tuple[dict[str, float], float]:
    """Milliseconds of each stage, and of the step."""
    times = {s.name: 1e3 * max(s.flops / device.flops, s.bytes / device.bandwidth) for s in stages}
    return times, sum(times.values())


def measured(shape: tuple[int, int, int, int]) -> list[tuple[str, float]]:
    """(GPU, milliseconds) of each step of this shape that `python -m benchmarks.gpu` has measured on the Triton backend."""
    found = []
    for path in sorted(RESULTS.glob("*/gpu.json")):
        report: dict[str, Any] = json.loads(path.read_text())
        for row in report.get("parts", {}).get("step", {}).values():
            if isinstance(row, dict) and row.get("shape") == list(shape) and "triton" in row:
                found.append((report["device"], row["triton"]["median_ms"]))
    return found


def readable(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:.2f} GB" if n_bytes >= 1e8 else f"{n_bytes / 1e6:.2f} MB"


def describe(name: str, shape: tuple[int, int, int, int], device: Device, options: dict[str, Any]) -> str:
    """The table of one shape as text."""
    parts = stages(*shape, l2=device.l2, **options)
    times, total = floor_ms(parts, device)
    lines = [f"{name}: B {shape[0]}, d_in {shape[1]}, d_sae {shape[2]}, k {shape[3]} on {device.name}"]
    lines += [f"  {'stage':8} {'GFLOP':>10} {'MB':>10} {'ms':>9}  bound by"]
    for stage in parts:
        bound = "FLOPs" if stage.flops / device.flops > stage.bytes / device.bandwidth else "bytes"
        lines.append(
            f"  {stage.name:8} {stage.flops / 1e9:10.2f} {stage.bytes / 1e6:10.1f} {times[stage.name]:9.4f}  {bound}"
        )
    lines.append(f"  {'step':30} {total:9.4f}  {1e3 * shape[0] / total:,.0f} tokens/s")
    for gpu, milliseconds in measured(shape):
        match = next((d for d in (device, *DEVICES.values()) if d.name in gpu), None)
        if match:
            floor = floor_ms(stages(*shape, l2=match.l2, **options), match)[1]
            lines.append(
                f"  measured {milliseconds:.4f} ms on {gpu}: {floor / milliseconds:.0%} of its floor's speed"
            )
    memory = memory_bytes(*shape, **{key: value for key, value in options.items() if key != "route"})
    used = sum(memory.values())
    lines.append(
        "  memory   " + ", ".join(f"{key} {readable(value)}" for key, value in memory.items() if value)
    )
    verdict = "fits" if used <= device.memory else "DOES NOT FIT"
    of = "" if device.memory == float("inf") else f" of {readable(device.memory)}: {verdict}"
    lines.append(f"           in all {readable(used)}{of}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--d-in", type=int, help="with --d-sae: one shape in place of A, B and C")
    parser.add_argument("--d-sae", type=int)
    parser.add_argument("--k", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=8192)
    parser.add_argument("--param-dtype", choices=WEIGHT_BYTES, default="fp32")
    parser.add_argument("--state-dtype", choices=MOMENT_BYTES, default="fp32")
    parser.add_argument(
        "--compute-bytes", type=int, choices=(2, 4), default=2, help="4 needs its own --flops"
    )
    parser.add_argument("--input-bytes", type=int, choices=(2, 4), default=4)
    parser.add_argument("--n-dead", type=int, default=0, help="latents that AuxK is computed for")
    parser.add_argument("--route", choices=("triton", "cublas"), default="triton", help="of the encoder")
    parser.add_argument("--clip", action="store_true", help="with the exact gradient norm")
    parser.add_argument(
        "--device", default="H200", help=f"{', '.join(DEVICES)}, or any name with the next two"
    )
    parser.add_argument("--bandwidth", type=float, help="bytes/s of a large copy")
    parser.add_argument("--flops", type=float, help="FLOP/s of a large product")
    parser.add_argument("--l2", type=float, help="bytes of the last cache")
    parser.add_argument("--memory", type=float, help="bytes")
    args = parser.parse_args(argv)

    given = {key: getattr(args, key) for key in ("bandwidth", "flops", "l2", "memory")}
    given = {key: value for key, value in given.items() if value is not None}
    if args.device not in DEVICES and not {"bandwidth", "flops"} <= set(given):
        parser.error(f"--device {args.device}: give --bandwidth and --flops, or one of {', '.join(DEVICES)}")
    if (args.d_in is None) != (args.d_sae is None):
        parser.error("--d-in and --d-sae go together")
    if args.param_dtype != "fp32" and args.compute_bytes != 2:
        parser.error(f"--param-dtype {args.param_dtype} needs --compute-bytes 2")
    unknown = Device(args.device, bandwidth=0, flops=0, l2=0, memory=float("inf"))
    device = replace(DEVICES.get(args.device, unknown), **given)
    names = ("compute_bytes", "input_bytes", "param_dtype", "state_dtype", "n_dead", "route", "clip")
    options = {name: getattr(args, name) for name in names}
    one = {"shape": (args.batch_size, args.d_in, args.d_sae, args.k)}
    for name, shape in (CASES if args.d_in is None else one).items():
        print(describe(name, shape, device, options), end="\n\n")


if __name__ == "__main__":
    main()
