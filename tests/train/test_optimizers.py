"""The libraries' optimizers behind `Optimizer`: the same bits as run directly, and after a round trip through a file."""

import sys

import pytest
import torch

from saefast.errors import InputError
from saefast.files import load_tensors, save_tensors
from saefast.train.optimizers import MOMENTUM, Optimizer

F, D = 23, 10
NAMES = ("adamw", "muon", "signum")
SCHEDULE = [1e-3, 3e-3, 2e-3, 2e-3, 1e-3, 4e-4, 1e-4]  # rises, so that signum's largest rate matters
LR_OF = {"b_enc": 0.25, "b_dec": 3.0}


def start(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = {"W_enc": (F, D), "b_enc": (F,), "W_dec": (F, D), "b_dec": (D,), "threshold": (F,)}
    return {name: torch.randn(*shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def grads_of(params, step):
    """A noisy pull towards a fixed point, so that a gradient depends on where training has got to."""
    generator = torch.Generator().manual_seed(100 + step)
    noise = {name: torch.randn(p.shape, generator=generator).to(p.dtype) for name, p in params.items()}
    return {name: 1e-3 * (p - 0.5 + 0.3 * noise[name]) for name, p in params.items()}


def train(optimizer, schedule, first=0):
    for step, lr in enumerate(schedule, first):
        optimizer.step(grads_of(optimizer.params, step), lr)


def make(name, **options):
    if name == "signum":
        pytest.importorskip("schedulefree")
    return Optimizer(name, start(), **options)


class SignSGD(torch.optim.Optimizer):
    def __init__(self, groups):
        super().__init__(groups, {"lr": 1.0})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(group["lr"] * torch.sign(p.grad))


def directly(name, lr_of, weight_decay, eps):
    """The library's own loop over parameters of a module: -> params trained, params to save."""
    params = {key: torch.nn.Parameter(p) for key, p in start().items()}

    def groups(keys, **of_vectors):
        return [
            {"params": [params[k]], "name": k, **({} if params[k].ndim == 2 else of_vectors)} for k in keys
        ]

    matrices, vectors = [k for k in params if params[k].ndim == 2], [k for k in params if params[k].ndim == 1]
    if name == "signum":
        from schedulefree import ScheduleFreeWrapper

        optimizers = [ScheduleFreeWrapper(SignSGD(groups(params)), momentum=0.95)]
        optimizers[0].train()
    else:
        by_adam = groups(vectors if name == "muon" else params, weight_decay=0.0)
        for group in by_adam:
            group["eps"] = eps / lr_of.get(group["name"], 1)
        optimizers = [torch.optim.AdamW(by_adam, betas=(0.8, 0.99), weight_decay=weight_decay, fused=True)]
    if name == "muon":
        scaled = {"weight_decay": weight_decay, "adjust_lr_fn": "match_rms_adamw"}
        optimizers.append(torch.optim.Muon(groups(matrices), **scaled))
    for step, lr in enumerate(SCHEDULE):
        for key, grad in grads_of({k: p.detach() for k, p in params.items()}, step).items():
            params[key].grad = grad
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr * lr_of.get(group["name"], 1)
            optimizer.step()
            optimizer.zero_grad()
    trained = {key: p.detach().clone() for key, p in params.items()}
    if name == "signum":
        optimizers[0].eval()
    return trained, {key: p.detach() for key, p in params.items()}


@pytest.mark.parametrize("lr_of", [{}, LR_OF], ids=["one rate", "rates"])
@pytest.mark.parametrize("name", NAMES)
def test_the_same_bits_as_the_library_run_directly(name, lr_of):
    decay = 0.0 if name == "signum" else 0.1
    optimizer = make(name, lr_of=lr_of, betas=(0.8, 0.99), eps=1e-4, weight_decay=decay)
    train(optimizer, SCHEDULE)
    trained, saved = directly(name, lr_of, decay, 1e-4)
    averaged = optimizer.averaged()
    for key, param in optimizer.params.items():
        assert torch.equal(param, trained[key]), key
        assert torch.equal(averaged[key], saved[key]), key
        assert param.grad is None and not torch.equal(param, start()[key])
    assert (averaged is optimizer.params) == (name != "signum")


def test_adamw_and_its_multipliers_are_adam_of_other_units_in_fp64():
    """p with the multiplier m is m times q with none, where the gradient of q is m times that of p."""
    optimizer = make("adamw", lr_of=LR_OF, betas=(0.8, 0.99), eps=1e-4, weight_decay=0.1)
    expected = start(torch.float64)
    m = {key: torch.zeros_like(p) for key, p in expected.items()}
    v = {key: torch.zeros_like(p) for key, p in expected.items()}
    for step, lr in enumerate(SCHEDULE):
        optimizer.step(grads_of(optimizer.params, step), lr)
        for key, grad in grads_of(expected, step).items():
            unit = LR_OF.get(key, 1.0)
            q, g = expected[key] / unit, grad * unit
            m[key], v[key] = 0.8 * m[key] + 0.2 * g, 0.99 * v[key] + 0.01 * g * g
            q = q * (1 - lr * 0.1) if q.ndim == 2 else q
            root = (v[key] / (1 - 0.99 ** (step + 1))).sqrt()
            expected[key] = unit * (q - lr * m[key] / (1 - 0.8 ** (step + 1)) / (root + 1e-4))
    for key, param in optimizer.params.items():
        torch.testing.assert_close(param.double(), expected[key], rtol=1e-6, atol=1e-6)


def test_muon_moves_a_matrix_as_far_as_adam_would_and_along_no_direction_more_than_another():
    optimizer = make("muon")
    optimizer.step(grads_of(optimizer.params, 0), 1e-2)
    moved = (optimizer.params["W_enc"] - start()["W_enc"]) / 1e-2
    assert 0.1 < moved.square().mean().sqrt() < 0.3  # of Adam's steps: about 0.2 (arXiv 2502.16982)
    lengths = torch.linalg.svdvals(moved)
    assert lengths.max() / lengths.min() < 2


def test_signum_is_the_formula_of_the_paper_in_fp64():
    """z goes by signs, x is the average of z weighted by the largest rate so far squared, y is between them."""
    optimizer = make("signum", lr_of=LR_OF)
    z, x, weights = start(torch.float64), start(torch.float64), {}
    y = dict(z)
    for step, lr in enumerate(SCHEDULE):
        optimizer.step(grads_of(optimizer.params, step), lr)
        for key, grad in grads_of(y, step).items():
            rate = lr * LR_OF.get(key, 1.0)
            z[key] = z[key] - rate * grad.sign()
            largest = max(SCHEDULE[: step + 1]) * LR_OF.get(key, 1.0)
            weights.setdefault(key, []).append(largest**2)
            share = weights[key][-1] / sum(weights[key])
            x[key] = (1 - share) * x[key] + share * z[key]
            y[key] = (1 - MOMENTUM) * z[key] + MOMENTUM * x[key]
    averaged = optimizer.averaged()
    for key, param in optimizer.params.items():
        torch.testing.assert_close(param.double(), y[key], rtol=0, atol=1e-6)
        torch.testing.assert_close(averaged[key].double(), x[key], rtol=0, atol=1e-6)
        assert (averaged[key] - param).abs().max() > 1e-5


@pytest.mark.parametrize("stop", range(len(SCHEDULE)))
@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_run_has_the_same_bits(name, stop, tmp_path):
    options = {"lr_of": LR_OF, "weight_decay": 0.0 if name == "signum" else 0.1}
    whole = make(name, **options)
    train(whole, SCHEDULE)

    first = make(name, **options)
    train(first, SCHEDULE[:stop])
    first.averaged()
    kept = {f"params.{key}": param for key, param in first.params.items()}
    save_tensors(tmp_path / "file.safetensors", kept | first.tensors(), {})
    train(first, SCHEDULE[stop:], stop)  # saving leaves nothing behind

    tensors, _, _ = load_tensors(tmp_path / "file.safetensors")
    second = make(name, **options)
    second.load(tensors)
    for key, param in second.params.items():
        param.copy_(tensors[f"params.{key}"])
    train(second, SCHEDULE[stop:], stop)
    for run in (first, second):
        for key, param in whole.params.items():
            assert torch.equal(run.params[key], param), key
            assert torch.equal(run.averaged()[key], whole.averaged()[key]), key
        for key, tensor in whole.tensors().items():
            assert torch.equal(run.tensors()[key], tensor), key


@pytest.mark.parametrize("name", NAMES)
def test_what_is_loaded_is_not_shared(name):
    first, second = make(name), make(name)
    train(first, SCHEDULE[:2])
    second.load(first.tensors())
    before = {key: tensor.clone() for key, tensor in first.tensors().items()}
    train(second, SCHEDULE[2:], 2)
    assert all(torch.equal(tensor, before[key]) for key, tensor in first.tensors().items())


@pytest.mark.parametrize("name", NAMES)
def test_before_the_first_step_there_is_nothing_to_keep_and_the_average_is_where_we_are(name):
    optimizer = make(name)
    assert optimizer.tensors() == {}
    optimizer.params["b_dec"].fill_(7.0)  # as `fit` does, after the optimizer was made
    assert torch.equal(optimizer.averaged()["b_dec"], torch.full((D,), 7.0))
    optimizer.step(grads_of(optimizer.params, 0), 1e-3)
    assert (optimizer.params["b_dec"] - 7).abs().max() < 0.1


@pytest.mark.parametrize("name", NAMES)
def test_a_file_of_another_optimizer_or_shape_is_refused(name):
    optimizer = make(name)
    train(optimizer, SCHEDULE[:1])
    tensors = optimizer.tensors()
    with pytest.raises(InputError, match=r"optimizer\.\w+\.W_enc: expected a tensor, found none"):
        make(name).load({key: tensor for key, tensor in tensors.items() if not key.endswith("W_enc")})
    other = "muon" if name == "adamw" else "adamw"
    with pytest.raises(InputError, match=r"expected a tensor, found none: saved by another optimizer\?"):
        make(other).load(tensors)
    key = next(key for key in tensors if key.endswith("W_dec") and tensors[key].ndim == 2)
    with pytest.raises(InputError, match=rf"{key}: expected shape \[23, 10\], got \[22, 10\]"):
        make(name).load(tensors | {key: tensors[key][1:]})


def test_bad_input_is_named(monkeypatch):
    with pytest.raises(
        InputError, match=r"optimizer: expected one of \['adamw', 'muon', 'signum'\], got 'sgd'"
    ):
        Optimizer("sgd", start())
    for bad in (torch.zeros(F, D).bfloat16(), torch.zeros(D, F).T):
        with pytest.raises(
            InputError, match="W_enc: expected contiguous torch.float32 with optimizer = 'adamw'"
        ):
            Optimizer("adamw", {"W_enc": bad})
    with pytest.raises(InputError, match=r"lr_of: expected names of parameters, got \['bias'\]"):
        Optimizer("adamw", start(), {"bias": 1.0})
    with pytest.raises(InputError, match="weight_decay: expected 0 with optimizer = 'signum', got 0.1"):
        Optimizer("signum", start(), weight_decay=0.1)
    optimizer = Optimizer("adamw", start())
    with pytest.raises(InputError, match=r"grads: expected \['W_enc', .*, got \['W_enc'\]"):
        optimizer.step({"W_enc": torch.zeros(F, D)}, 1e-3)
    for lr in (-1e-3, float("nan"), float("inf")):
        with pytest.raises(InputError, match="lr: expected 0 or a positive number"):
            optimizer.step(grads_of(optimizer.params, 0), lr)
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    with pytest.raises(InputError, match=r"optimizer: 'muon' needs torch 2\.9 or newer, got "):
        Optimizer("muon", start())
    monkeypatch.setitem(sys.modules, "schedulefree", None)
    with pytest.raises(InputError, match=r"optimizer: 'signum' needs `pip install saefast\[signum\]`"):
        Optimizer("signum", start())
