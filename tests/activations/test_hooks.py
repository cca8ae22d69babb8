"""Hook points: what is read and put there, one or several in a pass, and where the pass ends."""

import pytest
import torch
from torch import nn

from saefast import InputError
from saefast.activations.hooks import HookPoint, capture_all
from saefast.activations.lm import ModelSource
from tests.helpers import tiny_lm


@pytest.fixture(scope="module")
def model():
    return tiny_lm.model()


def tokens(*shape):
    return torch.randint(2, 64, shape, generator=torch.Generator().manual_seed(1))


def n_hooks(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def record(model, ran):
    """Hooks that append the name of each module that finishes to `ran`."""
    named = model.named_modules()
    return [m.register_forward_hook(lambda *_, name=name: ran.append(name)) for name, m in named]


def seen_by_torch(model, path, batch, side):
    """Oracle: what torch's own hooks show, and the names of all modules that ran."""
    seen, ran = [], []
    handles = record(model, ran)

    def before(module, args, kwargs):
        seen.append(args[0] if args else kwargs["hidden_states"])

    def after(module, args, output):
        seen.append(output if torch.is_tensor(output) else output[0])

    module = model.get_submodule(path)
    if side == "in":
        handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
    else:
        handles.append(module.register_forward_hook(after))
    with torch.no_grad():
        model(batch)
    for handle in handles:
        handle.remove()
    return seen[0], ran


HOOKS = [
    ("model.embed_tokens", ""),
    ("model.layers.1", ""),
    ("model.layers.1", "in"),
    ("model.layers.1.self_attn", ""),  # returns a tuple
    ("model.layers.1.self_attn", "in"),  # called by keyword
    ("model.layers.1.mlp", ""),
    ("model.layers.1.mlp.down_proj", "in"),
    ("lm_head", ""),
]
IDS = [":".join(hook).rstrip(":") for hook in HOOKS]


@pytest.mark.parametrize("path,side", HOOKS, ids=IDS)
def test_capture_and_replace_at_every_kind_of_hook_point(model, path, side):
    batch = tokens(2, 10)
    point = HookPoint(model, f"{path}:{side}" if side else path)
    with torch.no_grad():
        got, clean = point.capture(batch), model(batch).logits
        want, _ = seen_by_torch(model, path, batch, side)
        assert got.ndim == 3 and torch.equal(got, want)
        given = []
        same = point.replace(lambda x: given.append(x) or x.clone(), batch).logits
        assert torch.equal(given[0], want) and torch.equal(same, clean)
        changed = point.replace(torch.zeros_like, batch).logits
        assert (changed - clean).abs().max() > 1e-3
        assert torch.equal(model(batch).logits, clean)  # no hook stays behind


def test_the_residual_stream_is_the_models_own_hidden_state(model):
    batch = tokens(2, 10)
    with torch.no_grad():
        want = model(batch, output_hidden_states=True).hidden_states[2]
    assert torch.equal(HookPoint(model, "model.layers.1").capture(batch), want)


@pytest.mark.parametrize("path,side", HOOKS[:-1], ids=IDS[:-1])
def test_the_forward_pass_stops_at_the_hook_point(model, path, side):
    _, order = seen_by_torch(model, path, tokens(1, 4), side)
    after = order[order.index(path) + (side == "") :]  # the module itself has not run when its input is read
    assert "lm_head" in after and "model.layers.2.mlp" in after
    ran = []
    handles = record(model, ran)
    HookPoint(model, f"{path}:{side}" if side else path).capture(tokens(1, 4))
    for handle in handles:
        handle.remove()
    assert not set(ran) & set(after)


@pytest.mark.parametrize("hook", ["model.layers.9", "layers.1", "model.layers.1:out", "model.layer.1:in"])
def test_an_unknown_hook_point_lists_near_ones(model, hook):
    with pytest.raises(
        InputError, match=f"^hook: expected a module path or path:in, got '{hook}'; near"
    ) as error:
        HookPoint(model, hook)
    assert "model.layers.1" in str(error.value).split("near it: ")[1].split(", ")


def test_the_whole_model_is_no_hook_point(model):
    for hook in ("", ":in"):
        with pytest.raises(InputError, match="^hook: expected a module path or path:in, got"):
            HookPoint(model, hook)


def test_a_module_that_never_runs_or_holds_no_activations_is_refused(model):
    with pytest.raises(InputError, match="^hook: the model's forward pass never reached 'model.layers'$"):
        ModelSource(model, "model.layers", [tokens(1, 4)])  # a ModuleList is not called
    with pytest.raises(
        InputError,
        match=r"^hook: expected a module with floating-point activations \[..., n, d_in\] at 'model.embed_tokens:in', got \[1, 4\] in torch.int64$",
    ):
        ModelSource(model, "model.embed_tokens:in", [tokens(1, 4)])


def test_several_hook_points_of_one_pass_are_those_of_a_pass_each(model):
    batch = tokens(2, 10)
    names = ["model.layers.1.mlp", "model.layers.0", "model.layers.1.self_attn:in", "model.layers.1"]
    points = [HookPoint(model, name) for name in names]
    before = n_hooks(model)  # transformers has some of its own
    with torch.no_grad():
        got = capture_all(points, batch)
        assert all(torch.equal(part, point.capture(batch)) for part, point in zip(got, points))
    assert len({part.data_ptr() for part in got}) == len({float(part.sum()) for part in got}) == 4
    ran = []
    handles = record(model, ran)
    capture_all(points, batch)
    for handle in handles:
        handle.remove()
    assert ran[-1] == "model.layers.1" or ran[-1] == "model.layers.1.mlp"  # the last hook point ends the pass
    assert "model.layers.2.mlp" not in ran and n_hooks(model) == before


def test_what_is_captured_is_not_changed_by_the_rest_of_the_pass():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(inplace=True), nn.Linear(3, 2))
    points = [HookPoint(model, name) for name in ("0", "1", "2")]
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        linear, relu, last = capture_all(points, x)
        want = x @ model[0].weight.T + model[0].bias
        assert (linear < 0).any() and torch.allclose(linear, want, atol=1e-6)
        assert torch.equal(relu, linear.relu()) and torch.equal(last, model(x))


def test_a_module_that_runs_twice_counts_the_first_time():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.twice, self.out = nn.Linear(2, 2), nn.Linear(2, 3)

        def forward(self, x):
            return self.out(self.twice(self.twice(x)))

    model, x = Twice(), torch.ones(4, 2)
    twice, out = capture_all([HookPoint(model, "twice"), HookPoint(model, "out")], x)
    assert torch.equal(twice, model.twice(x)) and torch.equal(out, model(x))


def test_of_several_hook_points_those_never_reached_are_named(model):
    points = [HookPoint(model, name) for name in ("model.layers.0", "model.layers", "lm_head")]
    before = n_hooks(model)
    with pytest.raises(InputError, match="^hook: the model's forward pass never reached 'model.layers'$"):
        capture_all(points, tokens(1, 4))
    assert n_hooks(model) == before
