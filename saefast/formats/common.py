"""What the readers and writers share: files that are opened safely, tensors that are checked before they are used."""

import functools
import pickle
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from saefast.config.sae import SAEConfig
from saefast.errors import InputError, check, line, shown
from saefast.files import read_json, refuse_pointer, write_atomic
from saefast.formats.contents import Contents, Origin, SAELike

READ = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2)


def read_config(path: Path) -> dict[str, Any]:
    found = read_json(path)
    check(isinstance(found, dict), f"{path}: expected a JSON object, got {type(found).__name__}")
    return dict(found)


def read_safetensors(path: Path) -> "Tensors":
    refuse_pointer(path)
    try:
        with safe_open(path, framework="pt") as file:
            return Tensors(path, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 (not a dict)
    except FileNotFoundError:
        raise InputError(f"{path}: expected a file, found none") from None
    except (InputError, PermissionError):
        raise
    except Exception as error:  # noqa: BLE001 (what a damaged file makes of the library)
        raise InputError(f"{path}: corrupt ({line(error)})") from None


def read_pickle(path: Path) -> Any:
    """A file of `torch.save`: tensors, numbers and strings. Anything else in it is refused, and not run."""
    refuse_pointer(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path}: expected a file, found none") from None
    except PermissionError:
        raise
    except pickle.UnpicklingError as error:
        reason = str(error).split("\n")[0]
        raise InputError(f"{path}: refused, expected tensors only in the pickle ({reason})") from None
    except Exception as error:  # noqa: BLE001 (what a damaged stream makes of the unpickler)
        raise InputError(f"{path}: corrupt ({line(error)})") from None


def read_npz(path: Path) -> "Tensors":
    """The tensors of a .npz archive. Arrays of anything but numbers are refused."""
    refuse_pointer(path)
    try:
        with zipfile.ZipFile(path) as archive:
            declared, held = sum(entry.file_size for entry in archive.infolist()), path.stat().st_size
            check(declared <= 100 * held, f"{path}: refused, {held} bytes that declare {declared}")
        with np.load(path, allow_pickle=False) as file:
            return Tensors(path, {name: torch.from_numpy(file[name]) for name in file.files})
    except FileNotFoundError:
        raise InputError(f"{path}: expected a file, found none") from None
    except (InputError, PermissionError):
        raise
    except Exception as error:  # noqa: BLE001 (what a damaged archive makes of the libraries)
        raise InputError(f"{path}: corrupt, or not numbers only ({line(error)})") from None


class Tensors:
    """The tensors of a file, taken one by one by name; `rest` are those that nobody took."""

    def __init__(self, path: Path, tensors: Any) -> None:
        check(isinstance(tensors, dict), f"{path}: expected tensors by name, got {type(tensors).__name__}")
        self.path, self.left = path, dict(tensors)

    def __contains__(self, name: str) -> bool:
        return name in self.left

    def take(self, name: str, shape: tuple[int | None, ...]) -> Tensor:
        """The tensor of this name, contiguous, in its own dtype. None in `shape` stands for any size above 0."""
        tensor = self.left.pop(name, None)
        found = list(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
        wanted = "[" + ", ".join("any" if size is None else f"{size}" for size in shape) + "]"
        check(tensor is not None, f"{self.path}: {name}: expected shape {wanted}, found no such tensor")
        fits = isinstance(tensor, Tensor) and tensor.ndim == len(shape)
        pairs = zip(tensor.shape, shape, strict=True) if fits else ()
        fits = fits and all(n > 0 if want is None else n == want for n, want in pairs)
        check(fits, f"{self.path}: {name}: expected shape {wanted}, got {found}")
        real = tensor.dtype in READ and tensor.layout == torch.strided and tensor.device.type == "cpu"
        kind = f"{tensor.dtype}, {tensor.layout}, {tensor.device}"
        check(real, f"{self.path}: {name}: expected floating-point numbers, got {kind}")
        held = tensor.untyped_storage().nbytes() // tensor.element_size()
        check(tensor.numel() <= held, f"{self.path}: {name}: refused, {held} numbers that declare {found}")
        return tensor.detach().contiguous()

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
        raise InputError(f"{path}: {line(error)}") from None
    dtypes = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in tensors.items()}
    origin = origin._replace(dtypes=dtypes | origin.dtypes)
    dtype = torch.float64 if tensors["W_enc"].dtype == torch.float64 else torch.float32
    exact = {name: tensor for name, tensor in tensors.items() if tensor.dtype == torch.float64 != dtype}
    if tensors["W_dec"].data_ptr() == tensors["W_enc"].data_ptr():  # a tied model
        tensors["W_dec"] = tensors["W_dec"].clone()
    tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        finite = bool(tensor.isfinite().all())
        check(finite, f"{path}: {name}: expected finite numbers, got NaN or Inf")
    described = {key: v for key, v in metadata.items() if v is not None}
    return Contents(made, tensors, described, origin._replace(exact=exact))


def integer(config: dict[str, Any], name: str, path: Path) -> int:
    """The positive integer that a config has under `name`; a whole number in floating point counts too."""
    value = config.get(name)
    number = value if isinstance(value, (int, float)) and not isinstance(value, bool) else 0
    ok = 0 < number < 2**63 and number == int(number)
    check(ok, f"{path}: {name}: expected a positive integer, got {shown(value)}")
    return int(number)


def choice(config: dict[str, Any], name: str, known: Collection[str], default: str, path: Path) -> str:
    """The string that a config has under `name`, one of these."""
    value = config.get(name, default)
    ok = isinstance(value, str) and value in known
    check(ok, f"{path}: {name}: expected one of {list(known)}, got {shown(value)}")
    return str(value)


def positive_number(config: dict[str, Any], name: str, path: Path) -> float:
    """The positive, finite number that a config has under `name`."""
    value = config.get(name)
    number = value if isinstance(value, (int, float)) and not isinstance(value, bool) else 0
    check(0 < number < 1e38, f"{path}: {name}: expected a positive number, got {shown(value)}")
    return float(number)


def check_declared(config: dict[str, Any], path: Path, **sizes: int) -> None:
    """Compare the sizes that a config declares, if it does, with those of the tensors."""
    for name, size in sizes.items():
        value = config.get(name, size)
        check(value == size, f"{path}: {name}: expected {size}, the size of the tensors, got {shown(value)}")


def config_beside(weights: Path) -> Path:
    """Where dictionary_learning has the config of a .pt file: in its folder, or in the one above `checkpoints`."""
    folder = weights.parent
    return (folder.parent if folder.name == "checkpoints" else folder) / "config.json"


def origin_in(sae: SAELike, format: str) -> Origin:
    """The origin of `sae` if it comes from a file of this format; else an empty one."""
    origin = sae.origin
    if origin is None or origin.format != format:
        return Origin(format, {})
    return origin._replace(config=dict(origin.config))


def wide(tensor: Tensor) -> Tensor:
    """In fp32, or in fp64 as it is: to compute with."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def packed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as files hold them, contiguous."""
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def widest(tensors: dict[str, Tensor]) -> str:
    """The name of the dtype in which each of them can be held without rounding."""
    found = {tensor.dtype for tensor in tensors.values()}
    narrow = found & {torch.float8_e4m3fn, torch.float8_e5m2}
    if narrow and len(found) > 1:  # torch has no rule for these
        found = (found - narrow) | {torch.bfloat16}
    made = functools.reduce(torch.promote_types, found)
    return str(made).removeprefix("torch.")


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """A safetensors file, atomically."""
    write_atomic(path, lambda temporary: save_file(tensors, temporary, metadata))
