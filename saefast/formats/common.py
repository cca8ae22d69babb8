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
from saefast.formats.contents import Contents, Origin, SAELike


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
    """The tensors of a .npz archive. Arrays of anything but numbers are refused."""
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
        """The tensor of this name, contiguous, in fp32 (fp64 stays). None in `shape` stands for any size above 0."""
        tensor = self.left.pop(name, None)
        found = list(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
        wanted = "[" + ", ".join("any" if size is None else f"{size}" for size in shape) + "]"
        check(tensor is not None, f"{self.path}: {name}: expected shape {wanted}, found no such tensor")
        fits = isinstance(tensor, Tensor) and tensor.ndim == len(shape)
        pairs = zip(tensor.shape, shape, strict=True) if fits else ()
        fits = fits and all(n > 0 if want is None else n == want for n, want in pairs)
        check(fits, f"{self.path}: {name}: expected shape {wanted}, got {found}")
        real = tensor.is_floating_point() and tensor.layout == torch.strided
        kind = f"{tensor.dtype}, {tensor.layout}"
        check(real, f"{self.path}: {name}: expected floating-point numbers, got {kind}")
        held = tensor.untyped_storage().nbytes() // tensor.element_size()
        check(tensor.numel() <= held, f"{self.path}: {name}: refused, {held} numbers that declare {found}")
        if tensor.ndim == 2 and self.dtype == "float32":
            self.dtype = str(tensor.dtype).removeprefix("torch.")
        return tensor.to(torch.promote_types(tensor.dtype, torch.float32)).contiguous()

    def rest(self, *known: str) -> dict[str, Tensor]:
        """The tensors that are left. Each must have one of the `known` names, or begin with one that ends in a dot."""
        beginnings = tuple(name for name in known if name[-1] == ".")
        others = [name for name in self.left if name not in known and not name.startswith(beginnings)]
        listed = ", ".join(sorted(others))
        check(not others, f"{self.path}: expected the tensors of an SAE only, got also {listed}")
        return {name: tensor for name, tensor in self.left.items() if isinstance(tensor, Tensor)}


def build(
    config: dict[str, Any],
    tensors: dict[str, Tensor],
    origin: Origin,
    path: Path,
    metadata: dict[str, Any],
) -> Contents:
    """What the file at `path` holds, checked.

    config: fields of `SAEConfig` without d_in and d_sae, which are those of the tensors.
    tensors: the parameters by our names, in our layout.
    """
    d_sae, d_in = tensors["W_enc"].shape
    try:
        made = SAEConfig(d_in=d_in, d_sae=d_sae, **config)
    except (InputError, TypeError) as error:
        raise InputError(f"{path}: {error}") from None
    dtype = tensors["W_enc"].dtype
    if tensors["W_dec"].data_ptr() == tensors["W_enc"].data_ptr():  # a tied model
        tensors["W_dec"] = tensors["W_dec"].clone()
    tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        finite = bool(tensor.isfinite().all())
        check(finite, f"{path}: {name}: expected finite numbers, got NaN or Inf")
    return Contents(made, tensors, {key: v for key, v in metadata.items() if v is not None}, origin)


def integer(config: dict[str, Any], name: str, path: Path) -> int:
    """The positive integer that a config has under `name`; a whole number in floating point counts too."""
    value = config.get(name)
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    ok = value is not None and number and value == int(value) and value > 0
    check(ok, f"{path}: {name}: expected a positive integer, got {value!r}")
    assert value is not None
    return int(value)


def check_declared(config: dict[str, Any], path: Path, **sizes: int) -> None:
    """Compare the sizes that a config declares, if it does, with those of the tensors."""
    for name, size in sizes.items():
        value = config.get(name, size)
        check(value == size, f"{path}: {name}: expected {size}, the size of the tensors, got {value!r}")


def config_beside(weights: Path) -> Path:
    """Where dictionary_learning has the config of a .pt file: in its folder, or in the one above `checkpoints`."""
    folder = weights.parent
    return (folder.parent if folder.name == "checkpoints" else folder) / "config.json"


def origin_in(sae: SAELike, format: str) -> Origin:
    """The origin of `sae` if it comes from a file of this format; else an empty one, with weights in fp32."""
    origin = sae.origin
    if origin is None or origin.format != format:
        return Origin(format, {}, "float32", {})
    return origin._replace(config=dict(origin.config))


def to_dtype(tensors: dict[str, Tensor], dtype: str) -> dict[str, Tensor]:
    """The tensors as files hold them: in the dtype of this name, contiguous, on the CPU."""
    return {
        name: tensor.detach().cpu().to(getattr(torch, dtype)).contiguous() for name, tensor in tensors.items()
    }


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """A safetensors file, atomically."""
    write_atomic(path, lambda temporary: save_file(tensors, temporary, metadata))
