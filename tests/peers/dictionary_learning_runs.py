"""dictionary_learning's `trainSAE`, with its own trainers and with ours; skips where it is not installed."""

import inspect
from importlib.util import find_spec

import pytest
import torch

from benchmarks.peers.runs import stand_ins

if find_spec("dictionary_learning") is None:
    pytest.skip("dictionary_learning is not installed", allow_module_level=True)
# these are for language models, and nnsight changes torch.autocast for everybody
with stand_ins("nnsight", "datasets", "zstandard"):
    from dictionary_learning import training, utils  # noqa: F401
    from dictionary_learning.trainers import (
        batch_top_k,
        gdm,
        jumprelu,
        matryoshka_batch_top_k,
        standard,
        top_k,
    )

    import saefast.adapters.dictionary_learning as fast

F, B, D = 301, 89, 64  # not all nice
SCHEDULE = {"lr": 2e-3, "warmup_steps": 4, "sparsity_warmup_steps": 8}
WITH_K = {"lr": 2e-3, "warmup_steps": 4, "k": 13, "threshold_start_step": 5, "threshold_beta": 0.9}
GROUPS = [0.13, 0.2, 0.67]
CASES = {
    "TopKTrainer": (top_k, WITH_K),
    "BatchTopKTrainer": (batch_top_k, WITH_K),
    "MatryoshkaBatchTopKTrainer": (matryoshka_batch_top_k, WITH_K | {"group_fractions": GROUPS}),
    "JumpReluTrainer": (jumprelu, SCHEDULE | {"lr": 1e-3, "target_l0": 25.0}),
    "GatedSAETrainer": (gdm, SCHEDULE | {"l1_penalty": 0.2}),
    "StandardTrainer": (standard, SCHEDULE | {"l1_penalty": 0.06}),
    "StandardTrainerAprilUpdate": (standard, SCHEDULE | {"l1_penalty": 0.06}),
}
K_FAMILY = ("TopKTrainer", "BatchTopKTrainer", "MatryoshkaBatchTopKTrainer")
HAS_K_ANNEALING = "k_anneal_steps" in inspect.signature(top_k.TopKTrainer).parameters  # not in 0.1.0
HAS_BACKUPS = "backup_steps" in inspect.signature(training.trainSAE).parameters


def narrow(real_rows):
    """[8192, 64], with a mean square norm of 4."""
    few = real_rows[:, :D]
    return 2 * few / few.square().sum(dim=1).mean().sqrt()


def stock_and_ours(name):
    return getattr(CASES[name][0], name), getattr(fast, name)


def make(kind, name, steps=40, d=576, **changes):
    """A trainer. A latent is dead after four batches."""
    options = {
        "steps": steps,
        "activation_dim": d,
        "dict_size": F,
        "layer": 0,
        "lm_name": "none",
        "device": "cpu",
    }
    options |= CASES[name][1] | {"decay_start": steps - steps // 4} | changes
    torch.manual_seed(7)
    trainer = kind(**options) if name == "JumpReluTrainer" else kind(seed=7, **options)
    trainer.dead_feature_threshold = 4 * B
    return trainer


def batches(rows, steps, size=B, seed=0):
    """Copies, for `trainSAE` divides its data in place."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        yield rows[torch.randint(len(rows), (size,), generator=generator)]


def pair(name, **changes):
    return [make(kind, name, d=D, **changes) for kind in stock_and_ours(name)]


def steps(trainer, rows, first=0, last=12):
    for step, x in enumerate(batches(rows, last)):
        if step >= first:
            trainer.update(step, x)
    return trainer


def train(trainers, rows, steps=40, **options):
    """The trainers through `trainSAE`. Of each after every step: squared error and mean activation of held-out rows, what
    `update` returned, how many latents are dead."""
    seen = [[] for _ in trainers]

    def entry(trainer, found):
        update, held_out = trainer.update, rows[-64:]

        def watched(step, x):
            out = update(step, x)
            with torch.no_grad():
                x_hat, acts = trainer.ae(held_out, output_features=True)
            since = getattr(trainer, "num_tokens_since_fired", torch.zeros(()))
            dead = int((since >= trainer.dead_feature_threshold).sum())
            found.append((float((x_hat - held_out).square().mean()), float(acts.mean()), out, dead))

        trainer.update = watched
        return {"trainer": lambda: trainer}

    configs = [entry(trainer, found) for trainer, found in zip(trainers, seen)]
    data = list(batches(rows, steps)) if options.get("normalize_activations") else batches(rows, steps)
    training.trainSAE(data, configs, steps, device="cpu", **options)
    for trainer in trainers:
        del trainer.update
    return seen


def assert_same_state(ours, stock, rtol=1e-4):
    """Parameters, moments, numbers of steps, counters."""
    for (name, a), b in zip(ours.ae.state_dict().items(), stock.ae.state_dict().values()):
        assert (a - b).double().norm() <= rtol * b.double().norm(), name
    a, b = ours.optimizer.state_dict(), stock.optimizer.state_dict()
    assert a["param_groups"] == b["param_groups"] and a["state"].keys() == b["state"].keys()
    for index, found in b["state"].items():
        assert int(a["state"][index]["step"]) == int(found["step"])
        for key in ("exp_avg", "exp_avg_sq"):
            mine = a["state"][index][key]
            assert mine.shape == found[key].shape
            assert (mine - found[key]).norm() <= 10 * rtol * found[key].norm(), (index, key)
    if hasattr(stock, "num_tokens_since_fired"):
        assert torch.equal(ours.num_tokens_since_fired, stock.num_tokens_since_fired)
