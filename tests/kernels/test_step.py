"""The whole step with the Triton kernels against the reference, for every plan and format, in the interpreter."""

import pytest
import torch

import saefast
from saefast import reference, triton_kernels
from saefast.backend import OPS
from saefast.engine.state import State
from saefast.engine.step import train_step
from tests.helpers.kernels import DEVICE
from tests.helpers.steps import numbers_at, plan_of

D, F, K, B = 40, 70, 5, 12

PLANS = {
    "topk": {},
    "rescore": {"rescore": 4},
    "clip": {"grad_clip": 1e-2},
    "auxk": {"auxk_alpha": 0.5, "k_aux": 6, "dead_feature_threshold": B, "dead_capacity": F},
    "batch-topk": {"activation": "batch_topk"},
    "relu": {"activation": "relu", "penalty": "l1", "code_capacity": B * F},
    "relu-dense": {"activation": "relu", "penalty": "l1", "dense": True},
}


def batches(n):
    generator = torch.Generator().manual_seed(1)
    mixing = torch.randn(D, D, generator=generator)
    return [(torch.randn(B, D, generator=generator) @ mixing + 3).to(DEVICE) for _ in range(n)]


def run(ops, data, formats=("fp32", "fp32"), dtype=torch.float32, **options):
    sae = saefast.SAE(saefast.SAEConfig(d_in=D, d_sae=F, k=K), seed=3).to(DEVICE)
    sae.b_enc.data[7], sae.b_enc.data[:3] = 50.0, -50.0  # one in every token, three never
    state = State.fresh(sae.params, *formats, dtype)
    plan, metrics = plan_of(K, dtype, D, F, **options), []
    for x in data:
        state.step += 1
        numbers = numbers_at(plan, state.step, B, torch.float32, DEVICE, sparsity=1e-3)
        metrics.append(train_step(ops, state, x, plan, numbers))
    return state, metrics


SLOW = ("relu", "rescore", "clip")  # their own kernels are tested alone in other files


def test_every_op_is_there():
    assert [op for op in OPS if not hasattr(triton_kernels, op)] == []


@pytest.mark.parametrize(
    "plan", [pytest.param(p, marks=pytest.mark.slow if p in SLOW else []) for p in PLANS]
)
def test_steps_follow_the_reference(plan):
    want_state, want = run(reference, batches(2), **PLANS[plan])
    state, got = run(triton_kernels, batches(2), **PLANS[plan])
    for step, (a, b) in enumerate(zip(got, want)):
        for name, one, other in zip(a._fields, a, b):
            torch.testing.assert_close(one.float(), other.float(), rtol=2e-5, atol=1e-6, msg=f"{step} {name}")
    for name, tensor in want_state.tensors().items():
        torch.testing.assert_close(state.tensors()[name], tensor, rtol=2e-4, atol=2e-6, msg=name)
    if plan == "auxk":
        assert got[-1].auxk_loss > 0


def slow(*formats):
    return pytest.param(formats, id="-".join(formats), marks=pytest.mark.slow)


@pytest.mark.parametrize(
    "formats", [slow("split", "int8"), slow("split24", "int8"), slow("bf16", "bf16"), slow("fp32", "int8")]
)
def test_formats_follow_the_reference(formats):
    want_state, want = run(reference, batches(2), formats, torch.bfloat16)
    state, got = run(triton_kernels, batches(2), formats, torch.bfloat16)
    torch.testing.assert_close(got[-1].fvu, want[-1].fvu, rtol=2e-3, atol=0)
    for name in ("params.W_enc", "params.W_dec"):
        a, b = state.tensors()[name].float(), want_state.tensors()[name].float()
        assert (a - b).norm() / b.norm() < 2e-3, name


@pytest.mark.slow
def test_the_same_bits_twice():
    (one, _), (other, _) = (run(triton_kernels, batches(2), **PLANS["auxk"]) for _ in range(2))
    assert all(torch.equal(tensor, other.tensors()[name]) for name, tensor in one.tensors().items())


@pytest.mark.slow
@pytest.mark.parametrize("plan", ["topk", "clip", "relu-dense"])
def test_nan_in_the_batch_changes_no_weight(plan):
    good, bad = batches(2)
    before, _ = run(triton_kernels, [good], **PLANS[plan])
    bad[3, 5] = torch.nan
    after, metrics = run(triton_kernels, [good, bad], **PLANS[plan])
    assert not metrics[-1].loss.isfinite()
    for name, tensor in before.tensors().items():
        if name not in ("fired", "num_tokens_since_fired"):
            assert torch.equal(after.tensors()[name], tensor), name
