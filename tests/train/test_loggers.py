"""Optional loggers get every line; one that is not installed is named with its extra."""

import sys
import types

import pytest

import saefast
from saefast.train.run import loggers
from saefast.train.run.loggers import read_lines
from tests.helpers.stopped_runs import make_source, trainer_of

LINE = {"step": 3, "fvu": 0.5, "density_histogram": [1, 2]}


def fake_module(monkeypatch, name, calls):
    module = types.ModuleType(name)
    run = types.SimpleNamespace(log=lambda line, step=None: calls.append((step, line)))
    module.init = lambda **kwargs: calls.append(kwargs) or run
    monkeypatch.setitem(sys.modules, name, module)


def test_wandb_and_trackio_get_the_config_and_every_line(tmp_path, monkeypatch):
    for name in ("wandb", "trackio"):
        calls = []
        fake_module(monkeypatch, name, calls)
        log = loggers.open_logger(name, tmp_path / "run", {"k": 4})
        log(LINE)
        assert calls[0]["config"] == {"k": 4} and calls[0]["name"] == "run"
        line = LINE if name == "wandb" else {k: v for k, v in LINE.items() if k != "step"}
        assert calls[1:] == [(3, line)]


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


def stopped_and_resumed(tmp_path, monkeypatch, name):
    """Steps 1 to 20 of a run that was killed after step 8 with a checkpoint of step 6, and of a second one."""
    options = {"loggers": (name,), "checkpoint_every": 6, "log_every": 1, "steps": 20}
    for folder in ("run", "other"):
        trainer = trainer_of(**options)
        take = trainer.step

        def until_8(x, trainer=trainer, take=take, **kwargs):
            if trainer.state.step == 8:
                raise KeyboardInterrupt
            return take(x, **kwargs)

        trainer.step = until_8
        with pytest.raises(KeyboardInterrupt):
            trainer.fit(make_source("random access"), tmp_path / folder)
    assert trainer_of(**options).fit(make_source("random access"), tmp_path / "run", resume=True)


@pytest.mark.parametrize("name", ["wandb", "trackio"])
@pytest.mark.usefixtures("no_curves")
def test_a_resumed_run_goes_on_in_the_same_run_of_the_service(tmp_path, monkeypatch, name):
    calls, closed = [], []
    fake_module(monkeypatch, name, calls)
    module = sys.modules[name]
    init = module.init

    def init_with_finish(**kwargs):
        run = init(**kwargs)
        run.finish = lambda: closed.append(kwargs["name"])
        return run

    module.init = init_with_finish
    stopped_and_resumed(tmp_path, monkeypatch, name)
    begun = [call for call in calls if isinstance(call, dict)]
    key = "id" if name == "wandb" else "name"
    first, other, again = (call[key] for call in begun)
    assert first == again != other and all(call["resume"] == "allow" for call in begun)
    steps = [call[0] for call in calls if not isinstance(call, dict)]
    assert steps == [*range(1, 9), *range(1, 9), *range(9, 21)]  # 7 and 8 are done again, but not sent
    assert len(closed) == 3
    lines = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 21))


@pytest.mark.usefixtures("no_curves")
def test_tensorboard_drops_what_comes_again(tmp_path, monkeypatch):
    made, written = [], []
    module = types.ModuleType("torch.utils.tensorboard")
    writer = types.SimpleNamespace(
        add_scalar=lambda key, value, step: written.append(step) if key == "fvu" else None,
        flush=lambda: None,
        close=lambda: None,
    )
    module.SummaryWriter = lambda folder, **options: made.append((folder, options)) or writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    stopped_and_resumed(tmp_path, monkeypatch, "tensorboard")
    place = str(tmp_path / "run" / "tensorboard")
    assert (made[0], made[2]) == ((place, {}), (place, {"purge_step": 7}))
    assert written == [*range(1, 9), *range(1, 9), *range(7, 21)]


def test_several_saes_and_a_service_with_one_run_at_a_time_are_refused(tmp_path, monkeypatch):
    from saefast.train.loop import fit

    fake_module(monkeypatch, "trackio", [])
    trainers = [trainer_of(k, loggers=("trackio",)) for k in (4, 5)]
    with pytest.raises(saefast.InputError, match="loggers: expected none .* got 'trackio'"):
        fit(trainers, make_source("random access"), [tmp_path / "a", tmp_path / "b"])
