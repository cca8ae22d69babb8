"""A backend is a module with the functions and constants of `Backend`; choosing one returns that module."""

import functools
import importlib
import logging
import os
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from saefast.errors import InputError
from saefast.instructions import APPLE, native_encoder, screens, why_no_bytes
from saefast.reference import Aux, Given, Grads, Groups, Tally
from saefast.storage import Weights

MODULES = {
    "reference": "saefast.reference",
    "native": "saefast.native",
    "triton": "saefast.triton_kernels",
}
OLDEST_GPU = (8, 0)  # Ampere: bf16 matrix products and asynchronous copies
OLDEST_TRITON = (3, 3)
OLDEST_TORCH = (2, 8)  # for the kernels: torch.mm with 16-bit operands and an fp32 result
log = logging.getLogger("saefast")


class Backend(Protocol):
    """The ops of a training step: what each computes, and the shapes, is said at the function of the same name in
    `saefast.reference`. Letters: B tokens, D = d_in, F = d_sae, K = k, N entries, C dead latents; acts, indices and
    row_offsets are a sparse code."""

    NAME: str  # for messages: what differs between backends is said by the constants below
    NUMBERS_DTYPE: torch.dtype  # in which the numbers of a step travel, see `saefast.engine.numbers`
    # Of the products on a GPU where the config leaves it open; None: that of the SAE.
    GPU_DTYPE: torch.dtype | None
    MAX_SELECTED: int | None  # the largest k + rescore; None: any
    RECORDABLE: bool  # whether a step on a GPU can be recorded as a CUDA graph
    ADDS_PER_LATENT: bool  # whether the addend of `dense_grad_acts` may be [F]

    def centre(self, x: Tensor, b_dec: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """[B, D], [D] -> centred [B, D], total variance []."""

    def encode_topk(
        self,
        centred: Tensor,
        W_enc: Tensor,
        b_enc: Tensor,
        k: int,
        scale: Tensor | None = None,
        rescore: int = 0,
    ) -> tuple[Tensor, Tensor]:
        """[B, D], [F, D], [F], scale [F] -> top_acts [B, K], top_indices [B, K] int32."""

    def encode_batch_topk(
        self, centred: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, scale: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """[B, D], [F, D], [F], scale [F] -> acts [B * K], indices [B * K] int32, row_offsets [B + 1] int32."""

    def encode_threshold(
        self, centred: Tensor, W_enc: Tensor, b_enc: Tensor, threshold: Tensor, capacity: int | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """[B, D], [F, D], [F], threshold [] or [F] -> pre_acts [N], indices [N] int32, row_offsets [B + 1] int32."""

    def encode_group_max(
        self, centred: Tensor, W_enc: Tensor, b_enc: Tensor, k: int
    ) -> tuple[Tensor, Tensor]:
        """[B, D], [F, D], [F] -> acts [B, K], indices [B, K] int32, one of each of k groups of latents."""

    def encode_dense(self, centred: Tensor, W_enc: Tensor, b_enc: Tensor) -> Tensor:
        """[B, D], [F, D], [F] -> pre_acts [B, F]."""

    def decode(
        self, acts: Tensor, indices: Tensor, W_dec: Tensor, b_dec: Tensor, row_offsets: Tensor | None = None
    ) -> Tensor:
        """A code, [F, D], [D] -> x_hat [B, D]."""

    def decode_error(
        self,
        acts: Tensor,
        indices: Tensor,
        W_dec: Tensor,
        b_dec: Tensor,
        x: Tensor,
        dtype: torch.dtype,
        row_offsets: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """A code, [F, D], [D], x [B, D] -> error [B, D], its squared norm by row [B], or in parts [B, n]."""

    def losses(
        self, squares: Tensor, variance: Tensor, scale: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """[n], [], scale [] -> sum of squares [], loss [], grad_scale [], FVU []."""

    def tally_(
        self,
        silent_for: Tensor,
        fired_before: Tensor,
        fired: Tensor,
        threshold: int,
        n_tokens: int,
        loss: Tensor,
        fvu: Tensor,
        squared: Tensor,
        auxk_loss: Tensor | None = None,
        penalty: Tensor | None = None,
        code_size: Tensor | None = None,
    ) -> Tally:
        """Counters [F] in place, what was found [] -> the metrics of a step, [] each."""

    def group_by_latent(
        self, acts: Tensor, indices: Tensor, d_sae: int, row_offsets: Tensor | None = None
    ) -> Groups:
        """A code -> offsets [F + 1], pairs [N], tokens [N], int32."""

    def grad_top_acts(
        self, error: Tensor, W_dec: Tensor, acts: Tensor, indices: Tensor, row_offsets: Tensor | None = None
    ) -> Tensor:
        """[B, D], [F, D], a code -> gradients in the shape of acts."""

    def sum_entries(self, groups: Groups, per_pair: Tensor) -> Tensor:
        """One number for each entry -> [F]."""

    def row_grads(
        self,
        weights: Weights,
        centred: Tensor,
        error: Tensor,
        acts: Tensor,
        indices: Tensor,
        row_offsets: Tensor | None,
        groups: Groups,
        grad_scale: Tensor,
        aux: Aux | None,
        numbers: Tensor,
        given: Given | None = None,
    ) -> tuple[Grads, Tensor]:
        """-> gradients of W_enc [F, D], b_enc [F], W_dec [F, D], b_dec [D], and the square of their norm []."""

    def adam_rows_(
        self, weights: Weights, grads: Grads, factor: Tensor, numbers: Tensor, step: Tensor
    ) -> None:
        """Adam on everything with `factor` [] times the gradients, in place."""

    def update_(
        self,
        weights: Weights,
        centred: Tensor,
        error: Tensor,
        acts: Tensor,
        indices: Tensor,
        row_offsets: Tensor | None,
        groups: Groups,
        grad_scale: Tensor,
        aux: Aux | None,
        numbers: Tensor,
        step: Tensor,
        given: Given | None = None,
    ) -> Tensor:
        """`row_grads` and `adam_rows_` in one -> the square of the norm []."""

    def keep_topk(self, pre_acts: Tensor, k: int, count: Tensor) -> Tensor:
        """[B, C], count [] -> [B, C]."""

    def relu_encode(self, centred: Tensor, W_enc: Tensor, b_enc: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, D], [F, D], [F] -> acts [B, F], their sum [], active tokens of each latent [F] int32."""

    def dense_error(
        self, acts: Tensor, W_dec: Tensor, target: Tensor, sign: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """[B, F], [F, D], [B, D] -> error [B, D], its squared norm by row [B]."""

    def dense_grad_acts(self, error: Tensor, W_dec: Tensor, acts: Tensor, addend: Tensor) -> Tensor:
        """[B, D], [F, D], [B, F], addend [] (or [F], see ADDS_PER_LATENT) -> [B, F]."""

    def outer_sum(self, left: Tensor, right: Tensor) -> Tensor:
        """[B, F], [B, D] -> [F, D]."""


OPS = tuple(name for name in vars(Backend) if callable(vars(Backend)[name]) and not name.startswith("_"))


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


def load_backend(name: str = "auto", device: str = "cpu") -> Backend:
    """Return the module of ops: `saefast.reference`, `saefast.native` or `saefast.triton_kernels`.

    Args:
        name: "reference" (plain PyTorch, any device), "native" (CPU, C++ extension), "triton" (NVIDIA GPU), or
            "auto": triton for a GPU, else native; reference if that one cannot run, said once.
        device: type of the device that holds the tensors, "cpu" or "cuda".

    With SAEFAST_UPDATE=cuda in the environment "triton" has the update of `saefast.triton_kernels.update_cuda`.

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
    module = importlib.import_module(MODULES[name])
    if name == "triton" and os.environ.get("SAEFAST_UPDATE", "triton") != "triton":
        module = _with_cuda_update()
    if name == "native" and screens() is None and why_no_bytes() != APPLE:
        _say_once(f"backend: native; its encoder takes {native_encoder()}")
    return cast(Backend, module)


def _with_cuda_update() -> ModuleType:
    """The Triton backend with the update in CUDA, a prototype."""
    if (update := os.environ["SAEFAST_UPDATE"]) != "cuda":
        raise InputError(f"SAEFAST_UPDATE: expected 'triton' or 'cuda', got {update!r}")
    module = importlib.import_module("saefast.triton_kernels.update_cuda")
    try:
        module.extension()
    except ImportError as error:
        raise InputError(f"SAEFAST_UPDATE=cuda: {error}") from error
    return module


def launched(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with the device of the first tensor among its arguments as the current one: Triton launches there."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        with torch.cuda.device_of(next(arg for arg in args if isinstance(arg, torch.Tensor))):
            return function(*args, **kwargs)

    return run


_said: set[str] = set()


def _say_once(message: str) -> None:
    if message not in _said:
        _said.add(message)
        log.warning(message)
