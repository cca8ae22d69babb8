"""The specification against autograd of the dense formula in fp64, and torch.optim.Adam."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saefast import reference
from saefast.engine import auxk
from saefast.reference import Numbers, Params, adam_, read_numbers
from saefast.storage import Vector, Weights, allocate
from tests.helpers import dense
from tests.helpers.steps import numbers_at, plan_of

CASES = [(1, 8, 1, 1), (7, 5, 13, 3), (33, 24, 40, 40), (64, 16, 128, 8), (5, 3, 300, 64), (50, 24, 2, 1)]


def random_params(d_in, d_sae, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    W_enc, W_dec = (torch.randn(d_sae, d_in, generator=generator, dtype=dtype) for _ in range(2))
    b_enc, b_dec = (torch.randn(n, generator=generator, dtype=dtype) for n in (d_sae, d_in))
    return Params(W_enc, b_enc, reference.normalize_rows_(W_dec), b_dec)


def as_weights(params):
    enc, dec = (allocate(W, "fp32", "fp32", W.dtype) for W in (params.W_enc, params.W_dec))
    return Weights(enc, dec, *(Vector(b, torch.zeros_like(b), torch.zeros_like(b)) for b in params[1::2]))


NUMBERS = torch.tensor(
    numbers_at(plan_of(1, torch.float64), 1, 1)[: len(Numbers._fields)].tolist(),
    dtype=torch.float64,
)


def random_x(n, d_in, seed=9):
    return torch.randn(n, d_in, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 1


def select(kind, x, params, K):
    """acts, indices, row_offsets, and the dense 0/1 mask of what may be selected."""
    pre_acts = reference.encode(x, params.W_enc, params.b_enc, params.b_dec)
    inputs = x - params.b_dec, params.W_enc, params.b_enc
    if kind == "topk":
        return *reference.encode_topk(*inputs, K), None, dense.topk_mask(pre_acts, K)
    if kind == "batch_topk":
        mask = dense.topk_mask(pre_acts.flatten()[None], K * len(x)).view(pre_acts.shape)
        return *reference.encode_batch_topk(*inputs, K), mask
    return *reference.encode_threshold(*inputs, torch.zeros((), dtype=x.dtype)), torch.ones_like(pre_acts)


@pytest.mark.parametrize("kind", ["topk", "batch_topk", "relu"])
@pytest.mark.parametrize("B,D,F,K", CASES)
def test_gradients_equal_autograd(kind, B, D, F, K):
    x, params, l1 = random_x(B, D), random_params(D, F), 1e-3
    weights = as_weights(params)
    acts, indices, row_offsets, mask = select(kind, x, params, K)
    error, squares = reference.decode_error(acts, indices, *params[2:], x, x.dtype, row_offsets)
    centred, variance = reference.centre(x, params.b_dec, x.dtype)
    groups = reference.group_by_latent(acts, indices, F, row_offsets)
    numbers = NUMBERS.clone()
    numbers[10], numbers[11] = l1, 0.5
    got, squared_norm = reference.row_grads(
        weights, centred, error, acts, indices, row_offsets, groups, 2 / variance, None, numbers
    )

    leaves = [p.clone().requires_grad_() for p in params]
    W_enc, b_enc, W_dec, b_dec = leaves
    want_acts = (((x - b_dec) @ W_enc.T + b_enc) * mask).relu()
    loss = (want_acts @ W_dec + b_dec - x).square().sum() / reference.total_variance(x)
    (loss + l1 * want_acts.sum()).backward()
    W_dec.grad -= (W_dec.grad * W_dec).sum(1, keepdim=True).detach() * W_dec.detach()
    torch.testing.assert_close(squares.sum() / variance, loss.detach(), rtol=1e-12, atol=1e-12)
    for name, grad, leaf in zip(Params._fields, got, leaves):
        torch.testing.assert_close(
            grad, leaf.grad, rtol=1e-10, atol=1e-12, msg=lambda m, name=name: f"{name}: {m}"
        )
    scaled = [g * s for g, s in zip(got, (1, 0.5, 1, 0.5))]
    torch.testing.assert_close(squared_norm, torch.cat([g.flatten() for g in scaled]).square().sum())


@pytest.mark.parametrize("room", [15, 16, 60])
@pytest.mark.parametrize("k_aux", [1, 5, 100])
def test_auxk_gradients_equal_autograd(k_aux, room):
    """Also with room for more latents than are dead, and for one too few: the last one is left out then."""
    x, params = random_x(40, 12), random_params(12, 60)
    since = torch.zeros(60, dtype=torch.int64)
    since[:48:3] = 100
    is_dead = since >= 100
    x_hat = dense.forward(x, *params, 6)
    dead = auxk.find_dead(since, 100, room)
    if room < 16:
        is_dead[45] = False
    plan = plan_of(1, torch.float64, auxk_alpha=0.25, k_aux=k_aux)
    loss, got = auxk.auxk(
        reference, as_weights(params), x - params.b_dec, x_hat - x, dead, plan, torch.tensor(1.0)
    )

    leaves = [p.clone().requires_grad_() for p in params]
    want = dense.auxk(x, x_hat, *leaves, is_dead, k_aux)
    (0.25 * want).backward()
    torch.testing.assert_close(loss, want.detach())
    for name, leaf in zip(("W_enc", "b_enc", "W_dec"), leaves):
        spread = torch.zeros_like(leaf)
        spread[dead.slots >= 0] = getattr(got, name)[dead.slots[dead.slots >= 0].long()]
        torch.testing.assert_close(spread, leaf.grad, rtol=1e-10, atol=1e-12, msg=name)
    torch.testing.assert_close(got.b_dec, leaves[3].grad, rtol=1e-10, atol=1e-12)
    assert dead.slots.max() + 1 == dead.number == min(room, 16)


def test_auxk_adds_nothing_when_nothing_is_dead():
    x, params = random_x(8, 12), random_params(12, 60)
    dead = auxk.find_dead(torch.zeros(60, dtype=torch.int64), 100, 7)
    plan = plan_of(1, torch.float64, auxk_alpha=1.0, k_aux=3)
    loss, aux = auxk.auxk(reference, as_weights(params), x - params.b_dec, x, dead, plan, torch.tensor(1.0))
    assert loss == 0 and not any(grad.any() for grad in aux[1:]) and (aux.slots == -1).all()


def test_room_for_the_dead_is_never_too_small():
    since = torch.tensor([0, 50, 95, 99, 100, 400])
    assert auxk.capacity(since, 100, 0) == 2
    assert auxk.capacity(since, 100, 5) == 4
    assert auxk.rounded(200, 300) == 256 and auxk.rounded(4, 6) == 6  # no more than there are latents
    assert auxk.capacity(since, 500, 5) == auxk.rounded(0, 6) == 0


def test_a_latent_active_in_every_token_and_one_in_none():
    x, params = random_x(30, 6), random_params(6, 9)
    params.b_enc[2], params.b_enc[5] = 1e3, -1e3
    acts, indices = reference.encode_topk(x - params.b_dec, params.W_enc, params.b_enc, 3)
    assert (indices[:, 0] == 2).all() and not (indices == 5).any()
    error, _ = reference.decode_error(acts, indices, *params[2:], x, x.dtype)
    groups = reference.group_by_latent(acts, indices, 9)
    (W_enc, b_enc, W_dec, _), _ = reference.row_grads(
        as_weights(params),
        x - params.b_dec,
        error,
        acts,
        indices,
        None,
        groups,
        torch.tensor(0.1),
        None,
        NUMBERS,
    )
    assert W_dec[2].any() and not W_dec[5].any() and not W_enc[5].any() and b_enc[5] == 0


def test_empty_batch():
    params = random_params(6, 9)
    acts, indices = reference.topk(reference.encode(torch.empty(0, 6).double(), *params[:2], params.b_dec), 3)
    assert acts.shape == indices.shape == (0, 3)
    assert reference.decode(acts, indices, params.W_dec, params.b_dec).shape == (0, 6)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 6), st.integers(1, 40), st.data())
def test_topk_selects_and_orders_by_value_then_index(B, F, data):
    k = data.draw(st.integers(1, F))
    few_values = data.draw(st.lists(st.integers(-2, 2), min_size=B * F, max_size=B * F))
    pre_acts = torch.tensor(few_values, dtype=torch.float32).view(B, F)
    acts, indices = reference.topk(pre_acts, k)
    for row, got_acts, got_indices in zip(pre_acts.tolist(), acts.tolist(), indices.tolist()):
        want = sorted(range(F), key=lambda j: (-row[j], j))[:k]
        assert got_indices == want
        assert got_acts == [max(0.0, row[j]) for j in want]


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 6), st.integers(1, 40), st.data())
def test_batch_topk_and_threshold_by_value_then_place(B, F, data):
    k = data.draw(st.integers(1, F))
    values = data.draw(st.lists(st.integers(-2, 2), min_size=B * F, max_size=B * F))
    pre_acts = torch.tensor(values, dtype=torch.float32).view(B, F)
    acts, indices, row_offsets = reference.batch_topk(pre_acts, k)
    chosen = sorted(sorted(range(B * F), key=lambda j: (-values[j], j))[: B * k])
    rows = torch.repeat_interleave(torch.arange(B), row_offsets.diff())
    assert (rows * F + indices).tolist() == chosen
    assert acts.tolist() == [max(0.0, values[j]) for j in chosen]

    threshold = torch.tensor([float(j % 3 - 1) for j in range(F)])
    acts, indices, row_offsets = reference.above_threshold(pre_acts, threshold)
    above = [j for j in range(B * F) if values[j] > threshold[j % F]]
    rows = torch.repeat_interleave(torch.arange(B), row_offsets.diff())
    assert (rows * F + indices).tolist() == above and acts.tolist() == [values[j] for j in above]
    for capacity in (0, 3, B * F + 2):
        some, places, offsets = reference.above_threshold(pre_acts, threshold, capacity)
        n = min(capacity, len(above))
        assert len(some) == capacity and torch.equal(offsets, row_offsets)
        assert torch.equal(some[:n], acts[:n]) and torch.equal(places[:n], indices[:n]) and not some[n:].any()


def test_rescoring_finds_what_rounding_hid():
    """Many pre-activations round to the same bf16; among the candidates the exact products decide."""
    generator = torch.Generator().manual_seed(0)
    centred, W_enc = torch.randn(64, 32, generator=generator), torch.randn(500, 32, generator=generator)
    centred, W_enc, b_enc = centred.bfloat16(), W_enc.bfloat16(), torch.randn(500, generator=generator)
    exact = centred.float() @ W_enc.float().T + b_enc
    want = exact.topk(8, dim=1).indices.sort().values
    plain = reference.encode_topk(centred, W_enc, b_enc, 8)[1].long().sort().values
    acts, indices = reference.encode_topk(centred, W_enc, b_enc, 8, rescore=8)
    assert not torch.equal(plain, want) and torch.equal(indices.long().sort().values, want)
    torch.testing.assert_close(acts, exact.gather(1, indices.long()).relu())


def test_selection_by_scaled_pre_activations():
    x, params = random_x(20, 6), random_params(6, 30)
    scale = torch.rand(30, dtype=torch.float64)
    acts, indices = reference.encode_topk(x, params.W_enc, params.b_enc, 4, scale=scale)
    want = ((x @ params.W_enc.T + params.b_enc) * scale).topk(4, dim=1)
    torch.testing.assert_close(acts, want.values.relu())
    assert torch.equal(indices.long(), want.indices)


def test_group_by_latent_lists_active_entries_once_in_order():
    indices = torch.tensor([[3, 0], [0, 3], [5, 0]], dtype=torch.int32)
    acts = torch.tensor([[1.0, 2.0], [3.0, 0.0], [4.0, 5.0]])
    offsets, pairs, tokens = reference.group_by_latent(acts, indices, 6)
    assert offsets.tolist() == [0, 3, 3, 3, 4, 4, 5]
    assert pairs[:5].tolist() == [1, 2, 5, 0, 4] and tokens[:5].tolist() == [0, 1, 2, 0, 2]
    row_offsets = torch.tensor([0, 0, 3, 4], dtype=torch.int32)  # the last two entries are unused
    offsets, pairs, tokens = reference.group_by_latent(acts.flatten(), indices.flatten(), 6, row_offsets)
    assert offsets.tolist() == [0, 2, 2, 2, 3, 3, 3]
    assert pairs[:3].tolist() == [1, 2, 0] and tokens[:3].tolist() == [1, 1, 1]


@pytest.mark.parametrize("eps", [1e-8, 6.25e-10, 1e-2])
def test_adam_equals_torch(eps):
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(40, 7, generator=generator, dtype=torch.float64)
    leaf = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([leaf], lr=3e-3, eps=eps, betas=(0.8, 0.95))
    param, m, v = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    for step in range(1, 21):
        leaf.grad = torch.randn(40, 7, generator=generator, dtype=torch.float64) * 10.0 ** (step % 3)
        optimizer.step()
        numbers = read_numbers(
            numbers_at(plan_of(1, torch.float64, betas=(0.8, 0.95), eps=eps), step, 1, lr=3e-3)
        )
        adam_(param, leaf.grad, m, v, numbers, numbers.lr, numbers.eps)
    torch.testing.assert_close(param, leaf.detach(), rtol=1e-11, atol=1e-12)


def test_projection_leaves_nothing_along_the_decoder_row():
    params = random_params(10, 20)
    grad = reference.project_rows_(torch.randn(20, 10).double(), params.W_dec)
    assert (grad * params.W_dec).sum(dim=1).abs().max() < 1e-12


@pytest.mark.parametrize("fused", [True, False])
def test_a_grad_scale_of_nan_changes_nothing(fused):
    x, weights = random_x(9, 6), as_weights(random_params(6, 30))
    acts, indices = reference.encode_topk(x, weights.enc.weight, weights.b_enc.value, 4)
    groups = reference.group_by_latent(acts, indices, 30)
    tensors = [t for part in weights for t in part if t is not None]
    before = [t.clone() for t in tensors]
    nan, step = torch.tensor(torch.nan, dtype=torch.float64), torch.tensor(1)
    code = acts, indices, None, groups
    if fused:
        reference.update_(weights, x, x, *code, nan, None, NUMBERS, step)
    else:
        grads, norm = reference.row_grads(weights, x, x, *code, nan, None, NUMBERS)
        reference.adam_rows_(weights, grads, norm, NUMBERS, step)
    assert all(torch.equal(a, b) for a, b in zip(tensors, before))


def test_batch_without_variance_has_a_finite_loss():
    centred, variance = reference.centre(torch.ones(4, 3), torch.zeros(3), torch.float32)
    assert variance == 12 and torch.equal(centred, torch.ones(4, 3))
    assert reference.centre(torch.full((4, 3), torch.nan), torch.zeros(3), torch.float32)[1].isnan()


@pytest.mark.parametrize("k,number", [(3, 9), (20, 9), (3, 2), (3, 0)])
def test_keep_topk_is_topk_over_the_first_columns(k, number):
    pre_acts = torch.randn(7, 12, generator=torch.Generator().manual_seed(0)).round(decimals=1)
    got = reference.keep_topk(pre_acts, k, torch.tensor(number))
    want = pre_acts[:, :number] * dense.topk_mask(pre_acts[:, :number], min(k, number))
    assert torch.equal(got[:, :number], want.relu()) and not got[:, number:].any()
