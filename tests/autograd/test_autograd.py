"""Differentiable encode and decode against autograd of the dense formula in fp64, for a loss that is not FVU."""

import doctest
import functools

import pytest
import torch
from torch.autograd import gradcheck

from saefast import autograd, reference
from saefast.autograd import decode, encode_topk, sae_forward
from saefast.errors import InputError
from tests.helpers.autograd_cases import (
    CASES,
    NAMES,
    assert_same,
    dense_forward,
    fresh,
    gradients,
    leaves,
    own_loss,
)

cases = pytest.mark.parametrize("shape", CASES.values(), ids=CASES.keys())


@cases
def test_values_and_gradients_of_any_loss_equal_the_dense_formula(shape):
    tensors, k = leaves(*shape), shape[3]
    got, want = sae_forward(*tensors, k), dense_forward(*tensors, k)
    assert torch.equal(got[2].long(), want[2]) and got[2].dtype == torch.int32
    assert_same(got[:2], want[:2], ("x_hat", "top_acts"))
    assert_same(gradients(sae_forward, tensors, k), gradients(dense_forward, tensors, k))


def test_finite_differences():
    """Independent of every formula here. The random values are far enough from where the selection changes."""
    tensors, k = leaves(7, 5, 13, 3), 3
    assert gradcheck(lambda *inputs: encode_topk(*inputs, k)[0], [*tensors[:3], tensors[4]])
    top_acts, top_indices = encode_topk(*tensors[:3], tensors[4], k)
    top_acts = (top_acts.detach() + 0.1).requires_grad_()
    assert gradcheck(lambda acts, *rest: decode(acts, top_indices, *rest), (top_acts, *tensors[3:]))


def test_ties_go_to_the_smaller_index():
    """Small integers, so that equal pre-activations are equal bits in both formulas, and equal at the k-th place."""
    tensors = [t.round() for t in leaves(20, 3, 40, 6)]
    tensors = fresh(tensors)
    pre_acts = reference.encode(tensors[0], *tensors[1:3], tensors[4]).detach().sort(descending=True).values
    assert (pre_acts[:, 5] == pre_acts[:, 6]).any()
    assert torch.equal(sae_forward(*tensors, 6)[2].long(), dense_forward(*tensors, 6)[2])
    assert_same(gradients(sae_forward, tensors, 6), gradients(dense_forward, tensors, 6))


def test_latents_active_everywhere_and_nowhere():
    tensors = leaves(30, 6, 9, 3)
    with torch.no_grad():
        tensors[2][2], tensors[2][5] = 100, -100
    got = gradients(sae_forward, tensors, 3)
    assert_same(got, gradients(dense_forward, tensors, 3))
    assert got[1][2].all() and not got[1][5].any() and not got[3][5].any() and got[2][5] == 0


def test_rows_with_nothing_active_give_no_gradient_to_the_code():
    tensors = leaves(6, 4, 9, 3)
    with torch.no_grad():
        tensors[2].fill_(-100)
    x_hat, top_acts, _ = sae_forward(*tensors, 3)
    assert torch.equal(x_hat, tensors[4].expand(6, 4)) and not top_acts.any()
    grads = gradients(sae_forward, tensors, 3)
    assert not any(grad.any() for grad in grads[:4]) and grads[4].any()


def test_decode_gives_no_gradient_to_inactive_entries():
    _, _, _, W_dec, b_dec = leaves(1, 5, 8, 1)
    top_acts = torch.tensor([[2.0, 0.0], [0.0, 3.0]], dtype=torch.float64, requires_grad=True)
    top_indices = torch.tensor([[1, 7], [1, 0]], dtype=torch.int32)
    target = torch.arange(5.0, dtype=torch.float64)
    decode(top_acts, top_indices, W_dec, b_dec).backward(target.expand(2, 5))
    want = torch.stack([W_dec[1] @ target, W_dec[0] @ target]).detach()
    assert torch.equal(top_acts.grad != 0, top_acts > 0)
    torch.testing.assert_close(top_acts.grad[[0, 1], [0, 1]], want)


@pytest.mark.parametrize("wanted", [(n,) for n in NAMES] + [("x", "W_dec"), ("W_enc", "b_enc", "b_dec")])
def test_only_what_requires_a_gradient_gets_one(wanted):
    every = gradients(sae_forward, leaves(7, 5, 13, 3), 3)
    tensors = [t.requires_grad_(name in wanted) for name, t in zip(NAMES, leaves(7, 5, 13, 3))]
    x_hat, top_acts, _ = sae_forward(*tensors, 3)
    own_loss(tensors[0], x_hat, top_acts).backward()
    for name, tensor, grad in zip(NAMES, tensors, every):
        if name in wanted:
            torch.testing.assert_close(tensor.grad, grad, rtol=1e-12, atol=1e-14)
        else:
            assert tensor.grad is None, name


def test_indices_and_no_grad_have_no_graph():
    tensors = leaves(4, 5, 13, 3)
    x_hat, top_acts, top_indices = sae_forward(*tensors, 3)
    assert x_hat.requires_grad and top_acts.requires_grad and not top_indices.requires_grad
    with torch.no_grad():
        assert not any(t.requires_grad for t in sae_forward(*tensors, 3))


def test_used_twice_in_one_graph():
    """The SAE of the SAE's output, and a code decoded twice by different rows."""

    def twice(forward, code, tensors):
        first, top_acts, top_indices = forward(*tensors, 3)
        second, other_acts, _ = forward(first, *tensors[1:], 3)
        again = code(top_acts, top_indices, tensors[1], tensors[4])
        loss = own_loss(tensors[0], second + again, top_acts) + other_acts.sum()
        return torch.autograd.grad(loss, tensors)

    def dense_code(top_acts, top_indices, W, b):
        return b + torch.einsum("bk,bkd->bd", top_acts, W[top_indices])

    tensors = leaves(12, 5, 20, 3)
    assert_same(twice(sae_forward, decode, tensors), twice(dense_forward, dense_code, tensors))


def test_no_tokens():
    tensors = leaves(0, 5, 13, 3)
    x_hat, top_acts, top_indices = sae_forward(*tensors, 3)
    assert x_hat.shape == (0, 5) and top_acts.shape == top_indices.shape == (0, 3)
    (x_hat.sum() + top_acts.sum()).backward()
    for tensor in tensors:
        assert torch.equal(tensor.grad, torch.zeros_like(tensor))


def test_any_strides():
    tensors = leaves(7, 5, 13, 3)
    strided = fresh([t.detach().t().contiguous().t() if t.ndim == 2 else t for t in tensors])
    strided[2] = torch.stack([tensors[2].detach()] * 2, dim=1)[:, 0].requires_grad_()
    assert not strided[1].is_contiguous() and not strided[2].is_contiguous()
    assert_same(gradients(sae_forward, strided, 3), gradients(sae_forward, tensors, 3))


@pytest.mark.parametrize("weights", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("biases", [None, torch.float32], ids=["biases alike", "biases fp32"])
def test_dtypes(weights, biases):
    """Outputs in the dtype of the biases, gradients in that of each input; close to fp64 of the same rounded inputs."""
    biases = biases or weights
    dtypes = torch.float32, weights, biases, weights, biases
    tensors = [t.detach().to(dtype).requires_grad_() for t, dtype in zip(leaves(9, 6, 12, 12), dtypes)]
    x_hat, top_acts, _ = sae_forward(*tensors, 12)  # all are selected, so rounding cannot select otherwise
    assert x_hat.dtype == top_acts.dtype == biases
    (x_hat.square().sum() + top_acts.sum()).backward()
    exact = fresh(tensors, torch.float64)
    want, want_acts, _ = dense_forward(*exact, 12)
    (want.square().sum() + want_acts.sum()).backward()
    for name, tensor, other in zip(NAMES, tensors, exact):
        assert tensor.grad.dtype == tensor.dtype
        error = (tensor.grad.double() - other.grad).norm() / other.grad.norm()
        assert error < 8 * torch.finfo(weights).eps, f"{name}: {error:.2e}"


def test_gradients_of_gradients_are_refused():
    tensors = leaves(4, 5, 13, 3)
    x_hat, top_acts, _ = sae_forward(*tensors, 3)
    (grad,) = torch.autograd.grad(own_loss(tensors[0], x_hat, top_acts), tensors[1], create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        grad.square().sum().backward()


def test_backward_makes_no_dense_tensor():
    B, D, F, K = 512, 8, 40_000, 4
    tensors = leaves(B, D, F, K, torch.float32)

    def largest_allocation(run) -> int:
        activities = [torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
            run()
        return max(event.self_cpu_memory_usage for event in profile.events())

    outputs = []
    forward = functools.partial(sae_forward, *tensors, K, "reference")
    assert largest_allocation(lambda: outputs.extend(forward())) >= B * F * 4  # so it would show
    loss = own_loss(tensors[0], *outputs[:2])
    assert largest_allocation(loss.backward) <= 2 * F * D * 4 < B * F * 4 / 20


def test_same_bits_every_time():
    tensors = leaves(40, 16, 64, 4, torch.float32)
    first, second = (gradients(sae_forward, tensors, 4) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second))


def test_training_with_torch_adam_lowers_an_own_loss():
    rng = torch.Generator().manual_seed(0)
    x = torch.rand(256, 4, generator=rng) @ torch.randn(4, 12, generator=rng)
    _, W_enc, b_enc, _, b_dec = leaves(1, 12, 32, 4, torch.float32)
    W_enc = reference.normalize_rows_(W_enc.detach()).requires_grad_()
    W_dec = W_enc.detach().clone().requires_grad_()
    optimizer = torch.optim.Adam([W_enc, b_enc, W_dec, b_dec], lr=1e-2)
    losses = []
    for _ in range(40):
        x_hat, top_acts, _ = sae_forward(x, W_enc, b_enc, W_dec, b_dec, 4)
        loss = own_loss(x, x_hat, top_acts) / len(x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_bad_input_is_named():
    x, W_enc, b_enc, W_dec, b_dec = (t.detach() for t in leaves(4, 5, 13, 3, torch.float32))
    top_acts, top_indices = encode_topk(x, W_enc, b_enc, b_dec, 3)
    meta = b_dec.to("meta")
    for message, call in {
        r"x: expected shape \[any, 5\], got \[4, 4\]": lambda: encode_topk(x[:, :4], W_enc, b_enc, b_dec, 3),
        r"x: expected shape \[any, 5\], got \[1, 4, 5\]": lambda: encode_topk(
            x[None], W_enc, b_enc, b_dec, 3
        ),
        "x: expected a floating dtype": lambda: encode_topk(x.long(), W_enc, b_enc, b_dec, 3),
        r"W_enc: expected shape \[any, any\]": lambda: encode_topk(x, b_enc, b_enc, b_dec, 3),
        r"b_enc: expected shape \[13\], got \[12\]": lambda: encode_topk(x, W_enc, b_enc[1:], b_dec, 3),
        r"b_dec: expected shape \[5\], got \[13\]": lambda: encode_topk(x, W_enc, b_enc, b_enc, 3),
        "b_dec: expected device cpu as x, got meta": lambda: encode_topk(x, W_enc, b_enc, meta, 3),
        "b_enc: expected dtype torch.float32 as W_enc or a wider one": lambda: encode_topk(
            x, W_enc, b_enc.half(), b_dec.half(), 3
        ),
        "b_dec: .* the same for all biases": lambda: encode_topk(x, W_enc, b_enc, b_dec.double(), 3),
        "k: expected 1 to d_sae = 13, got 14": lambda: encode_topk(x, W_enc, b_enc, b_dec, 14),
        "k: expected 1 to d_sae = 13, got 0": lambda: sae_forward(x, W_enc, b_enc, W_dec, b_dec, 0),
        "backend: expected one of .*, got 'cuda'": lambda: encode_topk(x, W_enc, b_enc, b_dec, 3, "cuda"),
        r"top_indices: expected shape \[4, 3\]": lambda: decode(top_acts, top_indices[:3], W_dec, b_dec),
        "top_indices: expected torch.int32": lambda: decode(top_acts, top_indices.long(), W_dec, b_dec),
        "top_acts: expected a floating dtype": lambda: decode(top_indices, top_indices, W_dec, b_dec),
        r"b_dec: expected shape \[5\]": lambda: decode(top_acts, top_indices, W_dec, b_enc),
    }.items():
        with pytest.raises(InputError, match=message):
            call()


def test_examples_in_docstrings():
    results = doctest.testmod(autograd)
    assert results.attempted >= 6 and results.failed == 0
