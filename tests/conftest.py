import importlib.util
import os

import pytest
import torch

from tests.gates import quick_interpreter, strict_interpreter

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before the first import of a kernel
if importlib.util.find_spec("triton"):
    quick_interpreter.install()
    strict_interpreter.install()


@pytest.fixture(autouse=True)
def nan_in_fresh_memory(monkeypatch):
    """Code that reads an element nobody wrote fails loudly instead of finding an old value there."""
    empty = torch.empty

    def filled(*args, **kwargs):
        out = empty(*args, **kwargs)
        return out.fill_(float("nan")) if out.is_floating_point() else out

    monkeypatch.setattr(torch, "empty", filled)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """See `tiny_world`; no test changes any of it."""
    from tests.helpers import tiny_world  # it loads transformers, which most tests do without

    folder = tiny_world.make(tmp_path_factory.mktemp("world"))
    before = tiny_world.contents(folder)
    yield folder
    assert tiny_world.contents(folder) == before


@pytest.fixture
def x64():
    """A batch [96, 24] in fp64 with a large mean, as residual streams have."""
    generator = torch.Generator().manual_seed(1)
    mixing = torch.randn(24, 24, generator=generator, dtype=torch.float64)
    return torch.randn(96, 24, generator=generator, dtype=torch.float64) @ mixing + 3
