"""`saefast steer`: from a run and its records to texts."""

import re

import pytest

from saefast import SAE
from saefast.cli import steer
from tests.helpers.tiny_world import run

pytestmark = pytest.mark.usefixtures("no_curves")
SHORT = "--prompt w1 --n 2 --max-new-tokens 6"


@pytest.fixture(scope="module")
def looked(world, tmp_path_factory):
    """The run of the world, with records beside it."""
    folder = tmp_path_factory.mktemp("steer")
    run(f"look {world}/run {world}/cache --no-map --n-top 3 --records {folder}/records --out {folder}/look")
    return folder / "records"


def active(records):
    from saefast.interp.records import Records

    counts = Records(records).table()["count"].to_pylist()
    return max(range(len(counts)), key=counts.__getitem__)


def test_texts_stand_side_by_side_and_are_the_same_again(world, looked, capsys):
    latent = active(looked)
    command = f"steer {world}/run --latent {latent}=40x --latent 3+2 {SHORT} --records {looked}"
    said = []
    for _ in range(2):
        capsys.readouterr()
        run(command)
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] and "\x1b" not in said[0]
    lines = said[0].splitlines()
    assert lines[0] == f"{world}/model at model.layers.1"
    assert re.fullmatch(rf"latent {latent} set to [\d.e+]+ \({latent}=40x\)", lines[1])
    assert lines[2] == "latent 3 plus 2 (3+2)" and lines[4] == "w1"
    assert lines[5].startswith("as it is") and lines[5].endswith(" | steered")
    texts = [line.split(" | ") for line in lines[6:] if " | " in line]
    assert len(texts) >= 2 and all(len(cells) == 2 for cells in texts)
    assert [cells[0] for cells in texts] != [cells[1] for cells in texts]
    run(f"{command} --no-compare --at generated --seed 1")
    assert " | " not in (other := capsys.readouterr().out) and "on what is generated" in other


def test_on_a_terminal_it_is_coloured_and_signs_of_the_text_do_not_act(world, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    run(f"steer {world}/run --latent 3=9 {SHORT}")
    assert steer.COLOUR in capsys.readouterr().out
    assert steer._lines("a\x1b[31mb\n" + "c" * 30, 12) == ["a<U+001B>[31", "mb", "c" * 12, "c" * 12, "c" * 6]


def test_neurons_and_an_sae_that_names_no_place(world, tmp_path, capsys):
    run(f"steer {world}/run --latent 3=9 --neurons {SHORT}")
    sae = SAE.from_pretrained(world / "run")
    sae.metadata.clear()
    sae.save_pretrained(tmp_path / "sae")
    capsys.readouterr()
    run(f"steer {tmp_path}/sae {world}/model --hook model.layers.1 --latent 3=9 {SHORT}")
    assert "model.layers.1" in capsys.readouterr().out


@pytest.mark.parametrize(
    "flags,message",
    [
        ("--latent 64=1", "latent: expected 0 to 63, got 64"),
        ("--latent 3=2x", "latent: expected a number, since there are no records"),
        ("--latent 3", "latent: expected one like 17=5x"),
        ("--latent 3=1 --latent 3+1", "edits: expected one for each latent"),
        (
            "--latent 3=1 --hook model.layers.7",
            "hook: expected a module path or path:in, got 'model.layers.7'",
        ),
        (
            "--latent 3=1 --hook model.layers.1.mlp.down_proj:in",
            "hook: expected activations of width d_in = 32",
        ),
        ("--latent 3=1 --n 0", "n: expected at least 1, got 0"),
        ("--latent 3=1 --records nowhere", "records: expected a folder with records"),
    ],
)
def test_bad_input_is_one_line(world, fails, flags, message):
    assert message in fails(f"steer {world}/run {flags} --prompt w1 --max-new-tokens 2")


def test_a_model_of_another_width_and_records_of_another_sae(world, looked, fails, tmp_path):
    run(f"train {world}/cache --out {tmp_path}/other --d-sae 48 --k 4 --tokens 256 --batch-size 64 --lr 3e-3")
    assert "records: expected those of 48 latents" in fails(
        f"steer {tmp_path}/other --latent 3=1 --records {looked}"
    )
