"""`saefast.adapters.linked` beside the training step of a small module: one state, whoever makes the step."""

import copy

import pytest
import torch
from torch import nn

from saefast.adapters.linked import Linked, during, replace
from saefast.config.train import SAEConfig, TrainConfig

D, F, B, L1 = 12, 40, 24, 0.01
NAMES = {"W_enc": "W_E.T", "b_enc": "b_E", "W_dec": "W_D", "b_dec": "b_D"}
MSE = {"loss": "mse", "penalty": "l1", "unit_norm": False, "auxk_alpha": 0.0}


class Theirs(nn.Module):
    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.W_E = nn.Parameter(torch.randn(D, F, generator=generator) / 4)
        self.W_D = nn.Parameter(torch.randn(F, D, generator=generator) / 4)
        self.b_E, self.b_D = nn.Parameter(torch.zeros(F)), nn.Parameter(torch.zeros(D))

    def loss(self, x):
        acts = ((x - self.b_D) @ self.W_E + self.b_E).relu()
        return (acts @ self.W_D + self.b_D - x).square().sum(dim=1).mean() + L1 * acts.sum(dim=1).mean()


def link(module, adam, sae=None, **options):
    sae = SAEConfig(D, F, **(sae or {"activation": "relu"}))
    config = TrainConfig(total_tokens=1, normalize_input=False, **MSE | options)
    engine = Linked(module, NAMES, sae, config, adam)
    engine.lr_now, engine.sparsity_now = 0.01, L1
    return engine


@pytest.fixture
def pair():
    """The module with its optimizer, twice, and the engine on the second."""
    modules = [Theirs(), Theirs()]
    optimizers = [torch.optim.Adam(module.parameters(), lr=0.01) for module in modules]
    return *zip(modules, optimizers), link(modules[1], optimizers[1])


def batch(number):
    return torch.randn(B, D, generator=torch.Generator().manual_seed(number)) + 0.5


def stock_step(module, optimizer, x):
    module.loss(x).backward()
    optimizer.step()
    optimizer.zero_grad()


def engine_step(engine, x):
    engine.follow()
    engine.step(x)


def assert_same_state(got, want):
    for mine, theirs in zip(got[0].parameters(), want[0].parameters()):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(got[1].state[mine], want[1].state[theirs], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("makers", ["eee", "seese", "esse"], ids="steps of {}".format)
def test_steps_of_the_engine_and_of_the_stock_code_follow_each_other(pair, makers):
    stock, ours, engine = pair
    for number, maker in enumerate(makers):
        stock_step(*stock, batch(number))
        if maker == "s":
            stock_step(*ours, batch(number))
        else:
            engine_step(engine, batch(number))
    assert_same_state(ours, stock)
    assert engine.is_linked and engine.state.step == len(makers)


def test_what_is_loaded_or_replaced_is_followed(pair):
    stock, ours, engine = pair
    module = Theirs()
    other = module, torch.optim.Adam(module.parameters(), lr=0.02)
    for number in range(3):
        stock_step(*other, batch(9 + number))
    engine_step(engine, batch(0))
    for module, optimizer in (stock, ours):
        module.load_state_dict(other[0].state_dict())
        optimizer.load_state_dict(copy.deepcopy(other[1].state_dict()))
        module.b_E.data = module.b_E.data + 0.1
    engine.lr_now = 0.02
    assert not engine.is_linked
    stock_step(*stock, batch(1))
    engine_step(engine, batch(1))
    assert engine.is_linked and engine.state.step == 4
    assert_same_state(ours, stock)


def test_a_bf16_copy_for_the_products_follows_stock_steps():
    module = Theirs()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    engine = link(module, optimizer, compute_dtype="bf16")
    stock_step(module, optimizer, batch(0))
    engine.follow()
    assert torch.equal(engine.state.weights.enc.shadow, module.W_E.T.bfloat16())


def test_files_are_contiguous_and_so_is_what_is_released(pair):
    _, (module, optimizer), engine = pair
    engine_step(engine, batch(0))
    assert not module.W_E.is_contiguous()
    engine.save_contiguous()
    assert torch.equal(module.state_dict()["W_E"], module.W_E) and module.state_dict()["W_E"].is_contiguous()
    engine.release()
    kept = optimizer.state[module.W_E]
    assert all(t.is_contiguous() for t in (module.W_E, kept["exp_avg"], kept["exp_avg_sq"]))
    assert not module._state_dict_hooks


def test_without_an_optimizer_gradients_add_up():
    module, engine = Theirs(), link(Theirs(), None, optimizer="signum")
    for number in range(2):
        module.loss(batch(number)).backward()
        engine_step(engine, batch(number))
    for got, want in zip(engine.theirs.parameters(), module.parameters()):
        torch.testing.assert_close(got.grad, want.grad, rtol=1e-4, atol=1e-6)


def test_room_for_dead_latents_is_counted_once_in_a_while_and_after_a_change():
    module = Theirs()
    optimizer = torch.optim.Adam(module.parameters())
    sae = {"activation": "topk", "k": 4}
    engine = link(module, optimizer, sae, auxk_alpha=0.1, penalty="none", dead_feature_threshold=100 * B)
    engine.on_gpu = True  # every 16 steps, rounded up
    since = engine.state.num_tokens_since_fired
    assert engine.dead_room(B) == 0
    since[:3] = 100 * B
    assert engine.dead_room(B) == 0
    assert engine.dead_room(B + 1) == F  # a larger batch
    since.zero_()
    engine.state.step += 15
    assert engine.dead_room(B) == F
    engine.state.step += 1
    assert engine.dead_room(B) == 0
    since[0] = 85 * B  # silent for long enough in the last of the next 16 steps
    theirs = since.clone()
    assert engine.shared_counts(since) is since and engine.dead_room(B) == 0
    assert engine.shared_counts(theirs) is since and engine.dead_room(B) == F


def test_replaced_attributes_come_back():
    module, own = Theirs(), lambda x: "own"
    with pytest.raises(KeyError), during(lambda: replace(module, loss=own, extra=1)):
        assert module.loss is own and module.extra == 1
        with during(lambda: replace(module, loss=None)):
            assert module.loss is None
        assert module.loss is own
        raise KeyError
    assert module.loss(batch(0)) > 0 and "loss" not in vars(module) and not hasattr(module, "extra")
