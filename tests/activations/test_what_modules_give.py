"""What modules give and take: the activations in it are read and replaced, and everything else stays as it is."""

import threading
import time
from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from saefast import InputError
from saefast.activations.hooks import HookPoint, blocks_skipped, capture_all
from saefast.activations.lm import ModelSource
from tests.helpers import tiny_models
from tests.helpers.tiny_models import tokens

Pair = namedtuple("Pair", "hidden other")


@dataclass(frozen=True)
class Frozen:
    hidden: Tensor
    other: Tensor


class Gives(nn.Module):
    """inner(x) is x + 1 in a container; the model returns the container, and twice what is in it."""

    def __init__(self, wrap, unwrap):
        super().__init__()
        self.wrap, self.unwrap = wrap, unwrap
        self.inner = nn.Identity()
        self.inner.forward = lambda x: wrap(x + 1)

    def forward(self, x):
        given = self.inner(x)
        return given, 2 * self.unwrap(given)


OTHER = torch.arange(3.0)
STATES = (OTHER,)
CONTAINERS = {
    "tensor": (lambda x: x, lambda v: v),
    "tuple": (lambda x: (x, OTHER, None), lambda v: v[0]),
    "list": (lambda x: [x, OTHER], lambda v: v[0]),
    "nested": (lambda x: ((x, OTHER), OTHER), lambda v: v[0][0]),
    "namedtuple": (lambda x: Pair(x, OTHER), lambda v: v.hidden),
    "dict": (lambda x: {"hidden": x, "other": OTHER}, lambda v: v["hidden"]),
    "ordered": (lambda x: OrderedDict(hidden=x, other=OTHER), lambda v: v["hidden"]),
    "dataclass": (lambda x: Frozen(x, OTHER), lambda v: v.hidden),
    "ModelOutput": (lambda x: BaseModelOutput(x, STATES), lambda v: v.last_hidden_state),
    "list of tuples": (lambda x: [(x, OTHER), OTHER], lambda v: v[0][0]),
}


def same_but(value, was, new):
    """Whether `value` is `was` with `new` for its first tensor, of the same types."""
    if torch.is_tensor(was):
        return torch.equal(value, new)
    if type(value) is not type(was):
        return False
    if hasattr(was, "values"):
        assert list(value) == list(was)
        value, was = list(value.values()), list(was.values())
    elif isinstance(was, Frozen):
        value, was = [value.hidden, value.other], [was.hidden, was.other]
    rest = len(value) == len(was) and all(a is b for a, b in zip(value[1:], was[1:]))
    return rest and same_but(value[0], was[0], new)


@pytest.mark.parametrize("wrap,unwrap", CONTAINERS.values(), ids=CONTAINERS)
def test_activations_in_a_container_are_read_and_replaced(wrap, unwrap):
    model, x = Gives(wrap, unwrap), torch.randn(4, 3)
    point = HookPoint(model, "inner")
    assert torch.equal(point.capture(x), x + 1)
    was, _ = model(x)
    given, doubled = point.replace(lambda a: 10 * a, x)
    assert torch.equal(doubled, 20 * (x + 1)) and same_but(given, was, 10 * (x + 1))
    given, doubled = point.replace(lambda a: None, x)
    assert torch.equal(doubled, 2 * (x + 1)) and type(given) is type(was)


def test_the_whole_output_of_a_language_model_is_replaced():
    model, ids = tiny_models.model("llama"), tokens(2, 6)
    with torch.no_grad():
        hidden = model.model(ids).last_hidden_state
        assert torch.equal(HookPoint(model, "model").capture(ids), hidden)
        got = HookPoint(model, "model").replace(lambda x: 2 * x, ids)
        assert torch.allclose(got.logits, model.lm_head(2 * hidden)) and type(got) is type(model(ids))
        got = HookPoint(model.model, "norm").replace(lambda x: 2 * x, ids)
        assert torch.allclose(got.last_hidden_state, 2 * hidden)


class Calls(nn.Module):
    def __init__(self, call):
        super().__init__()
        self.inner, self.call = nn.Identity(), call
        self.inner.forward = lambda *args, **kwargs: (args, kwargs)

    def forward(self, x):
        return self.call(self.inner, x)


@pytest.mark.parametrize(
    "call,read",
    [
        (lambda inner, x: inner(x, 5), lambda args, kwargs: args[0]),
        (lambda inner, x: inner(hidden=x, other=5), lambda args, kwargs: kwargs["hidden"]),
        (lambda inner, x: inner(ids=None, mask=None, embeds=x), lambda args, kwargs: kwargs["embeds"]),
        (lambda inner, x: inner((x, 5)), lambda args, kwargs: args[0][0]),
    ],
    ids=["position", "keyword", "None first", "tuple"],
)
def test_the_input_is_the_first_argument_that_is_not_none(call, read):
    model, x = Calls(call), torch.randn(4, 3)
    point = HookPoint(model, "inner:in")
    assert torch.equal(point.capture(x), x)
    args, kwargs = point.replace(lambda a: a + 1, x)
    was_args, was_kwargs = model(x)
    assert (
        torch.equal(read(args, kwargs), x + 1)
        and len(args) == len(was_args)
        and list(kwargs) == list(was_kwargs)
    )


@pytest.mark.parametrize(
    "hook,call,got",
    [
        ("inner", lambda inner, x: None, "never reached 'inner'$"),
        ("inner:in", lambda inner, x: inner(), r"\[..., n, d_in\] at 'inner:in', got dict$"),
        ("inner:in", lambda inner, x: inner(None), r"at 'inner:in', got NoneType$"),
        ("inner:in", lambda inner, x: inner(x.long()), r"at 'inner:in', got \[4, 3\] in torch.int64$"),
        ("inner:in", lambda inner, x: inner(x.sum()), r"at 'inner:in', got \[\] in torch.float32$"),
        ("inner", lambda inner, x: inner(), r"at 'inner', got tuple$"),  # ((), {})
    ],
    ids=["not called", "no arguments", "None", "integers", "scalar", "empty"],
)
def test_what_is_no_activations_is_refused(hook, call, got):
    point = HookPoint(Calls(call), hook)
    for run in (point.capture, lambda x: point.replace(torch.zeros_like, x)):
        if "never" in got and run != point.capture:
            continue
        with pytest.raises(InputError, match=f"^hook: .*{got}"):
            run(torch.randn(4, 3))


def test_a_module_that_runs_several_times_counts_the_first_time():
    """ALBERT's blocks share their weights."""
    model, ids = tiny_models.model("albert"), tokens(2, 6)
    hook = "encoder.albert_layer_groups.0"
    with torch.no_grad():
        states = model(ids, output_hidden_states=True).hidden_states
        assert torch.equal(HookPoint(model, hook).capture(ids), states[1])
        got = HookPoint(model, hook).replace(lambda x: 2 * x, ids).last_hidden_state
        calls = []

        def only_the_first(module, args, output):
            calls.append(1)
            return 2 * output if len(calls) == 1 else None

        handle = model.get_submodule(hook).register_forward_hook(only_the_first)
        want = model(ids).last_hidden_state
    handle.remove()
    assert torch.equal(got, want) and len(calls) == 2 and not torch.allclose(want, states[-1])


def test_modules_that_change_their_input_in_place():
    class Adds(nn.Module):
        def forward(self, x):
            return x.add_(1)

    model = nn.Sequential(nn.Linear(3, 3), Adds(), Adds())
    x = torch.randn(5, 3)
    with torch.no_grad():
        want = model[0](x)
        found = capture_all([HookPoint(model, name) for name in ("0", "1:in", "1", "2")], x)
    for got, more in zip(found, (0, 0, 1, 2)):
        assert torch.allclose(got, want + more)


def test_a_model_in_two_threads_at_once():
    """As when a language model runs for training while it is evaluated: nobody sees the other's activations."""
    model = nn.Sequential(*(nn.Linear(3, 3) for _ in range(3)))
    model[1].register_forward_hook(lambda *args: time.sleep(0.002))  # so that the threads take turns
    xs, right = [torch.full((2, 3), float(i)) for i in range(2)], []

    def reads(x, skips):
        with torch.no_grad():
            first, last = model[0](x), model(x)
            zeroed = model[1:](0 * first)
            for _ in range(20):
                point = HookPoint(model, "0")
                right.append(torch.equal(point.capture(x), first) and torch.equal(model(x), last))
                right.append(torch.equal(point.replace(lambda a: 0 * a, x), zeroed))
                if skips:
                    with blocks_skipped([model[0]], 0 * first):
                        right.append(torch.equal(model(x), zeroed))

    threads = [threading.Thread(target=reads, args=args) for args in zip(xs, (True, False))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(right) == 20 * (3 + 2) and all(right)


# --- where hooks act


def test_a_model_in_a_wrapper_is_hooked_inside():
    model, ids = tiny_models.model("llama"), tokens(2, 6)
    with torch.no_grad():
        want = HookPoint(model, "model.layers.0").capture(ids)
        for wrapped in (torch.compile(model), nn.DataParallel(model)):
            assert torch.equal(HookPoint(wrapped, "model.layers.0").capture(ids), want)
            (batch,) = ModelSource(wrapped, "model.layers.0", [ids], sink_ratio=None).model_batches()
            assert torch.equal(batch.activations, want.flatten(0, 1))


def test_compiled_parts_are_refused():
    model = nn.Sequential(OrderedDict(a=nn.Linear(3, 3), b=nn.Linear(3, 3)))
    model.b.compile()
    with pytest.raises(
        InputError, match="^model: expected modules that are not compiled, got 'b', in which hooks do not"
    ):
        HookPoint(model, "a")
    model = nn.Sequential(OrderedDict(a=nn.Linear(3, 3), b=torch.compile(nn.Linear(3, 3))))
    with pytest.raises(InputError, match="^model: expected modules that are not compiled, got 'b', in which"):
        HookPoint(model, "a")
    with pytest.raises(InputError, match="^model: expected a torch.nn.Module, got str$"):
        HookPoint("smollm", "a")


class Adapter(nn.Module):
    """Puts its own names before those of the model, as PEFT does."""

    def __init__(self, model):
        super().__init__()
        self.base_model = nn.ModuleDict({"model": model})


@pytest.mark.parametrize(
    "wrap,hook,near",
    [
        (Adapter, "model.layers.1", "base_model.model.model.layers.1"),
        (lambda model: model, "base_model.model.model.layers.1", "model.layers.1"),
        (lambda model: model.model, "model.layers.1", "layers.1"),  # AutoModel has no head, and no "model."
        (lambda model: model.model, "lm_head", "layers"),
        (lambda model: model, "model.layers.7", "model.layers.1"),
        (lambda model: model, "model.layers.1:out", "model.layers.1"),
        (lambda model: model, "model.layers.1:output", "model.layers.1"),
        (lambda model: model, "model.layers.1:", "model.layers.1"),
        (lambda model: model, "model.layers.1.MLP", "model.layers.1.mlp"),
        (lambda model: model, "zzzz", "model"),
    ],
)
def test_an_unknown_path_lists_what_may_have_been_meant(wrap, hook, near):
    with pytest.raises(
        InputError, match=f"^hook: expected a module path or path:in, got '{hook}'; near it: "
    ) as error:
        HookPoint(wrap(tiny_models.model("llama")), hook)
    assert "\n" not in str(error.value)
    assert near in str(error.value).split("near it: ")[1].split(", ")


@pytest.mark.parametrize("hook", [3, None, ["model.layers.0"]])
def test_a_hook_point_is_a_string(hook):
    with pytest.raises(InputError, match="^hook: expected a module path or path:in, got "):
        HookPoint(tiny_models.model("llama"), hook)


def test_shared_modules_have_all_of_their_paths():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(3, 3)
            self.b = self.a

        def forward(self, x):
            return self.b(x)

    model, x = Twice(), torch.randn(4, 3)
    assert torch.equal(HookPoint(model, "b").capture(x), model.a(x))
