"""What describes a source may be rounded in another way on another machine: the run goes on."""

import pytest

from saefast.errors import InputError
from saefast.train.run import run_folder


def fields(**notes):
    return {"sae": {}, "train": {}, "source": {"type": "text", "notes": notes}, "metadata": {}, "id": "1"}


@pytest.mark.parametrize("was,now", [(366.4, 366.40001), ([3.0, 7.0], [3.0001, 6.9999]), (None, None)])
def test_a_median_that_another_machine_has_rounded_is_the_same(tmp_path, was, now):
    assert not run_folder.compare(tmp_path, fields(max_norm=was), fields(max_norm=now)).changes


@pytest.mark.parametrize(
    "was,now",
    [(366.4, 370.0), ([3.0, 7.0], [3.0]), (None, 3.0), (3.0, None), ("x", 3.0), (7, 3.0), ({}, 3.0)],
)
def test_another_median_is_refused(tmp_path, was, now):
    with pytest.raises(InputError, match="source: the run in .* was started with max_norm = "):
        run_folder.compare(tmp_path, fields(max_norm=was), fields(max_norm=now))


@pytest.mark.parametrize("was,now", [({"bos": 1}, {}), ({}, {"bos": 1}), ({"bos": 1}, {"bos": 2})])
def test_other_notes_are_refused_by_name(tmp_path, was, now):
    with pytest.raises(InputError, match="source: the run in .* was started with bos = "):
        run_folder.compare(tmp_path, fields(**was), fields(**now))
