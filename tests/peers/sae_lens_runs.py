"""Runs of SAELens's trainer on the same rows and seed, with its own steps and with ours. Skips without SAELens."""

import contextlib
import io
import warnings

import pytest
import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    sae_lens = pytest.importorskip("sae_lens")
    from saefast.adapters import sae_lens as adapter

from sae_lens.config import LoggingConfig, SAETrainerConfig

from tests.peers.nudged import assert_within, nudge

D, F, B, K = 576, 643, 101, 12
FREE_NORMS = {"k": K, "rescale_acts_by_decoder_norm": False}
TANH = {
    "l0_coefficient": 2.0,
    "jumprelu_sparsity_loss_mode": "tanh",
    "jumprelu_ste_to_input": True,
    "jumprelu_bandwidth": 0.4,
    "jumprelu_init_threshold": 0.3,
    "pre_act_loss_coefficient": 0.02,
}
CASES = {  # architecture, options of the SAE
    "topk": ("TopK", {"k": K}),
    "topk-plain": ("TopK", FREE_NORMS | {"apply_b_dec_to_input": False, "aux_loss_coefficient": 0.3}),
    "topk-coo": ("TopK", FREE_NORMS | {"use_sparse_activations": True}),
    "batchtopk": ("BatchTopK", {"k": K, "topk_threshold_lr": 0.02}),
    "matryoshka": ("MatryoshkaBatchTopK", {"k": K, "matryoshka_widths": [50, 211, F]}),
    "jumprelu": ("JumpReLU", {"l0_coefficient": 1.0, "l0_warm_up_steps": 10}),
    "jumprelu-tanh": ("JumpReLU", TANH),
    "standard": ("Standard", {"l1_coefficient": 2.0, "l1_warm_up_steps": 8}),
}


def make(trainer, name, rows, total=40, seed=0, start=0, **options):
    """A trainer of the class `trainer` for a case, on batches of `rows` from the one numbered `start`."""
    cls, of_sae = CASES.get(name, (name, {}))
    of_sae = {"dtype": str(rows.dtype).removeprefix("torch.")} | of_sae | options.pop("sae", {})
    torch.manual_seed(seed)
    config = getattr(sae_lens, f"{cls}TrainingSAEConfig")(d_in=rows.shape[1], d_sae=F, **of_sae)
    sae = getattr(sae_lens, f"{cls}TrainingSAE")(config)
    settings = {
        "total_training_samples": total * B,
        "train_batch_size_samples": B,
        "lr": 2e-3,
        "lr_end": 2e-3,
        "lr_warm_up_steps": 5,
        "lr_decay_steps": 10,
        "dead_feature_window": 4,
        "logger": LoggingConfig(log_to_wandb=False),
    }
    return trainer(SAETrainerConfig(**settings | options), sae, batches(rows, start))


def nudged(name, rows, seed, **options):
    """A stock trainer that begins with weights off by 1e-5 of themselves. SAELens's own fp32 takes its parameters as far
    (9e-6 in 15 steps, ours 2e-6) from its run in fp64, in the same direction whatever the weights: its moments are off by
    up to 4e-5, for torch clips by a norm that it sums in fp32."""
    trainer = make(adapter.Stock, name, rows, **options)
    nudge(trainer.sae, seed, by=1e-5)
    return trainer


def batches(rows, start=0):
    """Each row once in a random order, then again in another."""
    generator, left = torch.Generator().manual_seed(7), rows[:0]
    while True:
        while len(left) < B:
            left = torch.cat([left, rows[torch.randperm(len(rows), generator=generator)]])
        batch, left = left[:B], left[B:]
        if start:
            start -= 1
        else:
            yield batch


def both(name, rows, **options):
    """(stock, ours)."""
    return [make(trainer, name, rows, **options) for trainer in (adapter.Stock, adapter.SAETrainer)]


def steps(trainer, n):
    """As `fit` does them: what each returned."""
    outputs = []
    for _ in range(n):
        outputs.append(trainer.step(next(trainer.data_provider)))
        trainer.n_training_steps += 1
    return outputs


def fit(trainer):
    with contextlib.redirect_stderr(io.StringIO()):
        return trainer.fit()


def scaled(rows):
    """Of mean norm sqrt(d_in), as SAELens's `expected_average_only_in`."""
    return rows * (rows.shape[1] ** 0.5 / rows.norm(dim=1).mean())


def narrow(rows):
    return scaled(rows)[:, :96].contiguous()


def dense(tensor):
    return tensor.detach().to_dense() if tensor.is_sparse else tensor.detach()


def norms(got, want, tolerance, what):
    """The norm of the difference, and `tolerance` of the norm."""
    got, want = dense(got), dense(want)
    assert got.shape == want.shape and got.dtype == want.dtype, what
    return float((got - want).norm()), tolerance * float(want.norm())


def assert_near(got, want, tolerance, what):
    assert_within({what: norms(got, want, tolerance, what)})


def state_differences(ours, stock, tolerance):
    """Of parameters, moments and statistics, with their tolerances; schedules are the same."""
    found = {}
    for (name, mine), (_, theirs) in zip(ours.sae.state_dict().items(), stock.sae.state_dict().items()):
        found[name] = norms(mine, theirs, tolerance, name)
    for (name, mine), theirs in zip(ours.sae.named_parameters(), stock.sae.parameters()):
        kept, expected = ours.optimizer.state[mine], stock.optimizer.state[theirs]
        assert kept.keys() == expected.keys()
        for key in kept:
            found[name, key] = norms(kept[key], expected[key], tolerance, f"{name}: {key}")
    for name in ("n_training_steps", "n_training_samples", "n_frac_active_samples"):
        assert getattr(ours, name) == getattr(stock, name), name
    assert ours.lr_scheduler.get_last_lr() == stock.lr_scheduler.get_last_lr()
    assert ours.get_coefficients() == stock.get_coefficients()
    # a latent more or less where two pre-activations are within rounding
    found["active"] = float((ours.act_freq_scores - stock.act_freq_scores).abs().sum()), 4
    other = ours.n_forward_passes_since_fired != stock.n_forward_passes_since_fired
    found["since fired"] = int(other.sum()), 0.01 * len(other)
    return found


def assert_same_state(ours, stock, tolerance):
    assert_within(state_differences(ours, stock, tolerance))
