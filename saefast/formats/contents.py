"""What a file of an SAE holds, in our names and layout: the readers return it, and the writers take it."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar

from torch import Tensor
from typing_extensions import Self

from saefast.config.sae import SAEConfig
from saefast.engine.architectures import extra_parameters


class Origin(NamedTuple):
    """What the file of another project held besides the SAE. It is written back into a file of the same project."""

    format: str
    config: dict[str, Any]  # its own configuration, JSON
    dtype: str  # of its weights, for example "float32"
    tensors: dict[str, Tensor]  # those that an SAE has no place for


@dataclass
class Contents:
    """What a file holds: everything that a `saefast.SAE` is made of."""

    config: SAEConfig
    tensors: dict[str, Tensor]
    """The parameters by name, in the shapes of `shapes_of(config)`."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """Plain values: "model_name" and "hook_name" where they are known."""
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


def shapes_of(config: SAEConfig) -> dict[str, list[int]]:
    """Name and shape of every parameter of an SAE. Nothing of that size is allocated."""
    d_in, d_sae, d_out = config.d_in, config.d_sae, config.width_out
    extra = {name: list(value.shape) for name, value in extra_parameters(config, device="meta").items()}
    return {"W_enc": [d_sae, d_in], "b_enc": [d_sae], "W_dec": [d_sae, d_out], "b_dec": [d_out]} | extra
