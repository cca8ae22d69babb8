"""Fuzzed calls of the C++ boundary. `python -m tests.faults.boundary --calls 100000 --sanitize`

Every function of `saefast._C` is called with right arguments of small shapes and with damaged ones, from one Python thread
and, in each 25th group, from two at once. 64 calls are a group: the first is right and gives what `saefast.reference` gives,
the others are the same call with one or two arguments damaged, no two alike, and end in a result or ValueError, TypeError or
MemoryError in one line. Any other end (a crash, a report of a sanitizer, 60 s without an end) is printed with the number of
the call, and the exit status is 1: `--first NUMBER --calls 1` makes that call again, after those of its group before it.

--sanitize builds the extension with AddressSanitizer and UBSan first, in a temporary folder that is kept for the next time.
"""

import argparse
import gc
import hashlib
import importlib.util
import json
import mmap
import os
import resource
import subprocess
import sys
import sysconfig
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.machinery import ExtensionFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
GROUP = 64  # calls that begin with one right call, which takes longer to make than it takes to be damaged
HANG = 60.0  # seconds
MEMORY = 1 << 26  # bytes that one call may ask for; more is refused, as where there is less
REFUSED = (ValueError, TypeError, MemoryError)  # InputError is a ValueError
FLAGS = ["-std=c++17", "-O1", "-g1", "-fPIC", "-pthread", "-fvisibility=hidden", "-Wno-psabi"]
FLAGS += ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
FLAGS += ["-fno-math-errno", "-fno-trapping-math"]


def build(csrc: Path = ROOT / "csrc") -> Path:
    """The extension under AddressSanitizer and UBSan; pybind11's headers are those that torch has."""
    torch = importlib.util.find_spec("torch")
    assert torch is not None and torch.origin is not None
    include = [f"-I{Path(torch.origin).parent / 'include'}", f"-I{sysconfig.get_path('include')}"]
    headers = b"".join(path.read_bytes() for path in sorted(csrc.rglob("*.h")))
    sources = [csrc / "bindings.cpp", *sorted(csrc.glob("cpu/*.cpp")), *sorted(csrc.glob("stream/*.cpp"))]
    folder = Path(tempfile.gettempdir(), f"saefast-boundary-{os.getuid()}")
    folder.mkdir(exist_ok=True)

    def made(name: str, contents: bytes, *command: str) -> str:
        digest = hashlib.sha256(" ".join([sys.version, *FLAGS, *include]).encode() + headers + contents)
        path = folder / f"{name}-{digest.hexdigest()[:16]}"
        if not path.exists():
            unfinished = path.with_suffix(f".{os.getpid()}")
            subprocess.run(["g++", *FLAGS, *command, "-o", str(unfinished)], check=True)
            unfinished.replace(path)
        return str(path)

    def compiled(path: Path) -> str:
        return made(path.stem, path.read_bytes(), *include, "-c", str(path))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, [*sources, ROOT / "tests/faults/new_throws.cpp"]))
    return Path(made("_C", " ".join(objects).encode(), "-shared", "-Wl,-Bsymbolic-functions", *objects))


def library(name: str) -> str:
    return subprocess.run(
        ["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True
    ).stdout.strip()


class Instead:
    """Finds `saefast._C` at this path, before any other finder."""

    def __init__(self, path: str) -> None:
        self.path = path

    def find_spec(self, name: str, *_: Any) -> Any:
        if name != "saefast._C":
            return None
        return spec_from_file_location(name, self.path, loader=ExtensionFileLoader(name, self.path))


def work(seed: int, first: int, end: int, until: float, extension: str, log: int) -> None:
    """The calls [first, end), in this process. Writes to `log` the number of each before it, and a line for each fault."""
    if extension:
        sys.meta_path.insert(0, Instead(extension))
    import numpy as np
    import torch

    from tests.faults.boundary_stream import ends_too_soon
    from tests.faults.boundary_variants import variants

    torch.set_num_threads(1)
    # pybind11's TypeError shows every argument, which takes 1 ms
    np.set_printoptions(override_repr=lambda _: "array")
    gc.freeze()
    if not extension:  # AddressSanitizer has a limit of its own, and takes terabytes of addresses
        now = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (now + (2 << 30), now + (2 << 30)))
    counts: dict[str, int] = {}

    def once(call: Any, args: dict[str, Any]) -> None:
        is_right = args is call.args
        try:
            result = call.call(*args.values())
            if is_right:
                call.verify(result)
            call.restore()
            end = "right" if is_right else "taken"
        except REFUSED as error:
            if is_right and call.verify is not ends_too_soon:
                raise RuntimeError(f"{call.name}: a right call was refused: {error}") from error
            assert not isinstance(error, ValueError) or "\n" not in str(error).strip(), repr(error)
            end = "refused"
        except BaseException as error:
            raise RuntimeError(f"{call.name}: {type(error).__name__}: {str(error)[:500]}") from error
        counts[f"{call.name} {end}"] = counts.get(f"{call.name} {end}", 0) + 1

    def tell(**found: Any) -> None:
        os.write(sys.stdout.fileno(), (json.dumps(found) + "\n").encode())

    with ThreadPoolExecutor(1) as pool, mmap.mmap(log, 8) as at:
        for group in range(first // GROUP, (end + GROUP - 1) // GROUP):
            if time.time() > until:
                break
            after = min(end, (group + 1) * GROUP)
            lanes = [variants(seed, group, lane) for lane in range(2 if group % 25 == 24 else 1)]
            for number, ((call, args), *others) in zip(range(group * GROUP, after), zip(*lanes)):
                at[:] = number.to_bytes(8, "little")
                try:
                    meanwhile = [pool.submit(once, *other) for other in others]
                    once(call, args)
                    for done in meanwhile:
                        done.result()
                except (RuntimeError, AssertionError) as error:
                    tell(call=number, fault=str(error))
            at[:] = after.to_bytes(8, "little")
    tell(counts=counts)


def fuzz(
    calls: int, seed: int, budget: float, extension: Path | None = None, first: int = 0, most: int = 100
) -> dict[str, Any]:
    """Calls [first, first + calls) in processes of their own, a new one after each crash, for `budget` seconds or `most` faults."""
    started, end = time.time(), first + calls
    faults: list[dict[str, Any]] = []
    counts: dict[str, int] = {}
    options = f"detect_leaks=0:allocator_may_return_null=1:alloc_dealloc_mismatch=0:max_allocation_size_mb={MEMORY >> 20}"
    options += ":quarantine_size_mb=16:malloc_context_size=5"  # freed memory is kept for many calls as it is
    env = dict(os.environ, OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE")
    if extension is not None:
        env |= {"LD_PRELOAD": f"{library('libasan.so')} {library('libubsan.so')}", "ASAN_OPTIONS": options}
        # with malloc each object of Python has red zones, too, but a call takes 1.7 times as long
        env = {"PYTHONMALLOC": "malloc"} | env | {"UBSAN_OPTIONS": "print_stacktrace=1"}
    made, number = 0, first
    while number < end and time.time() < started + budget and len(faults) < most:
        with (
            tempfile.TemporaryFile() as log,
            tempfile.TemporaryFile() as out,
            tempfile.TemporaryFile() as problems,
        ):
            os.pwrite(log.fileno(), number.to_bytes(8, "little"), 0)
            given = [seed, number, end, started + budget, str(extension or ""), log.fileno()]
            command = [sys.executable, "-m", "tests.faults.boundary", "--work", json.dumps(given)]
            child = subprocess.Popen(
                command, cwd=ROOT, env=env, stdout=out, stderr=problems, pass_fds=[log.fileno()], text=True
            )
            at, since, is_hung = number, time.time(), False
            while child.poll() is None:
                time.sleep(0.1)
                now = int.from_bytes(os.pread(log.fileno(), 8, 0), "little")
                if now != at:
                    at, since = now, time.time()
                elif time.time() - since > HANG:
                    is_hung = True
                    child.kill()
                    child.wait()
                    faults.append({"call": at, "fault": f"no end within {HANG:g} s"})
            at = int.from_bytes(os.pread(log.fileno(), 8, 0), "little")
            made += max(0, at - number)
            out.seek(0), problems.seek(0)
            for line in out.read().decode(errors="replace").splitlines():
                found = json.loads(line) if line.startswith("{") else {}
                if "fault" in found:
                    faults.append(found)
                for name, n in found.get("counts", {}).items():
                    counts[name] = counts.get(name, 0) + n
            if child.returncode == 0:
                break
            text = problems.read().decode(errors="replace")
            if not is_hung:
                faults.append({"call": at, "fault": f"exit {child.returncode}", "report": shortened(text)})
            made, number = made + 1, (at // GROUP + 1) * GROUP
    seconds = time.time() - started
    return {
        "calls": made,
        "seconds": round(seconds, 1),
        "per_second": round(made / seconds, 1),
        "faults": faults,
    } | {"counts": dict(sorted(counts.items()))}


def shortened(report: str) -> str:
    lines = report.splitlines()
    begin = next((i for i, line in enumerate(lines) if "ERROR" in line or "runtime error" in line), -12)
    return "\n".join(line[:200] for line in lines[begin:][:14])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--calls", type=int, default=100_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first call")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budget", type=float, default=600.0, help="seconds")
    parser.add_argument(
        "--sanitize", action="store_true", help="build and use the extension under ASan and UBSan"
    )
    parser.add_argument("--work", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        return work(*args.work)
    found = fuzz(args.calls, args.seed, args.budget, build() if args.sanitize else None, args.first)
    print(json.dumps(found, indent=1))
    sys.exit(bool(found["faults"]))


if __name__ == "__main__":
    main()
