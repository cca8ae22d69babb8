"""Random directions, and the check that a kept error changes nothing."""

import torch

from saefast import SAEConfig
from saefast.activations.hooks import HookPoint
from saefast.interp.steering import Edit, random_directions, splice_check, steered
from tests.helpers.effects_cases import HOOKS, language_model
from tests.helpers.spliced import captured, random
from tests.helpers.steering_cases import made
from tests.helpers.tiny_models import tokens


def test_the_splice_check_sees_a_reconstruction_that_is_not_put_back():
    """A model in half the precision of the SAE loses what the error was to keep."""
    model = language_model("gpt2")
    assert (
        splice_check(random(SAEConfig(d_in=32, d_sae=64, k=4)), model, HOOKS["gpt2"], [tokens(2, 5)]).worst
        > 0
    )
    huge = random(SAEConfig(d_in=32, d_sae=64, k=4))
    huge.b_dec.data += 1e7  # x - x_hat rounds
    assert splice_check(huge, model, HOOKS["gpt2"], [tokens(2, 5)]).worst > 1e-3


def test_random_directions_push_as_hard():
    model, sae, hook, ids = language_model("gpt2"), made(), HOOKS["gpt2"], tokens(2, 6)
    x = captured(model, [hook], input_ids=ids)[0][hook].flatten(0, 1)
    norms = sae.W_dec.detach()[[3, 7, 11]].norm(dim=1)
    rows = torch.randn(500, 32, generator=torch.Generator().manual_seed(1)) * torch.logspace(0, -3, 32)
    plain = random_directions(sae, [3, 7, 11], seed=2)
    shaped = random_directions(sae, [3, 7, 11], seed=2, rows=rows)
    for found in (plain, shaped):
        assert torch.allclose(found.norm(dim=1), norms, rtol=1e-5)
    assert torch.equal(plain, random_directions(sae, [3, 7, 11], seed=2))
    many = random_directions(sae, [3] * 400, seed=0, rows=rows) / norms[0]
    assert many[:, :4].square().sum(1).mean() > 0.7 and many[:, 16:].square().sum(1).mean() < 0.01
    changes = []
    for directions in (None, plain[:1]):
        with steered(model, sae, hook, [Edit(3, 5.0)], directions=directions), torch.no_grad():
            changes.append(HookPoint(model, hook).capture(ids).flatten(0, 1) - x)
    assert torch.allclose(changes[0].norm(dim=1), changes[1].norm(dim=1), rtol=1e-4)
    assert not torch.allclose(changes[0], changes[1], atol=0.1)
