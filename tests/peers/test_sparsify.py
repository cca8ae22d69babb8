"""The drop-in trainer for sparsify against sparsify's own, on the same rows, seed and configuration."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_model
from torch.testing import assert_close

from saefast.adapters import sparsify as ours
from saefast.adapters.sparsify_signum import signum_step
from saefast.backend import unavailable
from saefast.errors import InputError
from tests.peers.sparsify_runs import assert_same, fit, make, narrow, repaired, run, sparse_coder, stock

EXCLUDED = list(range(0, 2000, 3))
AUXK = {"auxk_alpha": 1 / 8, "dead_feature_threshold": 257}  # one batch: not dead yet
CASES = {
    "topk": {},
    "groupmax": {"activation": "groupmax", "num_latents": 300, "k": 10},
    "transcode": {"transcode": True, "hookpoints": ["mlp"]},
    "skip transcode": {"transcode": True, "skip_connection": True, "hookpoints": ["mlp"]},
    "free decoder": {"normalize_decoder": False},
    "excluded tokens": {"exclude_tokens": EXCLUDED},
    "accumulation": {"grad_acc_steps": 2, "micro_acc_steps": 3},
    "several coders": {"hookpoints": ["lookup", "mlp"], "init_seeds": [0, 5]},
    "default lr": {"lr": None},
    "save_best": {"save_best": True, "save_every": 4},
}


@pytest.fixture(scope="module")
def rows(real_rows):
    return narrow(real_rows)


def both(rows, folder, **options):
    return run(stock.Trainer, rows, folder, **options), run(ours.Trainer, rows, folder, **options)


@pytest.mark.parametrize("optimizer", ["adam", "signum"])
@pytest.mark.parametrize("case", CASES)
def test_steps_are_those_of_sparsify(case, optimizer, rows, tmp_path):
    options = CASES[case] | {"optimizer": optimizer}
    if optimizer == "signum" and options.get("transcode"):
        # W_dec is 0 at first: were b_dec the mean, its gradient would be rounding errors, and so would be their signs
        options["finetune"] = "biases stay 0"
    # a gradient that is all rounding error has the sign of that: an element goes the other way, on some processors
    weights = 5e-4 if optimizer == "signum" else 1e-5
    nudged = partial(run, stock.Trainer, rows, tmp_path, **options)
    assert_same(*both(rows, tmp_path, **options), weights=weights, nudged=nudged)


@pytest.mark.parametrize("optimizer", ["adam", "signum"])
@pytest.mark.parametrize(
    "options",
    [
        AUXK,
        AUXK | {"transcode": True, "hookpoints": ["mlp"], "finetune": "biases stay 0"},
        {"multi_topk": True, "steps": 16},  # later a few of the 4k chosen differ: signum's steps are large
        AUXK | {"multi_topk": True, "grad_acc_steps": 2, "micro_acc_steps": 3, "exclude_tokens": EXCLUDED},
        AUXK | {"activation": "groupmax", "num_latents": 300, "k": 10},
        AUXK | {"k_decay_steps": 10},
    ],
    ids=["auxk", "auxk transcode", "multi_topk", "all", "auxk groupmax", "k_decay"],
)
def test_with_the_gradients_that_sparsify_drops(options, optimizer, rows, tmp_path):
    """AuxK, Multi-TopK, and a k above the number of positive latents."""
    with repaired():
        want = run(stock.Trainer, rows, tmp_path, optimizer=optimizer, **options)
    if "auxk_alpha" in options:
        assert any(value for log in want.logs for key, value in log.items() if key.startswith("auxk/"))
    # where a gradient is nearly 0, signum's step is that of its sign
    weights = 1e-5 if optimizer == "adam" else 1e-3
    assert_same(want, run(ours.Trainer, rows, tmp_path, optimizer=optimizer, **options), weights=weights)


def test_auxk_reaches_the_encoder_which_it_does_not_in_sparsify(rows, tmp_path):
    """By one step from the same weights, in which one latent is dead: its row of the encoder."""
    moved = []
    for cls in (stock.Trainer, ours.Trainer):
        trainer = make(cls, rows, tmp_path, steps=1, optimizer="signum", finetune="as it is", **AUXK)
        coder = trainer.saes["lookup"]
        coder.encoder.weight.data[5] *= 1e-3  # never among the k
        coder.encoder.bias.data[5] = 1e-3
        trainer.num_tokens_since_fired["lookup"][5] = 10**9
        before = coder.encoder.weight[5].clone()
        fit(trainer)
        assert trainer.num_tokens_since_fired["lookup"][5] > 10**9
        moved.append(not torch.equal(coder.encoder.weight[5], before))
    assert moved == [False, True]


def test_muon(rows, tmp_path, monkeypatch):
    """Its Newton-Schulz iteration in fp64: in bf16, as it is, a rounding error of a gradient becomes one of bf16."""

    def iterate(gradient, steps):
        X = gradient.double()
        X = X.mT if X.size(0) > X.size(1) else X
        X = X / (X.norm() + 1e-7)
        for _ in range(steps):
            A = X @ X.mT
            X = 3.4445 * X + (-4.7750 * A + 2.0315 * A @ A) @ X
        return (X.mT if gradient.size(0) > gradient.size(1) else X).float()

    want, got = both(rows, tmp_path, optimizer="muon")
    assert_close(got.curve("fvu/lookup"), want.curve("fvu/lookup"), rtol=2e-3, atol=0)
    monkeypatch.setattr("sparsify.muon.quintic_newtonschulz", iterate)
    assert_same(*both(rows, tmp_path, optimizer="muon"), rtol=2e-5, weights=1e-4)


@pytest.mark.parametrize("n_numbers", [1, 2**17 - 1, 2**18 + 5])
def test_signum_step_is_that_of_schedulefree_to_the_last_bit(n_numbers):
    from schedulefree import ScheduleFreeWrapper
    from sparsify.sign_sgd import SignSGD

    generator, made = torch.Generator().manual_seed(0), []
    start = torch.randn(n_numbers, generator=generator)
    for _ in range(2):
        params = [start.clone().requires_grad_(), torch.ones(3, requires_grad=True)]
        optimizer = ScheduleFreeWrapper(SignSGD(params, lr=0.01), momentum=0.95)
        optimizer.train()
        made.append((params, optimizer))
    for step in range(4):
        gradient = torch.randn(n_numbers, generator=generator)
        gradient[::3] = 0
        for (params, optimizer), stepped in zip(made, (ScheduleFreeWrapper.step, signum_step)):
            params[0].grad = gradient.clone()
            optimizer.param_groups[0]["lr"] = 0.01 / (step + 1)
            stepped(optimizer)
    (want, theirs), (got, mine) = made
    assert all(torch.equal(a, b) for a, b in zip(want, got))
    assert torch.equal(theirs.state[want[0]]["z"], mine.state[got[0]]["z"])
    groups = [{k: v for k, v in o.param_groups[0].items() if k != "params"} for o in (theirs, mine)]
    assert groups[0] == groups[1]


def test_signum_takes_that_step_while_fit_runs(rows, tmp_path, monkeypatch):
    taken = []
    monkeypatch.setattr(ours, "signum_step", lambda optimizer: taken.append(1) or signum_step(optimizer))
    got = run(ours.Trainer, rows, tmp_path, optimizer="signum")
    assert len(taken) == 20 and "step" not in got.trainer.optimizers[0].__dict__


@pytest.mark.parametrize("optimizer", ["adam", "signum"])
def test_files(optimizer, rows, tmp_path):
    """They open in sparsify, hold what was trained, and but for the rows of W_dec are what sparsify writes."""
    want, got = both(rows, tmp_path, optimizer=optimizer)
    folders = [f"{each.trainer.cfg.save_dir}/unnamed" for each in (want, got)]
    theirs, mine = (sparse_coder.SparseCoder.load_from_disk(f"{folder}/lookup") for folder in folders)
    averaged = got.trainer.optimizers[0]
    if optimizer == "signum":
        averaged.eval()  # as it is saved
    coder = got.coders["lookup"]
    assert type(coder) is sparse_coder.SparseCoder and "forward" not in coder.__dict__
    assert_close(mine(rows), coder(rows), rtol=1e-6, atol=1e-6)
    assert_close(mine(rows).fvu, theirs(rows).fvu, rtol=1e-4, atol=0)
    for name in ("lookup/cfg.json", "config.json"):
        a, b = (json.loads(Path(folder, name).read_text()) for folder in folders)
        assert {**a, "save_dir": ""} == {**b, "save_dir": ""}
    theirs.set_decoder_norm_to_unit_norm()
    for (name, a), b in zip(theirs.named_parameters(), mine.parameters()):
        if name == "W_dec" and optimizer == "adam":
            assert_close(b.norm(dim=1), torch.ones(len(b)), rtol=1e-6, atol=0)
            assert_close(a, b, rtol=1e-4, atol=1e-6)
        elif name != "W_dec":
            apart = ~torch.isclose(a, b, rtol=1e-4, atol=1e-6)
            allowed = a.numel() // 1000 if optimizer == "signum" else 0  # signs of rounding errors
            assert apart.sum() <= allowed and (a - b).abs().max() < 1e-2, f"{name}: {int(apart.sum())} apart"
    a, b = (torch.load(f"{folder}/optimizer_0.pt", weights_only=True)["state"] for folder in folders)
    if optimizer == "adam":
        assert_close(a, b, rtol=1e-3, atol=1e-7)
    else:  # as above
        for key in a:
            assert (a[key]["z"] - b[key]["z"]).norm() < 1e-3 * b[key]["z"].norm()
    for name in ("state.pt", "rank_0_state.pt", *(["lr_scheduler_0.pt"] if optimizer == "adam" else [])):
        a, b = (torch.load(f"{folder}/{name}", weights_only=True) for folder in folders)
        assert_close(a, b, rtol=1e-5, atol=0)


def interrupted(first, then, rows, folder, **options):
    """Ctrl-C after 8 of 16 steps, the rest by another trainer."""
    half = make(first.Trainer, rows, folder, steps=16, end=8, **options)
    with pytest.raises(KeyboardInterrupt):
        fit(half)
    assert "forward" not in half.saes["lookup"].__dict__
    half.save()
    rest = make(then.Trainer, rows, folder, steps=16, **options)
    rest.load_state(f"{half.cfg.save_dir}/unnamed")
    return fit(rest)


@pytest.mark.parametrize("optimizer", ["adam", "signum"])
@pytest.mark.parametrize("first, then", [(stock, ours), (ours, stock), (ours, ours)])
def test_resume(first, then, optimizer, rows, tmp_path):
    """As sparsify goes on from its own files: with signum from the average, which is what it saves. (With muon it may
    hand a parameter's momentum to another: it keeps parameters in sets.)"""
    want = interrupted(stock, stock, rows, tmp_path, optimizer=optimizer)
    assert_same(want, interrupted(first, then, rows, tmp_path, optimizer=optimizer))


@pytest.mark.parametrize("optimizer", ["adam", "signum"])
def test_finetune(optimizer, rows, tmp_path):
    """From files whose decoder rows are not of unit norm, as sparsify's command line loads them."""
    found = []
    source = run(stock.Trainer, rows, tmp_path / "source", lr=0.05).trainer
    folder = f"{source.cfg.save_dir}/unnamed"
    assert (source.saes["lookup"].W_dec.norm(dim=1) - 1).abs().max() > 1e-3
    for cls in (stock.Trainer, ours.Trainer):
        trainer = make(cls, rows, tmp_path, optimizer=optimizer, finetune=folder)
        load_model(trainer.saes["lookup"], f"{folder}/lookup/sae.safetensors")
        found.append(fit(trainer))
    assert_same(*found)


@pytest.mark.parametrize("optimizer", ["adam", "signum"])
def test_300_steps_end_at_the_same_fvu_and_l0(optimizer, real_rows, tmp_path):
    part = real_rows[:, :192].contiguous()
    train, heldout = part[:6000], part[6000:]
    options = {"num_latents": 771, "k": 24, "auxk_alpha": 1 / 32, "dead_feature_threshold": 4000}
    scores = []
    for each in both(train, tmp_path, steps=300, length=193, optimizer=optimizer, lr=1e-3, **options):
        coder = sparse_coder.SparseCoder.load_from_disk(f"{each.trainer.cfg.save_dir}/unnamed/lookup")
        with torch.no_grad():
            out = coder(heldout)
        scores.append((out.fvu, (out.latent_acts > 0).sum() / len(heldout)))
    for theirs, mine in zip(*scores):
        assert_close(mine, theirs, rtol=0.01, atol=0)


@pytest.mark.parametrize("optimizer", ["adam", "signum", "muon"])
def test_every_token_of_a_batch_excluded(optimizer, rows, tmp_path):
    """sparsify logs NaN there; here the batch has no loss and no gradient."""
    trainer = make(ours.Trainer, rows, tmp_path, steps=6, optimizer=optimizer, exclude_tokens=[7])
    trainer.dataset.batches[3] = torch.full((257,), 7)
    curve = fit(trainer).curve("fvu/lookup")
    assert curve[3] == 0 and curve[[0, 1, 2, 4, 5]].min() > 0 and curve.max() < 1
    assert int(trainer.num_tokens_since_fired["lookup"].max()) < 5 * 257


@pytest.mark.parametrize("changed", [{"weight_decay": 0.1}, {"amsgrad": True}])
def test_adam_with_options_that_the_engine_has_not(changed, rows, tmp_path):
    found = []
    for cls in (stock.Trainer, ours.Trainer):
        trainer = make(cls, rows, tmp_path)
        trainer.optimizers[0].param_groups[0].update(changed)
        found.append(fit(trainer))
    assert_same(*found)


@pytest.mark.parametrize("optimizer", ["adam", "signum"])
def test_products_in_bf16(optimizer, rows, tmp_path):
    """As on a GPU: the weights have copies for the products, which follow the steps of any optimizer."""
    options = {"optimizer": optimizer, "lr": 1e-2, "lr_warmup_steps": 0}
    want = run(stock.Trainer, rows, tmp_path, **options)
    got = run(partial(ours.Trainer, compute_dtype="bf16"), rows, tmp_path, **options)
    assert want.curve("fvu/lookup")[-1] < 0.8 * want.curve("fvu/lookup")[0]
    assert_close(got.curve("fvu/lookup"), want.curve("fvu/lookup"), rtol=0.02, atol=0)


def test_triton_kernels(rows, tmp_path):
    """In Triton's interpreter, where there is no GPU."""
    if torch.cuda.is_available() or unavailable("triton"):
        pytest.skip("needs Triton's interpreter")
    sizes = {"steps": 3, "length": 33, "num_latents": 70, "k": 5}
    few = sizes | {"auxk_alpha": 1 / 8, "dead_feature_threshold": 33}
    with repaired():
        want = run(stock.Trainer, rows[:, :32].contiguous(), tmp_path, **few)
    cls = partial(ours.Trainer, backend="triton", compute_dtype="fp32")
    assert_same(want, run(cls, rows[:, :32].contiguous(), tmp_path, **few))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_bad_rows(value, rows, tmp_path):
    bad = rows.clone()
    bad[int(make(ours.Trainer, rows, tmp_path).dataset.batches[2][9]), 4] = value
    with pytest.raises(InputError, match="expected finite values"):
        run(ours.Trainer, bad, tmp_path)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"k": 302}, "k: expected at most d_sae = 301, got 302"),
        ({"activation": "groupmax"}, "k: expected a divisor of d_sae = 301 with 'group_max', got 9"),
    ],
)
def test_bad_sizes(options, message, rows, tmp_path):
    with pytest.raises(InputError, match=message):
        run(ours.Trainer, rows, tmp_path, **options)
