"""Every architecture: gradients and ten steps against autograd of its formula in fp64, and what else it promises."""

import pytest
import torch
from architecture_cases import CASES, adam_like, gradients, leaves_of, objective, oracle, set_up


@pytest.mark.parametrize("name", CASES)
def test_gradients_equal_autograd_of_the_formula(name):
    setup = set_up(CASES[name])
    loss, penalty, want = oracle(setup)
    metrics, got = gradients(setup)
    assert float(metrics.loss) == pytest.approx(float(loss), rel=1e-9)
    assert float(metrics.penalty) == pytest.approx(float(penalty), rel=1e-9, abs=1e-15)
    assert got.keys() == want.keys()
    for key, grad in want.items():
        assert grad.abs().max() > 0, key
        torch.testing.assert_close(got[key], grad, rtol=1e-7, atol=1e-10, msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.parametrize("name", CASES)
def test_ten_steps_equal_autograd_and_adam(name):
    setup = set_up(CASES[name])
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
        metrics = trainer.step_on(batch.rows)
        assert float(metrics.loss) == pytest.approx(float(loss.detach()), rel=1e-7), i
    values = trainer.state.params._asdict() | {n: v.value for n, v in trainer.state.extra.items()}
    for key, value in values.items():
        if leaves[key].requires_grad:
            torch.testing.assert_close(value, leaves[key].detach(), rtol=1e-5, atol=1e-8, msg=key)
