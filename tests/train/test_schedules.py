"""The learning rate over a run."""

import pytest

from saefast import TrainConfig
from saefast.train import schedules


def train_config(**fields):
    return TrainConfig(**({"total_tokens": 1000, "batch_size": 10} | fields))


@pytest.mark.parametrize("d_sae,want", [(2**14, 2e-4), (2**16, 1e-4), (2**12, 4e-4)])
def test_default_lr_falls_with_the_root_of_d_sae(d_sae, want):
    assert schedules.peak_lr(train_config(), d_sae) == pytest.approx(want, rel=1e-12)
    assert schedules.peak_lr(train_config(lr=0.125), d_sae) == 0.125


@pytest.mark.parametrize(
    "optimizer,d_sae,want",
    [
        ("signum", 2**14, 5e-3),
        ("signum", 2**16, 2.5e-3),
        ("adamw", 2**16, 1e-4),
        ("muon", 7, 2e-3),
        ("muon", 2**20, 2e-3),
    ],
)
def test_default_lr_is_that_of_the_optimizer(optimizer, d_sae, want):
    assert schedules.peak_lr(train_config(optimizer=optimizer), d_sae) == want
    assert schedules.peak_lr(train_config(optimizer=optimizer, lr=0.125), d_sae) == 0.125


def test_schedule_rises_stays_and_falls_linearly():
    made = train_config(lr=1.0, warmup_fraction=0.1, decay_fraction=0.2)  # 100 steps: 10 up, 20 down
    lr = [schedules.lr_at(made, step, 64) for step in range(1, 101)]
    assert lr[:10] == pytest.approx([step / 10 for step in range(1, 11)])
    assert lr[10:80] == [1.0] * 70
    assert lr[80:] == pytest.approx([left / 20 for left in range(20, 0, -1)])


def test_schedule_without_warmup_and_decay_is_constant():
    made = train_config(lr=0.5, warmup_fraction=0, decay_fraction=0)
    assert {schedules.lr_at(made, step, 64) for step in range(1, 101)} == {0.5}


@pytest.mark.parametrize("n_steps", [1, 2, 3, 19, 100])
@pytest.mark.parametrize("warmup", [0, 0.01, 0.05, 0.5, 1])
@pytest.mark.parametrize("decay", [0, 0.01, 0.2, 0.5, 1])
def test_every_step_of_any_schedule_learns(n_steps, warmup, decay):
    made = train_config(total_tokens=10 * n_steps, warmup_fraction=warmup, decay_fraction=decay)
    lr = [schedules.lr_at(made, step, 64) for step in range(1, n_steps + 1)]
    assert min(lr) > 0 and max(lr) <= schedules.peak_lr(made, 64)
    top = lr.index(max(lr))
    assert lr[: top + 1] == sorted(lr[: top + 1]) and lr[top:] == sorted(lr[top:], reverse=True)
