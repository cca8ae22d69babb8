"""`train_step` for every plan it knows, against dense autograd + torch.optim.Adam in fp64; and what a step may not do."""

from dataclasses import replace

import pytest
import torch

import saefast
from saefast import reference
from saefast.engine.plan import GPU_DENSITY, stays_dense
from saefast.engine.state import State
from saefast.engine.step import train_step
from tests.helpers.plan_runs import B, D, F, K, oracle, run, start
from tests.helpers.steps import numbers_at, plan_of


@pytest.fixture
def batches(x64):
    return [x64 * (1 + 0.01 * i) for i in range(12)]


@pytest.mark.parametrize(
    "activation,options",
    [
        ("batch_topk", {}),
        ("batch_topk", {"grad_clip": 1e-2}),
        ("relu", {"l1": 1e-3}),
        ("relu", {"l1": 1e-3, "code_capacity": B * F}),
        ("relu", {"l1": 1e-3, "dense": True}),
        ("relu", {"l1": 1e-3, "dense": True, "grad_clip": 1e-2}),
    ],
    ids=["batch-topk", "batch-topk-clip", "relu", "relu-capacity", "relu-dense", "relu-dense-clip"],
)
def test_steps_equal_autograd(batches, activation, options):
    state, metrics = run(start(), batches, activation=activation, **options)
    oracle_options = {key: value for key, value in options.items() if key not in ("code_capacity", "dense")}
    leaves, losses = oracle(start(), batches, activation, **oracle_options)
    assert [float(m.loss) for m in metrics] == pytest.approx(losses, rel=1e-8)
    for got, want in zip(state.params, leaves):
        torch.testing.assert_close(got, want.detach(), rtol=1e-6, atol=1e-9)
    if activation == "batch_topk":
        assert float(metrics[0].l0) <= K and int(metrics[0].code_size) <= K * B


def test_sparse_and_dense_relu_are_the_same_step(batches):
    (sparse, a), (dense_, b) = (
        run(start(), batches, activation="relu", dense=dense, l1=1e-3) for dense in (False, True)
    )
    for got, want in zip(sparse.params, dense_.params):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)
    assert torch.equal(sparse.fired, dense_.fired) and sparse.fired.sum() > 0
    for one, other in zip(a, b):
        torch.testing.assert_close(torch.stack(one), torch.stack(other))


def test_the_way_through_a_relu_code_follows_its_density():
    now, seen = True, []
    for l0 in (50, 7, 5, 3, 5, 7, 9, 7, 5, 3):  # of 1000
        now = stays_dense(now, l0 / 1000, GPU_DENSITY)
        seen.append(now)
    dense_, sparse = [True], [False]
    assert seen == dense_ * 3 + sparse * 3 + dense_ * 3 + sparse


def test_training_may_switch_between_sparse_and_dense_at_any_step(batches):
    plan = plan_of(K, torch.float64, D, F, activation="relu", dense=True, penalty="l1")
    state, other = (State.fresh(reference.Params(*(p.clone() for p in start()))) for _ in range(2))
    for i, x in enumerate(batches):
        numbers = numbers_at(plan, i + 1, len(x), lr=3e-3, sparsity=1e-3)
        metrics = train_step(reference, state, x, plan, numbers)
        train_step(reference, other, x, replace(plan, dense=True), numbers)
        plan = replace(plan, dense=stays_dense(plan.dense, 0.001 if i % 3 else 0.1, GPU_DENSITY))
        assert metrics.loss.isfinite()
    for got, want in zip(state.params, other.params):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


def test_a_code_that_does_not_fit_is_reported(batches):
    _, metrics = run(start(), batches[:1], activation="relu", code_capacity=50)
    assert int(metrics[0].code_size) > 50


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"grad_clip": 1.0},
        {"auxk_alpha": 1.0, "dead_capacity": F},
        {"activation": "batch_topk"},
        {"activation": "relu", "dense": True},
    ],
    ids=["topk", "clip", "auxk", "batch-topk", "relu-dense"],
)
def test_a_batch_with_nan_or_inf_changes_no_weight(batches, bad, options):
    batches[2][5, 3] = bad
    state, metrics = run(start(), batches[:2], **options)
    bad_state, bad_metrics = run(start(), batches[:3], **options)
    assert metrics[-1].loss.isfinite() and not bad_metrics[-1].loss.isfinite()
    for name, tensor in state.tensors().items():
        if name not in ("fired", "num_tokens_since_fired"):
            assert torch.equal(bad_state.tensors()[name], tensor), name


def test_formats_train_to_about_the_same_loss(x64):
    """40 steps from one start in every format; the loss after them against that of fp32."""
    x = x64.float()
    finals = {}
    for param_dtype in ("fp32", "split", "split24", "bf16"):
        for state_dtype in ("fp32", "bf16", "int8"):
            sae = saefast.SAE(saefast.SAEConfig(d_in=D, d_sae=F, k=K), seed=3)
            config = saefast.TrainConfig(
                total_tokens=B * 40,
                batch_size=B,
                lr=3e-3,
                auxk_alpha=0,
                backend="reference",
                param_dtype=param_dtype,
                state_dtype=state_dtype,
                compute_dtype="bf16",
            )
            trainer = saefast.Trainer(sae, config)
            losses = [float(trainer.step(x).fvu) for _ in range(40)]
            finals[param_dtype, state_dtype] = losses[-1]
            assert sae.W_enc.dtype == (torch.float32 if param_dtype == "fp32" else torch.bfloat16)
            assert losses[-1] < 0.5 * losses[0]
            assert saefast.evaluate(sae, x).fvu == pytest.approx(losses[-1], rel=0.1)
    base = finals["fp32", "fp32"]
    assert finals["split", "fp32"] == pytest.approx(base, rel=1e-3)
    assert finals["split24", "fp32"] == pytest.approx(base, rel=1e-2)
    assert all(final == pytest.approx(base, rel=0.05) for final in finals.values()), finals


@pytest.mark.parametrize(
    "param_dtype,state_dtype", [("split", "int8"), ("split24", "int8"), ("bf16", "bf16")]
)
def test_a_run_in_small_formats_resumes_to_the_same_bits(tmp_path, x64, param_dtype, state_dtype):
    def train(out, stop_after=None):
        sae = saefast.SAE(saefast.SAEConfig(d_in=D, d_sae=F, k=K), seed=3)
        config = saefast.TrainConfig(
            total_tokens=64 * 20,
            batch_size=64,
            buffer_tokens=64,
            lr=3e-3,
            checkpoint_every=5,
            backend="reference",
            param_dtype=param_dtype,
            state_dtype=state_dtype,
            dead_feature_threshold=128,
        )
        trainer = saefast.Trainer(sae, config)
        step = trainer.step
        trainer.step = lambda x, **_: (
            pytest.fail("stop here") if trainer.state.step == stop_after else step(x, checked=True)
        )
        trainer.fit(x64.float(), out, resume=True)
        return trainer

    whole = train(tmp_path / "whole")
    with pytest.raises(pytest.fail.Exception, match="stop here"):
        train(tmp_path / "run", stop_after=13)
    resumed = train(tmp_path / "run")
    for name, tensor in whole.state.tensors().items():
        assert torch.equal(resumed.state.tensors()[name], tensor), name
    loaded = saefast.SAE.from_pretrained(tmp_path / "run")
    torch.testing.assert_close(loaded.W_dec.data, whole.state.exported().W_dec.float(), rtol=0, atol=0)
    if param_dtype != "bf16":  # exported as precisely as it was kept
        assert not torch.equal(loaded.W_dec.data, whole.sae.W_dec.data.float())
