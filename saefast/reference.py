"""The specification: every op of a training step in plain PyTorch, and the CPU fallback.

Shapes use fixed letters: B tokens, D = d_in, F = d_sae, K = k. `W_enc` and `W_dec` are both [F, D], one
contiguous row per latent. The forward pass and the loss are

    pre_acts    = (x - b_dec) @ W_enc.T + b_enc                               [B, F]
    top_acts    = relu of the K largest pre_acts of each row                  [B, K]
    x_hat       = b_dec + sum_j top_acts[:, j] * W_dec[top_indices[:, j]]     [B, D]
    loss        = FVU(x_hat, x) + auxk_alpha * AuxK                           (Gao et al. 2024, arXiv 2406.04093)

Only the encoder is a dense product: everything after the selection touches the active rows of each token.
Gradients are written out by hand; tests compare them with autograd of the dense formula in fp64.

**The sparse code.** Active latents are `acts` and `indices` (int32). In the fixed layout both are [B, K] and
`row_offsets` is None. In the ragged layout both are [N] and token b has the entries `row_offsets[b]` to
`row_offsets[b + 1]`; entries from `row_offsets[B]` on are unused. An activation of 0 is not active. `row_offsets` must
not pass N: see `above_threshold` for the one op that can return more.

**NaN** in the pre-activations is selected, like +inf, by every backend, so that it reaches the loss.

**Units.** `error = x_hat - x` is kept unscaled, in the dtype of the products; the gradient of FVU is
`grad_scale * error` with `grad_scale = 2 / total_variance`, a number on the device that enters at the very end,
so that 16-bit formats neither overflow nor vanish. A grad_scale of NaN says that this step must change nothing.

A backend is a module with these functions (see `saefast.backend.Backend`). Groups and gradients travel as plain tuples,
so that the kernels depend on nothing but tensors.

In this file: what travels (Params, Numbers, ...); centring and the metrics; selection; encoding; decoding; products with a
code kept as a matrix; grouping by latent and gradients; Adam and unit norm; the update, which is all of that in one.
"""

import math
import threading
import warnings
from typing import Any, NamedTuple

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

NAME = "reference"
NUMBERS_DTYPE, GPU_DTYPE, MAX_SELECTED = torch.float64, None, None
RECORDABLE, ADDS_PER_LATENT = False, True
LEAST_ROWS, PRE_ACTS = 256, 2**26  # of a product
_arena = threading.local()

Groups = tuple[Tensor, Tensor, Tensor]  # of `group_by_latent`
Grads = tuple[Tensor, Tensor, Tensor, Tensor]  # in the order of Params
Tally = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]  # of `tally_`


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


def read_numbers(numbers: Tensor) -> Numbers:
    """The first of `numbers`, on the host."""
    return Numbers(*numbers[: len(Numbers._fields)].tolist())


def row_starts(indices: Tensor, row_offsets: Tensor | None) -> Tensor:
    """[B + 1] int32: `row_offsets` of either layout."""
    if row_offsets is not None:
        return row_offsets
    B, K = indices.shape
    return torch.arange(B + 1, dtype=torch.int32, device=indices.device) * K


def centre(x: Tensor, b_dec: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x [B, D], b_dec [D] -> x - b_dec [B, D], subtracted before it is rounded to `dtype`; total_variance(x) []."""
    whole = x.to(b_dec.dtype)
    return (whole - b_dec).to(dtype), total_variance(whole)


def total_variance(x: Tensor) -> Tensor:
    """[B, D] -> []: sum over the batch of ||x - mean(x)||^2, the denominator of FVU.

    Rows without variance (none, one, or equal ones) give their number of entries, so that FVU is their mean square error.
    """
    variance = (x - x.mean(dim=0)).square().sum()  # of equal rows not 0 where the mean is rounded
    none = (x == x[:1]).all() & variance.isfinite() | (variance == 0)
    return torch.where(none, max(x.numel(), 1), variance)  # NaN stays NaN


def fvu(x_hat: Tensor, x: Tensor) -> Tensor:
    """[B, D], [B, D] -> []: fraction of variance unexplained, ||x_hat - x||^2 / ||x - mean(x)||^2 over the batch.

    Of at least fp32, and in units of the largest |x| to a power of two, so that no square overflows or vanishes. For rows
    without variance it is the mean square error of an entry, as `total_variance` says.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    x_hat, x = x_hat.to(wide), x.to(wide)
    largest = x.detach().abs().amax() if x.numel() else x.new_ones(())
    exponent = largest.frexp().exponent.clamp(-125, 125).masked_fill((x == x[:1]).all(), 0)
    unit = 2.0 ** exponent.to(wide)
    return ((x_hat - x) / unit).square().sum() / total_variance(x / unit)


def rounded_pre_acts(centred: Tensor, W_enc: Tensor, b_enc: Tensor) -> Tensor:
    """Summed in at least fp32, kept in the dtype of the operands, as the kernels keep it."""
    wide = torch.promote_types(centred.dtype, torch.float32)
    return torch.addmm(b_enc.to(wide), centred.to(wide), W_enc.to(wide).T).to(centred.dtype)


def lent_pre_acts(centred: Tensor, W_enc: Tensor, b_enc: Tensor) -> Tensor:
    """`rounded_pre_acts`, valid until this thread's next call: in fp32 on the CPU, in memory that is used again.

    Fresh memory of a hundred megabytes comes from the kernel page by page, a tenth of the product's time.
    """
    operands = centred, W_enc, b_enc
    recorded = torch.is_grad_enabled() and any(t.requires_grad for t in operands)
    if recorded or any(t.dtype != torch.float32 or t.device.type != "cpu" for t in operands):
        return rounded_pre_acts(*operands)
    shape = len(centred), len(W_enc)
    if getattr(_arena, "memory", None) is None or len(_arena.memory) < math.prod(shape):
        _arena.memory = torch.empty(math.prod(shape), dtype=torch.float32, device="cpu")
    return torch.addmm(b_enc, centred, W_enc.T, out=_arena.memory[: math.prod(shape)].view(shape))


def topk(pre_acts: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """pre_acts [B, F] -> top_acts [B, K] (after ReLU), top_indices [B, K] int32.

    The K largest of each row in descending order; among equal values the smaller index wins, both in what is
    selected and in the order. (Other backends select the same and may order otherwise.) Selection comes before
    the ReLU, so a row with fewer than K positive values keeps some latents with activation 0: they are not
    active and get no gradient.
    """
    n_latents = pre_acts.shape[1]
    # One more than k: where the (k+1)-th equals the k-th, torch.topk's choice between them is arbitrary.
    values, indices = pre_acts.topk(min(k + 1, n_latents), dim=1)
    if not (values[:, 1:] == values[:, :-1]).any():  # as good as always: in order, and nothing to choose
        return values[:, :k].relu(), indices[:, :k].to(torch.int32)
    if n_latents > k:
        tied = (values[:, k] == values[:, k - 1]).nonzero().squeeze(1)
        indices = indices[:, :k].clone()  # autograd keeps torch.topk's own
        if len(tied):
            indices[tied] = pre_acts[tied].detach().sort(dim=1, descending=True, stable=True).indices[:, :k]
    indices = indices.sort(dim=1).values
    values, by_value = pre_acts.gather(1, indices).sort(dim=1, descending=True, stable=True)
    return values.relu(), indices.gather(1, by_value).to(torch.int32)


def batch_topk(pre_acts: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """pre_acts [B, F] -> acts [B * K] (after ReLU), indices [B * K] int32, row_offsets [B + 1] int32.

    The B * K largest of the whole batch (Bussmann et al. 2024, arXiv 2412.06410); among equal values the smaller
    row, then the smaller index wins. Entries of a row are in ascending order of index.
    """
    B, n_latents = pre_acts.shape
    chosen = pre_acts.flatten().sort(descending=True, stable=True).indices[: B * k].sort().values
    rows = torch.div(chosen, n_latents, rounding_mode="floor")
    row_offsets = F.pad(torch.bincount(rows, minlength=B).cumsum(0), (1, 0)).to(torch.int32)
    return pre_acts.flatten()[chosen].relu(), (chosen % n_latents).to(torch.int32), row_offsets


def above_threshold(
    pre_acts: Tensor, threshold: Tensor, capacity: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """pre_acts [B, F], threshold [] or [F] -> acts [N], indices [N] int32, row_offsets [B + 1] int32.

    The entries with pre_acts > threshold as they are, without ReLU, in ascending order of index: threshold 0 is
    ReLU, a vector is JumpReLU (arXiv 2407.14435; pass theta - bandwidth / 2 to get the band of its
    straight-through gradient too), the number that BatchTopK learnt is its inference.

    Args:
        capacity: N. None counts first, which waits for the device. With a number nothing waits, and what does not
            fit is left out: `row_offsets[B]` is the number found, larger than N then, and the caller must check it.
    """
    # expanded: a 0-dimensional tensor would be rounded to the format of pre_acts before it is compared
    token, latent = (pre_acts > threshold.expand(pre_acts.shape[1])).nonzero(as_tuple=True)
    acts, n_found = pre_acts[token, latent], len(token)
    row_offsets = torch.bincount(token, minlength=len(pre_acts)).cumsum(0)
    capacity = n_found if capacity is None else capacity
    fill = max(0, capacity - n_found)
    acts, indices = F.pad(acts[:capacity], (0, fill)), F.pad(latent[:capacity], (0, fill)).to(torch.int32)
    return acts, indices, F.pad(row_offsets, (1, 0)).to(torch.int32)


def group_max(pre_acts: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """pre_acts [B, F] -> acts [B, K] (after ReLU), indices [B, K] int32: the largest of each of k equal groups of consecutive
    latents (sparsify), k a divisor of F; among equal values the smaller index wins."""
    values, places = pre_acts.unflatten(1, (k, -1)).max(dim=2)  # the first of equal ones
    first = pre_acts.shape[1] // k * torch.arange(k, dtype=torch.int64, device=pre_acts.device)
    return values.relu(), (places + first).to(torch.int32)


def encode(x: Tensor, W_enc: Tensor, b_enc: Tensor, b_dec: Tensor) -> Tensor:
    """[B, D], [F, D], [F], [D] -> pre_acts [B, F]. b_dec is subtracted before the product, not folded into it."""
    return torch.addmm(b_enc, x - b_dec, W_enc.to(x.dtype).T)


def encode_topk(
    centred: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, scale: Tensor | None = None, rescore: int = 0
) -> tuple[Tensor, Tensor]:
    """centred [B, D], W_enc [F, D] of one dtype, b_enc [F] -> `topk` of the pre-activations, acts in b_enc's dtype.

    Args:
        scale: [F], multiplies the pre-activations (SAELens selects by pre_acts * ||W_dec row||).
        rescore: with 16-bit operands, select k + rescore by the rounded pre-activations and take the k largest of
            them by products summed and kept in fp32. 0 leaves it out.
    """
    rows = max(LEAST_ROWS, PRE_ACTS // len(W_enc))
    parts = [_encode_topk(part, W_enc, b_enc, k, scale, rescore) for part in centred.split(rows)]
    top_acts, top_indices = zip(*parts, strict=True)
    return torch.cat(top_acts).to(b_enc.dtype), torch.cat(top_indices)


def _encode_topk(
    centred: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, scale: Tensor | None, rescore: int
) -> tuple[Tensor, Tensor]:
    """Rows depend on nothing but themselves, so those of a large batch may come a few at a time."""
    pre_acts = lent_pre_acts(centred, W_enc, b_enc)
    if scale is not None:
        pre_acts = (pre_acts * scale).to(centred.dtype)
    top_acts, top_indices = topk(pre_acts, min(k + rescore, len(W_enc)))
    if rescore:
        rows = W_enc[top_indices.long()].to(b_enc.dtype)
        exact = torch.einsum("bd,bkd->bk", centred.to(b_enc.dtype), rows) + b_enc[top_indices.long()]
        if scale is not None:
            exact = exact * scale[top_indices.long()]
        top_acts, slots = topk(exact, k)
        top_indices = top_indices.gather(1, slots.long())
    return top_acts, top_indices


def encode_batch_topk(
    centred: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, scale: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """As `encode_topk`, with `batch_topk` for the selection; acts in b_enc's dtype."""
    pre_acts = rounded_pre_acts(centred, W_enc, b_enc)
    if scale is not None:
        pre_acts = (pre_acts * scale).to(centred.dtype)
    acts, indices, row_offsets = batch_topk(pre_acts, k)
    return acts.to(b_enc.dtype), indices, row_offsets


def encode_dense(centred: Tensor, W_enc: Tensor, b_enc: Tensor) -> Tensor:
    """centred [B, D], W_enc [F, D] of one dtype, b_enc [F] -> pre_acts [B, F] in centred's dtype, for codes in which
    so many latents are active that nothing is gained by a list of them."""
    return rounded_pre_acts(centred, W_enc, b_enc)


def encode_threshold(
    centred: Tensor, W_enc: Tensor, b_enc: Tensor, threshold: Tensor, capacity: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """As `encode_topk`, with `above_threshold` for the selection; acts in b_enc's dtype."""
    acts, indices, row_offsets = above_threshold(rounded_pre_acts(centred, W_enc, b_enc), threshold, capacity)
    return acts.to(b_enc.dtype), indices, row_offsets


def encode_group_max(centred: Tensor, W_enc: Tensor, b_enc: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """As `encode_topk`, with `group_max` for the selection; acts in b_enc's dtype."""
    rows = max(LEAST_ROWS, PRE_ACTS // len(W_enc))
    parts = [group_max(lent_pre_acts(part, W_enc, b_enc), k) for part in centred.split(rows)]
    acts, indices = zip(*parts, strict=True)
    return torch.cat(acts).to(b_enc.dtype), torch.cat(indices)


def decode(
    acts: Tensor, indices: Tensor, W_dec: Tensor, b_dec: Tensor, row_offsets: Tensor | None = None
) -> Tensor:
    """A code, [F, D], [D] -> x_hat [B, D], reading only the rows of active latents."""
    starts = row_starts(indices, row_offsets)
    used = int(starts[-1]) if row_offsets is not None else indices.numel()
    rows = W_dec.to(b_dec.dtype)
    return b_dec + F.embedding_bag(
        indices.flatten()[:used],
        rows,
        starts,
        mode="sum",
        include_last_offset=True,
        per_sample_weights=acts.flatten()[:used].to(rows.dtype),
    )


def decode_error(
    acts: Tensor,
    indices: Tensor,
    W_dec: Tensor,
    b_dec: Tensor,
    x: Tensor,
    dtype: torch.dtype,
    row_offsets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """A code, [F, D], [D], x [B, D] -> error = x_hat - x [B, D] in `dtype`, ||error||^2 of each row [B].

    x_hat is not rounded before x is subtracted; the squares are of the error before it is rounded.
    """
    error = decode(acts, indices, W_dec, b_dec, row_offsets) - x
    return error.to(dtype), error.square().sum(dim=1)


def losses(
    squares: Tensor, variance: Tensor, scale: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """squares [n], variance [], scale [] or None: 1 / variance -> their sum, the loss, its grad_scale, FVU, all [].

    The loss is scale * sum of squares, and grad_scale = 2 * scale its gradient with respect to half of a square; NaN where
    the loss is not finite, which makes the step change nothing.
    """
    total = squares.sum()
    scale = 1 / variance if scale is None else scale
    loss = scale * total
    return total, loss, 2 * scale + 0 * loss, total / variance  # 0 times NaN or Inf is NaN


def keep_topk(pre_acts: Tensor, k: int, count: Tensor) -> Tensor:
    """pre_acts [B, C] -> [B, C]: relu of the k largest of the first `count` [] columns of each row, 0 elsewhere."""
    columns = torch.arange(pre_acts.shape[1], dtype=torch.int64, device=pre_acts.device)
    masked = pre_acts.masked_fill(columns >= count, -torch.inf)
    if k >= pre_acts.shape[1]:
        return masked.relu_()
    top_acts, top_indices = topk(masked, k)
    return torch.zeros_like(pre_acts).scatter_(1, top_indices.long(), top_acts)


def relu_encode(centred: Tensor, W_enc: Tensor, b_enc: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """-> acts = relu(pre_acts) [B, F] in centred's dtype, their sum [] fp32, active tokens of each latent [F] int32."""
    acts = rounded_pre_acts(centred, W_enc, b_enc).relu_()
    wide = torch.promote_types(acts.dtype, torch.float32)
    return acts, acts.sum(dtype=wide), (acts > 0).sum(dim=0, dtype=torch.int32)


def dense_error(acts: Tensor, W_dec: Tensor, target: Tensor, sign: float = 1.0) -> tuple[Tensor, Tensor]:
    """acts [B, F], W_dec [F, D], target [B, D] -> acts @ W_dec - sign * target in target's dtype; squares of rows [B]."""
    wide = torch.promote_types(acts.dtype, torch.float32)
    error = acts.to(wide) @ W_dec.to(wide) - sign * target.to(wide)
    return error.to(target.dtype), error.square().sum(dim=1)


def dense_grad_acts(error: Tensor, W_dec: Tensor, acts: Tensor, addend: Tensor) -> Tensor:
    """error [B, D], W_dec [F, D], acts [B, F], addend [] or [F] -> error @ W_dec.T + addend where active, 0 elsewhere."""
    wide = torch.promote_types(acts.dtype, torch.float32)
    return ((error.to(wide) @ W_dec.to(wide).T + addend) * (acts > 0)).to(acts.dtype)


def outer_sum(left: Tensor, right: Tensor) -> Tensor:
    """left [B, F], right [B, D] -> left.T @ right [F, D], summed and kept in at least fp32."""
    wide = torch.promote_types(left.dtype, torch.float32)
    return left.to(wide).T @ right.to(wide)


def group_by_latent(acts: Tensor, indices: Tensor, d_sae: int, row_offsets: Tensor | None = None) -> Groups:
    """A code -> offsets [F + 1], pairs [N], tokens [N], all int32: the active entries of each latent.

    `pairs[offsets[f]:offsets[f + 1]]` are the positions in the flattened code where latent f is active (acts > 0),
    in ascending order, and `tokens` the tokens they belong to. Entries from `offsets[F]` on are unused. The order
    makes sums reproducible.
    """
    starts = row_starts(indices, row_offsets).long()
    positions = torch.arange(indices.numel(), dtype=torch.int64, device=indices.device)
    active = (acts.flatten() > 0) & (positions < starts[-1])
    latent = torch.where(active, indices.flatten(), d_sae)
    offsets = F.pad(torch.bincount(latent, minlength=d_sae + 1)[:d_sae].cumsum(0), (1, 0)).to(torch.int32)
    pairs = latent.argsort(stable=True)
    if row_offsets is None:
        tokens = torch.div(pairs, indices.shape[1], rounding_mode="floor")
    else:
        tokens = (torch.searchsorted(starts, pairs, right=True) - 1).clamp_max(len(starts) - 2)
    return offsets, pairs.to(torch.int32), tokens.to(torch.int32)


def tally_(
    silent_for: Tensor,
    fired_before: Tensor,
    fired: Tensor,
    threshold: int,
    n_tokens: int,
    loss: Tensor,
    fvu: Tensor,
    squared: Tensor,
    auxk_loss: Tensor | None = None,
    penalty: Tensor | None = None,
    code_size: Tensor | None = None,
) -> Tally:
    """Count which latents were active in a batch, and say what the step found, in the order of
    `saefast.engine.stages.Metrics`.

    Args:
        silent_for, fired_before: [F] int64, changed in place: tokens since each latent was active (0 for those that are),
            tokens in which it was active.
        fired: [F] integers: tokens of this batch in which each latent is active.
        threshold: latents silent for so many tokens before this batch are dead.
        loss, fvu, auxk_loss, penalty: [] of the step, None: 0; squared: [] squared norm of the gradients.
        code_size: [] entries found, None: as many as are active.
    """
    n_dead, n_active = (silent_for >= threshold).sum(), fired.sum()
    fired_before += fired
    silent_for += n_tokens
    silent_for.masked_fill_(fired > 0, 0)
    none, size = torch.zeros_like(loss), n_active if code_size is None else code_size
    l0, dead = n_active.float() / max(n_tokens, 1), n_dead.float() / len(fired)
    auxk_loss, penalty = (none if value is None else value for value in (auxk_loss, penalty))
    return loss, fvu, l0, dead, auxk_loss, penalty, squared.sqrt(), size


def grad_top_acts(
    error: Tensor, W_dec: Tensor, acts: Tensor, indices: Tensor, row_offsets: Tensor | None = None
) -> Tensor:
    """error [B, D], [F, D], a code -> <error[token], W_dec[index]> in the shape of acts, 0 where not active."""
    wide = torch.promote_types(W_dec.dtype, torch.float32)
    starts = row_starts(indices, row_offsets)
    used = int(starts[-1]) if row_offsets is not None else indices.numel()
    with warnings.catch_warnings():  # torch calls its CSR layout beta on first use
        warnings.simplefilter("ignore", UserWarning)
        shape, listed = (len(error), len(W_dec)), indices.flatten()[:used]
        zeros = torch.zeros(used, dtype=wide, device=acts.device)
        pattern = torch.sparse_csr_tensor(starts, listed, zeros, shape, dtype=wide, device=acts.device)
        products = torch.sparse.sampled_addmm(pattern, error.to(wide), W_dec.to(wide).T).values()
    return F.pad(products, (0, acts.numel() - used)).view(acts.shape) * (acts > 0)


def sum_rows(groups: Groups, per_pair: Tensor, rows: Tensor) -> Tensor:
    """out[f] = sum over the active entries of latent f of per_pair[pair] * rows[token], [F, D], in token order."""
    offsets, pairs, tokens = groups
    used = int(offsets[-1])
    wide = torch.promote_types(rows.dtype, torch.float32)
    rows, factors = rows.to(wide), per_pair.flatten()[pairs[:used]].to(wide)
    return F.embedding_bag(
        tokens[:used], rows, offsets, mode="sum", include_last_offset=True, per_sample_weights=factors
    )


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
            (see `saefast.engine.nested`). Only with `given`. b_dec's gradient is summed over the first B rows.
        given: what takes the place of the gradient of a plain reconstruction.
    """
    n, B = read_numbers(numbers), len(centred)
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
    lr, eps = lr * n.correction1 / root, eps / root
    forever = torch.tensor(math.inf, dtype=torch.float32, device="cpu")
    lists: Any = [param], [grad], [exp_avg], [exp_avg_sq], [], [forever]
    flags: dict[str, Any] = {"fused": True, "amsgrad": False, "maximize": False}
    adam(*lists, **flags, beta1=n.beta1, beta2=n.beta2, lr=lr, weight_decay=0, eps=eps)


def adam_rows_(weights: Weights, grads: Grads, factor: Tensor, numbers: Tensor, step: Tensor) -> None:
    """One Adam step on everything with the gradients times `factor` [], then, if asked, unit norm for W_dec's rows.

    A factor of NaN changes nothing. step: [] int64, counted from 1; it seeds stochastic rounding.
    """
    scale = float(factor)
    if math.isnan(scale):
        return
    if scale != 1:
        grads = tuple(grad * scale for grad in grads)  # type: ignore[assignment]
    n = read_numbers(numbers)
    rows = torch.arange(len(weights.b_enc.value), dtype=torch.int64, device=grads[0].device)
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
