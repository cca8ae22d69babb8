"""A stopped run writes its SAE, and the SAE of a killed one can be made of its checkpoint."""

import json
import random
import re

import pytest

import saefast
from saefast import cli
from saefast.files import read_json_checked
from saefast.train.run import loggers, run_folder
from saefast.train.run.export import export_checkpoint
from tests.helpers.stopped_runs import (
    KINDS,
    ROWS,
    Killed,
    assert_is,
    assert_same,
    by_hand,
    kill,
    make,
    result,
    stopped_at,
)

pytestmark = pytest.mark.usefixtures("no_curves")


@pytest.mark.parametrize("kind", KINDS)
def test_a_stopped_run_writes_its_sae_and_its_checkpoint_gives_the_same(tmp_path, kind, caplog):
    sae, options = KINDS[kind]
    run = tmp_path / "run"
    assert not stopped_at(make(sae, **options), 7, run)
    assert (
        f"stopped at step 7 of 20, saved in {run} with the SAE as it is: unfinished, go on with --resume"
        in (caplog.text)
    )
    assert_is(run, by_hand([make(sae, **options)], [7]))
    assert export_checkpoint(run, tmp_path / "exported") == (tmp_path / "exported", 7, 20)
    for name in ("sae.safetensors", "config.json"):
        assert (tmp_path / "exported" / name).read_bytes() == (run / name).read_bytes()
    loaded = saefast.SAE.from_pretrained(run)
    assert saefast.evaluate(loaded, ROWS).fvu < 1
    assert make(sae, **options).fit(ROWS, run, resume=True)
    assert make(sae, **options).fit(ROWS, tmp_path / "whole")
    assert_same(result(run), result(tmp_path / "whole"))


@pytest.mark.parametrize("options", [{}, {"ema_decay": 0.9}])
def test_a_measured_threshold_is_in_the_checkpoint(tmp_path, options):
    run = tmp_path / "run"
    assert not stopped_at(make({"activation": "batch_topk"}, **options), 7, run)
    export_checkpoint(run, tmp_path / "exported")
    assert (tmp_path / "exported" / "sae.safetensors").read_bytes() == (run / "sae.safetensors").read_bytes()
    assert saefast.evaluate(saefast.SAE.from_pretrained(run), ROWS).l0 == pytest.approx(4, rel=0.1)


def test_a_damaged_name_of_the_checksum_is_seen(tmp_path):
    stopped_at(make(), 7, tmp_path / "run")
    path = tmp_path / "run" / "metrics.jsonl"
    path.write_text(path.read_text().replace(f'"{loggers.CHECKSUM}"', '"crc33"'))
    with pytest.raises(saefast.InputError, match="metrics.jsonl: line 1 is damaged"):
        loggers.read_lines(path)


def test_the_sae_of_a_finished_run_is_written_again_by_resume(tmp_path):
    """Its threshold too, which is trained in another form than it is kept."""
    sae, options = KINDS["jumprelu, log"]
    make(sae, **options).fit(ROWS, tmp_path / "run")
    before = (tmp_path / "run" / "sae.safetensors").read_bytes()
    make(sae, **options).fit(ROWS, tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "sae.safetensors").read_bytes() == before


def test_a_killed_run_names_the_command_that_makes_its_sae(tmp_path, capsys):
    run = tmp_path / "run"
    with pytest.raises(Killed):
        stopped_at(make(), 9, run, kill)
    with pytest.raises(saefast.InputError, match=f"saefast export-checkpoint {run}"):
        saefast.SAE.from_pretrained(run)
    cli.main(["export-checkpoint", str(run)])
    said = capsys.readouterr().out
    assert said.splitlines() == [
        f"{run}: the SAE of step 6 of 20; the run is unfinished, go on with `saefast train ... --resume`"
    ]
    assert_is(run, by_hand([make()], [6]))
    from safetensors.torch import save_file

    save_file({"x": ROWS}, tmp_path / "rows.safetensors")
    cli.main(["evaluate", str(run), str(tmp_path / "rows.safetensors")])
    fvu = saefast.evaluate(saefast.SAE.from_pretrained(run), ROWS).fvu
    assert f"{fvu:.5g}" in capsys.readouterr().out


def test_a_run_that_goes_on_has_no_sae_of_an_earlier_step(tmp_path):
    """Or a diverged or killed run would look finished."""
    run = tmp_path / "run"
    stopped_at(make(), 7, run)
    with pytest.raises(Killed):
        stopped_at(make(), 9, run, kill, resume=True)
    assert not (run / "sae.safetensors").exists() and not (run / "config.json").exists()


@pytest.mark.parametrize(
    "what,message",
    [
        ("nothing", "run: expected a run folder, found nothing at"),
        ("file", "run: expected a run folder, found a file at"),
        ("empty", "run: .* has no checkpoint.safetensors"),
        ("used", "out: expected a new folder, .* exists"),
        ("damaged", "checkpoint.safetensors: corrupt"),
        ("training", "out: expected a folder that no other process trains in, .* is in use"),
    ],
)
def test_export_checkpoint_refuses_in_one_line(tmp_path, capsys, what, message):
    run, out = tmp_path / "run", []
    if what == "file":
        run.write_text("x")
    elif what != "nothing":
        stopped_at(make(), 4, run)
    if what == "empty":
        (run / "checkpoint.safetensors").unlink()
    if what == "damaged":
        data = bytearray((run / "checkpoint.safetensors").read_bytes())
        data[-1] ^= 1
        (run / "checkpoint.safetensors").write_bytes(data)
    if what == "used":
        out = ["--out", str(tmp_path)]
    release = run_folder.lock(run) if what == "training" else lambda: None
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.main(["export-checkpoint", str(run), *out])
    release()
    err = capsys.readouterr().err
    assert stop.value.code == 2 and len(err.splitlines()) == 1 and re.search(message, err)


def test_what_an_sae_was_before_is_exported_with_it(tmp_path):
    """Fine-tuning: its metadata and the format that it came from."""
    from saefast.formats import save

    first = make().sae
    first.metadata = {"note": "mine"}
    save(first, tmp_path / "lens", "sae_lens")
    trainer = saefast.Trainer(saefast.SAE.from_pretrained(tmp_path / "lens"), make().config)
    stopped_at(trainer, 4, tmp_path / "run")
    export_checkpoint(tmp_path / "run", tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert "origin.safetensors" in names
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "run" / name).read_bytes(), name


# -- what is in the folder


def test_a_run_of_an_older_version_goes_on(tmp_path):
    """Without checksums, the name of the run, what is known of its rows, and of options that are younger."""
    run = tmp_path / "run"
    stopped_at(make(), 7, run)
    fields = read_json_checked(run / "run.json")
    for name in ("id", "metadata", "origin", "backend", "device"):
        del fields[name]
    del fields["source"]["rows"], fields["train"]["cuda_graph"]
    (run / "run.json").write_text(json.dumps(fields))
    lines = [json.loads(text) for text in (run / "metrics.jsonl").read_text().splitlines()]
    text = "".join(json.dumps({k: v for k, v in line.items() if k != "crc32"}) + "\n" for line in lines)
    (run / "metrics.jsonl").write_text(text)
    export_checkpoint(run, tmp_path / "out")
    assert make().fit(ROWS, run, resume=True)
    assert len(read_json_checked(run / "run.json")["id"]) == 8
    make().fit(ROWS, tmp_path / "whole")
    got, want = result(run), result(tmp_path / "whole")
    for line in got[2] + want[2]:
        line.pop("crc32", None)
    assert_same(got, want)


@pytest.mark.parametrize(
    "name", ["run.json", "checkpoint.safetensors", "metrics.jsonl", "sae.safetensors", "config.json"]
)
def test_a_flipped_bit_is_never_read_as_whole(tmp_path, name, capsys):
    """One line that names the file, or the same as without it."""
    run, rng = tmp_path / "run", random.Random(name)
    stopped_at(make(), 7, run)
    whole, refused = (run / name).read_bytes(), 0

    def info():
        """What `saefast info` prints, without the one number that has no checksum; or its one line."""
        capsys.readouterr()
        try:
            cli.main(["info", str(run), "--json"])
        except SystemExit:
            (line,) = capsys.readouterr().err.splitlines()
            return line
        found = json.loads(capsys.readouterr().out)
        del found["last_metrics"]["tokens_per_second"]
        return found

    want = info()
    for _ in range(25):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        (run / name).write_bytes(damaged)
        got = info()
        if isinstance(got, str):
            assert got.startswith("saefast: error: ") and str(run / name) in got
            refused += 1
        else:
            assert got == want
    assert refused > 12
