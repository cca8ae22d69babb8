"""`evaluate_in_model` on a tiny language model, against plain hooks."""

import math

import pytest
import torch
import torch.nn.functional as F

from saefast import SAE, InputError, SAEConfig
from saefast.activations.lm import HookPoint
from saefast.interp import splice
from saefast.interp.splice import evaluate_in_model
from tests.helpers import tiny_lm

HOOK, VOCAB = "model.layers.1", 64


@pytest.fixture(scope="module")
def model():
    return tiny_lm.model()


def batches(n=3):
    generator = torch.Generator().manual_seed(8)
    return list(torch.randint(2, VOCAB, (n, 2, 16), generator=generator))


def perfect():
    """relu(x) and relu(-x) along the axes: the reconstruction is x."""
    sae = SAE(SAEConfig(d_in=32, d_sae=64, k=32))
    both = torch.cat([torch.eye(32), -torch.eye(32)])
    sae.W_dec.data.copy_(both)
    sae.W_enc.data.copy_(both)
    return sae


def constant(value):
    sae = SAE(SAEConfig(d_in=32, d_sae=64, k=4))
    sae.W_dec.data.zero_()
    sae.b_dec.data.copy_(value)
    return sae


def cross_entropy(model, function=None, max_norm=float("inf")):
    """Oracle: the loss with function(rows) in place of the residual stream after block 1, by a plain hook."""

    def hook(module, args, output):
        hidden = output if torch.is_tensor(output) else output[0]
        new = torch.where(hidden.norm(dim=-1, keepdim=True) > max_norm, hidden, function(hidden))
        return new if torch.is_tensor(output) else (new, *output[1:])

    handle = model.model.layers[1].register_forward_hook(hook) if function else None
    with torch.no_grad():
        logits = torch.cat([model(batch).logits for batch in batches()])
    if handle:
        handle.remove()
    target = torch.cat(batches())[:, 1:]
    return float(F.cross_entropy(logits[:, :-1].flatten(0, 1), target.flatten())), logits


def mean_activation(model, max_norm=float("inf")):
    hidden = torch.cat([HookPoint(model, HOOK).capture(batch).detach().flatten(0, 1) for batch in batches()])
    return hidden[hidden.norm(dim=1) <= max_norm].double().mean(dim=0).float()


def test_a_perfect_sae_recovers_the_loss(model):
    result = evaluate_in_model(perfect(), model, HOOK, batches())
    assert result.n_tokens == 3 * 2 * 15
    assert result.ce == pytest.approx(cross_entropy(model)[0], rel=1e-6)
    assert result.ce_sae == pytest.approx(result.ce, rel=1e-6) and abs(result.kl) < 1e-6
    assert result.loss_recovered == pytest.approx(1, abs=1e-5)
    assert result.loss_recovered_mean == pytest.approx(1, abs=1e-4)


def test_an_sae_that_gives_zeros_is_zero_ablation(model):
    result = evaluate_in_model(constant(0), model, HOOK, batches())
    want, spliced = cross_entropy(model, torch.zeros_like)
    assert result.ce_sae == result.ce_zero == pytest.approx(want, rel=1e-6)
    assert result.loss_recovered == 0 and abs(want - result.ce) > 1e-3
    clean, spliced = (
        logits[:, :-1].double().log_softmax(dim=-1) for logits in (cross_entropy(model)[1], spliced)
    )
    kl = float((clean.exp() * (clean - spliced)).sum(dim=-1).mean())
    assert kl > 0.01 and result.kl == pytest.approx(kl, rel=1e-4)


def test_an_sae_that_gives_the_mean_is_mean_ablation(model):
    mean = mean_activation(model)
    result = evaluate_in_model(constant(mean), model, HOOK, batches())
    want, _ = cross_entropy(model, lambda hidden: mean.expand_as(hidden))
    assert result.ce_sae == pytest.approx(want, rel=1e-5) and result.ce_mean == pytest.approx(want, rel=1e-5)
    assert result.loss_recovered_mean == pytest.approx(0, abs=1e-3) and abs(want - result.ce_zero) > 1e-3


def test_rows_above_max_norm_stay_as_they_are(model):
    norms = torch.cat(
        [HookPoint(model, HOOK).capture(batch).detach().norm(dim=-1).flatten() for batch in batches()]
    )
    limit = float(norms.median())
    result = evaluate_in_model(constant(0), model, HOOK, batches(), max_norm=limit)
    want, _ = cross_entropy(model, torch.zeros_like, limit)
    mean = mean_activation(model, limit)
    want_mean, _ = cross_entropy(model, lambda hidden: mean.expand_as(hidden), limit)
    assert result.ce_sae == result.ce_zero == pytest.approx(want, rel=1e-6)
    assert result.ce_mean == pytest.approx(want_mean, rel=1e-5)
    assert abs(want - cross_entropy(model, torch.zeros_like)[0]) > 1e-4


def test_where_ablation_changes_nothing_there_is_no_loss_to_recover(model):
    result = evaluate_in_model(constant(0), model, HOOK, batches(), max_norm=0.0)  # every row stays
    assert result.ce == result.ce_sae == result.ce_zero == result.ce_mean and result.kl == 0
    assert math.isnan(result.loss_recovered) and math.isnan(result.loss_recovered_mean)


def test_bad_input_of_the_evaluation_in_the_model(model):
    for sae, hook, given, message in (
        (perfect(), "model.layers.9", batches(), "^hook: expected a module path"),
        (
            SAE(SAEConfig(d_in=6, d_sae=40, k=3)),
            HOOK,
            batches(),
            "^hook: expected activations of width d_in = 6, got 32 at 'model.layers.1'$",
        ),
        (perfect(), HOOK, [], "^batches: expected at least one batch of tokens, got none$"),
        (perfect(), HOOK, [torch.ones(4, 1).long()], "^batches: expected contexts of at least two tokens"),
    ):
        with pytest.raises(InputError, match=message):
            evaluate_in_model(sae, model, hook, given)


@pytest.mark.parametrize("hook", [HOOK, "model.layers.1:in", "model.layers.1.mlp", "model.layers.2"])
def test_blocks_before_the_hook_point_run_once_for_each_batch_and_change_no_figure(model, hook, monkeypatch):
    runs = []
    handle = model.model.layers[0].mlp.register_forward_hook(lambda *args: runs.append(args[0]))
    saes = [perfect(), constant(0)]
    found = splice.evaluate_all_in_model(saes, model, hook, batches())
    # two to find the rows of the tokens, two of the first context to see whether blocks can be skipped
    assert len(runs) == 2 + 2 + 3
    monkeypatch.setattr(splice, "blocks_can_be_skipped", lambda *args: False)
    assert splice.evaluate_all_in_model(saes, model, hook, batches()) == found
    assert len(runs) == 7 + 2 + 3 * (1 + 5)
    handle.remove()
    assert not any("forward" in vars(module) for module in model.modules())


def use_in_last_block(model, found):
    """The last block adds what the MLP of the first one gave in the same pass, as models with shared values do."""
    first, last = model.model.layers[0].mlp, model.model.layers[2]
    return [
        first.register_forward_hook(lambda module, args, output: found.append(output)),
        last.register_forward_hook(lambda module, args, output: output + found.pop()),
    ]


def change_in_place(model, _):
    """The last block adds one to its input, which is the tensor that the block before it gave."""

    def add_one(module, args):
        args[0].add_(1)

    return [model.model.layers[2].register_forward_pre_hook(add_one)]


@pytest.mark.parametrize("arrange", [use_in_last_block, change_in_place])
def test_blocks_that_later_ones_depend_on_are_not_skipped(model, arrange, monkeypatch):
    handles = arrange(model, [])
    found = evaluate_in_model(constant(0), model, HOOK, batches())
    monkeypatch.setattr(splice, "blocks_can_be_skipped", lambda *args: False)
    want = evaluate_in_model(constant(0), model, HOOK, batches())
    for handle in handles:
        handle.remove()
    assert found == want
