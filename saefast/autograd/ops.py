"""The operators behind `saefast.autograd`: each backend op as a `torch.library` operator, and the backward passes.

An operator takes the name of the backend and finds its functions when it runs, so that one compiled graph serves all
backends. Inputs may have any strides; outputs are contiguous.
"""

import functools
import os
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from saefast import reference
from saefast.backend import launched, load_backend
from saefast.errors import check


class Ops(NamedTuple):
    """The functions of a backend that are used here."""

    encode_topk: Callable[..., tuple[Tensor, Tensor]]
    decode: Callable[..., Tensor]
    grad_top_acts: Callable[..., Tensor]
    group_by_latent: Callable[..., tuple[Tensor, Tensor, Tensor]]
    sum_rows: Callable[..., Tensor]


REFERENCE = Ops(
    reference.encode_topk,
    reference.decode,
    reference.grad_top_acts,
    reference.group_by_latent,
    reference.sum_rows,
)


def triton_ops() -> Ops:
    import saefast.triton_kernels as kernels  # needs triton

    return Ops(*(launched(getattr(kernels, op)) for op in Ops._fields))


def native_ops() -> Ops:
    """The ops in C++, which themselves use the reference for what is not fp32. There is none for `sum_rows`."""
    from saefast import native  # needs the C++ extension
    from saefast.native.arrays import handles

    def decode(acts: Tensor, indices: Tensor, W_dec: Tensor, b_dec: Tensor) -> Tensor:
        if not handles(acts, indices, W_dec, b_dec):
            return reference.decode(acts, indices, W_dec, b_dec)
        target = b_dec.new_zeros(len(acts), W_dec.shape[1])
        return native.decode_error(acts, indices, W_dec, b_dec, target, torch.float32)[0]

    sum_rows = reference.sum_rows
    return Ops(native.encode_topk, decode, native.grad_top_acts, native.group_by_latent, sum_rows)


OPS = {"reference": lambda: REFERENCE, "native": native_ops, "triton": triton_ops}


@functools.cache
def load_ops(backend: str, device: str) -> Ops:
    """The functions of the backend that `load_backend` returns; for "auto" it says why if that is the reference."""
    return OPS[load_backend(backend, device).NAME]()


def choose(backend: str, like: Tensor) -> Ops:
    """The functions for tensors on the device of `like`, which must have the widest dtype among them.

    Raises:
        InputError: "triton" cannot run on such tensors, or not on this machine.
    """
    device, narrow = like.device.type, like.dtype != torch.float64
    if backend == "triton":
        runs = narrow and (like.is_cuda or os.environ.get("TRITON_INTERPRET") == "1")
        what = f"{like.dtype} on {like.device}"
        check(runs, f"backend: 'triton' needs a GPU and at most fp32, got {what}; 'reference' takes it")
    elif backend == "reference" or device not in ("cpu", "cuda") or (device == "cuda" and not narrow):
        return REFERENCE
    return load_ops(backend, device)


def plain(*tensors: Tensor) -> list[Tensor]:
    """The tensors as the backends need them: contiguous and without autograd."""
    return [tensor.detach().contiguous() for tensor in tensors]


def centred(x: Tensor, b_dec: Tensor, dtype: torch.dtype) -> Tensor:
    """x - b_dec, subtracted before it is rounded to `dtype`. The backward pass computes it again, so it is not kept."""
    return (x.to(b_dec.dtype) - b_dec).to(dtype)


@torch.library.custom_op("saefast::encode_topk", mutates_args=())
def encode_topk(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, b_dec: Tensor, k: int, backend: str
) -> tuple[Tensor, Tensor]:
    inputs = plain(centred(x, b_dec, W_enc.dtype), W_enc, b_enc)
    return choose(backend, b_enc).encode_topk(*inputs, k)


@encode_topk.register_fake
def _(x: Tensor, W_enc: Tensor, b_enc: Tensor, b_dec: Tensor, k: int, backend: str) -> tuple[Tensor, Tensor]:
    shape = x.shape[0], k
    return b_enc.new_empty(shape), b_enc.new_empty(shape, dtype=torch.int32)


@torch.library.custom_op("saefast::decode", mutates_args=())
def decode(top_acts: Tensor, top_indices: Tensor, W_dec: Tensor, b_dec: Tensor, backend: str) -> Tensor:
    inputs = plain(top_acts, top_indices, W_dec, b_dec)
    return choose(backend, b_dec).decode(*inputs)


@decode.register_fake
def _(top_acts: Tensor, top_indices: Tensor, W_dec: Tensor, b_dec: Tensor, backend: str) -> Tensor:
    return b_dec.new_empty(top_acts.shape[0], W_dec.shape[1])


# The operators of the backward passes. They have no gradient themselves, so that asking for one raises an error.


@torch.library.custom_op("saefast::grad_top_acts", mutates_args=())
def grad_top_acts(
    grad_x_hat: Tensor, W_dec: Tensor, top_acts: Tensor, top_indices: Tensor, backend: str
) -> Tensor:
    inputs = plain(grad_x_hat, W_dec, top_acts, top_indices)
    return choose(backend, W_dec).grad_top_acts(*inputs).to(top_acts.dtype)


@grad_top_acts.register_fake
def _(grad_x_hat: Tensor, W_dec: Tensor, top_acts: Tensor, top_indices: Tensor, backend: str) -> Tensor:
    return top_acts.new_empty(top_acts.shape)


@torch.library.custom_op("saefast::gather_rows", mutates_args=())
def gather_rows(weights: Tensor, top_indices: Tensor, rows: Tensor, backend: str) -> Tensor:
    """weights [B, K] of either sign, [B, K], [F, D] -> the weighted sum of K rows for each token, [B, D]."""
    inputs = plain(weights, top_indices, rows)
    return choose(backend, rows).decode(*inputs, weights.new_zeros(rows.shape[1]))


@gather_rows.register_fake
def _(weights: Tensor, top_indices: Tensor, rows: Tensor, backend: str) -> Tensor:
    return weights.new_empty(weights.shape[0], rows.shape[1])


@torch.library.custom_op("saefast::group_by_latent", mutates_args=())
def group_by_latent(
    top_acts: Tensor, top_indices: Tensor, d_sae: int, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    return choose(backend, top_acts).group_by_latent(*plain(top_acts, top_indices), d_sae)


@group_by_latent.register_fake
def _(top_acts: Tensor, top_indices: Tensor, d_sae: int, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    n_pairs = top_indices.numel()
    offsets, pairs, tokens = (top_indices.new_empty(n) for n in (d_sae + 1, n_pairs, n_pairs))
    return offsets, pairs, tokens


@torch.library.custom_op("saefast::sum_rows", mutates_args=())
def sum_rows(
    offsets: Tensor, pairs: Tensor, tokens: Tensor, per_pair: Tensor, rows: Tensor, backend: str
) -> Tensor:
    groups = offsets, pairs, tokens
    return choose(backend, rows).sum_rows(groups, *plain(per_pair, rows))


@sum_rows.register_fake
def _(offsets: Tensor, pairs: Tensor, tokens: Tensor, per_pair: Tensor, rows: Tensor, backend: str) -> Tensor:
    dtype = torch.promote_types(rows.dtype, torch.float32)
    return rows.new_empty(offsets.shape[0] - 1, rows.shape[1], dtype=dtype)


def _save_encode(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, W_enc, _, b_dec, _, ctx.backend = inputs
    ctx.save_for_backward(x, W_enc, b_dec, *output)


def _encode_backward(ctx, grad_acts: Tensor, _):  # type: ignore[no-untyped-def]
    x, W_enc, b_dec, top_acts, top_indices = ctx.saved_tensors
    for_x, for_W_enc, for_b_enc, for_b_dec = ctx.needs_input_grad[:4]
    backend = ctx.backend
    grad_pre = torch.where(top_acts > 0, grad_acts, 0)
    grad_x = grad_W_enc = grad_b_enc = grad_b_dec = None
    if for_x:
        grad_x = gather_rows(grad_pre, top_indices, W_enc, backend).to(x.dtype)
    if for_W_enc or for_b_enc or for_b_dec:
        groups = group_by_latent(top_acts, top_indices, W_enc.shape[0], backend)
    if for_W_enc:
        rows = centred(x, b_dec, W_enc.dtype)
        grad_W_enc = sum_rows(*groups, grad_pre, rows, backend).to(W_enc.dtype)
    if for_b_enc or for_b_dec:
        sums = sum_rows(*groups, grad_pre, grad_pre.new_ones(x.shape[0], 1), backend).squeeze(1)
    if for_b_enc:
        grad_b_enc = sums.to(top_acts.dtype)
    if for_b_dec:  # summed over the batch first: one row times W_enc in place of B rows
        grad_b_dec = -(sums @ W_enc.to(sums.dtype)).to(b_dec.dtype)
    return grad_x, grad_W_enc, grad_b_enc, grad_b_dec, None, None


def _save_decode(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    top_acts, top_indices, W_dec, _, ctx.backend = inputs
    ctx.save_for_backward(top_acts, top_indices, W_dec)


def _decode_backward(ctx, grad_x_hat: Tensor):  # type: ignore[no-untyped-def]
    top_acts, top_indices, W_dec = ctx.saved_tensors
    for_acts, _, for_W_dec, for_b_dec, _ = ctx.needs_input_grad
    backend = ctx.backend
    grad_acts = grad_W_dec = grad_b_dec = None
    if for_acts:
        grad_acts = grad_top_acts(grad_x_hat, W_dec, top_acts, top_indices, backend)
    if for_W_dec:
        groups = group_by_latent(top_acts, top_indices, W_dec.shape[0], backend)
        grad_W_dec = sum_rows(*groups, top_acts, grad_x_hat, backend).to(W_dec.dtype)
    if for_b_dec:
        grad_b_dec = grad_x_hat.sum(dim=0)
    return grad_acts, None, grad_W_dec, grad_b_dec, None


encode_topk.register_autograd(_encode_backward, setup_context=_save_encode)
decode.register_autograd(_decode_backward, setup_context=_save_decode)
