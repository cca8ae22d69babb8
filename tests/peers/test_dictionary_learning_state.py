"""The drop-in trainers for dictionary_learning: one state with the stock code, and what falls back to it."""

import copy
import io

import pytest
import torch

from saefast.errors import InputError
from tests.peers.dictionary_learning_runs import (
    CASES,
    HAS_K_ANNEALING,
    K_FAMILY,
    B,
    D,
    assert_same_state,
    batches,
    fast,
    make,
    narrow,
    pair,
    steps,
    stock_and_ours,
)


@pytest.fixture(scope="module")
def rows(real_rows):
    return narrow(real_rows)


def stored(trainer):
    """What a user who goes on keeps, through a file."""
    file = io.BytesIO()
    found = {name: getattr(trainer, name).state_dict() for name in ("ae", "optimizer", "scheduler")}
    if hasattr(trainer, "num_tokens_since_fired"):
        found["since"] = trainer.num_tokens_since_fired
    torch.save(found, file)
    file.seek(0)
    return torch.load(file)


def restore(trainer, found):
    found = copy.deepcopy(found)  # an optimizer keeps the tensors that it loads
    for name in ("ae", "optimizer", "scheduler"):
        getattr(trainer, name).load_state_dict(found[name])
    if "since" in found:
        trainer.num_tokens_since_fired = found["since"]
    return trainer


@pytest.mark.parametrize(
    "first, second", [(0, 1), (1, 0), (1, 1)], ids=["ours goes on", "stock", "ours, twice"]
)
@pytest.mark.parametrize("name", CASES)
def test_a_run_goes_on_in_the_other(name, first, second, rows):
    kinds = stock_and_ours(name)
    whole = steps(make(kinds[0], name, d=D), rows)
    begun = steps(make(kinds[first], name, d=D), rows, last=7)
    rest = steps(restore(make(kinds[second], name, d=D), stored(begun)), rows, first=7)
    assert_same_state(rest, whole)


@pytest.mark.parametrize("name", CASES)
def test_what_is_replaced_in_the_middle_counts(name, rows):
    """Another state is loaded into a trainer that runs, and tensors are put in the place of others."""
    other = stored(steps(make(stock_and_ours(name)[0], name, d=D), 0.5 * rows, last=5))
    stock, ours = pair(name)
    for trainer in (stock, ours):
        restore(steps(trainer, rows, last=6), other)
        bias = next(param for param in trainer.ae.parameters() if param.ndim == 1)
        bias.data = 0.9 * bias.data
        steps(trainer, rows, first=6)
    assert ours._engine.state.step == 11
    assert_same_state(ours, stock)


def addresses(trainer):
    """Of the parameters and their moments."""
    moments = [state[key] for state in trainer.optimizer.state.values() for key in ("exp_avg", "exp_avg_sq")]
    return [tensor.data_ptr() for tensor in (*moments, *trainer.ae.parameters())]


@pytest.mark.parametrize("name", CASES)
def test_the_memory_is_one(name, rows):
    """Nothing is copied from step to step, gradients do not stay, and the stock optimizer may take over."""
    stock, ours = pair(name)
    for trainer in (stock, ours):
        steps(trainer, rows, last=4)
    before = addresses(ours)
    assert all(param.grad is None for param in ours.ae.parameters())
    for trainer in (stock, ours):
        steps(trainer, rows, first=4, last=7)
    assert addresses(ours) == before
    kind = stock_and_ours(name)[0]
    for step, x in enumerate(batches(rows, 9)):
        if step >= 7:
            stock.update(step, x)
            kind.update(ours, step, x)
    assert_same_state(ours, stock)
    for trainer in (stock, ours):
        steps(trainer, rows, first=9)
    assert_same_state(ours, stock)


ATTRIBUTES = {
    name: {"auxk_alpha": 0.5, "dead_feature_threshold": 2 * B, "threshold_beta": 0.5} for name in K_FAMILY
} | {
    "JumpReluTrainer": {"target_l0": 60.0, "bandwidth": 0.01, "sparsity_coefficient": 0.3},
    "GatedSAETrainer": {"l1_penalty": 0.7},
    "StandardTrainer": {"l1_penalty": 0.7},
    "StandardTrainerAprilUpdate": {"l1_penalty": 0.7},
}


@pytest.mark.parametrize("name", CASES)
def test_attributes_set_in_the_middle_count(name, rows):
    stock, ours, without = *pair(name), pair(name)[1]
    for trainer in (stock, ours, without):
        steps(trainer, rows, last=6)
        for key, value in ATTRIBUTES[name].items():
            assert hasattr(trainer, key)
            if trainer is not without:
                setattr(trainer, key, value)
        trainer.optimizer.param_groups[0]["betas"] = (0.8, 0.99) if trainer is not without else (0.9, 0.999)
        steps(trainer, rows, first=6)
    assert_same_state(ours, stock)
    with pytest.raises(AssertionError):
        assert_same_state(without, stock)


@pytest.mark.skipif(not HAS_K_ANNEALING, reason="0.1.0 has no k_anneal_steps")
@pytest.mark.parametrize("name", K_FAMILY)
def test_annealed_k(name, rows):
    stock, ours = pair(name, k_anneal_steps=8)
    for step, x in enumerate(batches(rows, 12)):
        losses = [trainer.update(step, x) for trainer in (stock, ours)]
        assert losses[1] == pytest.approx(losses[0], rel=2e-6)
        assert ours.ae.k == stock.ae.k
        assert step == 0 or ours._engine.k_now in range(13, D + 1)
    assert ours._engine.k_now == 13 and ours.config == stock.config
    assert_same_state(ours, stock)


def test_k_set_by_hand(rows):
    stock, ours = pair("TopKTrainer")
    for trainer in (stock, ours):
        steps(trainer, rows, last=4)
        trainer.ae.k.fill_(5)
        steps(trainer, rows, first=4)
    assert ours._engine.k_now == 5
    assert_same_state(ours, stock)


def test_resampling_is_that_of_the_stock_trainer(rows, capsys):
    """Its own method, on the shared memory, with the global random numbers. Latents of a bias of -1000 are dead on
    any rows; the last of them stay so, for there is no resampling after step 10."""
    stock, ours = pair("StandardTrainer", resample_steps=5, decay_start=None)
    for trainer in (stock, ours):
        torch.manual_seed(1)
        for first, last, dead in ((0, 6, slice(40)), (6, 11, slice(40, 60)), (11, 14, slice(60, 80))):
            trainer.ae.encoder.bias.data[dead] = -1000.0
            steps(trainer, rows, first=first, last=last)
            resampled = trainer.ae.encoder.bias[dead] > -1
            assert not resampled.any() if last == 14 else resampled.all()
        assert (trainer.steps_since_active[60:80] >= 3).all()
    said = capsys.readouterr().out.splitlines()
    assert said == 2 * said[: len(said) // 2] and len(said) >= 4 and "resampling" in said[0]
    assert_same_state(ours, stock)
    assert torch.equal(ours.steps_since_active, stock.steps_since_active)


def test_products_in_the_format_of_autocast(rows):
    """bf16 inside, fp32 outside again, on the same state."""
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        stock, ours = pair("TopKTrainer")
        for trainer in (stock, ours):
            for step, x in enumerate(batches(rows, 12)):
                in_bf16 = dtype == torch.bfloat16 and step < 8
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled=in_bf16):
                    loss = trainer.update(step, x)
                if trainer is ours and step == 5:
                    assert trainer._engine.compute_dtype == dtype
                found.append(loss)
        assert ours._engine.compute_dtype == torch.float32 and ours._engine.state.step == 12
    fp32, ours_fp32, bf16, ours_bf16 = (found[i : i + 12] for i in range(0, 48, 12))
    assert ours_fp32 == pytest.approx(fp32, rel=5e-6)
    assert ours_bf16 == pytest.approx(bf16, rel=2e-2)
    assert ours_bf16[3] != pytest.approx(fp32[3], rel=5e-6)


def test_the_formula_of_the_paper_for_jumprelu(rows):
    """Set on a trainer: the gradient of L0 by way of the pre-activations, as with the stock loss set right."""
    stock, ours = pair("JumpReluTrainer")
    ours.straight_through = "threshold"
    jumprelu = CASES["JumpReluTrainer"][0]

    def loss(x, step, logging=False, **_):
        pre = x @ stock.ae.W_enc + stock.ae.b_enc
        acts = jumprelu.JumpReLUFunction.apply(pre, stock.ae.threshold, stock.bandwidth)
        l0 = jumprelu.StepFunction.apply(pre, stock.ae.threshold, stock.bandwidth).sum(dim=-1).mean()
        penalty = (l0 / stock.target_l0 - 1).pow(2) * stock.sparsity_warmup_fn(step)
        return (x - stock.ae.decode(acts)).pow(2).sum(dim=-1).mean() + penalty

    kept, stock.loss = stock.loss, loss
    first = next(iter(batches(rows, 1)))
    stock.loss = kept
    for trainer in (stock, ours):
        trainer.update(0, first)  # which is a stock step for both
    stock.loss = loss
    for step, x in enumerate(batches(rows, 12)):
        if step:
            losses = [trainer.update(step, x) for trainer in (stock, ours)]
            assert losses[1] == pytest.approx(losses[0], rel=5e-6), step
            with torch.no_grad():
                stock.ae.threshold.clamp_min_(0)
    torch.testing.assert_close(ours.ae.threshold, stock.ae.threshold, rtol=1e-4, atol=1e-7)
    stock.loss = kept
    other = steps(make(fast.JumpReluTrainer, "JumpReluTrainer", d=D), rows)
    assert not torch.allclose(other.ae.threshold, ours.ae.threshold, rtol=1e-3)


BAD = {
    "wrong width": (lambda x: x[:, :-1], r"x: expected \[B, 64\], got \[89, 63\]"),
    "three axes": (lambda x: x[None], r"x: expected \[B, 64\], got \[1, 89, 64\]"),
    "no rows": (lambda x: x[:0], "at least one row"),
    "NaN": (lambda x: x.masked_fill(x > 1, torch.nan), "x: expected finite values"),
    "Inf": (lambda x: x / 0, "x: expected finite values"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("name", CASES)
def test_bad_input_changes_nothing(name, case, rows):
    ours = steps(make(stock_and_ours(name)[1], name, d=D), rows, last=3)
    before = stored(ours)
    spoil, message = BAD[case]
    with pytest.raises(InputError, match=message):
        ours.update(3, spoil(rows[:B]))
    after = stored(ours)
    assert after["scheduler"] == before["scheduler"]
    for key, tensor in before["ae"].items():
        assert torch.equal(tensor, after["ae"][key])


def test_bad_input_in_the_first_step(rows):
    with pytest.raises(InputError, match=r"x: expected \[B, 64\]"):
        make(fast.StandardTrainer, "StandardTrainer", d=D).update(0, rows[None])
