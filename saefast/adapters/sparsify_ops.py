"""`fused_encoder` and `decoder_impl` of sparsify on the operators of `saefast.autograd`."""

from typing import Any

import torch
import torch.nn.functional as F
from sparsify.fused_encoder import EncoderOutput
from sparsify.fused_encoder import fused_encoder as stock_fused_encoder
from torch import Tensor
from torch.utils._pytree import tree_map_only

from saefast.autograd import decode, encode_topk
from saefast.errors import check


def fused_encoder(input: Tensor, weight: Tensor, bias: Tensor, k: int, activation: str) -> EncoderOutput:
    """input [..., D], weight [F, D], bias [F] -> top_acts [..., k], top_indices [..., k] int64, pre_acts [..., F].

    As in sparsify, no gradient goes through pre_acts. They are made when something reads them. Unlike there, a
    selected latent whose activation is 0 gets no gradient. GroupMax is left to sparsify's own.
    """
    if activation != "topk":
        return stock_fused_encoder(input, weight, bias, k, activation)
    if torch.is_autocast_enabled(input.device.type):
        dtype = torch.get_autocast_dtype(input.device.type)
        input, weight = input.to(dtype), weight.to(dtype)
    rows, shape = input.flatten(0, -2), input.shape[:-1]
    top_acts, top_indices = encode_topk(rows, weight, bias, bias.new_zeros(rows.shape[1]), k)
    parts = input.detach(), weight.detach(), bias.detach().to(weight.dtype)
    pre_acts = F.linear(*parts).relu() if torch.compiler.is_compiling() else PreActs(*parts)
    return EncoderOutput(top_acts.view(*shape, k), top_indices.view(*shape, k).long(), pre_acts)


def decoder_impl(top_indices: Tensor, top_acts: Tensor, W_dec: Tensor) -> Tensor:
    """[B, K] integers, [B, K], W_dec [D, F] (a transposed view) -> [B, D]: the sum of act * the latent's row."""
    rows = W_dec.mT
    return decode(top_acts, top_indices.to(torch.int32), rows, rows.new_zeros(rows.shape[1]))


class PreActs(Tensor):
    """relu(input @ weight.T + bias) [..., F], computed when something first reads it.

    In training AuxK and Multi-TopK do; for the rest it would be the largest tensor of the forward pass.
    """

    @staticmethod
    def __new__(cls, *parts: Tensor) -> Any:
        input, weight, _ = parts
        shape = (*input.shape[:-1], len(weight))
        wrapper: Any = Tensor._make_wrapper_subclass
        return wrapper(cls, shape, dtype=weight.dtype, device=weight.device)

    def __init__(self, *parts: Tensor) -> None:
        self.parts, self.versions = parts, _versions(parts)
        self.whole: Tensor | None = None

    def computed(self) -> Tensor:
        """Raises InputError: the parameters have changed since the latents were selected."""
        if self.whole is None:
            same = self.versions == _versions(self.parts)
            check(same, "pre_acts: expected to be read before the parameters change, got a read afterwards")
            self.whole = F.linear(*self.parts).relu_()
        return self.whole

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map_only(PreActs, PreActs.computed, (args, kwargs or {}))
        return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return cls.__torch_function__(func, types, args, kwargs)


def _versions(tensors: tuple[Tensor, ...]) -> list[int]:
    """How often each was changed in place, as autograd counts it."""
    return [0 if tensor.is_inference() else tensor._version for tensor in tensors]
