"""What `make gpu` runs: is it right on this GPU, and how fast? Under eight minutes, one JSON file per GPU model.

    python benchmarks/gpu.py              write benchmarks/results/<gpu>.json
    python benchmarks/gpu.py --fresh      the same, doing again what that file already holds for these sources
    python benchmarks/gpu.py --rehearse   the same code on the CPU at toy sizes, into a temporary folder, in a minute

Parts run in the order of `PARTS` and are saved one by one; a run that was cut off goes on where it stopped. Nothing
needs to be installed but torch, triton, pytest and the dependencies of saefast (see checkout.py). No part reports a
time before its results have been compared with higher precision or with the baseline's.
"""

import argparse
import gc
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__" and "--rehearse" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are imported

import checkout
import torch
import triton
from compile_gate import SHAPES, Shape
from plain import PlainStep
from torch import Tensor

from saefast import SAE, SAEConfig, TrainConfig, Trainer, reference
from saefast.backend import unavailable

ROOT = checkout.ROOT
REHEARSAL = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if REHEARSAL else "cuda"
Result = dict[str, Any]

if REHEARSAL:
    SHAPES = {"toy": Shape(B=6, D=40, F=96, K=5)}
    DECODE_DTYPES = {"fp32": torch.float32, "fp16": torch.float16}  # the interpreter gets bf16 wrong
    STEPS = list(SHAPES)
else:
    DECODE_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
    STEPS = ["small", "A", "B"]


def time_ms(
    run: Callable[[], object], flush_l2: bool = False, samples: int = 50, seconds: float = 3.0
) -> Result:
    """Median, 10th and 90th percentile over `samples` runs, or as many as fit in `seconds` (at least five)."""
    samples = 5 if REHEARSAL else samples
    scratch = (
        torch.empty(2**28 if DEVICE == "cuda" else 1, dtype=torch.int8, device=DEVICE) if flush_l2 else None
    )
    for _ in range(3):
        run()
    times: list[float] = []
    deadline = time.perf_counter() + seconds
    while len(times) < 5 or (len(times) < samples and time.perf_counter() < deadline):
        if scratch is not None:
            scratch.zero_()
        if DEVICE == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end))
        else:
            began = time.perf_counter()
            run()
            times.append(1e3 * (time.perf_counter() - began))
    p10, median, p90 = torch.tensor(times).quantile(torch.tensor([0.1, 0.5, 0.9])).tolist()
    return {
        "median_ms": round(median, 4),
        "p10_ms": round(p10, 4),
        "p90_ms": round(p90, 4),
        "samples": len(times),
    }


def pytest(*arguments: str) -> str:
    """Run pytest in a process of its own and return its last line. Exit code 5 is 'no such tests', no failure."""
    paths = [str(ROOT / "benchmarks"), *filter(None, [os.environ.get("PYTHONPATH")])]
    command = [sys.executable, "-m", "pytest", "-p", "checkout", "-p", "no:cacheprovider", "-q", *arguments]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode in (0, 5), run.stdout[-4000:] + run.stderr[-2000:]
    return run.stdout.strip().splitlines()[-1]


def correctness() -> Result:
    """The tests of the kernels, then whatever else needs a GPU."""
    kernels = [f"tests/test_triton_{name}.py" for name in ("decode",)]
    result = {"kernels": pytest(*kernels)}
    if not REHEARSAL:
        result["gpu"] = pytest("-m", "gpu", "tests/test_gpu.py")
    return result


def relative_error(got: Tensor, exact: Tensor) -> float:
    return float((got.double() - exact).norm() / exact.norm())


def copy_speed() -> Result:
    """The roof for whatever moves bytes."""
    source = torch.randn(2**29 if DEVICE == "cuda" else 2**10, device=DEVICE)
    target = torch.empty_like(source)
    timing = time_ms(lambda: target.copy_(source))
    return timing | {"gb_per_s": round(2e-6 * source.nbytes / timing["median_ms"])}


def decode() -> Result:
    """Triton against reference.decode. GB/s count each row each time it is used, found in a cache or not."""
    from saefast.triton_kernels import decode as triton_decode
    from saefast.triton_kernels.decode import decode_bytes

    result: Result = {"copy": copy_speed()}
    for name, (B, D, F, K) in SHAPES.items():
        for dtype_name, dtype in DECODE_DTYPES.items():
            torch.manual_seed(0)
            W_dec = torch.randn(F, D, dtype=dtype, device=DEVICE).mul_(D**-0.5)
            top_acts = torch.randn(B, K, dtype=dtype, device=DEVICE).abs()
            top_indices = torch.randint(F, (B, K), dtype=torch.int32, device=DEVICE)  # latents equally likely
            inputs = top_acts, top_indices, W_dec, torch.randn(D, dtype=dtype, device=DEVICE)

            some = slice(0, 64)  # tokens checked in fp64, which for all of them would need much memory
            rows = W_dec[top_indices[some].long()].double()
            exact = inputs[3].double() + torch.einsum("bk,bkd->bd", top_acts[some].double(), rows)
            ours, theirs = triton_decode(*inputs), reference.decode(*inputs)
            error, torch_error = relative_error(ours[some], exact), relative_error(theirs[some], exact)
            assert error <= 2 * torch_error + 1e-6, (
                f"{name} {dtype_name}: error {error} against torch's {torch_error}"
            )
            distance = relative_error(ours, theirs.double())
            assert distance <= 4 * torch_error + 1e-6, (
                f"{name} {dtype_name}: {distance} from torch over all tokens"
            )
            assert torch.equal(ours, triton_decode(*inputs)), f"{name} {dtype_name}: two runs differ"

            row: Result = {
                "shape": [B, D, F, K],
                "error": error,
                "torch_error": torch_error,
                "same_bits": True,
            }
            for label, function in (("triton", triton_decode), ("reference", reference.decode)):
                timing = time_ms(partial(function, *inputs), flush_l2=True, seconds=3)
                gigabytes = 1e-6 * decode_bytes(B, K, D, W_dec.element_size())
                row[label] = timing | {"gb_per_s": round(gigabytes / timing["median_ms"])}
            result[f"{name} {dtype_name}"] = row
    return result


Step = Callable[[Tensor], Tensor]  # x -> the loss before the update


def trainer_step(sae: SAE, config: TrainConfig) -> Step:
    trainer = Trainer(sae, config)
    return lambda x: trainer.step(x).loss


def dense_step(sae: SAE, config: TrainConfig) -> Step:
    return PlainStep(sae.params, sae.config.k, config.lr, config.betas, config.eps)


def step() -> Result:
    """Trainer.step on each backend that can run here, against `dense_step`, in fp32 from the same start."""
    result: Result = {"float32_matmul_precision": torch.get_float32_matmul_precision()}
    backends = [name for name in ("reference", "triton") if unavailable(name) is None]
    for name in STEPS:
        B, D, F, K = SHAPES[name]
        torch.manual_seed(0)
        batches = torch.randn(4, B, D, device=DEVICE)
        row: Result = {"shape": [B, D, F, K]}
        losses: dict[str, list[float]] = {}
        for label in ("dense", *backends):
            sae = SAE(SAEConfig(d_in=D, d_sae=F, activation="topk", k=K)).to(DEVICE)
            config = TrainConfig(
                batch_size=B, total_tokens=1000 * B, lr=1e-4, warmup_fraction=0, decay_fraction=0,
                normalize_input=False, seed=0, backend="reference" if label == "dense" else label,
            )  # fmt: skip
            run = dense_step(sae, config) if label == "dense" else trainer_step(sae, config)
            del sae
            if DEVICE == "cuda":
                torch.cuda.reset_peak_memory_stats()
            losses[label] = [float(run(x)) for x in batches]
            timing = time_ms(partial(run, batches[0]), samples=30, seconds=8)
            row[label] = timing | {"tokens_per_s": round(1e3 * B / timing["median_ms"])}
            if DEVICE == "cuda":
                row[label]["peak_memory_mb"] = round(torch.cuda.max_memory_allocated() / 2**20)
            del run
            gc.collect()
        row["losses"] = losses
        for label in backends:
            torch.testing.assert_close(losses[label], losses["dense"], rtol=1e-3, atol=0)
        result[name] = row
    return result


PART_SECONDS = 150  # three of these stay under the eight minutes
PARTS: dict[str, Callable[[], Result]] = {"correctness": correctness, "decode": decode, "step": step}


def header() -> Result:
    """What the figures were measured on. `sources` tells apart states of the tree that have one commit or none."""
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    digest = hashlib.sha256()
    for folder in ("saefast", "triton_kernels", "csrc", "tests", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in {".py", ".cpp", ".h", ".cu"}:
                digest.update(path.read_bytes())
    return {
        "device": torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu rehearsal",
        "commit": git.stdout.strip() or "unknown",
        "sources": digest.hexdigest()[:16],
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "triton": triton.__version__,
            "cuda": torch.version.cuda,
        },
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--fresh", action="store_true", help="run every part again")
    parser.add_argument("--rehearse", action="store_true", help="toy sizes on the CPU")
    parser.add_argument("--out", type=Path, help="folder for the JSON file (default: benchmarks/results)")
    parser.add_argument("--part", nargs=2, metavar=("NAME", "FILE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:  # this is the process of one part
        name, file = args.part
        Path(file).write_text(json.dumps(PARTS[name]()))
        return 0
    if DEVICE == "cuda" and not torch.cuda.is_available():
        print("benchmarks/gpu.py: no CUDA GPU was found; --rehearse runs it on the CPU", file=sys.stderr)
        return 2

    with tempfile.TemporaryDirectory() as temporary:
        folder = args.out or (Path(temporary) if REHEARSAL else ROOT / "benchmarks" / "results")
        folder.mkdir(parents=True, exist_ok=True)
        report = header() | {"parts": {}}
        path = folder / f"{re.sub(r'[^a-z0-9]+', '-', report['device'].lower())}.json"
        if path.exists() and not args.fresh:
            earlier = json.loads(path.read_text())
            if earlier["sources"] == report["sources"]:
                report["parts"] = earlier["parts"]

        failed = []
        for name in PARTS:
            if name in report["parts"]:
                print(f"{name}: done earlier, --fresh runs it again")
                continue
            # A process each: a fault in a kernel spoils CUDA for the rest of its process.
            file = Path(temporary) / f"{name}.json"
            command = [sys.executable, __file__, "--part", name, str(file), *(["--rehearse"] * REHEARSAL)]
            began = time.perf_counter()
            try:
                subprocess.run(command, check=True, timeout=PART_SECONDS)
            except subprocess.SubprocessError as error:
                print(f"{name}: {error}", file=sys.stderr)
                failed.append(name)
                continue
            seconds = round(time.perf_counter() - began, 1)
            report["parts"][name] = json.loads(file.read_text()) | {"seconds": seconds}
            path.write_text(json.dumps(report, indent=2) + "\n")
            print(f"{name}:", json.dumps(report["parts"][name]), flush=True)
        print(f"failed: {', '.join(failed)}" if failed else f"all parts done: {path}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
