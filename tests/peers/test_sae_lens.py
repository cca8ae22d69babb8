"""`saefast.adapters.sae_lens.SAETrainer` beside SAELens's own, step by step, on real activations."""

import logging
from copy import deepcopy

import pytest
import torch
import wandb

from tests.peers.nudged import assert_within
from tests.peers.sae_lens_runs import (
    CASES,
    B,
    K,
    adapter,
    assert_near,
    assert_same_state,
    both,
    fit,
    make,
    nudged,
    scaled,
    state_differences,
    steps,
)

FIELDS = "sae_in", "sae_out", "feature_acts", "hidden_pre", "loss"


@pytest.fixture(scope="module")
def rows(real_rows):
    return scaled(real_rows)


@pytest.fixture
def engine_only(caplog):
    """Nothing fell back to SAELens's own step."""
    with caplog.at_level(logging.WARNING, "saefast"):
        yield
    assert "own step" not in caplog.text


@pytest.mark.parametrize("name", CASES)
def test_every_number_in_fp64(name, rows, engine_only):
    stock, ours = both(name, rows[:, :40].double(), lr=5e-3)
    ours.full_output = True
    exact = 2e-6 if "jumprelu" in name else 1e-10  # the thresholds are fp32
    for got, want in zip(steps(ours, 25), steps(stock, 25), strict=True):
        for field in FIELDS:
            assert_near(getattr(got, field), getattr(want, field), exact, field)
        for kind in ("losses", "metrics"):
            found, expected = getattr(got, kind), getattr(want, kind)
            assert list(found) == list(expected)
            for key in expected:
                assert_near(found[key], expected[key], exact, key)
    assert_same_state(ours, stock, exact)


@pytest.mark.parametrize("name", CASES)
def test_losses_in_fp32(name, rows, monkeypatch, engine_only):
    """Two pre-activations within rounding may change places; Adam makes of it what it makes in a nudged run."""
    norms, clip = [], torch.nn.utils.clip_grad_norm_
    watched = lambda *args: norms.append(clip(*args)) or norms[-1]
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", watched)
    theirs, mine = (steps(trainer, 40) for trainer in both(name, rows))
    assert len(norms) == 40 and max(norms) > 1, "clipping is active, and ours is not torch's"
    last = theirs[-1].losses
    last = last.get("auxiliary_reconstruction_loss", last.get("pre_act_loss"))
    assert last is None or last > 0, "there are dead latents"

    def differences(others):
        found = {}
        for i, (a, b) in enumerate(zip(theirs, others, strict=True)):
            want, got = float(a.loss.detach()), float(b.loss.detach())
            found[f"step {i}"] = abs(got - want), (1e-5 if i < 15 else 1e-4) * abs(want)
        return found

    assert_within(differences(mine), lambda seed: differences(steps(nudged(name, rows, seed), 40)))


@pytest.mark.parametrize("name", CASES)
def test_state_in_fp32(name, rows, engine_only):
    stock, ours = both(name, rows)
    for trainer in (stock, ours):
        steps(trainer, 15)

    def of_nudged(seed):
        steps(other := nudged(name, rows, seed), 15)
        return state_differences(other, stock, 5e-3)

    assert_within(state_differences(ours, stock, 5e-3), of_nudged)


@pytest.mark.parametrize("name", ["topk", "batchtopk", "matryoshka", "jumprelu", "standard"])
def test_a_whole_run_is_as_good(name, rows):
    rows = rows[:, ::4]
    held_out, found = rows[6000:], []
    for trainer in both(name, rows[:6000], total=300, dead_feature_window=20):
        sae = fit(trainer)
        with torch.no_grad():
            acts = sae.encode(held_out)
            error = (sae.decode(acts) - held_out).square().sum()
        variance = (held_out - held_out.mean(dim=0)).square().sum()
        found.append((float(error / variance), float((acts != 0).sum() / len(held_out))))
    (fvu, l0), (our_fvu, our_l0) = found
    assert fvu < 0.7 and 1 < l0 < 300
    assert our_fvu == pytest.approx(fvu, rel=0.01) and our_l0 == pytest.approx(l0, rel=0.01)


@pytest.mark.parametrize("name", [name for name in CASES if name != "topk-plain"])
def test_what_is_logged(name, rows, monkeypatch):
    """In fp64, where no two pre-activations are within rounding."""
    rows, logs = rows.double(), []
    monkeypatch.setattr(wandb, "log", lambda values, step: logs.append((step, values)))
    seen = []
    for trainer in both(name, rows, total=30, feature_sampling_window=12):
        trainer.cfg.logger.log_to_wandb, trainer.cfg.logger.wandb_log_frequency = True, 7
        monkeypatch.setattr(trainer, "save_checkpoint", lambda **_: None)
        fit(trainer)
        seen.append(list(logs))
        logs.clear()
    assert len(seen[0]) == 6, "four steps, two windows"
    for (step, theirs), (at, ours) in zip(*seen, strict=True):
        assert step == at and theirs.keys() == ours.keys()
        for key, value in theirs.items():
            if isinstance(value, float | int):
                assert ours[key] == pytest.approx(value, rel=1e-6, abs=1e-6), key


def test_fields_that_were_not_kept_say_so(rows):
    ours = make(adapter.SAETrainer, "matryoshka", rows, total=200)
    ours.n_training_steps = 97
    lean, shown = steps(ours, 1)[0], None
    for field in ("sae_out", "feature_acts", "hidden_pre", "losses"):
        with pytest.raises(AttributeError, match=f"{field}: not kept.*full_output"):
            getattr(lean, field)
    assert lean.sae_in.shape == (B, 576) and set(lean.metrics) == {"topk_threshold"} and "loss" in repr(lean)
    ours.n_training_steps = 99
    shown = steps(ours, 1)[0]  # the one that the progress bar shows
    inner = {"inner_mse_loss_50", "inner_mse_loss_211"}
    assert set(shown.losses) == {"mse_loss", "auxiliary_reconstruction_loss", *inner}
    assert int(shown.feature_acts.count_nonzero()) == B * K
    with pytest.raises(AttributeError, match="hidden_pre"):
        shown.hidden_pre  # noqa: B018
    for name in ("topk", "jumprelu"):
        assert "mse_loss" in steps(make(adapter.SAETrainer, name, rows), 1)[0].losses


def test_k_may_change_and_batches_may_have_other_sizes(rows):
    stock, ours = both("batchtopk", rows)
    sizes, ks = (101, 3, 250, 101, 1, 64), (K, 3, 3, 40, 40, K)
    for trainer in (stock, ours):
        sized = iter(rows.split([*sizes, len(rows) - sum(sizes)]))
        trainer.data_provider, trainer.losses = sized, []
        for k in ks:
            trainer.sae.activation_fn.k = k
            trainer.losses.append(float(steps(trainer, 1)[0].loss.detach()))
    assert ours.losses == pytest.approx(stock.losses, rel=1e-5)
    assert_same_state(ours, stock, 1e-4)


def test_what_others_write_is_seen(rows):
    """A step of SAELens's own in between, weights and moments from elsewhere. In fp64, where no two pre-activations are
    within rounding."""
    rows = rows.double()
    stock, ours = both("topk", rows)
    other = make(adapter.Stock, "topk", rows, seed=3)
    steps(other, 5)
    for trainer in (stock, ours):
        steps(trainer, 6)
        hook = trainer.sae.hook_sae_acts_pre.register_forward_hook(lambda *_: None)
        steps(trainer, 3)
        hook.remove()
        steps(trainer, 3)
        trainer.sae.load_state_dict(other.sae.state_dict())
        steps(trainer, 3)
        moments = deepcopy(other.optimizer.state_dict())  # or they would be shared
        trainer.optimizer.load_state_dict(moments)
        steps(trainer, 3)
        trainer.sae.W_enc.data = 1.1 * trainer.sae.W_enc.data.clone()
        steps(trainer, 3)
    assert_same_state(ours, stock, 1e-10)


def test_the_first_plan_on_a_gpu_counts_the_dead(rows):
    """Afterwards they are counted every 16 steps; an engine may begin in between."""
    ours = make(adapter.SAETrainer, "topk", rows)
    steps(ours, 7)
    engine = ours._engine
    engine.on_gpu, engine.recount_at = True, 0
    engine.state.num_tokens_since_fired.zero_()
    engine.state.num_tokens_since_fired[:150] = engine.config.dead_feature_threshold
    assert engine.dead_room(5) == 643  # 15 more full batches, and all may be dead
    assert engine.plan(5).dead_capacity == 643
    engine.state.num_tokens_since_fired[150:] = -100 * B
    engine.state.step += 15
    assert engine.dead_room(5) == 643
    engine.state.step += 1
    assert engine.dead_room(5) == 256
