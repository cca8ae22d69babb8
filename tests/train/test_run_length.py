"""A run may be made longer, shorter, or go on at another rate; what else is another is refused or said."""

import dataclasses
import json
import re

import pytest
import torch

import saefast
from saefast.files import read_json_checked
from saefast.train.run.export import export_checkpoint
from tests.helpers.stopped_runs import (
    KINDS,
    ROWS,
    assert_is,
    by_hand,
    make,
    stopped_at,
)

pytestmark = pytest.mark.usefixtures("no_curves")


@pytest.mark.each_value
@pytest.mark.parametrize("kind", ["topk", "jumprelu, log", "ema", "k anneals"])
@pytest.mark.parametrize("stop,length", [(7, 40), (18, 40), (20, 40), (7, 12)])
def test_an_extended_run_is_the_old_schedule_and_then_the_new_one(tmp_path, kind, stop, length):
    sae, options = KINDS.get(kind, ({}, {"k_start": 12, "k_anneal_fraction": 0.9}))
    if stop == 20:  # a finished run
        assert make(sae, **options).fit(ROWS, tmp_path / "run")
    else:
        assert not stopped_at(make(sae, **options), stop, tmp_path / "run")
    longer = options | {"total_tokens": length * 64}
    assert make(sae, **longer).fit(ROWS, tmp_path / "run", resume=True)
    want = by_hand([make(sae, **options), make(sae, **longer)], [stop, length])
    assert_is(tmp_path / "run", want)
    steps = [
        json.loads(text)["step"] for text in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert steps == list(range(1, length + 1))
    assert read_json_checked(tmp_path / "run" / "run.json")["train"]["total_tokens"] == length * 64
    export_checkpoint(tmp_path / "run", tmp_path / "out")
    assert (tmp_path / "out/sae.safetensors").read_bytes() == (tmp_path / "run/sae.safetensors").read_bytes()


CONSEQUENCES = {  # stopped at, options -> what is said; 20 steps, lr 1, warm-up 1 step, decay over the last 10
    (7, (("total_tokens", 40 * 64),)): (
        "total_tokens 2560 in place of 1280: step 7 of 40, was of 20; from here on lr 1 instead of 1"
    ),
    (15, (("total_tokens", 40 * 64),)): (
        "total_tokens 2560 in place of 1280: step 15 of 40, was of 20; from here on lr 1 instead of 0.5; "
        "the decay that was done (to 0.6) is not undone, and there is no second warm-up"
    ),
    (20, (("total_tokens", 40 * 64),)): (
        "total_tokens 2560 in place of 1280: step 20 of 40, was of 20; from here on lr 1 instead of 0; "
        "the decay that was done (to 0.1) is not undone, and there is no second warm-up"
    ),
    (15, (("total_tokens", 18 * 64),)): (
        "total_tokens 1152 in place of 1280: step 15 of 18, was of 20; from here on lr 0.333 instead of 0.5"
    ),
    (15, (("total_tokens", 10 * 64),)): (
        "total_tokens 640 in place of 1280: step 15 of 10, was of 20; the run is longer already: no step is made, "
        "and the SAE is that of step 15"
    ),
    (7, (("lr", 0.25),)): "lr 0.25 in place of 1.0: step 7 of 20; from here on lr 0.25 instead of 1",
}


@pytest.mark.parametrize("stop,options", CONSEQUENCES)
def test_the_consequence_for_the_schedule_is_said_in_one_line(tmp_path, caplog, stop, options):
    was = {"lr": 1.0, "warmup_fraction": 0.05, "decay_fraction": 0.5, "optimizer": "adam"}
    if stop == 20:
        make(**was).fit(ROWS, tmp_path / "run")
    else:
        stopped_at(make(**was), stop, tmp_path / "run")
    caplog.clear()
    assert make(**was | dict(options)).fit(ROWS, tmp_path / "run", resume=True)
    assert [record.getMessage() for record in caplog.records] == [CONSEQUENCES[stop, options]]
    changes = read_json_checked(tmp_path / "run" / "run.json")["changes"]
    assert changes == [{"step": stop} | {name: [was.get(name, 1280), now] for name, now in options}]


def test_k_and_sparsity_are_in_the_consequence(tmp_path, caplog):
    was = {"k_start": 10, "k_anneal_fraction": 1.0}
    stopped_at(make(**was), 10, tmp_path / "run")
    make(**was, total_tokens=40 * 64).fit(ROWS, tmp_path / "run", resume=True)
    assert "lr 0.003 instead of 0.003, k 8 instead of 7" in caplog.text
    sae, was = {"activation": "relu", "k": None}, {"penalty": "l1", "sparsity_coefficient": 1.0}
    was |= {"sparsity_warmup_fraction": 1.0}
    stopped_at(make(sae, **was), 10, tmp_path / "relu")
    make(sae, **was, total_tokens=40 * 64).fit(ROWS, tmp_path / "relu", resume=True)
    assert "sparsity_coefficient 0.25 instead of 0.5" in caplog.text


def test_a_shortened_run_gives_its_sae(tmp_path):
    stopped_at(make(), 15, tmp_path / "run")
    assert make(total_tokens=10 * 64).fit(ROWS, tmp_path / "run", resume=True)
    assert_is(tmp_path / "run", by_hand([make()], [15]))


def another(value, field):
    """Another value of a field, of its kind."""
    known = {"total_tokens": 64, "batch_size": 32, "lr": 0.1, "optimizer": "muon", "backend": "reference"}
    known |= {
        "penalty": "l1",
        "betas": (0.5, 0.5),
        "group_weights": (1.0,),
        "loggers": (),
        "buffer_tokens": 512,
    }
    known |= {
        "nonfinite": "skip",
        "decay": "cosine",
        "loss": "mse",
        "bandwidth": 0.5,
        "straight_through": "all",
        "preact": "all",
    }
    known |= {"auxk_scale": "loss", "init_b_dec": "mean", "compute_dtype": "bf16", "param_dtype": "split"}
    known |= {"state_dtype": "bf16", "micro_batch_size": 32, "resample_steps": (3,), "ema_decay": 0.5}
    known |= {"grad_clip": 1.0, "k_start": 8, "target_l0": 3.0, "multi_topk": 2, "rescore": 2}
    if field in known:
        return known[field]
    return (
        (not value)
        if isinstance(value, bool)
        else value / 2 + 1e-3
        if isinstance(value, float)
        else value + 1
    )


MAY = ("total_tokens", "lr", "nonfinite", "checkpoint_every", "log_every", "cuda_graph", "backend")
MAY += ("micro_batch_size", "loggers")


def changed(field):
    """A trainer with another value of a field, and both values. Whether it fits the other fields is another question."""
    trainer = make()
    was = getattr(trainer.config, field)
    object.__setattr__(trainer.config, field, another(was, field))
    return trainer, was, another(was, field)


def test_every_other_option_is_refused_by_name_with_both_values(tmp_path):
    stopped_at(make(), 7, tmp_path / "run")
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    for field in dataclasses.fields(saefast.TrainConfig):
        if field.name not in MAY:
            trainer, *values = changed(field.name)
            shown = [re.escape(repr(list(v) if isinstance(v, tuple) else v)) for v in values]
            want = "^{}: the run in .* was started with {}, got {}$".format(field.name, *shown)
            with pytest.raises(saefast.InputError, match=want):
                trainer.fit(ROWS, tmp_path / "run", resume=True)
    for name, value in {"d_sae": 97, "k": 5, "activation": "batch_topk", "pre_bias": False}.items():
        with pytest.raises(saefast.InputError, match=f"^{name}: the run in .* was started with "):
            make({name: value}).fit(ROWS, tmp_path / "run", resume=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


@pytest.mark.parametrize("field", MAY[:-1])  # for loggers see test_loggers.py
def test_an_option_that_may_change_acts_and_is_said(tmp_path, field, caplog):
    stopped_at(make(), 7, tmp_path / "run")
    caplog.clear()
    trainer, was, now = changed(field)
    assert trainer.fit(ROWS, tmp_path / "run", resume=True)
    assert f"{field} " in caplog.text and repr(was) in caplog.text and repr(now) in caplog.text
    assert read_json_checked(tmp_path / "run" / "run.json")["train"][field] == now


def test_a_forgotten_rate_is_refused(tmp_path):
    stopped_at(make(), 7, tmp_path / "run")
    with pytest.raises(saefast.InputError, match="^lr: the run in .* was started with 0.003, got None$"):
        make(lr=None).fit(ROWS, tmp_path / "run", resume=True)


def test_another_machine_is_said(tmp_path, caplog):
    stopped_at(make(), 7, tmp_path / "run")
    trainer, threads = make(), torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert trainer.fit(ROWS, tmp_path / "run", resume=True)
    finally:
        torch.set_num_threads(threads)
    assert (
        f"the run was started with threads {threads}, now {threads + 1}: it goes on, but not to the same bits"
    ) in caplog.text


@pytest.mark.parametrize("kind", ["values", "rows", "shards"])
def test_other_rows_are_refused(tmp_path, kind):
    from saefast.activations.shards import ShardSource, ShardWriter

    def source(rows, name):
        if kind != "shards":
            return rows
        writer = ShardWriter(tmp_path / name, 16, torch.float32, shard_tokens=300)
        writer.append(rows)
        writer.close()
        return ShardSource(tmp_path / name)

    make(total_tokens=640).fit(source(ROWS, "a"), tmp_path / "run")
    other = ROWS[:-1] if kind == "rows" else ROWS * 1.0001
    name = "n_tokens" if kind == "rows" else "rows"
    with pytest.raises(saefast.InputError, match=f"^source: the run in .* was started with {name} = "):
        make().fit(source(other, "b"), tmp_path / "run", resume=True)
    assert make().fit(source(ROWS, "c"), tmp_path / "run", resume=True)  # the same rows at another place
