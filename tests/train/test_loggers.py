"""Optional loggers get every line; one that is not installed is named with its extra."""

import sys
import types

import pytest

import saefast
from saefast.train import loggers

LINE = {"step": 3, "fvu": 0.5, "density_histogram": [1, 2]}


def fake_module(monkeypatch, name, calls):
    module = types.ModuleType(name)
    run = types.SimpleNamespace(log=lambda line, step=None: calls.append((step, line)))
    module.init = lambda **kwargs: calls.append(kwargs) or run
    module.log = lambda line: calls.append(("module", line))
    monkeypatch.setitem(sys.modules, name, module)


def test_wandb_and_trackio_get_the_config_and_every_line(tmp_path, monkeypatch):
    for name, want in (("wandb", (3, LINE)), ("trackio", ("module", LINE))):
        calls = []
        fake_module(monkeypatch, name, calls)
        log = loggers.open_logger(name, tmp_path / "run", {"k": 4})
        log(LINE)
        assert calls[0]["config"] == {"k": 4} and calls[0]["name"] == "run"
        assert calls[1] == want


def test_tensorboard_gets_the_numbers(tmp_path, monkeypatch):
    written = []
    module = types.ModuleType("torch.utils.tensorboard")
    writer = types.SimpleNamespace(add_scalar=lambda *args: written.append(args), flush=lambda: None)
    module.SummaryWriter = lambda folder: writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    loggers.open_logger("tensorboard", tmp_path, {})(LINE)
    assert written == [("step", 3, 3), ("fvu", 0.5, 3)]


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(saefast.InputError, match=rf"loggers: '{name}' needs `pip install saefast\[{name}\]`"):
        loggers.open_logger(name, tmp_path, {})
