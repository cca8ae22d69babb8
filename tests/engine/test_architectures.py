"""Every architecture: gradients and ten steps against autograd of its formula in fp64, on every backend of a CPU."""

import pytest
import torch

from saefast.backend import unavailable
from tests.helpers.architecture_cases import CASES, adam_like, gradients, leaves_of, objective, oracle, set_up


@pytest.mark.parametrize("name", CASES)
def test_gradients_equal_autograd_of_the_formula(name):
    setup = set_up(CASES[name])
    loss, penalty, want = oracle(setup)
    metrics, got = gradients(setup)
    assert float(metrics.loss) == pytest.approx(float(loss), rel=1e-9)
    assert float(metrics.penalty) == pytest.approx(float(penalty), rel=1e-9, abs=1e-15)
    assert (metrics.auxk_loss > 0) == (setup.trainer.config.auxk_alpha > 0)
    assert got.keys() == want.keys()
    for key, grad in want.items():
        assert grad.abs().max() > 0, key
        torch.testing.assert_close(got[key], grad, rtol=1e-7, atol=1e-10, msg=lambda m, k=key: f"{k}: {m}")
    squares = sum(
        g.square().sum() * (1 / 0.7**2 if key in setup.in_data_units else 1) for key, g in want.items()
    )
    assert float(metrics.grad_norm) == pytest.approx(float(squares.sqrt()), rel=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_gradients_of_the_native_backend(name):
    if unavailable("native"):
        pytest.skip(unavailable("native"))
    setup = set_up(CASES[name], torch.float32, "native")
    loss, penalty, want = oracle(setup)
    metrics, got = gradients(setup)
    assert float(metrics.loss) == pytest.approx(float(loss), rel=1e-5)
    assert float(metrics.penalty) == pytest.approx(float(penalty), rel=1e-5, abs=1e-9)
    for key, grad in want.items():
        assert (got[key] - grad).norm() <= 1e-5 * grad.norm(), key


@pytest.mark.parametrize("backend", ["reference", "native"])
@pytest.mark.parametrize("name", CASES)
def test_ten_steps_equal_autograd_and_adam(name, backend):
    if unavailable(backend):
        pytest.skip(unavailable(backend))
    exact = backend == "reference"
    setup = set_up(CASES[name], torch.float64 if exact else torch.float32, backend)
    trainer, rows = setup.trainer, setup.rows
    leaves = leaves_of(setup)
    optimizer = adam_like(setup, leaves)
    for i in range(10):
        batch = setup._replace(rows=rows.roll(i, 0) * (1 + 0.02 * i))
        if "penalty_scale" in leaves:
            leaves["penalty_scale"].data.copy_(trainer.state.extra["penalty_scale"].value)
        loss, _ = objective(batch, leaves)
        optimizer.zero_grad()
        loss.backward()
        with torch.no_grad():
            W_dec = leaves["W_dec"]
            if trainer.config.unit_norm:
                W_dec.grad -= (W_dec.grad * W_dec).sum(1, keepdim=True) * W_dec
            optimizer.step()
            if trainer.config.unit_norm:
                W_dec /= W_dec.norm(dim=1, keepdim=True)
        trainer.state.dense = CASES[name].dense
        metrics = trainer.step(batch.rows, checked=True)
        assert float(metrics.loss) == pytest.approx(float(loss.detach()), rel=1e-7 if exact else 3e-4), i
    values = trainer.state.params._asdict() | {n: v.value for n, v in trainer.state.extra.items()}
    for key, value in values.items():
        if leaves[key].requires_grad and exact:
            torch.testing.assert_close(value, leaves[key].detach(), rtol=1e-5, atol=1e-8, msg=key)


IN_PIECES = [name for name, case in CASES.items() if case.dense or "auxk" in name]


@pytest.mark.parametrize("micro_batch_size", [1, 40, 96, 1000])
@pytest.mark.parametrize("name", IN_PIECES)
def test_micro_batches_give_the_step_of_the_whole_batch(name, micro_batch_size, monkeypatch):
    """Gradients of autograd, and no more rows than said of what is as wide as the dictionary."""
    setup = set_up(CASES[name], micro_batch_size=micro_batch_size)
    seen = []

    def watched(op):
        def run(first, *rest):
            seen.append(len(first))
            return op(first, *rest)

        return run

    for op in ("encode_dense", "relu_encode", "keep_topk", "outer_sum"):
        monkeypatch.setattr(setup.trainer.ops, op, watched(getattr(setup.trainer.ops, op)))
    loss, penalty, want = oracle(setup)
    whole, _ = gradients(set_up(CASES[name]))
    seen.clear()
    metrics, got = gradients(setup)
    assert max(seen) == min(micro_batch_size, len(setup.rows)) and len(seen) >= len(setup.rows) / max(seen)
    assert float(metrics.loss) == pytest.approx(float(loss), rel=1e-9)
    assert float(metrics.penalty) == pytest.approx(float(penalty), rel=1e-9, abs=1e-15)
    for field, value in metrics._asdict().items():
        assert float(value) == pytest.approx(float(getattr(whole, field)), rel=1e-9, abs=1e-15), field
    for key, grad in want.items():
        torch.testing.assert_close(got[key], grad, rtol=1e-7, atol=1e-10, msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.parametrize("name", IN_PIECES)
def test_micro_batches_train_alike(name):
    """Ten steps, with what follows the batches without a gradient."""
    ends = []
    for micro_batch_size in (None, 25):
        setup = set_up(CASES[name], micro_batch_size=micro_batch_size)
        for i in range(10):
            setup.trainer.state.dense = CASES[name].dense
            setup.trainer.step(setup.rows.roll(i, 0) * (1 + 0.02 * i), checked=True)
        ends.append(setup.trainer.state.tensors())
    for key, tensor in ends[0].items():
        torch.testing.assert_close(ends[1][key], tensor, rtol=1e-9, atol=1e-11, msg=key)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "name", ["relu-april-dense", "matryoshka", "jumprelu-anthropic", "gated", "skip-transcoder"]
)
@pytest.mark.parametrize("micro_batch_size", [None, 4])
def test_a_batch_that_is_not_finite_changes_nothing(name, bad, micro_batch_size):
    alpha = 0.5 if micro_batch_size else 0.0  # AuxK's pre-activations are what is cut of a sparse code
    setup = set_up(CASES[name], micro_batch_size=micro_batch_size, auxk_alpha=alpha)
    before = {key: tensor.clone() for key, tensor in setup.trainer.state.tensors().items()}
    setup.rows[5, 3] = bad
    assert not setup.trainer.step(setup.rows, checked=True).loss.isfinite()
    for key, tensor in setup.trainer.state.tensors().items():
        if key not in ("fired", "num_tokens_since_fired"):
            assert torch.equal(tensor, before[key]), key


@pytest.mark.parametrize("name", ["relu-l1", "topk-by-norm", "matryoshka", "jumprelu", "gated", "transcoder"])
@pytest.mark.parametrize("n_tokens", [1, 3])
def test_a_few_rows(name, n_tokens):
    setup = set_up(CASES[name], n_tokens=n_tokens)
    loss, _, want = oracle(setup)
    metrics, got = gradients(setup)
    assert float(metrics.loss) == pytest.approx(float(loss), rel=1e-9)
    for key, grad in want.items():
        torch.testing.assert_close(got[key], grad, rtol=1e-7, atol=1e-10)
