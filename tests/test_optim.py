"""`saefast.optim.Adam` against torch's Adam with projection, clipping and unit norm around it, in fp64."""

import copy
import doctest
import math
import pickle
import re
import runpy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from saefast import optim
from saefast.errors import InputError

SHAPES = {"odd": (37, 13), "one row": (1, 5), "one column": (6, 1), "one number": (1, 1), "wide": (3, 257)}
DOCS = Path(__file__).parent.parent / "docs" / "drop-in" / "pytorch.md"


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def parameters(F, D, dtype=torch.float64):
    """A decoder with rows of unit norm, an encoder, biases and something that is no matrix."""
    shapes = (F, D), (F,), (D,), (2, 3, 2)
    W_dec = normalize(random(F, D), dim=1)
    found = [W_dec, *(random(*shape, seed=i + 1) for i, shape in enumerate(shapes))]
    return [nn.Parameter(t.to(dtype)) for t in found]


def give_gradients(params, step, scale=1.0):
    for i, param in enumerate(params):
        param.grad = (scale * random(*param.shape, seed=1000 + 100 * step + i)).to(param.dtype)


class Stock:
    """The four lines of a plain loop."""

    def __init__(self, params, lr, max_grad_norm=None, **options):
        self.W_dec, self.params = params[0], params
        self.adam = torch.optim.Adam(params, lr=lr, **options)
        self.max_grad_norm = max_grad_norm

    @torch.no_grad()
    def step(self):
        if self.W_dec.grad is not None:
            self.W_dec.grad -= (self.W_dec.grad * self.W_dec).sum(dim=1, keepdim=True) * self.W_dec
        if self.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.params, self.max_grad_norm)
        self.adam.step()
        if self.W_dec.grad is not None:
            self.W_dec /= self.W_dec.norm(dim=1, keepdim=True)


def assert_same(got, want, rtol=1e-12):
    for i, (a, b) in enumerate(zip(got, want)):
        torch.testing.assert_close(a.double(), b.double(), rtol=rtol, atol=rtol, msg=f"parameter {i}")


@pytest.mark.parametrize("max_grad_norm", [None, 0.5, 1e6], ids=["free", "clipped", "not reached"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_steps_are_those_of_torch(shape, max_grad_norm):
    ours, theirs = parameters(*shape), parameters(*shape)
    options = {"betas": (0.8, 0.95), "eps": 1e-3}
    optimizer = optim.Adam(ours, 0.05, **options, unit_norm=ours[:1], max_grad_norm=max_grad_norm)
    stock = Stock(theirs, 0.05, max_grad_norm, **options)
    for step in range(6):
        give_gradients(ours, step)
        give_gradients(theirs, step)
        optimizer.step()
        stock.step()
    assert_same(ours, theirs)
    for a, b in zip(ours, theirs):
        state, want = optimizer.state[a], stock.adam.state[b]
        assert state.keys() == want.keys() and state["step"] == want["step"] == 6
        assert_same([state["exp_avg"], state["exp_avg_sq"]], [want["exp_avg"], want["exp_avg_sq"]])
    assert (ours[0].norm(dim=1) - 1).abs().max() < 1e-12


@pytest.mark.parametrize("backend", ["native", "reference", "triton"])
@pytest.mark.parametrize("max_grad_norm", [None, 0.5], ids=["free", "clipped"])
def test_fp32_is_as_close_as_torch_on_every_backend(backend, max_grad_norm):
    """Adam divides a small gradient by its own size, so that rounding shows: three times torch's is fine."""
    pytest.importorskip("triton" if backend == "triton" else "torch")
    device = "cuda" if backend == "triton" and torch.cuda.is_available() else "cpu"
    ours, theirs = parameters(9, 40, torch.float32), parameters(9, 40, torch.float32)
    exact = [nn.Parameter(p.detach().double()) for p in theirs]
    ours = [nn.Parameter(p.detach().to(device)) for p in ours]
    optimizer = optim.Adam(ours, 0.05, unit_norm=ours[:1], max_grad_norm=max_grad_norm, backend=backend)
    stocks = Stock(theirs, 0.05, max_grad_norm), Stock(exact, 0.05, max_grad_norm)
    for step in range(3):
        give_gradients(theirs, step)
        for a, b, c in zip(ours, theirs, exact):
            a.grad, c.grad = b.grad.to(device), b.grad.double()
        for o in (optimizer, *stocks):
            o.step()
    for i, (a, b, c) in enumerate(zip(ours, theirs, exact)):
        error, own = (a.double().cpu() - c).abs().max(), (b - c).abs().max()
        assert error < 3 * own + 1e-6, (i, error, own)


def test_rows_without_gradient_move_by_their_momentum_only():
    """As torch's Adam: their moments decay, and they still move; and a row that never had one stays."""
    ours, theirs = parameters(8, 5), parameters(8, 5)
    optimizer, stock = optim.Adam(ours, 0.05, unit_norm=ours[:1]), Stock(theirs, 0.05)
    before = ours[0][0].clone()
    for step in range(4):
        for params in (ours, theirs):
            give_gradients(params, step)
            params[0].grad[: 1 if step == 0 else 4] = 0
        optimizer.step()
        stock.step()
    assert_same(ours, theirs)
    torch.testing.assert_close(ours[0][0], before, rtol=0, atol=1e-15)
    assert not torch.equal(ours[0][1], before)


def test_frozen_parameters_and_those_without_gradient_stay():
    ours = parameters(6, 4)
    ours[1].requires_grad_(False)
    before = [p.detach().clone() for p in ours]
    optimizer = optim.Adam(ours, 0.05, unit_norm=ours[:1], max_grad_norm=1.0)
    optimizer.step()  # nothing has one
    (ours[2].sum() + ours[1].sum()).backward()
    optimizer.step()
    changed = [not torch.equal(p, was) for p, was in zip(ours, before)]
    assert changed == [False, False, True, False, False] and list(optimizer.state) == [ours[2]]


def test_groups_and_schedulers():
    ours, theirs = parameters(7, 5), parameters(7, 5)

    def groups(params):
        return [
            {"params": params[:2], "lr": 0.1},
            {"params": params[2:], "betas": (0.5, 0.9), "eps": 1e-2},
        ]

    optimizer = optim.Adam(groups(ours), 0.02, unit_norm=ours[:1])
    stock = Stock(theirs, 0.02)
    stock.adam = torch.optim.Adam(groups(theirs), 0.02)
    schedules = [
        torch.optim.lr_scheduler.OneCycleLR(o, max_lr=[0.2, 0.1], total_steps=8)
        for o in (optimizer, stock.adam)  # which moves the betas too
    ]
    for step in range(8):
        give_gradients(ours, step)
        give_gradients(theirs, step)
        for o, schedule in zip((optimizer, stock), schedules):
            o.step()
            schedule.step()
        assert_same(ours, theirs)
    assert optimizer.param_groups[0]["lr"] == stock.adam.param_groups[0]["lr"] != 0.1


def test_closure():
    W = nn.Parameter(normalize(random(3, 4), dim=1))
    optimizer, calls = optim.Adam([W], 0.1, unit_norm=[W]), []

    def closure():
        optimizer.zero_grad()
        loss = W.pow(3).sum()
        loss.backward()
        calls.append(loss.item())
        return loss

    assert optimizer.step(closure).item() == calls[0]
    optimizer.step(closure)
    assert calls[1] < calls[0] and len(calls) == 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_state_is_exchanged_with_torch(dtype):
    """Three steps of one, three of the other, both ways, are six steps of one."""
    runs = [parameters(5, 4, dtype) for _ in range(4)]
    made = [optim.Adam(runs[0], 0.05, unit_norm=runs[0][:1]), Stock(runs[1], 0.05)]
    made += [optim.Adam(runs[2], 0.9, unit_norm=runs[2][:1]), Stock(runs[3], 0.9)]
    for step in range(3):
        for optimizer, params in zip(made[:2], runs[:2]):
            give_gradients(params, step)
            optimizer.step()
    for target, source in ((2, 1), (3, 0)):  # crosswise, with the learning rate
        for a, b in zip(runs[target], runs[source]):
            a.data.copy_(b.data)
        saved = pickle.dumps(getattr(made[source], "adam", made[source]).state_dict())
        getattr(made[target], "adam", made[target]).load_state_dict(pickle.loads(saved))
    for step in range(3, 6):
        for optimizer, params in zip(made, runs):
            give_gradients(params, step)
            optimizer.step()
    for other in runs[1:]:
        assert_same(other, runs[0], 1e-12 if dtype == torch.float64 else 1e-5)


def test_copies_keep_their_options():
    W = nn.Parameter(normalize(random(3, 4), dim=1))
    optimizer = optim.Adam([W], 0.1, unit_norm=[W], max_grad_norm=0.5)
    W.grad = random(3, 4, seed=1)
    optimizer.step()
    W2, other = copy.deepcopy((W, optimizer))
    assert other.max_grad_norm == 0.5 and other.unit_norm == {W2} and W2 is not W
    for param, o in ((W, optimizer), (W2, other)):
        param.grad = random(3, 4, seed=2)
        o.step()
    assert torch.equal(W, W2)


@pytest.mark.parametrize("backend", ["native", "triton"])
def test_gradients_may_have_any_strides_and_do_not_change_without_clipping(backend):
    pytest.importorskip("triton" if backend == "triton" else "torch")
    device = "cuda" if backend == "triton" and torch.cuda.is_available() else "cpu"
    W = nn.Parameter(normalize(random(3, 4, dtype=torch.float32), dim=1).to(device))
    W2 = nn.Parameter(W.detach().clone())
    grad = random(4, 3, seed=3, dtype=torch.float32).to(device)
    W.grad, W2.grad = grad.clone().T, grad.T.contiguous()
    for param in (W, W2):
        optim.Adam([param], 0.1, unit_norm=[param], backend=backend).step()
    assert torch.equal(W, W2) and torch.equal(W.grad, grad.T)


def test_nan_reaches_the_weights_as_in_torch():
    ours = parameters(3, 4)
    optimizer = optim.Adam(ours, 0.1, unit_norm=ours[:1])
    give_gradients(ours, 0)
    ours[0].grad[1, 2] = math.nan
    optimizer.step()
    assert ours[0][1].isnan().all() and ours[0][[0, 2]].isfinite().all()


def bad_inputs():
    W, W32 = nn.Parameter(normalize(random(3, 4), dim=1)), nn.Parameter(torch.eye(3, dtype=torch.bfloat16))
    yield "unit_norm: expected a list", lambda: optim.Adam([W], unit_norm=W)
    yield (
        "unit_norm: expected parameters in params",
        lambda: optim.Adam([W], unit_norm=[nn.Parameter(W.data)]),
    )
    yield "unit_norm: .*bfloat16", lambda: optim.Adam([W32], unit_norm=[W32])
    bias, turned = nn.Parameter(torch.ones(3)), nn.Parameter(torch.eye(3)[:, :2].T)
    yield r"unit_norm: .*\[3\]", lambda: optim.Adam([bias], unit_norm=[bias])
    yield "unit_norm: .*strides", lambda: optim.Adam([turned], unit_norm=[turned])
    yield "max_grad_norm: .*0", lambda: optim.Adam([W], max_grad_norm=0)
    yield "lr: .*-1", lambda: optim.Adam([W], lr=-1)
    yield "lr: .*nan", lambda: optim.Adam([{"params": [W], "lr": math.nan}])
    yield "betas: .*1.0", lambda: optim.Adam([W], betas=(0.9, 1.0))
    yield "eps: .*-1", lambda: optim.Adam([W], eps=-1.0)
    yield "weight_decay: .*0.1", lambda: optim.Adam([{"params": [W], "weight_decay": 0.1}])
    yield "backend: .*nothing", lambda: stepped(optim.Adam([W32_copy()], backend="nothing"), unit=True)
    saved = torch.optim.Adam([W], amsgrad=True).state_dict()
    yield "amsgrad: .*True", lambda: optim.Adam([W]).load_state_dict(saved)
    yield (
        "unit_norm: expected rows of norm 1, got 1",
        lambda: stepped(optim.Adam([nn.Parameter(2 * W.data)]), unit=True),
    )
    yield "params: expected dense", lambda: stepped(optim.Adam([nn.Parameter(W.data)]), sparse=True)


def W32_copy():
    return nn.Parameter(torch.eye(3))


def stepped(optimizer, unit=False, sparse=False):
    (param,) = optimizer.param_groups[0]["params"]
    optimizer.unit_norm = {param} if unit else set()
    param.grad = torch.ones_like(param).to_sparse() if sparse else torch.ones_like(param)
    optimizer.step()


@pytest.mark.parametrize("message,call", list(bad_inputs()))
def test_bad_input(message, call):
    with pytest.raises(InputError, match=message):
        call()


def test_doctest():
    assert doctest.testmod(optim).failed == 0 and doctest.testmod(optim).attempted > 3


@pytest.mark.slow
def test_the_documented_loops_agree(tmp_path):
    runs = []
    for i, block in enumerate(re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)):
        (tmp_path / f"{i}.py").write_text(block)
        runs.append(runpy.run_path(str(tmp_path / f"{i}.py")))
    before, after = runs
    assert len(before["losses"]) == 50 and before["losses"][-1] < 0.8 * before["losses"][0]
    torch.testing.assert_close(
        torch.tensor(after["losses"]), torch.tensor(before["losses"]), rtol=1e-4, atol=0
    )
    assert_same(after["params"], before["params"], 1e-3)
