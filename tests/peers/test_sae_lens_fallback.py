"""What `saefast.adapters.sae_lens` leaves to SAELens's own step, and the architecture "fast_topk"."""

import contextlib
import logging
from functools import partial

import pytest
import torch

from saefast.adapters import sae_lens_fast_topk as fast
from tests.peers.sae_lens_runs import (
    B,
    F,
    K,
    adapter,
    assert_near,
    assert_same_state,
    batches,
    both,
    dense,
    make,
    narrow,
    sae_lens,
    steps,
)


@pytest.fixture(scope="module")
def rows(real_rows):
    return narrow(real_rows)


def change(**attributes):
    return lambda trainer: [setattr(trainer.sae, name, value) for name, value in attributes.items()]


def decay(trainer):
    trainer.optimizer.param_groups[0]["weight_decay"] = 0.1


def freeze(trainer):
    trainer.sae.b_dec.requires_grad_(False)


def own_method(trainer):
    trainer.sae.calculate_aux_loss = partial(type(trainer.sae).calculate_aux_loss, trainer.sae)


def hooked(trainer):
    trainer.sae.hook_sae_input.add_hook(lambda tensor, hook: tensor)


QUADRATIC = {"jumprelu_sparsity_loss_mode": "quadratic", "target_l0": 9.0}
LAYER_NORM = {"normalize_activations": "layer_norm", "aux_loss_coefficient": 0.0}
REFUSED = {  # the option: a case, options of the SAE, what is done to the trainer, what the warning says
    "architecture": ("Gated", {}, None, "GatedTrainingSAE"),
    "lp_norm": ("Standard", {"lp_norm": 0.7}, None, "expected 1, got 0.7"),
    "jumprelu_sparsity_loss_mode": ("JumpReLU", QUADRATIC, None, "'quadratic'"),
    "use_matryoshka_aux_loss": ("matryoshka", {"use_matryoshka_aux_loss": True}, None, "got True"),
    "k": ("batchtopk", {"k": 4.5}, None, "expected an integer, got 4.5"),
    "normalize_activations": ("topk", LAYER_NORM, None, "'layer_norm'"),
    "dtype": ("topk", {"dtype": "bfloat16"}, None, "bfloat16"),
    "mse_loss_fn": ("topk", {}, change(mse_loss_fn=lambda a, b: 2 * (a - b) ** 2), "another"),
    "own calculate_aux_loss": ("topk", {}, own_method, "methods of its class"),
    "requires_grad": ("topk", {}, freeze, "b_dec"),
    "weight_decay": ("topk", {}, decay, "got 0.1"),
    "hook_sae_input": ("topk", {}, hooked, "hooks: expected none"),
}


@pytest.mark.parametrize("option", REFUSED)
def test_what_falls_back_is_said_once_and_is_saelens_own(option, rows, caplog):
    name, of_sae, setup, message = REFUSED[option]
    trainers = both(name, rows, sae=of_sae, dead_feature_window=100)
    with caplog.at_level(logging.WARNING, "saefast"):
        for trainer in trainers:
            (setup or (lambda _: None))(trainer)
            steps(trainer, 4)
    assert caplog.text.count("SAELens's own step is used") == 1
    assert option in caplog.text and message in caplog.text
    for got, want in zip(*(trainer.sae.parameters() for trainer in trainers)):
        assert torch.equal(got, want)


def test_other_batches_fall_back_for_a_step(rows, caplog):
    stock, ours = both("standard", rows)
    for trainer in (stock, ours):
        steps(trainer, 3)
        trainer.data_provider = iter([rows[:100].double(), rows[:100].bfloat16()])
        steps(trainer, 2)
        trainer.data_provider = batches(rows)
        steps(trainer, 3)
        with pytest.raises(IndexError):  # as SAELens does
            trainer.step(rows[:100].view(2, 50, -1))
    assert caplog.text.count("own step") == 2 and "[2, 50, 96]" in caplog.text and "float64" in caplog.text
    assert_same_state(ours, stock, 1e-4)


def test_a_nonfinite_batch_leaves_the_weights(rows):
    ours = make(adapter.SAETrainer, "standard", rows)
    steps(ours, 3)
    before = {key: tensor.clone() for key, tensor in ours.sae.state_dict().items()}
    bad = rows[:B].clone()
    bad[3, 5] = torch.inf
    with contextlib.suppress(ValueError):
        ours.step(bad)
    for key, tensor in ours.sae.state_dict().items():
        assert torch.equal(tensor, before[key]), key


# The architecture of its own


PLAIN = {"rescale_acts_by_decoder_norm": False, "apply_b_dec_to_input": False}


@pytest.mark.parametrize("options", [{}, PLAIN])
def test_fast_topk_is_topk(options, rows, tmp_path):
    fast.register()
    fast.register()
    stock = make(adapter.Stock, "topk", rows.double(), sae=options)
    other = make(adapter.Stock, "topk", rows.double(), sae=options)
    torch.manual_seed(0)
    config = fast.FastTopKTrainingSAEConfig(d_in=96, d_sae=F, k=K, dtype="float64", **options)
    ours = adapter.Stock(other.cfg, sae_lens.TrainingSAE.from_dict(config.to_dict()), batches(rows.double()))
    assert type(ours.sae) is fast.FastTopKTrainingSAE
    for got, want in zip(steps(ours, 20), steps(stock, 20), strict=True):
        for key in want.losses:
            assert_near(got.losses[key], want.losses[key], 1e-10, key)
        assert got.feature_acts.is_sparse
        assert_near(dense(got.feature_acts), want.feature_acts, 1e-10, "feature_acts")
    assert want.losses["auxiliary_reconstruction_loss"] > 0
    assert_same_state(ours, stock, 1e-10)
    ours.sae.save_inference_model(tmp_path)
    loaded = sae_lens.SAE.load_from_disk(tmp_path)
    assert type(loaded) is sae_lens.TopKSAE
    x = rows[:50].double()
    assert_near(loaded(x), stock.sae(x), 1e-10, "sae_out")
    assert config.to_dict()["architecture"] == "fast_topk"
