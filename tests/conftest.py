import importlib
import importlib.util
import re
from collections import defaultdict

import pytest
import torch

from tests.gates import quick_interpreter, strict_interpreter
from tests.helpers import kernels, seeds  # kernels before anything of saefast.triton_kernels

if importlib.util.find_spec("triton") and not kernels.ON_GPU:
    quick_interpreter.install()
    strict_interpreter.install()
    # now, all of them: a test that is without TRITON_INTERPRET for a moment would else have kernels for a GPU, and leave them
    importlib.import_module("saefast.triton_kernels")
if importlib.util.find_spec("hypothesis"):  # a lent machine with a GPU has pytest alone
    from hypothesis import settings

    settings.register_profile("the same examples in every run", derandomize=not seeds.SHIFT, deadline=None)
    settings.load_profile("the same examples in every run")


def values_of(case):
    """Which value a case has of each `parametrize` mark, and of each parameter of a fixture."""
    params = dict(case.callspec.params)
    for mark in case.iter_markers("parametrize"):
        names = mark.args[0]
        names = names.replace(",", " ").split() if isinstance(names, str) else names
        yield tuple(id(params.pop(name)) for name in names)
    yield from map(id, params.values())


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Of a test marked `each_value`, the cases of a diagonal have each value of each parameter; the others are slow."""
    tests = defaultdict(dict)
    for item in items:
        if item.get_closest_marker("each_value"):
            tests[item.function][item] = tuple(values_of(item))
    for cases in tests.values():
        orders = [list(dict.fromkeys(column)) for column in zip(*cases.values())]
        longest = max(map(len, orders))
        diagonal = {tuple(order[i % len(order)] for order in orders) for i in range(longest)}
        for case, values in cases.items():
            if values not in diagonal:
                case.add_marker("slow")
    if seeds.SHIFT:
        seeds.other_order(items)


@pytest.fixture(autouse=True)
def same_random_numbers():
    """In every run: a test that takes numbers without a seed of its own does not fail once in a thousand runs."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def nan_in_fresh_memory(monkeypatch):
    """Code that reads an element nobody wrote fails loudly instead of finding an old value there."""
    empty = torch.empty

    def filled(*args, **kwargs):
        out = empty(*args, **kwargs)
        return out.fill_(float("nan")) if out.is_floating_point() else out

    monkeypatch.setattr(torch, "empty", filled)


@pytest.fixture
def no_curves(monkeypatch):
    """For tests of runs: drawing the curves of one takes longer than its few steps."""
    from saefast.train.run import plots

    monkeypatch.setattr(plots, "curves", lambda folder: None)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """See `tiny_world`; no test changes any of it."""
    from tests.helpers import tiny_world  # it loads transformers, which most tests do without

    folder = tiny_world.make(tmp_path_factory.mktemp("world"))
    before = tiny_world.contents(folder)
    yield folder
    assert tiny_world.contents(folder) == before


@pytest.fixture
def fails(world, capsys):
    """Run a command that must fail; returns its one line of error. Nothing in `world` or `keep` may change."""
    from tests.helpers.tiny_world import contents, run

    def call(command, keep=world):
        before = contents(keep)
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            run(command)
        err = capsys.readouterr().err
        lines = [line for line in re.split(r"[\n\r]+", err) if line.startswith("saefast: error: ")]
        assert stop.value.code == 2 and len(lines) == 1 and err.endswith(lines[0] + "\n"), err
        assert "Traceback" not in err
        assert contents(keep) == before
        return lines[0].removeprefix("saefast: error: ")

    return call


@pytest.fixture
def x64():
    """A batch [96, 24] in fp64 with a large mean, as residual streams have."""
    generator = torch.Generator().manual_seed(1)
    mixing = torch.randn(24, 24, generator=generator, dtype=torch.float64)
    return torch.randn(96, 24, generator=generator, dtype=torch.float64) @ mixing + 3
