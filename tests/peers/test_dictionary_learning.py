"""The drop-in trainers for dictionary_learning through its own `trainSAE`, beside the stock ones on the same rows."""

import json
import subprocess
import sys

import pytest
import torch

from tests.peers.dictionary_learning_runs import (
    CASES,
    HAS_BACKUPS,
    K_FAMILY,
    assert_same_state,
    batches,
    make,
    stock_and_ours,
    train,
    training,
    utils,
)
from tests.peers.nudged import assert_within, nudge

CLIPPED = (*K_FAMILY, "JumpReluTrainer", "StandardTrainerAprilUpdate")


@pytest.fixture(scope="module")
def rows(real_rows):
    """E||x||^2 = 1, as `normalize_activations` has it."""
    return real_rows / real_rows.square().sum(dim=1).mean().sqrt()


def both(rows, names=CASES, steps=40, folders=(None, None), **options):
    """All the stock trainers on one stream, then all of ours: by name, and what was seen of each after every step."""
    found = []
    for which, folder in enumerate(folders):
        trainers = {name: make(stock_and_ours(name)[which], name, steps) for name in names}
        seen = train(list(trainers.values()), rows, steps, save_dir=folder and str(folder), **options)
        found.append((trainers, dict(zip(names, seen))))
    return found


def differences(stock, ours, later):
    """In what `train` saw, with their tolerances: fp32's rounding for 15 steps, `later` after them."""
    found = {}
    for step, (a, b) in enumerate(zip(stock, ours, strict=True)):
        assert a[2] is None or type(a[2]) is type(b[2]), step
        for what, want, got in zip(("error", "activation", "loss"), a, b):
            if want is not None:  # as some losses are
                found[step, what] = abs(got - want), (5e-6 if step < 15 else later) * abs(want)
        if step < 20:
            found[step, "dead latents"] = abs(a[3] - b[3]), 0
    return found


def assert_same_steps(stock, ours, later=5e-5, nudged=None):
    """nudged: for a seed, what `train` saw of a nudged stock trainer, which `ours` may differ like."""
    of_nudged = nudged and (lambda seed: differences(stock, nudged(seed), later))
    assert_within(differences(stock, ours, later), of_nudged)


def nudged_stock(name, rows, steps=40, **options):
    """For a seed, what `train` sees of a nudged stock trainer."""

    def seen(seed):
        trainer = make(stock_and_ours(name)[0], name, steps)
        nudge(trainer.ae, seed)
        return train([trainer], rows, steps, **options)[0]

    return seen


def later(name):
    """Where gates and thresholds decide and Adam has no momentum, one entry on the border turns everything a little."""
    return 2e-2 if name in ("JumpReluTrainer", "GatedSAETrainer") else 5e-5


@pytest.fixture(scope="module")
def plain(rows):
    """With the norms that the stock trainers clip."""
    norms, clip = [], torch.nn.utils.clip_grad_norm_

    def watched(parameters, largest):
        norms.append(float(norm := clip(parameters, largest)))
        return norm

    torch.nn.utils.clip_grad_norm_ = watched
    try:
        return *both(10 * rows), norms
    finally:
        torch.nn.utils.clip_grad_norm_ = clip


@pytest.mark.parametrize("name", CASES)
def test_every_step_is_that_of_the_stock_trainer(name, plain, rows):
    (stock, seen), (ours, ours_seen), _ = plain
    assert_same_steps(seen[name], ours_seen[name], later(name), nudged_stock(name, 10 * rows))
    assert ours[name].config == stock[name].config
    assert ours[name].scheduler.state_dict() == stock[name].scheduler.state_dict()


@pytest.mark.parametrize("name", CASES)
def test_the_state_is_that_of_the_stock_trainer(name, rows):
    stock, ours = (make(kind, name, 16) for kind in stock_and_ours(name))
    for trainer in (stock, ours):
        train([trainer], 3 * rows, 16)
    assert_same_state(ours, stock)


def test_the_runs_reach_what_they_are_to_test(plain):
    (stock, seen), (ours, _), norms = plain
    assert len(norms) >= 40 * len(CLIPPED)
    for i, name in enumerate(CLIPPED):
        of_trainer = norms[i : 40 * len(CLIPPED) : len(CLIPPED)]
        assert sum(norm > 1 for norm in of_trainer) > 10, name
    for name in K_FAMILY:
        assert max(step[3] for step in seen[name]) > 0 and stock[name].ae.threshold > 0
    for trainer in ours.values():
        assert trainer._engine.state.step == 40


@pytest.mark.parametrize("name", K_FAMILY)
def test_auxk_of_dead_latents(name, rows):
    """Without clipping, and with weight enough to be seen."""
    kinds, steps = stock_and_ours(name), []
    for kind, auxk_alpha in zip((*kinds, kinds[1]), (1.0, 1.0, 0.0)):
        steps += train([make(kind, name, 25, auxk_alpha=auxk_alpha)], rows, 25)
    stock, ours, without = steps
    assert_same_steps(stock, ours)
    assert max(step[3] for step in stock) > 3
    assert abs(without[-1][0] - ours[-1][0]) > 10 * abs(stock[-1][0] - ours[-1][0])


@pytest.fixture(scope="module")
def saved(rows, tmp_path_factory):
    """Log steps, checkpoints, normalised input, everything in files."""
    folders = [tmp_path_factory.mktemp(name) for name in ("stock", "ours")]
    more = {"backup_steps": 5} if HAS_BACKUPS else {}
    more |= {"normalize_activations": True, "verbose": True, "log_steps": 3, "save_steps": [0, 10, 29]}
    return both(7 * rows, folders=folders, **more), folders


@pytest.mark.parametrize("name", CASES)
def test_log_steps_and_checkpoints_do_the_same(name, saved):
    """`loss` on a log step counts its batch and moves thresholds; checkpoints scale the biases and back."""
    ((stock, seen), (ours, ours_seen)), folders = saved
    assert_same_steps(seen[name], ours_seen[name], later(name))
    assert ours[name].get_logging_parameters().keys() == stock[name].get_logging_parameters().keys()
    place = f"trainer_{list(CASES).index(name)}"
    for file in ("checkpoints/ae_0.pt", "checkpoints/ae_10.pt", "checkpoints/ae_29.pt", "ae.pt"):
        a, b = (torch.load(folder / place / file) for folder in folders)
        assert a.keys() == b.keys()
        rtol = 1e-4 if file[-6:] in ("e_0.pt", "_10.pt") else 10 * later(name)
        for key in a:
            assert (a[key] - b[key]).double().norm() <= rtol * a[key].double().norm(), (file, key)
        sizes = [(folder / place / file).stat().st_size for folder in folders]
        assert sizes[1] <= 1.01 * sizes[0], file
    a, b = (json.loads((folder / place / "config.json").read_text()) for folder in folders)
    assert a == b


@pytest.mark.parametrize("name", CASES)
def test_the_file_loads_in_the_stock_library(name, saved, rows):
    (_, (trainers, _)), (_, folder) = saved
    trainer, x = trainers[name], 7 * rows[:200]
    loaded, config = utils.load_dictionary(str(folder / f"trainer_{list(CASES).index(name)}"), "cpu")
    assert type(loaded) is type(trainer.ae) and config["trainer"]["trainer_class"] == name
    sae = trainer._engine.sae
    if name in ("BatchTopKTrainer", "MatryoshkaBatchTopKTrainer"):  # the threshold is kept by the stock code
        sae.threshold.data.copy_(trainer.ae.threshold)
    with torch.no_grad():
        want = loaded(x)
        assert want.std() > 0.01
        torch.testing.assert_close(trainer.ae(x), want, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(sae(x).x_hat, want, rtol=1e-4, atol=1e-5)


class Stopped(Exception):
    pass


class Stream:
    """Ends after nine batches when it is read for the norm, and stops the training there."""

    def __init__(self, rows):
        self.rows, self.read = rows, 0

    def __iter__(self):
        self.read += 1
        yield from batches(self.rows, 9)
        if self.read == 2:
            raise Stopped


@pytest.mark.skipif(not HAS_BACKUPS, reason="0.1.0 has no backups")
def test_a_backup_is_that_of_the_stock_run(rows, tmp_path):
    found = []
    for which in (0, 1):
        trainers, folder = [make(stock_and_ours(name)[which], name) for name in CASES], tmp_path / str(which)
        configs = [{"trainer": lambda trainer=trainer: trainer} for trainer in trainers]
        # normalised, for otherwise its `norm_factor` does not exist
        options = {"device": "cpu", "backup_steps": 4, "normalize_activations": True}
        with pytest.raises(Stopped):
            training.trainSAE(Stream(3 * rows), configs, 40, save_dir=str(folder), **options)
        found.append([torch.load(folder / f"trainer_{i}/ae.pt") for i in range(len(CASES))])
    for a, b in zip(*found):
        assert a["step"] == b["step"] == 8 and a["config"] == b["config"]
        assert a["optimizer"]["param_groups"] == b["optimizer"]["param_groups"]
        for key, tensor in a["ae"].items():
            assert (tensor - b["ae"][key]).double().norm() <= 1e-4 * tensor.double().norm(), key
        for index, state in a["optimizer"]["state"].items():
            for key, tensor in state.items():
                assert (tensor - b["optimizer"]["state"][index][key]).norm() <= 1e-3 * tensor.norm(), key


@pytest.mark.parametrize("name", CASES)
def test_held_out_quality_after_300_steps(name, rows):
    """By then the two have chosen differently here and there."""
    found, rows = [], 1.7 * rows[:, :192]
    held_out = rows[-1024:]
    for kind in stock_and_ours(name):
        trainer = make(kind, name, 300, d=192)
        train([trainer], rows[:-1024], 300)
        with torch.no_grad():
            x_hat, acts = trainer.ae(held_out, output_features=True)
        error, spread = (x_hat - held_out).square().sum(), (held_out - held_out.mean(0)).square().sum()
        found.append((float(error / spread), float((acts != 0).sum(1).float().mean())))
    (fvu, l0), ours = found
    assert 0 < fvu < 0.8 and l0 > 5
    assert ours == pytest.approx((fvu, l0), rel=0.01)


@pytest.mark.parametrize("name", CASES)
def test_16_bit_activations(name, rows):
    """On a CPU `trainSAE` hands them over without autocast, to parameters of fp32."""
    trainers = [make(kind, name, 12) for kind in stock_and_ours(name)]
    if name == "MatryoshkaBatchTopKTrainer":  # the stock one makes b_dec bf16, and stops at the next product
        with pytest.raises(RuntimeError, match="dtype"):
            train([trainers[0]], rows, 12, autocast_dtype=torch.bfloat16)
        train([trainers[1]], rows, 12, autocast_dtype=torch.bfloat16)
        assert trainers[1].ae.b_dec.dtype == torch.float32 and trainers[1]._engine.state.step == 12
        return
    in_bf16 = {"steps": 12, "autocast_dtype": torch.bfloat16}
    seen = [train([trainer], rows, **in_bf16)[0] for trainer in trainers]
    assert_same_steps(*seen, nudged=nudged_stock(name, rows, **in_bf16))
    assert trainers[1]._engine.state.step == 12


def test_importing_changes_nothing_and_says_what_is_missing():
    code = (
        "import sys; sys.modules['dictionary_learning'] = None; import saefast.adapters.dictionary_learning"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ImportError: saefast.adapters.dictionary_learning" in done.stderr
    assert "pip install dictionary-learning" in done.stderr
    for name, (module, _) in CASES.items():
        assert getattr(module, name).update.__module__ == module.__name__
