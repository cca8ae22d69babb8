"""What the readers and writers share: files that are opened safely, tensors that are checked before they are used."""

import math
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from saefast.config.sae import SAEConfig
from saefast.errors import InputError, check
from saefast.files import read_json, write_atomic
from saefast.sae import SAE, Origin


def read_config(path: Path) -> dict[str, Any]:
    found = read_json(path)
    check(isinstance(found, dict), f"{path}: expected a JSON object, got {type(found).__name__}")
    return dict(found)


def read_safetensors(path: Path) -> "Tensors":
    try:
        with safe_open(path, framework="pt") as file:
            return Tensors(path, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 (not a dict)
    except FileNotFoundError:
        raise InputError(f"{path}: expected a file, found none") from None
    except (SafetensorError, ValueError) as error:
        raise InputError(f"{path}: corrupt ({error})") from None


def read_pickle(path: Path) -> Any:
    """A file of `torch.save`: tensors, numbers and strings. Anything else in it is refused, and not run."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path}: expected a file, found none") from None
    except pickle.UnpicklingError as error:
        reason = str(error).split("\n")[0]
        raise InputError(f"{path}: refused, expected tensors only in the pickle ({reason})") from None
    except (RuntimeError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: corrupt ({error})") from None


def read_npz(path: Path) -> "Tensors":
    """An archive of numpy arrays, numbers only."""
    try:
        with zipfile.ZipFile(path) as archive:
            declared, held = sum(entry.file_size for entry in archive.infolist()), path.stat().st_size
            check(declared <= 100 * held, f"{path}: refused, {held} bytes that declare {declared}")
        with np.load(path, allow_pickle=False) as file:
            return Tensors(path, {name: torch.from_numpy(file[name]) for name in file.files})
    except FileNotFoundError:
        raise InputError(f"{path}: expected a file, found none") from None
    except (zipfile.BadZipFile, ValueError, TypeError, OSError, EOFError, MemoryError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: corrupt, or not numbers only ({error})") from None


class Tensors:
    """The tensors of a file, taken one by one by name; `rest` are those that nobody took."""

    def __init__(self, path: Path, tensors: Any) -> None:
        check(isinstance(tensors, dict), f"{path}: expected tensors by name, got {type(tensors).__name__}")
        self.path, self.left = path, dict(tensors)
        self.dtype = "float32"  # of the first matrix that was taken

    def __contains__(self, name: str) -> bool:
        return name in self.left

    def take(self, name: str, shape: tuple[int | None, ...]) -> Tensor:
        """In fp32 (fp64 stays), contiguous. None in shape stands for any size above 0."""
        tensor = self.left.pop(name, None)
        found = list(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
        wanted = "[" + ", ".join("any" if size is None else f"{size}" for size in shape) + "]"
        check(tensor is not None, f"{self.path}: {name}: expected shape {wanted}, found no such tensor")
        ok = isinstance(tensor, Tensor) and tensor.ndim == len(shape)
        ok = ok and all(
            n > 0 if want is None else n == want for n, want in zip(tensor.shape, shape, strict=True)
        )
        check(ok, f"{self.path}: {name}: expected shape {wanted}, got {found}")
        real = tensor.is_floating_point() and tensor.layout == torch.strided
        check(
            real, f"{self.path}: {name}: expected floating-point numbers, got {tensor.dtype}, {tensor.layout}"
        )
        held = tensor.untyped_storage().nbytes() // tensor.element_size()
        check(tensor.numel() <= held, f"{self.path}: {name}: refused, {held} numbers that declare {found}")
        if tensor.ndim == 2 and self.dtype == "float32":
            self.dtype = str(tensor.dtype).removeprefix("torch.")
        return tensor.to(torch.promote_types(tensor.dtype, torch.float32)).contiguous()

    def rest(self, *known: str) -> dict[str, Tensor]:
        """Those that are left, which must have one of these names (a name that ends in a dot is a beginning)."""
        others = [
            n
            for n in self.left
            if n not in known and not n.startswith(tuple(k for k in known if k[-1] == "."))
        ]
        check(
            not others,
            f"{self.path}: expected the tensors of an SAE only, got also {', '.join(sorted(others))}",
        )
        return {name: tensor for name, tensor in self.left.items() if isinstance(tensor, Tensor)}


def build(
    config: dict[str, Any],
    tensors: dict[str, Tensor],
    origin: Origin,
    path: Path,
    metadata: dict[str, Any],
) -> SAE:
    """The SAE of these tensors, in the layout of `SAE`; d_in, d_sae and d_out are those of the tensors.

    config: of `SAEConfig`, without the sizes.
    """
    d_sae, d_in = tensors["W_enc"].shape
    try:
        made = SAEConfig(d_in=d_in, d_sae=d_sae, **config)
    except (InputError, TypeError) as error:
        raise InputError(f"{path}: {error}") from None
    dtype = tensors["W_enc"].dtype
    if tensors["W_dec"].data_ptr() == tensors["W_enc"].data_ptr():  # a tied model
        tensors["W_dec"] = tensors["W_dec"].clone()
    sae = SAE.of(made, {name: tensor.to(dtype) for name, tensor in tensors.items()})
    for name, param in sae.named_parameters():
        finite = bool(param.isfinite().all())
        check(finite, f"{path}: {name}: expected finite numbers, got NaN or Inf")
    sae.metadata = {key: value for key, value in metadata.items() if value is not None}
    sae.origin = origin
    return sae


def integer(config: dict[str, Any], name: str, path: Path) -> int:
    value = config.get(name)
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    ok = value is not None and number and value == int(value) and value > 0
    check(ok, f"{path}: {name}: expected a positive integer, got {value!r}")
    assert value is not None
    return int(value)


def declared(config: dict[str, Any], path: Path, **sizes: int) -> None:
    """Check the sizes that a config declares, where it does, against those of the tensors."""
    for name, size in sizes.items():
        value = config.get(name, size)
        check(value == size, f"{path}: {name}: expected {size}, the size of the tensors, got {value!r}")


def before(sae: SAE, format: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config and tensors that the file of this format had which the SAE comes from; empty for another."""
    origin = sae.origin
    return (dict(origin.config), origin.tensors) if origin and origin.format == format else ({}, {})


def as_kept(sae: SAE, format: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous, on the CPU, in the precision of the file that the SAE comes from."""
    origin = sae.origin
    same = origin is not None and origin.format == format
    dtype = getattr(torch, origin.dtype) if same and origin else torch.float32
    return {name: tensor.detach().cpu().to(dtype).contiguous() for name, tensor in tensors.items()}


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """A safetensors file, atomically."""
    write_atomic(path, lambda temporary: save_file(tensors, temporary, metadata))
