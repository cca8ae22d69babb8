"""Kind: run folders of which a file is damaged, gone, or of another run. A run goes on from them to the same bits, or one line
names the file and every file stays as it is. `tests.faults.damaged` tries many more, with damage that is drawn."""

import json
import shutil

import pytest

import saefast
from saefast.activations.sources import TensorSource
from saefast.cli import main
from saefast.train.run.export import export_checkpoint
from tests.faults import damaged_runs
from tests.faults.damaged_runs import files_of, left
from tests.helpers.stopped_runs import ROWS, Killed, assert_same, kill, make, result, stopped_at

pytestmark = pytest.mark.usefixtures("no_curves")


def refused(folder, message, act):
    """One line that names the file; nothing is written."""
    before = files_of(folder)
    with pytest.raises(saefast.InputError, match=message) as error:
        act()
    assert "\n" not in str(error.value)
    assert files_of(folder) == before


@pytest.mark.parametrize("lines", [0, 1, 5])
def test_lines_of_metrics_that_are_gone_are_said_and_the_run_goes_on(tmp_path, caplog, lines):
    run = tmp_path / "run"
    make().fit(ROWS, tmp_path / "whole")
    stopped_at(make(), 7, run)
    path = run / "metrics.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:lines]))
    caplog.clear()
    assert make().fit(ROWS, run, resume=True)
    (said,) = [m for m in caplog.messages if "metrics.jsonl" in m]
    assert f"metrics.jsonl: expected the 7 lines of this run up to step 7, found {lines}" in said
    tensors, meta, got, sae = result(run)
    whole, whole_meta, want, whole_sae = result(tmp_path / "whole")
    assert_same((tensors, sae), (whole, whole_sae))
    assert got == want[:lines] + want[7:]
    assert meta.pop("curve") != whole_meta.pop("curve") and meta == whole_meta
    caplog.clear()
    assert make(total_tokens=21 * 64).fit(ROWS, run, resume=True)  # it is said once
    assert not any("metrics.jsonl" in m for m in caplog.messages)


def test_a_curve_of_another_run_is_said(tmp_path, caplog):
    stopped_at(make(), 7, tmp_path / "run")
    stopped_at(make(seed=1), 7, tmp_path / "other")
    shutil.copy(tmp_path / "other" / "metrics.jsonl", tmp_path / "run")
    assert make().fit(ROWS, tmp_path / "run", resume=True)
    assert any("metrics.jsonl: expected the 7 lines of this run" in m for m in caplog.messages)


@pytest.mark.parametrize("how", ["twice", "swapped"])
def test_lines_in_another_order_are_refused(tmp_path, how):
    run = tmp_path / "run"
    stopped_at(make(), 7, run)
    path = run / "metrics.jsonl"
    first, second, *others = path.read_bytes().splitlines(keepends=True)
    lines = [second, first, *others] if how == "swapped" else [first, second, *others] * 2
    path.write_bytes(b"".join(lines))
    number = 2 if how == "swapped" else 8
    refused(run, rf"metrics.jsonl: line {number} is damaged", lambda: make().fit(ROWS, run, resume=True))


@pytest.mark.parametrize("left_over", ["SAE", "curve", "curve without run.json"])
def test_a_run_whose_checkpoint_is_gone_does_not_begin_anew(tmp_path, left_over):
    """It would delete the SAE and the curve of all steps that were done."""
    run = tmp_path / "run"
    stopped_at(make(), 7, run)
    (run / "checkpoint.safetensors").unlink()
    if left_over != "SAE":
        (run / "sae.safetensors").unlink()
        (run / "config.json").unlink()
    if left_over == "curve without run.json":
        (run / "run.json").unlink()
    named = {
        "SAE": "out: expected checkpoint.safetensors beside sae.safetensors, config.json, metrics.jsonl in",
        "curve": "out: expected checkpoint.safetensors beside metrics.jsonl in .*, found none; restore it",
        "curve without run.json": "run.json: expected a JSON file, found none",
    }
    refused(run, named[left_over], lambda: make().fit(ROWS, run, resume=True))


def test_resume_in_a_folder_that_is_no_run_deletes_nothing(tmp_path):
    """Say one of a language model."""
    (tmp_path / "config.json").write_text("{}")
    message = "out: expected checkpoint.safetensors beside config.json in"
    refused(tmp_path, message, lambda: make().fit(ROWS, tmp_path, resume=True))


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_anew(tmp_path):
    with pytest.raises(Killed):
        stopped_at(make(), 3, tmp_path / "run", kill)
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 2
    assert make().fit(ROWS, tmp_path / "run", resume=True)
    make().fit(ROWS, tmp_path / "whole")
    assert_same(result(tmp_path / "run"), result(tmp_path / "whole"))


@pytest.mark.parametrize("name", ["run.json", "checkpoint.safetensors"])
def test_files_of_two_runs_are_not_mixed(tmp_path, name):
    """Of the same sizes, and whole in themselves: only the seed is another."""
    run = tmp_path / "run"
    stopped_at(make(), 7, run)
    stopped_at(make(seed=1), 7, tmp_path / "other")
    shutil.copy(tmp_path / "other" / name, run / name)
    message = "checkpoint.safetensors: expected a checkpoint of the run of .*run.json, got one of another run"
    seed = int(name == "run.json")
    refused(run, message, lambda: make(seed=seed).fit(ROWS, run, resume=True))
    refused(run, message, lambda: export_checkpoint(run, tmp_path / "sae"))
    assert not (tmp_path / "sae").exists()


def test_another_file_of_ours_is_no_checkpoint(tmp_path, capsys):
    run = tmp_path / "run"
    stopped_at(make(), 7, run)
    shutil.copy(run / "sae.safetensors", run / "checkpoint.safetensors")
    message = "checkpoint.safetensors: expected the checkpoint of a run, got another file of saefast"
    refused(run, message, lambda: make().fit(ROWS, run, resume=True))
    refused(run, message, lambda: export_checkpoint(run))
    capsys.readouterr()  # the bars of the run
    with pytest.raises(SystemExit):
        main(["info", str(run)])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("saefast: error: ") and message in line


def test_a_sweep_of_which_one_checkpoint_is_damaged_changes_no_file(tmp_path):
    """The member before it in the list has lines that are younger than its checkpoint: they stay."""
    out = tmp_path / "sweep"
    with damaged_runs.without_drawings():
        damaged_runs.swept_in_part(out)
        lines = [json.loads(line)["step"] for line in (out / "2" / "metrics.jsonl").read_text().splitlines()]
        assert lines == [2, 4, 6]
        path = out / "3" / "checkpoint.safetensors"
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        refused(out, "3/checkpoint.safetensors: corrupt", lambda: damaged_runs.swept(out))
        path.write_bytes(whole)
        damaged_runs.swept(out)
        damaged_runs.swept(tmp_path / "whole")
    assert left(out, []) == left(tmp_path / "whole", [])


@pytest.mark.parametrize("lines", [0, 3])
def test_a_sweep_has_no_table_of_an_earlier_step(tmp_path, lines):
    """The last line of a member that is trained is gone."""
    with damaged_runs.without_drawings():
        damaged_runs.swept(tmp_path)
        path = tmp_path / "2" / "metrics.jsonl"
        path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:lines]))
        message = rf"2/metrics.jsonl: expected the line of step 8, found none after that of step {2 * lines}"
        refused(tmp_path, message, lambda: damaged_runs.swept(tmp_path))


def test_a_refused_checkpoint_changes_nothing_in_memory(tmp_path):
    stopped_at(make(), 7, tmp_path / "run")
    trainer = make()
    trainer.state.extra["threshold"] = trainer.state.weights.b_enc  # another architecture's: not in the file
    before = {name: tensor.clone() for name, tensor in trainer.state.tensors().items()}
    with pytest.raises(saefast.InputError, match="checkpoint.safetensors: params.threshold: expected shape"):
        trainer.fit(TensorSource(ROWS), tmp_path / "run", resume=True)
    assert all((tensor == before[name]).all() for name, tensor in trainer.state.tensors().items())
