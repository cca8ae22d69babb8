"""The folder of a study: stages run once, and what does not belong together is refused by name."""

import json

import pytest

from saefast.errors import InputError
from saefast.study.folder import Folder

ASKED = {"study": "monosemanticity", "scale": "ci", "model": None}


def test_a_stage_runs_once_also_for_another_process(tmp_path):
    calls = []
    make = lambda: calls.append(1) or {"l0": 12.5}
    first = Folder(tmp_path / "out", ASKED).run("dictionaries", make)
    again = Folder(tmp_path / "out", ASKED).run("dictionaries", make)
    assert first == again and first["found"] == {"l0": 12.5} and calls == [1]


def test_a_stage_that_is_interrupted_has_no_result_and_runs_again(tmp_path):
    folder = Folder(tmp_path / "out", ASKED)

    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        folder.run("records", interrupted)
    assert folder.result("records") is None
    assert folder.run("records", lambda: {"tokens": 3})["found"] == {"tokens": 3}


def test_a_folder_of_another_scale_is_refused_by_name(tmp_path):
    Folder(tmp_path / "out", ASKED)
    with pytest.raises(InputError, match=r"holds a study of scale 'ci', asked for 'laptop'"):
        Folder(tmp_path / "out", ASKED | {"scale": "laptop"})


def test_a_folder_with_other_things_in_it_stays_as_it_is(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(InputError, match="with other things in it"):
        Folder(tmp_path, ASKED)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_result_that_was_edited_is_refused(tmp_path):
    folder = Folder(tmp_path / "out", ASKED)
    folder.run("trial", lambda: {"p": 0.2})
    path = folder.path / "results" / "trial.json"
    value = json.loads(path.read_text())
    value["found"]["p"] = 0.001
    path.write_text(json.dumps(value))
    with pytest.raises(InputError, match=r"trial\.json: corrupt"):
        folder.result("trial")


def test_a_result_of_another_stage_is_refused(tmp_path):
    folder = Folder(tmp_path / "out", ASKED)
    folder.run("trial", lambda: {"p": 0.2})
    results = folder.path / "results"
    (results / "blind.json").write_text((results / "trial.json").read_text())
    with pytest.raises(InputError, match="expected the result of the stage 'blind'"):
        folder.result("blind")
