"""RUN/run.json: which differences are nothing, which are said, and what is compared of the rows."""

import json

import pytest
import torch

import saefast
from saefast import InputError
from saefast.activations.shards import ShardSource, ShardWriter
from saefast.activations.sources import IterableSource, TensorSource
from saefast.files import digest, json_checksum, write_json, write_json_checked
from saefast.train.run import run_folder

SAE = saefast.SAEConfig(d_in=16, d_sae=96, k=4)


def train(**options):
    fields = {"total_tokens": 20 * 64, "batch_size": 64, "lr": 1.0, "optimizer": "adam"}
    fields |= {"warmup_fraction": 0.0, "decay_fraction": 0.5}
    return saefast.TrainConfig(**fields | options)


def fields(sae=None, train=None, source=None, **more):
    found = {"sae": {"activation": "topk"} | (sae or {}), "train": train or {}, "source": source or {}}
    return found | {"id": "1"} | more


def compared(was, now, folder="run"):
    return run_folder.compare(folder, was, now).changes


# -- what may be another


def test_every_field_that_may_be_another_is_named_with_both_values():
    names = (*run_folder.FREE, *run_folder.ROUNDING, *run_folder.SCHEDULE)
    was, now = dict.fromkeys(names, 1), dict.fromkeys(names, 2)
    assert compared(fields(train=was), fields(train=now)) == dict.fromkeys(names, (1, 2))
    assert compared(fields(train={"lr": 1.0}), fields(train={"lr": 1.0, "younger": 3})) == {}
    with pytest.raises(InputError, match="^lr: the run in run was started with 1.0, got None$"):
        compared(fields(train={"lr": 1.0}), fields(train={"lr": None}))
    assert compared(fields(train={"log_every": 3}), fields(train={"log_every": None})) == {
        "log_every": (3, None)
    }
    with pytest.raises(InputError, match="^lr: the run in run was started with 1.0, got 2.0$"):
        compared(fields({"lr": 1.0}), fields({"lr": 2.0}))  # of an SAE nothing may


@pytest.mark.parametrize(
    "was,now,activation,same",
    [
        (0.001, None, "topk", True),
        (0.001, None, "jumprelu", False),
        (0.002, None, "topk", False),
        (0.001, 0.002, "topk", False),
        (None, 0.001, "topk", False),
    ],
)
def test_a_default_that_was_written_out_where_it_has_no_meaning_is_the_default(was, now, activation, same):
    found = (
        fields({"activation": activation, "bandwidth": was}),
        fields({"activation": activation, "bandwidth": now}),
    )
    if same:
        assert compared(*found) == {}
    else:
        with pytest.raises(
            InputError, match=f"^bandwidth: the run in run was started with {was}, got {now}$"
        ):
            compared(*found)


@pytest.mark.parametrize(
    "was,now,same",
    [
        ({"path": "a"}, {"path": "b"}, True),
        ({}, {"rows": "x"}, True),  # older runs had none
        ({"rows": "x"}, {"rows": "y"}, False),
        ({"rows": "x"}, {"rows": None}, False),
        ({"rows": None}, {"rows": "y"}, False),
        ({"n_tokens": 1}, {"n_tokens": 2}, False),
        ({"n_tokens": 1}, {}, True),  # of a source that describes itself by less
        ({}, {"n_tokens": 1}, False),
        ({"notes": {"a": 1}}, {"notes": {"a": 1}}, True),
        ({"notes": {"a": 1}}, {"notes": {"a": 2}}, False),
        ({"notes": {"path": "a"}}, {"notes": {"path": "b"}}, True),
        ({"notes": {"max_norm": 1000.0}}, {"notes": {"max_norm": 1000.9}}, True),
        ({"notes": {"max_norm": 1000.0}}, {"notes": {"max_norm": 1001.1}}, False),
        ({"notes": {"other": 1000.0}}, {"notes": {"other": 1000.9}}, False),
        ({"notes": {"max_norm": [2.0, 3.0]}}, {"notes": {"max_norm": [2.0, 3.1]}}, False),
        ({"notes": {"max_norm": [2.0, 3]}}, {"notes": {"max_norm": [2.0, 3.0001]}}, False),
        ({"notes": {"max_norm": []}}, {"notes": {"max_norm": [1.0]}}, False),
    ],
    ids=str,
)
def test_what_describes_the_rows_is_compared_one_by_one(was, now, same):
    found = fields(source=was), fields(source=now)
    if same:
        assert compared(*found) == {}
    else:
        with pytest.raises(InputError, match="^source: the run in run was started with "):
            compared(*found)


def test_where_training_began_is_compared():
    assert compared(fields(start="x"), fields(start="x")) == {}
    with pytest.raises(InputError, match="^start: the run in run was started with 'x', got None$"):
        compared(fields(start="x"), fields())


def test_another_machine_is_said_and_one_that_was_not_recorded_is_not(caplog):
    machine = {"threads": 1, "backend": "native", "device": "cpu", "versions": {"torch": "2"}}
    assert compared(fields(**machine), fields(**machine)) == {}
    assert compared(fields(), fields(**machine)) == {} and caplog.text == ""
    compared(fields(**machine), fields(**machine | {"backend": "triton", "device": "cuda"}))
    assert [record.getMessage() for record in caplog.records] == [
        "the run was started with backend native, now triton; device cpu, now cuda: it goes on, but not to the same bits"
    ]


# -- what is written


def test_a_run_is_described_by_its_configs_and_the_machine():
    found = run_folder.describe(saefast.SAE(SAE), train(betas=(0.5, 0.75)), {"type": "x"}, {"device": "cpu"})
    assert found["sae"]["d_sae"] == 96 and found["train"]["betas"] == [0.5, 0.75]
    assert found["source"] == {"type": "x"} and found["device"] == "cpu"
    assert found["threads"] == torch.get_num_threads()
    assert found["versions"] == {"saefast": saefast.__version__, "torch": torch.__version__}
    assert len(found["id"]) == 8 and int(found["id"], 16) >= 0
    assert found["metadata"] == {} and found["origin"] is None
    other = run_folder.describe(saefast.SAE(SAE), train(), {}, {})
    assert other["id"] != found["id"]


def test_changes_are_added_to_those_before_and_only_what_changed_is_said(tmp_path, caplog):
    asked = [train(), train(log_every=7), train(log_every=7, micro_batch_size=32)]
    began = run_folder.describe(saefast.SAE(SAE), asked[0], {}, {})
    run_folder.write(tmp_path, began)
    before = (tmp_path / "run.json").read_bytes()
    run_folder.record(tmp_path, run_folder.Described(began, {}), asked[0], 3)
    assert (tmp_path / "run.json").read_bytes() == before and caplog.text == ""
    run_folder.record(tmp_path, run_folder.Described(began, {"log_every": (10, 7)}), asked[1], 4)
    now = run_folder.read(tmp_path)
    run_folder.record(tmp_path, run_folder.Described(now, {"micro_batch_size": (None, 32)}), asked[2], 5)
    now = run_folder.read(tmp_path)
    assert now["changes"] == [
        {"step": 4, "log_every": [10, 7]},
        {"step": 5, "micro_batch_size": [None, 32]},
    ]
    assert now["train"] == began["train"] | {"log_every": 7, "micro_batch_size": 32}
    assert [record.getMessage() for record in caplog.records] == [
        "from step 4: log_every is 7 in place of 10",
        "from step 5: micro_batch_size is 32 in place of None; it goes on, but not to the same bits",
    ]


def test_an_older_description_gets_what_it_had_no_entry_for(tmp_path):
    old = {"sae": {}, "train": {"seed": 3}, "source": {"path": "x"}}
    write_json(tmp_path / "run.json", old)
    found = run_folder.read(tmp_path)
    assert found == {"id": "", "metadata": {}, "origin": None, "key": None} | {
        "sae": {},
        "train": {"seed": 3},
        "source": {"seed": 3, "columns": None, "path": "x"},
    }
    write_json_checked(tmp_path / "run.json", old | {"source": {"seed": 5, "columns": [0, 2]}, "id": "7"})
    found = run_folder.read(tmp_path)
    assert found["id"] == "7" and found["source"] == {"seed": 5, "columns": [0, 2]}


@pytest.mark.parametrize(
    "change",
    [{"sae": 3}, {"train": []}, {"source": None}, {"metadata": []}, {"changes": {}}],
    ids=str,
)
def test_what_describes_no_run_is_named(change, tmp_path):
    write_json_checked(tmp_path / "run.json", {"sae": {}, "train": {}, "source": {}} | change)
    with pytest.raises(InputError, match=r"run\.json: expected the description of a run$"):
        run_folder.read(tmp_path)


# -- what the schedules say

LP = {"penalty": "lp", "sparsity_coefficient": 2.0, "sparsity_warmup_fraction": 1.0, "p_end": 0.5}
RELU = saefast.SAEConfig(d_in=16, d_sae=96, activation="relu")
TOLD = [  # step, config of the SAE, options of the run, what is asked now -> what is said after "from here on"
    (2, SAE, {"warmup_fraction": 0.5}, {"lr": 4.0}, "lr 1.2 instead of 0.3"),  # it rises: no word of a decay
    (11, SAE, {}, {"lr": 2.0}, "lr 1.8 instead of 0.9"),  # no step has fallen yet
    (
        12,
        SAE,
        {},
        {"lr": 2.0},
        "lr 1.6 instead of 0.8; the decay that was done (to 0.9) is not undone, and there is no second warm-up",
    ),
    (12, SAE, {}, {"lr": 1.125}, "lr 0.9 instead of 0.8"),  # as high as it is, and not higher
    (0, SAE, {}, {"lr": 2.0}, "lr 2 instead of 1"),
    (
        4,
        RELU,
        LP,
        {"total_tokens": 40 * 64},
        "lr 1 instead of 1, sparsity_coefficient 0.2 instead of 0.4, p 0.938 instead of 0.875",
    ),
    (4, RELU, LP, {"lr": 3.0}, "lr 3 instead of 1"),
    (
        20,
        RELU,
        LP,
        {"total_tokens": 40 * 64},
        "lr 1 instead of 0; the decay that was done (to 0.1) is not undone, and there is no second warm-up",
    ),
]


@pytest.mark.parametrize("step,sae,options,asked,said", TOLD)
def test_what_the_schedules_say_from_here_on(step, sae, options, asked, said):
    was, now = train(**options), train(**options | asked)
    changes = {name: (getattr(was, name), value) for name, value in asked.items()}
    line = run_folder.consequence(sae, now, changes, step)
    assert line.split("; from here on ")[1] == said
    n = f"{now.total_steps}, was of 20" if now.total_steps != 20 else "20"
    assert line.split("; from here on ")[0].endswith(f": step {step} of {n}")


def test_a_run_that_is_as_long_as_asked_makes_no_step():
    for step in (10, 11):
        line = run_folder.consequence(SAE, train(total_tokens=640), {"total_tokens": (1280, 640)}, step)
        assert line.endswith(
            f"step {step} of 10, was of 20; the run is longer already: no step is made, and the SAE is that of step {step}"
        )


# -- the rows, and one process


@pytest.mark.parametrize("n", [1, 10, 64, 65, 1000])
def test_the_fingerprint_is_of_64_rows_spread_over_all(n):
    rows = torch.randn(n, 3)
    taken = [i * n // 64 for i in range(64)] if n > 64 else list(range(n))
    assert run_folder.fingerprint(TensorSource(rows)) == digest({"rows": rows[taken]})
    assert run_folder.fingerprint(IterableSource([rows], 3)) is None


def test_the_fingerprint_of_a_shard_folder_is_that_of_its_shards(tmp_path):
    writer = ShardWriter(tmp_path / "cache", 3, torch.float32, shard_tokens=5)
    for number in range(3):
        writer.append(torch.full((5, 3), float(number)))
    writer.close()
    source = ShardSource(tmp_path / "cache")
    want = json_checksum({"shards": [shard["sha256"] for shard in source.index["shards"]]})
    assert len(source.index["shards"]) == 3 and run_folder.fingerprint(source) == want


def test_a_source_that_does_not_know_its_length_has_no_fingerprint():
    class Endless(IterableSource):
        random_access = True

    assert run_folder.fingerprint(Endless([torch.ones(3, 2)], 2)) is None


def test_one_run_at_a_time_in_a_folder_that_is_made(tmp_path):
    folder = tmp_path / "a" / "b"
    release = run_folder.lock(folder)
    assert folder.is_dir()
    with pytest.raises(
        InputError, match="^out: expected a folder that no other process trains in, .*b is in use$"
    ):
        run_folder.lock(folder)
    release()
    run_folder.lock(folder)()
    (tmp_path / "file").write_text(json.dumps(1))
    with pytest.raises(InputError, match="^out: expected a folder, .*file is a file$"):
        run_folder.lock(tmp_path / "file")
