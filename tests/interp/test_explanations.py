"""explanations.jsonl: read, written, added to."""

import json

import pytest

from saefast.errors import InputError
from saefast.interp.explanations import EXPLANATIONS, add_explanations, read_explanations, write_explanations


def one(latent, explanation, method=None, model=None, **scores):
    return {"latent": latent, "explanation": explanation, "method": method, "model": model, "scores": scores}


def test_what_is_written_is_read(tmp_path):
    assert read_explanations(tmp_path) == []
    lines = [one(3, "a \u2028\r\n\U0001f600", "m", "x", fuzz=0.5, n=2), one(1, "")]
    assert write_explanations(tmp_path, iter(lines)) == tmp_path / EXPLANATIONS
    assert read_explanations(tmp_path) == lines
    assert write_explanations(tmp_path, lines[1:]).read_text().count("\n") == 1


def test_what_is_left_out_is_null_or_empty(tmp_path):
    lines = [
        b'{"latent": 2, "explanation": "x", "more": 1}\r',
        b"",
        b'{"latent": 0, "explanation": "y", "scores": null}',
    ]
    (tmp_path / EXPLANATIONS).write_bytes(b"\n".join(lines))
    assert read_explanations(tmp_path) == [one(2, "x"), one(0, "y")]


def test_added_are_new_ones_and_those_of_another_method(tmp_path):
    old = [one(1, "old", "a"), one(1, "kept", "b"), one(2, "kept", "a"), one(1, "kept", "a", "model")]
    write_explanations(tmp_path, old)
    new = [one(1, "new", "a"), one(1, "second", "a"), one(5, "new", "a")]
    add_explanations(tmp_path, iter(new))
    assert read_explanations(tmp_path) == old[1:] + new


@pytest.mark.parametrize(
    "line",
    [
        b"nonsense",
        b"\xff",
        b"[]",
        b"1",
        b'{"latent": 3}',
        b'{"latent": "3", "explanation": "x"}',
        b'{"latent": -1, "explanation": "x"}',
        b'{"latent": true, "explanation": "x"}',
        b'{"latent": 3, "explanation": null}',
        b'{"latent": 3, "explanation": "\\ud800"}',
        b'{"latent": 3, "explanation": "x", "model": 4}',
        b'{"latent": 3, "explanation": "x", "scores": [1]}',
        b'{"latent": 3, "explanation": "x", "scores": {"a": "b"}}',
        b'{"latent": 3, "explanation": "x", "scores": {"a": true}}',
        b'{"latent": 3, "explanation": "x", "scores": {"a": NaN}}',
        b"[" * 100_000,
    ],
)
def test_a_wrong_line_is_named_and_nothing_is_written(tmp_path, line):
    path = write_explanations(tmp_path, [one(1, "x")])
    before = path.read_bytes() + b"\n" + line
    path.write_bytes(before)
    with pytest.raises(InputError, match=r"explanations\.jsonl, line 3: expected \{"):
        read_explanations(tmp_path)
    with pytest.raises(InputError, match="line 3"):
        add_explanations(tmp_path, [one(2, "y")])
    assert path.read_bytes() == before
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return
    with pytest.raises(InputError, match="explanation 1: expected"):
        write_explanations(tmp_path, [one(2, "y"), value])
    assert path.read_bytes() == before
