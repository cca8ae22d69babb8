"""The specification against autograd of the dense formula in fp64, and torch.optim.Adam."""

import dense
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saefast import reference
from saefast.reference import Params

CASES = [(1, 8, 1, 1), (7, 5, 13, 3), (33, 24, 40, 40), (64, 16, 128, 8), (5, 3, 300, 64), (50, 24, 2, 1)]


def random_params(d_in, d_sae, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    W_enc, W_dec = (torch.randn(d_sae, d_in, generator=generator, dtype=dtype) for _ in range(2))
    b_enc, b_dec = (torch.randn(n, generator=generator, dtype=dtype) for n in (d_sae, d_in))
    return Params(W_enc, b_enc, reference.normalize_rows_(W_dec), b_dec)


def random_x(n, d_in, seed=9):
    return torch.randn(n, d_in, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 1


@pytest.mark.parametrize("B,D,F,K", CASES)
def test_gradients_equal_autograd(B, D, F, K):
    x, params = random_x(B, D), random_params(D, F)
    top_acts, top_indices = reference.topk(reference.encode(x, params.W_enc, params.b_enc, params.b_dec), K)
    x_hat = reference.decode(top_acts, top_indices, params.W_dec, params.b_dec)
    fvu, grad_x_hat = reference.recon_loss(x_hat, x)
    grad_acts = reference.grad_top_acts(grad_x_hat, params.W_dec, top_acts, top_indices)
    grads = reference.param_grads(x, params, top_acts, top_indices, grad_x_hat, grad_acts)

    leaves = [p.clone().requires_grad_() for p in params]
    want_x_hat = dense.forward(x, *leaves, K)
    loss = (want_x_hat - x).square().sum() / reference.total_variance(x)
    loss.backward()
    torch.testing.assert_close(x_hat, want_x_hat.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(fvu, loss.detach(), rtol=1e-12, atol=1e-12)
    for name, got, leaf in zip(Params._fields, grads, leaves):
        torch.testing.assert_close(
            got, leaf.grad, rtol=1e-10, atol=1e-12, msg=lambda m, name=name: f"{name}: {m}"
        )


@pytest.mark.parametrize("k_aux", [1, 5, 100])
def test_auxk_gradients_equal_autograd(k_aux):
    x, params = random_x(40, 12), random_params(12, 60)
    dead = torch.zeros(60, dtype=torch.bool)
    dead[::4] = True
    x_hat = dense.forward(x, *params, 6)
    got = reference.auxk(x, x_hat, params, dead.nonzero().squeeze(1), k_aux)

    leaves = [p.clone().requires_grad_() for p in params]
    loss = dense.auxk(x, x_hat, *leaves, dead, k_aux)
    loss.backward()
    torch.testing.assert_close(got.loss, loss.detach())
    for name, grad, leaf in zip(Params._fields, got.grads, leaves):
        want = leaf.grad if name == "b_dec" else leaf.grad[dead]
        torch.testing.assert_close(
            grad, want, rtol=1e-10, atol=1e-12, msg=lambda m, name=name: f"{name}: {m}"
        )
        if name != "b_dec":
            assert not leaf.grad[~dead].any()


def test_a_latent_active_in_every_token_and_one_in_none():
    x, params = random_x(30, 6), random_params(6, 9)
    params.b_enc[2], params.b_enc[5] = 1e3, -1e3
    top_acts, top_indices = reference.topk(reference.encode(x, params.W_enc, params.b_enc, params.b_dec), 3)
    assert (top_indices[:, 0] == 2).all() and not (top_indices == 5).any()
    _, grad_x_hat = reference.recon_loss(reference.decode(top_acts, top_indices, *params[2:]), x)
    grad_acts = reference.grad_top_acts(grad_x_hat, params.W_dec, top_acts, top_indices)
    grads = reference.param_grads(x, params, top_acts, top_indices, grad_x_hat, grad_acts)
    assert (
        grads.W_dec[2].any() and not grads.W_dec[5].any() and not grads.W_enc[5].any() and grads.b_enc[5] == 0
    )


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


def test_group_by_latent_lists_every_pair_once_in_order():
    top_indices = torch.tensor([[3, 0], [0, 3], [5, 0]], dtype=torch.int32)
    offsets, pairs = reference.group_by_latent(top_indices, 6)
    assert offsets.tolist() == [0, 3, 3, 3, 5, 5, 6]
    assert pairs.tolist() == [1, 2, 5, 0, 3, 4]


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
        reference.adam_(param, leaf.grad, m, v, step=step, lr=3e-3, betas=(0.8, 0.95), eps=eps)
    torch.testing.assert_close(param, leaf.detach(), rtol=1e-11, atol=1e-12)


def test_projection_leaves_nothing_along_the_decoder_row():
    params = random_params(10, 20)
    grad = reference.project_rows_(torch.randn(20, 10).double(), params.W_dec)
    assert (grad * params.W_dec).sum(dim=1).abs().max() < 1e-12


def test_batch_without_variance_has_a_finite_loss():
    x = torch.ones(4, 3)
    fvu, grad = reference.recon_loss(torch.zeros(4, 3), x)
    assert fvu == 1 and grad.isfinite().all()
