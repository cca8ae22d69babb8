"""Differentiable encode and decode, for an SAE inside your own model or with your own loss.

    >>> from torch.nn.functional import mse_loss
    >>> x, W = torch.randn(64, 8), torch.randn(32, 8)
    >>> W_enc, W_dec = W.clone().requires_grad_(), W.requires_grad_()
    >>> b_enc, b_dec = torch.zeros(32, requires_grad=True), torch.zeros(8, requires_grad=True)
    >>> x_hat, top_acts, top_indices = sae_forward(x, W_enc, b_enc, W_dec, b_dec, k=4)
    >>> (mse_loss(x_hat, x) + 1e-3 * top_acts.sum()).backward()
    >>> W_enc.grad.shape
    torch.Size([32, 8])

Shapes: x [B, D], W_enc and W_dec [F, D] with one row per latent, b_enc [F], b_dec [D]. The values are those of
`saefast.reference`. Gradients are summed over the active entries of each latent in a fixed order, so that they have the
same bits every time, and no dense gradient [B, F] is made. An entry is active if its activation is positive; only active
entries get a gradient. The choice of the latents is not differentiated. Gradients of gradients raise an error.

Everything is a `torch.library` operator (see `saefast.autograd.ops`), so `torch.compile(fullgraph=True)` works.
Training an SAE by itself is faster with `saefast.Trainer`, which never stores a gradient.
"""

import torch
from torch import Tensor

from saefast.autograd import ops as autograd_ops
from saefast.errors import InputError

__all__ = ["BACKENDS", "decode", "encode_topk", "sae_forward"]

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
        backend: "reference", "triton", or "auto", which is triton for tensors on a GPU and C++ on a CPU if they can be
            imported, and else the reference.

    Raises:
        InputError: shapes, dtypes or devices that do not fit together, k outside 1..F, an unknown backend, or one
            that cannot run on these tensors.
    """
    _check_weights("W_enc", W_enc, {"b_enc": b_enc, "b_dec": b_dec}, backend)
    F, D = W_enc.shape
    _check_shape("x", x, (None, D))
    _check_shape("b_enc", b_enc, (F,))
    _check_shape("b_dec", b_dec, (D,))
    _check_floating("x", x)
    if not 1 <= k <= F:
        raise InputError(f"k: expected 1 to d_sae = {F}, got {k}")
    _check_devices({"x": x, "W_enc": W_enc, "b_enc": b_enc, "b_dec": b_dec})
    return autograd_ops.encode_topk(x, W_enc, b_enc, b_dec, k, backend)


def decode(
    top_acts: Tensor, top_indices: Tensor, W_dec: Tensor, b_dec: Tensor, backend: str = "auto"
) -> Tensor:
    """[B, K], [B, K] int32, [F, D], [D] -> x_hat [B, D] in the dtype of b_dec: b_dec + sum_j act_j W_dec[index_j].

    Differentiable in top_acts (where positive), W_dec and b_dec.

        >>> top_acts, top_indices = torch.tensor([[3.0, 2.0]]), torch.tensor([[1, 2]], dtype=torch.int32)
        >>> decode(top_acts, top_indices, torch.eye(3), torch.ones(3))
        tensor([[1., 4., 3.]])

    Args:
        top_acts: of any floating dtype, 0 or more. (A negative one would count in x_hat but get no gradient.)
        top_indices: 0 to F - 1, distinct within a row. The values are not checked, because that would have to wait for
            the device.
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
    _check_floating("top_acts", top_acts)
    if top_indices.dtype != torch.int32:
        raise InputError(f"top_indices: expected torch.int32, got {top_indices.dtype}")
    _check_devices({"top_acts": top_acts, "top_indices": top_indices, "W_dec": W_dec, "b_dec": b_dec})
    return autograd_ops.decode(top_acts, top_indices, W_dec, b_dec, backend)


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


# `torch.compile` traces these checks, so a message is only put together where a check fails.


def _check_shape(name: str, tensor: Tensor, shape: tuple[int | None, ...]) -> None:
    """None stands for any size."""
    pairs = zip(tensor.shape, shape, strict=False)
    if tensor.ndim != len(shape) or any(want is not None and size != want for size, want in pairs):
        wanted = ", ".join("any" if size is None else f"{size}" for size in shape)
        raise InputError(f"{name}: expected shape [{wanted}], got {list(tensor.shape)}")


def _check_floating(name: str, tensor: Tensor) -> None:
    if not tensor.dtype.is_floating_point:
        raise InputError(f"{name}: expected a floating dtype, got {tensor.dtype}")


def _check_weights(name: str, weight: Tensor, biases: dict[str, Tensor], backend: str) -> None:
    if backend not in BACKENDS:
        raise InputError(f"backend: expected one of {list(BACKENDS)}, got {backend!r}")
    _check_shape(name, weight, (None, None))
    _check_floating(name, weight)
    dtype = next(iter(biases.values())).dtype
    for bias_name, bias in biases.items():
        if not bias.dtype == dtype == torch.promote_types(weight.dtype, dtype):
            raise InputError(
                f"{bias_name}: expected dtype {weight.dtype} as {name} or a wider one, the same for all biases, "
                f"got {bias.dtype}"
            )


def _check_devices(tensors: dict[str, Tensor]) -> None:
    (first, wanted), *others = [(name, tensor.device) for name, tensor in tensors.items()]
    for name, device in others:
        if device != wanted:
            raise InputError(f"{name}: expected device {wanted} as {first}, got {device}")
