"""Everything that `make gpu` can run, by part and item; within a part, what is most worth knowing comes first."""

from benchmarks.gpu import (
    checks,
    compiled,
    counters,
    curve,
    peers,
    predictions,
    profile,
    stages,
    step,
    stream,
    tune,
    update_cuda,
)
from benchmarks.gpu.common import Part

PARTS: dict[str, Part] = {
    "compile": compiled.COMPILE,
    "machine": checks.MACHINE,
    "engine": checks.ENGINE,
    "step": step.STEP,
    "stages": stages.STAGES,
    "profile": profile.PROFILES,
    "predictions": predictions.PREDICTED,
    "tune": tune.TUNE,
    "counters": counters.COUNTERS,
    "curve": curve.CURVE,
    "peers": peers.PEER,
    "kernels": checks.KERNELS,
    "formats": step.FORMAT,
    "compiled": step.COMPILED,
    "update in CUDA": update_cuda.UPDATE_CUDA,
    "stream": stream.STREAM,
    "sanitizer": checks.SANITIZERS,
}
ALSO_USED = {  # folders that the results of a module depend on, besides the sources of the package
    "benchmarks.gpu.checks": "tests",
    "benchmarks.gpu.peers": "benchmarks/peers",
    "benchmarks.gpu.step": "benchmarks/peers",
}
NEED_EXTENSIONS = ("update in CUDA", "stream")  # parts that wait for what a lent machine builds


def modules_of(name: str) -> list[str]:
    """The modules that the items of a part are from."""
    return sorted({getattr(item, "func", item).__module__ for item in PARTS[name].items.values()})
