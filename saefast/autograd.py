"""Differentiable encode and decode, for an SAE inside your own model or with your own loss.

    from torch.nn.functional import mse_loss
    from saefast.autograd import sae_forward

    x_hat, top_acts, top_indices = sae_forward(x, W_enc, b_enc, W_dec, b_dec, k=32)
    (mse_loss(x_hat, x) + 1e-3 * top_acts.sum()).backward()

Shapes: x [B, D], W_enc and W_dec [F, D] with one row per latent, b_enc [F], b_dec [D]. The values are those of
`saefast.reference`; gradients are the exact ones of the sparse formula, summed over the active entries of each latent in
a fixed order. No [B, F] tensor is made but the pre-activations in the forward pass of the reference backend.

An entry of the code is active where its activation is positive, and only there does a gradient reach it. Which latents
are selected is not differentiated, as usual for TopK. Gradients of gradients raise an error.

Everything is a `torch.library` operator, so `torch.compile(fullgraph=True)` keeps each as one node of its graph. Training
an SAE by itself is faster with `saefast.Trainer`, which never stores a gradient.
"""

import functools
import importlib
import os
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from saefast import reference, reference_update
from saefast.errors import check

BACKENDS = ("auto", "reference", "triton")


def encode_topk(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, b_dec: Tensor, k: int, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """x [B, D], [F, D], [F], [D] -> top_acts [B, k] in the dtype of the biases, top_indices [B, k] int32.

    The k largest of W_enc (x - b_dec) + b_enc of each row, then ReLU. Differentiable in x, W_enc, b_enc and b_dec.

        >>> W = torch.eye(3)
        >>> encode_topk(torch.tensor([[1.0, 3.0, 2.0]]), W, torch.zeros(3), torch.zeros(3), k=2)
        (tensor([[3., 2.]]), tensor([[1, 2]], dtype=torch.int32))

    Args:
        x: any floating dtype; b_dec is subtracted before it is rounded to the dtype of W_enc.
        W_enc: fp32, bf16, fp16 or fp64 (fp64 on the reference backend only).
        b_enc, b_dec: of one dtype, that of W_enc or a wider one.
        backend: "reference", "triton", or "auto": triton for tensors on a GPU if its kernels can be imported.

    Raises:
        InputError: shapes, dtypes or devices that do not fit together, k outside 1..F, an unknown backend, or one
            that cannot run on these tensors.
    """
    _check_weights("W_enc", W_enc, {"b_enc": b_enc, "b_dec": b_dec}, backend)
    F, D = W_enc.shape
    _check_shape("x", x, (None, D))
    _check_shape("b_enc", b_enc, (F,))
    _check_shape("b_dec", b_dec, (D,))
    check(x.dtype.is_floating_point, f"x: expected a floating dtype, got {x.dtype}")
    check(1 <= k <= F, f"k: expected 1 to d_sae = {F}, got {k}")
    _check_devices({"x": x, "W_enc": W_enc, "b_enc": b_enc, "b_dec": b_dec})
    return _encode_topk(x, W_enc, b_enc, b_dec, k, backend)


def decode(
    top_acts: Tensor, top_indices: Tensor, W_dec: Tensor, b_dec: Tensor, backend: str = "auto"
) -> Tensor:
    """[B, K], [B, K] int32, [F, D], [D] -> x_hat [B, D] in the dtype of b_dec: b_dec + sum_j act_j W_dec[index_j].

    Differentiable in top_acts (where positive), W_dec and b_dec.

        >>> top_acts, top_indices = torch.tensor([[3.0, 2.0]]), torch.tensor([[1, 2]], dtype=torch.int32)
        >>> decode(top_acts, top_indices, torch.eye(3), torch.ones(3))
        tensor([[1., 4., 3.]])

    Args:
        top_acts: >= 0 (a negative one would count in x_hat and get no gradient), of any floating dtype.
        top_indices: 0 to F - 1, distinct within a row. Neither is checked: it would wait for the device.
        W_dec: fp32, bf16, fp16 or fp64 (fp64 on the reference backend only).
        b_dec: of the dtype of W_dec or a wider one.
        backend: as for `encode_topk`.

    Raises:
        InputError: as for `encode_topk`.
    """
    _check_weights("W_dec", W_dec, {"b_dec": b_dec}, backend)
    _check_shape("top_acts", top_acts, (None, None))
    _check_shape("top_indices", top_indices, tuple(top_acts.shape))
    _check_shape("b_dec", b_dec, (W_dec.shape[1],))
    check(top_acts.dtype.is_floating_point, f"top_acts: expected a floating dtype, got {top_acts.dtype}")
    check(top_indices.dtype == torch.int32, f"top_indices: expected torch.int32, got {top_indices.dtype}")
    _check_devices({"top_acts": top_acts, "top_indices": top_indices, "W_dec": W_dec, "b_dec": b_dec})
    return _decode(top_acts, top_indices, W_dec, b_dec, backend)


def sae_forward(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    W_dec: Tensor,
    b_dec: Tensor,
    k: int,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """x [B, D] -> x_hat [B, D], top_acts [B, k], top_indices [B, k] int32: `encode_topk`, then `decode`.

    >>> x, W = torch.tensor([[1.0, 3.0, 2.0]]), torch.eye(3)
    >>> sae_forward(x, W, torch.zeros(3), W, torch.zeros(3), k=2)[0]
    tensor([[0., 3., 2.]])
    """
    top_acts, top_indices = encode_topk(x, W_enc, b_enc, b_dec, k, backend)
    return decode(top_acts, top_indices, W_dec, b_dec, backend), top_acts, top_indices


def _check_shape(name: str, tensor: Tensor, shape: tuple[int | None, ...]) -> None:
    """None stands for any size."""
    fits = tensor.ndim == len(shape) and all(w in (None, n) for n, w in zip(tensor.shape, shape, strict=True))
    wanted = ", ".join("any" if size is None else str(size) for size in shape)
    check(fits, f"{name}: expected shape [{wanted}], got {list(tensor.shape)}")


def _check_weights(name: str, weight: Tensor, biases: dict[str, Tensor], backend: str) -> None:
    check(backend in BACKENDS, f"backend: expected one of {list(BACKENDS)}, got {backend!r}")
    _check_shape(name, weight, (None, None))
    check(weight.dtype.is_floating_point, f"{name}: expected a floating dtype, got {weight.dtype}")
    dtype = next(iter(biases.values())).dtype
    for bias_name, bias in biases.items():
        wide = bias.dtype == dtype == torch.promote_types(weight.dtype, dtype)
        check(wide, f"{bias_name}: expected dtype {weight.dtype} as {name} or a wider one, got {bias.dtype}")


def _check_devices(tensors: dict[str, Tensor]) -> None:
    (first, wanted), *others = ((name, tensor.device) for name, tensor in tensors.items())
    for name, device in others:
        check(device == wanted, f"{name}: expected device {wanted} as {first}, got {device}")


class _Ops(NamedTuple):
    """The functions of a backend that are used here."""

    encode_topk: Callable[..., tuple[Tensor, Tensor]]
    decode: Callable[..., Tensor]
    grad_top_acts: Callable[..., Tensor]
    group_by_latent: Callable[..., tuple[Tensor, Tensor, Tensor]]
    sum_rows: Callable[..., Tensor]


_REFERENCE = _Ops(
    reference.encode_topk,
    reference.decode,
    reference.grad_top_acts,
    reference.group_by_latent,
    reference_update.sum_rows,
)


@functools.cache
def _triton() -> _Ops:
    files = ("encode", "decode", "backward", "group", "sum_rows")
    modules = (importlib.import_module(f"saefast.triton_kernels.{file}") for file in files)
    return _Ops(*(getattr(module, op) for module, op in zip(modules, _Ops._fields, strict=True)))


def _ops(backend: str, weight: Tensor) -> _Ops:
    """The backend for an operation with `weight`."""
    if backend == "reference":
        return _REFERENCE
    runs = weight.dtype != torch.float64 and (weight.is_cuda or os.environ.get("TRITON_INTERPRET") == "1")
    if backend == "triton":
        what = f"{weight.dtype} on {weight.device}"
        check(runs, f"backend: 'triton' needs at most fp32 and a GPU, got {what}; use 'reference'")
        return _triton()
    if not (runs and weight.is_cuda):
        return _REFERENCE
    try:
        return _triton()
    except ImportError:
        return _REFERENCE


def _centred(x: Tensor, b_dec: Tensor, dtype: torch.dtype) -> Tensor:
    return (x.to(b_dec.dtype) - b_dec).to(dtype)


@torch.library.custom_op("saefast::encode_topk", mutates_args=())
def _encode_topk(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, b_dec: Tensor, k: int, backend: str
) -> tuple[Tensor, Tensor]:
    centred = _centred(x, b_dec, W_enc.dtype).contiguous()
    return _ops(backend, W_enc).encode_topk(centred, W_enc.contiguous(), b_enc.contiguous(), k)


@_encode_topk.register_fake
def _(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, b_dec: Tensor, k: int, backend: str
) -> tuple[Tensor, Tensor]:
    shape = x.shape[0], k
    return b_enc.new_empty(shape), b_enc.new_empty(shape, dtype=torch.int32)


@torch.library.custom_op("saefast::decode", mutates_args=())
def _decode(top_acts: Tensor, top_indices: Tensor, W_dec: Tensor, b_dec: Tensor, backend: str) -> Tensor:
    inputs = (t.contiguous() for t in (top_acts, top_indices, W_dec, b_dec))
    return _ops(backend, W_dec).decode(*inputs)


@_decode.register_fake
def _(top_acts: Tensor, top_indices: Tensor, W_dec: Tensor, b_dec: Tensor, backend: str) -> Tensor:
    return b_dec.new_empty(top_acts.shape[0], W_dec.shape[1])


# The operators of the backward passes. They have no gradient of their own, so asking for one raises an error.


@torch.library.custom_op("saefast::grad_top_acts", mutates_args=())
def _grad_top_acts(
    grad_x_hat: Tensor, W_dec: Tensor, top_acts: Tensor, top_indices: Tensor, backend: str
) -> Tensor:
    inputs = (t.contiguous() for t in (grad_x_hat, W_dec, top_acts, top_indices))
    return _ops(backend, W_dec).grad_top_acts(*inputs).to(top_acts.dtype)


@_grad_top_acts.register_fake
def _(grad_x_hat: Tensor, W_dec: Tensor, top_acts: Tensor, top_indices: Tensor, backend: str) -> Tensor:
    return top_acts.new_empty(top_acts.shape)


@torch.library.custom_op("saefast::gather_rows", mutates_args=())
def _gather_rows(weights: Tensor, top_indices: Tensor, rows: Tensor, backend: str) -> Tensor:
    """[B, K] of either sign, [B, K], [F, D] -> the weighted sum of K rows for each token, [B, D]."""
    inputs = (t.contiguous() for t in (weights, top_indices, rows))
    return _ops(backend, rows).decode(*inputs, weights.new_zeros(rows.shape[1]))


@_gather_rows.register_fake
def _(weights: Tensor, top_indices: Tensor, rows: Tensor, backend: str) -> Tensor:
    return weights.new_empty(weights.shape[0], rows.shape[1])


@torch.library.custom_op("saefast::group_by_latent", mutates_args=())
def _group_by_latent(
    top_acts: Tensor, top_indices: Tensor, d_sae: int, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    return _ops(backend, top_acts).group_by_latent(top_acts.contiguous(), top_indices.contiguous(), d_sae)


@_group_by_latent.register_fake
def _(top_acts: Tensor, top_indices: Tensor, d_sae: int, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    n_pairs = top_indices.numel()
    offsets, pairs, tokens = (top_indices.new_empty(n) for n in (d_sae + 1, n_pairs, n_pairs))
    return offsets, pairs, tokens


@torch.library.custom_op("saefast::sum_rows", mutates_args=())
def _sum_rows(
    offsets: Tensor, pairs: Tensor, tokens: Tensor, per_pair: Tensor, rows: Tensor, backend: str
) -> Tensor:
    groups = offsets, pairs, tokens
    return _ops(backend, rows).sum_rows(groups, per_pair.contiguous(), rows.contiguous())


@_sum_rows.register_fake
def _(
    offsets: Tensor, pairs: Tensor, tokens: Tensor, per_pair: Tensor, rows: Tensor, backend: str
) -> Tensor:
    dtype = torch.promote_types(rows.dtype, torch.float32)
    return rows.new_empty(offsets.shape[0] - 1, rows.shape[1], dtype=dtype)


def _save_encode(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, W_enc, b_enc, b_dec, _, ctx.backend = inputs
    ctx.save_for_backward(x, W_enc, b_dec, *output)


def _encode_backward(ctx, grad_acts: Tensor, _):  # type: ignore[no-untyped-def]
    x, W_enc, b_dec, top_acts, top_indices = ctx.saved_tensors
    for_x, for_W_enc, for_b_enc, for_b_dec = ctx.needs_input_grad[:4]
    backend = ctx.backend
    grad_pre = torch.where(top_acts > 0, grad_acts, 0)
    grad_x = grad_W_enc = grad_b_enc = grad_b_dec = None
    if for_W_enc or for_b_enc or for_b_dec:
        groups = _group_by_latent(top_acts, top_indices, W_enc.shape[0], backend)
    if for_W_enc:
        rows = _centred(x, b_dec, W_enc.dtype)
        grad_W_enc = _sum_rows(*groups, grad_pre, rows, backend).to(W_enc.dtype)
    if for_b_enc or for_b_dec:
        ones = grad_pre.new_ones(x.shape[0], 1)
        grad_b_enc = _sum_rows(*groups, grad_pre, ones, backend).squeeze(1)
    if for_b_dec:  # x - b_dec is multiplied by W_enc: one product with the sums over the batch
        grad_b_dec = -(grad_b_enc @ W_enc.to(grad_b_enc.dtype)).to(b_dec.dtype)
    if for_x:
        grad_x = _gather_rows(grad_pre, top_indices, W_enc, backend).to(x.dtype)
    if grad_b_enc is not None:
        grad_b_enc = grad_b_enc.to(top_acts.dtype) if for_b_enc else None
    return grad_x, grad_W_enc, grad_b_enc, grad_b_dec, None, None


def _save_decode(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    top_acts, top_indices, W_dec, b_dec, ctx.backend = inputs
    ctx.save_for_backward(top_acts, top_indices, W_dec)


def _decode_backward(ctx, grad_x_hat: Tensor):  # type: ignore[no-untyped-def]
    top_acts, top_indices, W_dec = ctx.saved_tensors
    for_acts, _, for_W_dec, for_b_dec, _ = ctx.needs_input_grad
    backend = ctx.backend
    grad_acts = grad_W_dec = grad_b_dec = None
    if for_acts:
        grad_acts = _grad_top_acts(grad_x_hat, W_dec, top_acts, top_indices, backend)
    if for_W_dec:
        groups = _group_by_latent(top_acts, top_indices, W_dec.shape[0], backend)
        grad_W_dec = _sum_rows(*groups, top_acts, grad_x_hat, backend).to(W_dec.dtype)
    if for_b_dec:
        grad_b_dec = grad_x_hat.sum(dim=0)
    return grad_acts, None, grad_W_dec, grad_b_dec, None


_encode_topk.register_autograd(_encode_backward, setup_context=_save_encode)
_decode.register_autograd(_decode_backward, setup_context=_save_decode)
