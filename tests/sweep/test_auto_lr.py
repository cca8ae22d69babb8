"""The search for a learning rate: what it costs, what it chooses, how it is recorded and gone on with."""

import itertools
import json
import math
import os
import re
import signal
from contextlib import suppress

import numpy as np
import pytest
import torch

import saefast
from saefast import SAEConfig, TrainConfig
from saefast.activations.sources import IterableSource, SyntheticSource, TensorSource
from saefast.errors import InputError
from saefast.sweep import auto_lr as search
from saefast.sweep.auto_lr import FACTORS, auto_lr, rounds_of, sample
from saefast.train.schedules import peak_lr
from tests.helpers.stopped_runs import Killed, assert_same, result
from tests.helpers.tiny_world import run

pytestmark = pytest.mark.usefixtures("no_curves")

ROWS = SyntheticSource(16, 48, 4, 8192, noise=0.05, seed=1)


def config(steps=640, **options):
    return TrainConfig(**{"total_tokens": steps * 64, "batch_size": 64, "buffer_tokens": 1024} | options)


def maker(**options):
    return lambda: saefast.SAE(SAEConfig(**{"d_in": 16, "d_sae": 96, "k": 4} | options))


# -- what it costs


@pytest.mark.parametrize("steps", [500, 501, 999, 1000, 1599, 1600, 5000, 100_000, 10_000_000])
@pytest.mark.parametrize("batch_size", [1, 64, 4096, 500_000])
def test_all_runs_together_are_at_most_a_tenth_of_the_steps(steps, batch_size):
    rounds = rounds_of(TrainConfig(total_tokens=steps * batch_size, batch_size=batch_size))
    assert 0 < sum(rates * each for rates, each in rounds) <= steps / 10
    assert rounds[0][0] == 10 == len(FACTORS) and rounds[0][1] >= 2
    assert [rates for rates, _ in rounds] == [10, 5, 3][: len(rounds)]
    assert all(after == 2 * before for (_, before), (_, after) in itertools.pairwise(rounds))
    assert rounds[-1][1] * batch_size <= 4 * max(131_072, 4 * batch_size)


def test_the_steps_made_are_those(monkeypatch):
    made, real = [], saefast.Trainer.step

    def step(trainer, x, **options):
        made.append(trainer.config.lr)
        return real(trainer, x, **options)

    monkeypatch.setattr(saefast.Trainer, "step", step)
    found = auto_lr(maker(), config(1000), ROWS)
    assert [(len(at), steps) for steps, at in found.rounds] == rounds_of(config(1000)) == [(10, 5), (5, 10)]
    assert len([lr for lr in made if lr]) == 100


def test_a_run_too_short_for_it_is_one_line():
    with pytest.raises(InputError) as error:
        auto_lr(maker(), config(499), ROWS)
    assert str(error.value) == (
        "lr: expected a number for a run of 499 steps ('auto' takes a tenth of the steps, and needs 500), got 'auto'"
    )


# -- what it chooses


def final_fvu(make, of_run, lr, held_out):
    trainer = saefast.Trainer(make(), search.replace(of_run, lr=lr))
    trainer.fit(ROWS)
    return saefast.evaluate(trainer.sae, held_out).fvu


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_it_is_within_a_factor_of_2_of_the_best_of_whole_runs(optimizer):
    make, of_run = maker(), config(640, optimizer=optimizer)
    held_out = SyntheticSource(16, 48, 4, 2048, noise=0.05, seed=1)._block(0)
    found = auto_lr(make, of_run, ROWS)
    base = peak_lr(of_run, 96)
    assert (
        list(found.rounds[0][1]) == [base * factor for factor in FACTORS]
        and max(FACTORS) / min(FACTORS) == 512
    )
    near = [found.lr * factor for factor in (0.25, 0.5, 1, 2, 4)]
    fvu = {lr: final_fvu(make, of_run, lr, held_out) for lr in near}
    best = min(fvu, key=fvu.__getitem__)
    assert 0.5 <= found.lr / best <= 2, fvu
    assert fvu[found.lr] < 0.8 * final_fvu(make, of_run, base / 8, held_out)


@pytest.mark.parametrize("base", [1e-5, 1e-4])
def test_the_middle_may_be_a_rate_of_the_users(base):
    found = auto_lr(maker(), config(lr=base), ROWS)
    assert math.log2(found.lr / base) in range(-3, 7)


def test_it_is_of_rows_that_were_not_trained_on(monkeypatch):
    """Rows are numbers; none of those measured is among those trained on."""
    n, trained, measured, real = 4096, set(), set(), saefast.Trainer.step
    rows = torch.randn(n, 16, generator=torch.Generator().manual_seed(0))
    rows[:, 0] = torch.arange(n) / n

    def step(trainer, x, **options):
        (trained if trainer.config.lr else measured).update((x[:, 0] * n).round().int().tolist())
        return real(trainer, x, **options)

    monkeypatch.setattr(saefast.Trainer, "step", step)
    auto_lr(maker(), config(), TensorSource(rows))
    assert trained and measured and not trained & measured


@pytest.mark.parametrize(
    "sae,train,measure",
    [
        ({"activation": "relu", "k": None}, {"penalty": "l1", "sparsity_coefficient": 0.05}, "loss"),
        ({"activation": "jumprelu", "k": None}, {"penalty": "l0", "sparsity_coefficient": 0.05}, "loss"),
        ({"activation": "batch_topk"}, {}, "fvu"),
        ({"activation": "matryoshka"}, {"k_start": 8, "k_anneal_fraction": 0.001}, "fvu"),
        ({}, {"resample_steps": (300,), "resample_tokens": 512}, "fvu"),
        ({}, {"ema_decay": 0.99}, "fvu"),
    ],
)
def test_it_goes_with_every_kind(sae, train, measure):
    found = auto_lr(maker(**sae), config(**train), ROWS)
    assert found.measure == measure and found.lr in found.rounds[0][1]
    best = min(found.rounds[-1][1].values())
    assert found.rounds[-1][1][found.lr] <= search.EQUAL * best
    assert found.lr == min(lr for lr, value in found.rounds[-1][1].items() if value <= search.EQUAL * best)


@pytest.mark.parametrize("how", ["loss", "raises"])
def test_rates_that_diverge_are_left_out(monkeypatch, how):
    """On a GPU a later step raises; on a CPU the metrics are not finite."""
    real, limit = saefast.Trainer.step, 5e-4

    def step(trainer, x, **options):
        metrics = real(trainer, x, **options)
        if trainer.config.lr > limit or getattr(trainer, "diverged", False):
            trainer.diverged = True
            if how == "raises":
                raise InputError("loss: not finite")
            return metrics._replace(fvu=metrics.fvu * math.nan)
        return metrics

    monkeypatch.setattr(saefast.Trainer, "step", step)
    found = auto_lr(maker(), config(lr=1e-4), ROWS)
    (_, first), *_ = found.rounds
    assert {lr for lr, value in first.items() if math.isinf(value)} == {lr for lr in first if lr > limit}
    assert found.lr <= limit and "diverged" in "\n".join(found.lines())
    assert None in found.described()["rounds"][0]["fvu"] and json.dumps(found.described(), allow_nan=False)


def test_if_all_diverge_it_is_one_line():
    with pytest.raises(InputError, match=r"^lr: all rates from 1.25e\+29 to 6.4e\+31 diverged$"):
        auto_lr(maker(), config(lr=1e30), ROWS)


# -- where its rows come from


def test_rows_are_pieces_of_all_of_a_source_or_the_first_ones():
    rows = torch.arange(1000.0)[:, None].repeat(1, 3)
    rows[17, 1] = math.nan
    pieces = sample(TensorSource(rows), 160)[:, 0].long().tolist()
    assert pieces == [i for start in range(16) for i in range(start * 1000 // 16, start * 1000 // 16 + 10)]
    assert len(sample(TensorSource(rows), 5000)) == 16 * (1000 // 16) - 1  # without the row with NaN
    stream = sample(IterableSource(list(rows.split(7)), 3), 160)[:, 0].long().tolist()
    assert stream == [*range(17), *range(18, 161)]
    assert len(sample(TensorSource(rows[:5]), 9)) == 5


# -- the command


@pytest.fixture
def x(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", ROWS._block(0).numpy())


TRAIN = "train x.npy --d-sae 96 --k 4 --tokens 40960 --batch-size 64 --buffer-tokens 1024 --lr auto"


def fields(name):
    with open(f"{name}/run.json") as file:
        return json.load(file)


@pytest.mark.slow
def test_the_curve_is_printed_and_recorded_and_the_run_is_that_of_the_rate(x, tmp_path, capsys):
    run(f"{TRAIN} --out a")
    printed, found = capsys.readouterr().out, fields("a")
    (line,) = re.findall(r"^ *(\S+) .*<- chosen$", printed, re.MULTILINE)
    assert float(line) == pytest.approx(found["train"]["lr"], rel=1e-2)
    curve = found["lr_search"]
    assert curve["lr"] == found["train"]["lr"]
    assert [(len(r["lr"]), len(r["fvu"]), r["steps"]) for r in curve["rounds"]] == [(10, 10, 6)]
    assert (
        "lr auto: held-out FVU of each rate after 6 steps" in printed
        and len(re.findall(r"^  +\S+ +\S", printed, re.MULTILINE)) >= 10
    )
    run(f"{TRAIN.replace('auto', repr(curve['lr']))} --out b")
    assert_same(result(tmp_path / "a"), result(tmp_path / "b"))


def test_it_goes_on_with_the_rate_that_was_found(x, tmp_path, monkeypatch, capsys):
    run(f"{TRAIN} --out want")
    real, calls = saefast.Trainer.step, []

    def step(trainer, *args, **options):
        calls.append(trainer.config.total_steps == 640)
        if sum(calls) == 100:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(trainer, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(saefast.Trainer, "step", step)
        run(f"{TRAIN} --out a --resume")
    assert sum(calls) == 100 and calls.count(False) > 60
    monkeypatch.setattr(search, "auto_lr", None)  # it is not searched for again
    capsys.readouterr()
    run(f"{TRAIN} --out a --resume")
    assert "lr auto" not in capsys.readouterr().out
    assert_same(result(tmp_path / "a"), result(tmp_path / "want"))
    assert fields("a")["lr_search"] == fields("want")["lr_search"]


@pytest.mark.parametrize("end", ["kill", "stop"])
def test_a_search_that_was_stopped_begins_again(x, tmp_path, monkeypatch, capsys, end):
    run(f"{TRAIN} --out want")
    real, calls = saefast.Trainer.step, []

    def step(trainer, *args, **options):
        calls.append(1)
        if len(calls) == 20 and end == "stop":
            os.kill(os.getpid(), signal.SIGTERM)
        if len(calls) == 20 and end == "kill":
            raise Killed
        return real(trainer, *args, **options)

    with monkeypatch.context() as patch, suppress(Killed):
        patch.setattr(saefast.Trainer, "step", step)
        capsys.readouterr()
        run(f"{TRAIN} --out a")
        assert "stopped in the search for lr; nothing is in a yet" in capsys.readouterr().out
    assert len(calls) in (20, 21) and not (tmp_path / "a").exists()
    run(f"{TRAIN} --out a --resume")
    assert_same(result(tmp_path / "a"), result(tmp_path / "want"))


def fails(capsys, command):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run(command)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.startswith("saefast: error: ")
    return error.splitlines()[0].removeprefix("saefast: error: ")


def test_what_cannot_be_searched_for_is_refused_before_the_search(x, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(saefast.Trainer, "step", None)  # no step is made
    line = fails(capsys, TRAIN.replace("40960", "6400") + " --out a")
    assert line.startswith("lr: expected a number for a run of 100 steps") and not (tmp_path / "a").exists()
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "mine").touch()
    assert fails(capsys, f"{TRAIN} --out a").startswith("out: expected a new folder, a exists")


@pytest.mark.slow
def test_a_run_of_a_rate_of_its_own_is_not_gone_on_with(x, capsys):
    run(f"{TRAIN.replace('auto', '1e-3')} --out a")
    line = fails(capsys, f"{TRAIN} --out a --resume")
    assert line == "lr: the run in a was started with 0.001, got 'auto'"


@pytest.mark.slow
def test_the_middle_is_that_of_the_recipe(x, capsys):
    run(f"{TRAIN} --out a --recipe anthropic-april-2024".replace(" --k 4", ""))
    rates = fields("a")["lr_search"]["rounds"][0]["lr"]
    from saefast.config.recipes import recipe

    assert rates[3] == recipe("anthropic-april-2024")[1]["lr"]
