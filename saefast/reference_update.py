"""The part of `saefast.reference` after the loss: gradients of the active rows, Adam, unit norm."""

import math
import warnings
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.adam import adam

from saefast.storage import (
    Weights,
    load_moments,
    load_weight,
    random_bits,
    store_moments_,
    store_weight_,
)

Groups = tuple[Tensor, Tensor, Tensor]  # of `group_by_latent`
Grads = tuple[Tensor, Tensor, Tensor, Tensor]  # in the order of Params


class Params(NamedTuple):
    """The four parameters of an SAE."""

    W_enc: Tensor  # [F, D]
    b_enc: Tensor  # [F]
    W_dec: Tensor  # [F, D], rows of unit norm
    b_dec: Tensor  # [D]


class Aux(NamedTuple):
    """What AuxK adds to the gradients (see `saefast.engine.auxk`), in their own units, fp32."""

    slots: Tensor  # [F] int32: which row below belongs to this latent, or -1
    W_enc: Tensor  # [C, D]
    b_enc: Tensor  # [C]
    W_dec: Tensor  # [C, D]
    b_dec: Tensor  # [D]


class Given(NamedTuple):
    """What an architecture with a penalty hands to the update (see `saefast.engine.architectures`), in place of
    grad_pre = grad_scale * <error, W_dec row> + l1."""

    grad_pre: Tensor  # in the shape of acts: gradient with respect to the pre-activation of each entry
    bias: Tensor  # [F], added to the gradient of b_enc alone
    push: Tensor  # [F]: as if every token had one more entry of each latent with this grad_pre
    push_row: Tensor  # [D], the sum of the rows of centred
    pull: Tensor  # [F, L]: adds pull * W_dec to the gradient of W_dec, one number for each of L equal parts of a row


class Numbers(NamedTuple):
    """The numbers of one optimizer step. They travel as one tensor, fp32 on a GPU, so that a graph can hold it."""

    lr: float  # of W_enc
    lr_bias: float  # of b_enc
    eps: float
    eps_bias: float
    beta1: float
    beta1_rest: float  # 1 - beta1, rounded once
    beta2: float
    beta2_rest: float
    correction1: float  # 1 / (1 - beta1^t)
    correction2: float  # 1 / (1 - beta2^t)
    l1: float  # gradient of the penalty with respect to an active activation
    bias_norm: float  # the biases' gradients are multiplied by it in the gradient norm
    lr_dec: float  # of W_dec
    lr_b_dec: float
    unit: float  # 1: rows of W_dec keep unit norm; 0: they are free, which the Triton update only knows with Given
    tied: float  # 1: b_dec is subtracted from the input; 0: it is not


def row_starts(indices: Tensor, row_offsets: Tensor | None) -> Tensor:
    """[B + 1] int32: `row_offsets` of either layout."""
    if row_offsets is not None:
        return row_offsets
    B, K = indices.shape
    return torch.arange(B + 1, dtype=torch.int32, device=indices.device) * K


def group_by_latent(acts: Tensor, indices: Tensor, d_sae: int, row_offsets: Tensor | None = None) -> Groups:
    """A code -> offsets [F + 1], pairs [N], tokens [N], all int32: the active entries of each latent.

    `pairs[offsets[f]:offsets[f + 1]]` are the positions in the flattened code where latent f is active (acts > 0),
    in ascending order, and `tokens` the tokens they belong to. Entries from `offsets[F]` on are unused. The order
    makes sums reproducible.
    """
    starts = row_starts(indices, row_offsets).long()
    positions = torch.arange(indices.numel(), device=indices.device)
    active = (acts.flatten() > 0) & (positions < starts[-1])
    latent = torch.where(active, indices.flatten(), d_sae)
    offsets = F.pad(torch.bincount(latent, minlength=d_sae + 1)[:d_sae].cumsum(0), (1, 0)).to(torch.int32)
    pairs = latent.argsort(stable=True)
    if row_offsets is None:
        tokens = torch.div(pairs, indices.shape[1], rounding_mode="floor")
    else:
        tokens = (torch.searchsorted(starts, pairs, right=True) - 1).clamp_max(len(starts) - 2)
    return offsets, pairs.to(torch.int32), tokens.to(torch.int32)


def grad_top_acts(
    error: Tensor, W_dec: Tensor, acts: Tensor, indices: Tensor, row_offsets: Tensor | None = None
) -> Tensor:
    """error [B, D], [F, D], a code -> <error[token], W_dec[index]> in the shape of acts, 0 where not active."""
    wide = torch.promote_types(W_dec.dtype, torch.float32)
    starts = row_starts(indices, row_offsets)
    used = int(starts[-1]) if row_offsets is not None else indices.numel()
    with warnings.catch_warnings():  # torch calls its CSR layout beta on first use
        warnings.simplefilter("ignore", UserWarning)
        zeros = torch.zeros(used, dtype=wide, device=acts.device)
        pattern = torch.sparse_csr_tensor(
            starts, indices.flatten()[:used], zeros, (len(error), W_dec.shape[0])
        )
        products = torch.sparse.sampled_addmm(pattern, error.to(wide), W_dec.to(wide).T).values()
    return F.pad(products, (0, acts.numel() - used)).view(acts.shape) * (acts > 0)


def sum_rows(groups: Groups, per_pair: Tensor, rows: Tensor) -> Tensor:
    """out[f] = sum over the active entries of latent f of per_pair[pair] * rows[token], [F, D], in token order."""
    offsets, pairs, tokens = groups
    used = int(offsets[-1])
    wide = torch.promote_types(rows.dtype, torch.float32)
    return F.embedding_bag(
        tokens[:used], rows.to(wide), offsets, mode="sum", include_last_offset=True,
        per_sample_weights=per_pair.flatten()[pairs[:used]].to(wide),
    )  # fmt: skip


def sum_entries(groups: Groups, per_pair: Tensor) -> Tensor:
    """[F]: the sum over the active entries of each latent of per_pair, in token order, in at least fp32."""
    offsets, pairs, _ = groups
    wide = torch.promote_types(per_pair.dtype, torch.float32)
    listed = per_pair.flatten()[pairs[: int(offsets[-1])]].to(wide)
    if not len(listed):  # segment_reduce refuses it
        return listed.new_zeros(len(offsets) - 1)
    return torch.segment_reduce(listed, "sum", offsets=offsets.long(), initial=0)


def row_grads(
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
    """Gradients of W_enc, b_enc, W_dec (projected), b_dec, and the square of their norm [].

    Each row of the weight gradients is a sum over the tokens in which its latent is active, in token order. b_dec
    enters twice, as output bias and, if tied, subtracted from the input; its second term uses
    sum_b (grad_pre_acts[b] @ W_enc) = grad_b_enc @ W_enc.

    Args:
        centred: [B, D].
        error: [B, D_out]; or [G * B, D_out] of a code in G parts, in which part g of token t is the row g * B + t
            (see `saefast.nested`). Only with `given`. b_dec's gradient is summed over the first B rows.
        given: what takes the place of the gradient of a plain reconstruction.
    """
    n, B = Numbers(*numbers[: len(Numbers._fields)].tolist()), len(centred)
    W_enc, W_dec = load_weight(weights.enc), load_weight(weights.dec)
    if given is None:
        products = grad_top_acts(error, W_dec, acts, indices, row_offsets)
        grad_pre = grad_scale * products + n.l1 * (acts > 0).to(products.dtype)
    else:
        grad_pre = given.grad_pre
    offsets, pairs, tokens = groups
    grad_b_enc = sum_entries(groups, grad_pre).to(weights.b_enc.value.dtype)
    grad_W_enc = sum_rows((offsets, pairs, tokens % max(B, 1)), grad_pre, centred)
    grad_W_dec = sum_rows(groups, grad_scale * acts, error)
    if given is not None:
        grad_W_enc += torch.outer(given.push, given.push_row)
        grad_b_enc += given.push * B
        blocks = W_dec.unflatten(1, (given.pull.shape[1], -1))
        grad_W_dec += (given.pull[:, :, None] * blocks).flatten(1)
    grad_b_dec = grad_scale * error[:B].sum(dim=0, dtype=grad_b_enc.dtype)
    if n.tied:
        grad_b_dec -= grad_b_enc @ W_enc
    if given is not None:
        grad_b_enc += given.bias
    if aux is not None:
        listed = (aux.slots >= 0).nonzero().squeeze(1)
        slots = aux.slots[listed].long()
        grad_W_enc[listed] += aux.W_enc[slots]
        grad_b_enc[listed] += aux.b_enc[slots]
        grad_W_dec[listed] += aux.W_dec[slots]
        grad_b_dec += aux.b_dec
    if n.unit:
        project_rows_(grad_W_dec, W_dec)
    grads = grad_W_enc, grad_b_enc, grad_W_dec, grad_b_dec
    return grads, squared_norm(grads, n.bias_norm)


def squared_norm(grads: Grads, bias_norm: float | Tensor) -> Tensor:
    norms = [g.norm() * s for g, s in zip(grads, (1, bias_norm, 1, bias_norm), strict=True)]
    return torch.stack(norms).square().sum()


def project_rows_(grad_W_dec: Tensor, W_dec: Tensor) -> Tensor:
    """Remove from each row of the gradient its part along the unit-norm decoder row, in place.

    That part only changes the norm, which `normalize_rows_` undoes; left in, it would distort Adam's moments
    ("Towards Monosemanticity", appendix on autoencoder training).
    """
    return grad_W_dec.addcmul_((grad_W_dec * W_dec).sum(dim=1, keepdim=True), W_dec, value=-1)


def normalize_rows_(W_dec: Tensor) -> Tensor:
    """Scale each row of W_dec to unit norm, in place. A zero row stays zero."""
    return W_dec.div_(W_dec.norm(dim=1, keepdim=True).clamp_min_(torch.finfo(W_dec.dtype).tiny))


def adam_(
    param: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, n: Numbers, lr: float, eps: float
) -> Tensor:
    """One Adam step in place (Kingma & Ba 2015, arXiv 1412.6980), as `torch.optim.Adam`.

    m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;  param -= lr * (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)
    """
    exp_avg.lerp_(grad, n.beta1_rest)
    exp_avg_sq.mul_(n.beta2).addcmul_(grad, grad, value=n.beta2_rest)
    denominator = (exp_avg_sq * n.correction2).sqrt_().add_(eps)
    return param.addcdiv_(exp_avg, denominator, value=-lr * n.correction1)


def fused_adam_(
    param: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, n: Numbers, lr: float, eps: float
) -> None:
    """`adam_` in the one pass over the CPU's memory that torch has for fp32; equal within rounding.

    Torch makes its own bias corrections from the number of the step: after infinitely many they are 1, and ours are
    in lr and eps, for m c1 / (sqrt(v c2) + eps) = c1 / sqrt(c2) * m / (sqrt(v) + eps / sqrt(c2)).
    """
    root = math.sqrt(n.correction2)
    adam(
        [param], [grad], [exp_avg], [exp_avg_sq], [], [torch.tensor(math.inf)], fused=True, amsgrad=False,
        beta1=n.beta1, beta2=n.beta2, lr=lr * n.correction1 / root, weight_decay=0, eps=eps / root, maximize=False,
    )  # fmt: skip


def adam_rows_(weights: Weights, grads: Grads, factor: Tensor, numbers: Tensor, step: Tensor) -> None:
    """One Adam step on everything with the gradients times `factor` [], then, if asked, unit norm for W_dec's rows.

    A factor of NaN changes nothing. step: [] int64, counted from 1; it seeds stochastic rounding.
    """
    scale = float(factor)
    if math.isnan(scale):
        return
    if scale != 1:
        grads = tuple(grad * scale for grad in grads)  # type: ignore[assignment]
    n = Numbers(*numbers[: len(Numbers._fields)].tolist())
    rows = torch.arange(len(weights.b_enc.value), device=grads[0].device)
    matrices = (weights.enc, grads[0], n.lr), (weights.dec, grads[2], n.lr_dec)
    for salt, (matrix, grad, lr) in enumerate(matrices):
        value, (m, v) = load_weight(matrix), load_moments(matrix)
        fused = value.dtype == torch.float32 and value.device.type == "cpu"
        (fused_adam_ if fused else adam_)(value, grad, m, v, n, lr, n.eps)
        if matrix is weights.dec and n.unit:
            normalize_rows_(value)
        exact = matrix.weight.dtype != torch.bfloat16 and matrix.exp_avg.dtype == value.dtype
        bits = rows if exact else random_bits(rows, grad.shape[1], int(step), salt)
        store_weight_(matrix, value, bits)
        store_moments_(matrix, m, v, bits)
    for vector, grad, lr in ((weights.b_enc, grads[1], n.lr_bias), (weights.b_dec, grads[3], n.lr_b_dec)):
        adam_(vector.value, grad, vector.exp_avg, vector.exp_avg_sq, n, lr, n.eps_bias)


def update_(
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
    """`row_grads` and `adam_rows_` in one: backward, projection, Adam and unit norm. Returns the squared norm [].

    A backend that does it in one pass over the weights never has the gradients in memory.
    """
    grads, squared = row_grads(
        weights, centred, error, acts, indices, row_offsets, groups, grad_scale, aux, numbers, given
    )
    adam_rows_(weights, grads, torch.where(grad_scale.isnan(), grad_scale, 1.0), numbers, step)
    return squared
