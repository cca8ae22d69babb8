"""A file of results that grows: what a kill leaves of it, and what it refuses."""

import json

import pytest

from saefast.errors import InputError
from saefast.interp.lines import Lines, read_lines

HEAD = {"scores": ["simulation"], "seed": 0}


def written(path, rows, head=HEAD):
    lines = Lines(path, head)
    for row in rows:
        lines.append(row)
    lines.close()


def test_goes_on_after_the_rows_that_are_there(tmp_path):
    path = tmp_path / "new" / "results.jsonl"
    written(path, [{"latent": 1}])
    lines = Lines(path, HEAD)
    assert list(lines.results()) == [{"latent": 1}]
    lines.append({"latent": 2})
    lines.close()
    assert list(read_lines(path)) == [HEAD, {"latent": 1}, {"latent": 2}]


@pytest.mark.parametrize("size", [1, 70_000])
def test_a_torn_line_is_cut_off_wherever_it_is_torn(tmp_path, size):
    path = tmp_path / "results.jsonl"
    written(path, [{"latent": 1, "explanation": "x" * size}, {"latent": 2, "explanation": "y" * size}])
    whole = path.read_bytes()
    first = whole[: whole.index(b"\n") + 1]
    first_two = whole[: whole.index(b"\n", len(first)) + 1]
    for end in (len(first) - 1, len(first) + 3, len(first_two), len(first_two) + size, len(whole) - 1):
        path.write_bytes(whole[:end])
        lines = Lines(path, HEAD)
        lines.append({"latent": 3})
        lines.close()
        kept = first_two if end >= len(first_two) else first
        assert path.read_bytes() == kept + b'{"latent": 3}\n'


def test_results_of_other_settings_are_refused_by_name(tmp_path):
    path = tmp_path / "results.jsonl"
    written(path, [{"latent": 1}])
    before = path.read_bytes()
    with pytest.raises(InputError, match="results.jsonl.*seed 0 and not 1"):
        Lines(path, {**HEAD, "seed": 1})
    with pytest.raises(InputError, match="more None and not 2"):
        Lines(path, {**HEAD, "more": 2})
    assert path.read_bytes() == before


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_bytes(json.dumps(HEAD).encode() + b"\n[1]\n")
    with pytest.raises(InputError, match="results.jsonl, line 2: damaged"):
        list(read_lines(path))


def test_two_that_add_results_are_refused(tmp_path):
    first, second = (Lines(tmp_path / "results.jsonl", HEAD) for _ in range(2))
    second.append({"latent": 1})
    with pytest.raises(InputError, match="the only one that adds results"):
        first.append({"latent": 2})
    assert list(second.results()) == [{"latent": 1}]
    first.close(), second.close()
