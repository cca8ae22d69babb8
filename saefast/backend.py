"""A backend is a module with the functions of `saefast.reference`; choosing one returns that module."""

import functools
import importlib
import logging
import os
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any

import torch

from saefast.errors import InputError

MODULES = {
    "reference": "saefast.reference",
    "native": "saefast.native",
    "triton": "saefast.triton_kernels",
}
OPS = (
    "centre", "encode_topk", "encode_batch_topk", "encode_threshold", "encode_dense", "decode", "decode_error",
    "group_by_latent", "grad_top_acts", "sum_entries", "row_grads", "adam_rows_", "update_", "keep_topk",
    "relu_encode", "dense_error", "dense_grad_acts", "outer_sum",
)  # fmt: skip
OLDEST_GPU = (8, 0)  # Ampere: bf16 matrix products and asynchronous copies
OLDEST_TRITON = (3, 3)
OLDEST_TORCH = (2, 8)  # for the kernels: torch.mm with 16-bit operands and an fp32 result
log = logging.getLogger("saefast")


def unavailable(name: str) -> str | None:
    """Why backend `name` cannot be used on this machine, or None if it can."""
    if name == "triton" and (reason := _no_triton()):
        return reason
    try:
        module = importlib.import_module(MODULES[name])
    except ImportError as error:
        return str(error)
    missing = [op for op in OPS if not hasattr(module, op)]
    return f"{MODULES[name]} does not have {', '.join(missing)} yet" if missing else None


def _no_triton() -> str | None:
    for package, oldest in (("torch", OLDEST_TORCH), ("triton", OLDEST_TRITON)):
        try:
            found = version(package)
        except PackageNotFoundError:
            return f"the package {package} is not installed"
        if tuple(int(part) for part in found.split(".")[:2]) < oldest:
            return f"{package} {found} is too old, {'.'.join(map(str, oldest))} or newer is needed"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return None  # the kernels run in Triton's interpreter, on the CPU
    if not torch.cuda.is_available():
        return "no CUDA GPU was found"
    capability = torch.cuda.get_device_capability()
    if capability < OLDEST_GPU:
        name = torch.cuda.get_device_name()
        return f"{name} has compute capability {capability[0]}.{capability[1]}, 8.0 or newer is needed"
    return None


def choose(device: str) -> tuple[str, str]:
    """The backend that 'auto' takes for tensors on `device` ("cpu" or "cuda"), and why."""
    preferred = "triton" if device == "cuda" else "native"
    reason = unavailable(preferred)
    if reason is None:
        return preferred, "a CUDA GPU is present" if preferred == "triton" else "the C++ extension is built"
    return "reference", f"{preferred}: {reason}"


def load_backend(name: str = "auto", device: str = "cpu") -> ModuleType:
    """Return the module of ops: `saefast.reference`, `saefast.native` or `saefast.triton_kernels`.

    Args:
        name: "reference" (plain PyTorch, any device), "native" (CPU, C++ extension), "triton" (NVIDIA GPU), or
            "auto": triton for a GPU, else native; reference if that one cannot run, said once.
        device: type of the device that holds the tensors, "cpu" or "cuda".

    Raises:
        InputError: unknown name, or a backend asked for by name that cannot run here.
    """
    if name == "auto":
        name, why = choose(device)
        if name == "reference":
            _say_once(f"backend: reference (stock PyTorch ops); {why}")
    elif name not in MODULES:
        raise InputError(f"backend: expected one of {['auto', *MODULES]}, got {name!r}")
    elif reason := unavailable(name):
        raise InputError(f"backend: {name!r} cannot be used here: {reason}; 'auto' picks one that can")
    elif name == "triton" and device != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise InputError(f"backend: 'triton' needs an SAE on a CUDA device, got one on {device!r}")
    elif name == "native" and device != "cpu":
        raise InputError(f"backend: 'native' needs an SAE on the CPU, got one on {device!r}")
    return importlib.import_module(MODULES[name])


def launched(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with the device of the first tensor among its arguments as the current one: Triton launches there."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        with torch.cuda.device_of(next(arg for arg in args if isinstance(arg, torch.Tensor))):
            return function(*args, **kwargs)

    return run


def native_isas() -> list[str] | None:
    """What the C++ extension can use on this processor; None if it is not built."""
    try:
        import saefast._C
    except ImportError:
        return None
    return list(saefast._C.isas())


_said: set[str] = set()


def _say_once(message: str) -> None:
    if message not in _said:
        _said.add(message)
        log.warning(message)
