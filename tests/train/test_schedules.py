"""What changes over a run: the learning rate, the weight and exponent of the penalty, k."""

import math

import pytest

from saefast import SAEConfig, TrainConfig
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


def test_a_cosine_stays_and_falls_as_half_a_cosine():
    made = train_config(total_tokens=80, lr=1.0, warmup_fraction=0.25, decay_fraction=0.5, decay="cosine")
    lr = [schedules.lr_at(made, step, 64) for step in range(1, 9)]  # 8 steps: 2 up, 4 down
    root = math.sqrt(0.5)
    down = [1.0, (1 + root) / 2, 0.5, (1 - root) / 2]  # 1, 3/4, 1/2 and 1/4 of the way
    assert lr == pytest.approx([0.5, 1, 1, 1, *down], rel=1e-12)


@pytest.mark.parametrize("decay", ["linear", "cosine"])
def test_nothing_learns_after_the_end(decay):
    made = train_config(lr=1.0, decay=decay)  # 100 steps
    assert [schedules.lr_at(made, step, 64) for step in (101, 102, 140)] == [0, 0, 0]


def test_the_weight_of_the_penalty_rises_from_0():
    made = train_config(total_tokens=80, penalty="l1", sparsity_coefficient=3.0, sparsity_warmup_fraction=0.5)
    got = [schedules.sparsity_at(made, step) for step in range(1, 9)]
    assert got == [0, 0.75, 1.5, 2.25, 3, 3, 3, 3]
    at_once = train_config(penalty="l1", sparsity_coefficient=3.0, sparsity_warmup_fraction=0)
    assert {schedules.sparsity_at(at_once, step) for step in range(1, 101)} == {3.0}


def test_p_falls_from_1_to_its_end():
    made = train_config(
        total_tokens=100, penalty="lp", p_end=0.5, p_anneal_from=0.2
    )  # 10 steps, 2 of them before
    want = [1, 1, *(1 - 0.5 * n / 8 for n in range(1, 9)), 0.5]  # the last: after the run
    assert [schedules.exponent_at(made, step) for step in range(1, 12)] == pytest.approx(want, rel=1e-12)


def test_p_falls_in_the_last_step_if_no_more_are_left():
    made = train_config(penalty="lp", p_end=0.5, p_anneal_from=0.99)
    assert [schedules.exponent_at(made, step) for step in (1, 98, 99, 100)] == [1, 1, 1, 0.5]
    never = train_config(penalty="lp", p_end=0.5, p_anneal_from=1.0)
    assert {schedules.exponent_at(never, step) for step in range(1, 101)} == {1}


def sae_config(**fields):
    return SAEConfig(**({"d_in": 16, "d_sae": 64, "k": 8} | fields))


def test_k_falls_in_32_steps():
    made = train_config(total_tokens=1280, k_start=40, k_anneal_fraction=0.5)  # 128 steps, 64 of them fall
    got = [schedules.k_at(made, sae_config(), step) for step in range(1, 129)]
    assert got[:64] == [k for k in range(40, 8, -1) for _ in range(2)]
    assert got[64:] == [8] * 64


def test_k_falls_linearly_in_fewer_steps():
    made = train_config(total_tokens=80, k_start=40, k_anneal_fraction=0.5)
    assert [schedules.k_at(made, sae_config(), step) for step in range(1, 9)] == [40, 32, 24, 16, 8, 8, 8, 8]


@pytest.mark.parametrize(
    "fields", [{}, {"k_start": 40, "k_anneal_fraction": 0.0}], ids=["no start", "no time"]
)
def test_k_that_does_not_fall(fields):
    made = train_config(**fields)
    assert {schedules.k_at(made, sae_config(), step) for step in range(1, 101)} == {8}


def test_what_a_step_gets_is_of_that_step():
    made = train_config(
        lr=0.5,
        penalty="lp",
        p_end=0.5,
        sparsity_coefficient=3.0,
        sparsity_warmup_fraction=1.0,
        warmup_fraction=1.0,
    )
    for sae, output_scale in ((sae_config(), None), (sae_config(d_out=4, pre_bias=False), 7.0)):
        got = schedules.scheduled_at(made, sae, 51, 2.0, 7.0)
        assert got.lr == pytest.approx(0.5 * 0.51) and got.sparsity == pytest.approx(1.5)
        assert got.exponent == pytest.approx(1 - 0.5 * 0.51) and got.next_exponent == pytest.approx(
            1 - 0.5 * 0.52
        )
        assert got.input_scale == 2.0 and got.output_scale == output_scale
