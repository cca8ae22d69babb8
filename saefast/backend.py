"""A backend is a module with the functions of `saefast.reference`; choosing one returns that module."""

import importlib
import logging
from types import ModuleType

import torch

from saefast.errors import InputError

MODULES = {
    "reference": "saefast.reference",
    "native": "saefast.native",
    "triton": "saefast.triton_kernels",
}
OPS = (
    "encode", "topk", "decode", "recon_loss", "grad_top_acts", "group_by_latent", "param_grads", "auxk",
    "project_rows_", "normalize_rows_", "adam_",
)  # fmt: skip
log = logging.getLogger("saefast")


def unavailable(name: str) -> str | None:
    """Why backend `name` cannot be used on this machine, or None if it can."""
    if name == "triton" and not torch.cuda.is_available():
        return "no CUDA GPU was found"
    try:
        module = importlib.import_module(MODULES[name])
    except ImportError as error:
        return str(error)
    missing = [op for op in OPS if not hasattr(module, op)]
    return f"{MODULES[name]} does not have {', '.join(missing)} yet" if missing else None


def choose() -> tuple[str, str]:
    """The backend that 'auto' takes on this machine, and why."""
    preferred = "triton" if torch.cuda.is_available() else "native"
    reason = unavailable(preferred)
    if reason is None:
        return preferred, "a CUDA GPU is present" if preferred == "triton" else "the C++ extension is built"
    return "reference", f"{preferred}: {reason}"


def load_backend(name: str = "auto") -> ModuleType:
    """Return the module of ops: `saefast.reference`, `saefast.native` or `saefast.triton_kernels`.

    Args:
        name: "reference" (plain PyTorch, any device), "native" (CPU, C++ extension), "triton" (NVIDIA GPU), or
            "auto": triton on a machine with a GPU, else native; reference if that one cannot run, said once.

    Raises:
        InputError: unknown name, or a backend asked for by name that cannot run here.
    """
    if name == "auto":
        name, why = choose()
        if name == "reference":
            _say_once(f"backend: reference (plain PyTorch); {why}")
    elif name not in MODULES:
        raise InputError(f"backend: expected one of {['auto', *MODULES]}, got {name!r}")
    elif reason := unavailable(name):
        raise InputError(f"backend: {name!r} cannot be used here: {reason}; 'auto' picks one that can")
    return importlib.import_module(MODULES[name])


_said: set[str] = set()


def _say_once(message: str) -> None:
    if message not in _said:
        _said.add(message)
        log.warning(message)
