"""What a file of an SAE holds, in our names and layout: the readers return it, and the writers take it."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor
from typing_extensions import Self

from saefast.config.sae import SAEConfig
from saefast.engine.architectures import extra_parameters


class Origin(NamedTuple):
    """What the file held besides the values of the parameters. It is written back into a file of the same project."""

    format: str
    config: dict[str, Any]
    """Its own configuration, JSON."""
    tensors: dict[str, Tensor] = {}  # noqa: RUF012 (these are never changed)
    """Those that an SAE has no place for."""
    dtypes: dict[str, str] = {}  # noqa: RUF012
    """In which the parameters were read, by our names, for example "bfloat16"."""
    exact: dict[str, Tensor] = {}  # noqa: RUF012
    """The parameters that were read in fp64, of an SAE that is in fp32, by our names."""


def as_read(tensors: dict[str, Tensor], origin: Origin | None) -> tuple[dict[str, Tensor], list[str]]:
    """Parameters as a file gets them: each in the dtype in which it was read, unless that would round it.

    Returns:
        The tensors by name, and the names of those that were read in a narrower dtype and have changed since.
    """
    out, widened = {}, []
    for name, tensor in tensors.items():
        exact = origin.exact.get(name) if origin else None
        if exact is not None and torch.equal(exact.to(tensor.dtype), tensor):
            out[name] = exact
            continue
        narrow = tensor.to(getattr(torch, origin.dtypes.get(name, "float32") if origin else "float32"))
        same = torch.equal(narrow.to(tensor.dtype), tensor)
        out[name] = narrow if same else tensor
        if not same and origin is not None and name in origin.dtypes:
            widened.append(name)
    return out, widened


@dataclass
class Contents:
    """What a file holds: everything that a `saefast.SAE` is made of."""

    config: SAEConfig
    tensors: dict[str, Tensor]
    """The parameters by name, in the shapes of `shapes_of(config)`."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """Plain values: "model_name", "hook_name" and the others of `source_metadata` where they are known."""
    origin: Origin | None = None
    """None for a file of ours that does not come from another project."""

    @classmethod
    def of(cls, config: SAEConfig, tensors: dict[str, Tensor]) -> "Contents":
        return cls(config, tensors)


S = TypeVar("S", bound="SAELike")


class SAELike(Protocol):
    """What the writers use of an SAE. `saefast.SAE` and `Contents` both have it."""

    config: SAEConfig
    metadata: dict[str, Any]
    origin: Origin | None

    @property
    def tensors(self) -> dict[str, Tensor]: ...

    @classmethod
    def of(cls, config: SAEConfig, tensors: dict[str, Tensor]) -> Self: ...


def source_metadata(source: dict[str, Any]) -> dict[str, Any]:
    """What an SAE's metadata says of the activations it was trained on, from their `Source.describe()`: the names are those
    of SAELens. Nothing for several hook points side by side."""
    hook, notes = source.get("hook"), source.get("notes") or {}
    if not isinstance(hook, str):
        return {}
    found = {"model_name": source.get("model"), "hook_name": hook}
    if "context_length" in notes:  # rows that come from text
        found |= {"context_size": notes["context_length"], "dataset_path": notes.get("text")}
        found |= {
            "prepend_bos": notes.get("bos") is not None,
            "exclude_special_tokens": notes.get("dropped_ids"),
        }
    return {name: value for name, value in found.items() if value is not None}


def shapes_of(config: SAEConfig) -> dict[str, list[int]]:
    """Name and shape of every parameter of an SAE. Nothing of that size is allocated."""
    d_in, d_sae, d_out = config.d_in, config.d_sae, config.width_out
    extra = {name: list(value.shape) for name, value in extra_parameters(config, device="meta").items()}
    return {"W_enc": [d_sae, d_in], "b_enc": [d_sae], "W_dec": [d_sae, d_out], "b_dec": [d_out]} | extra
