"""simulations.jsonl: what comes back, what a kill leaves, what is refused; found without reading it all."""

import json
import math

import numpy as np
import pytest

from saefast.errors import InputError
from saefast.interp.simulations import SIMULATIONS, Simulations, read_simulations

NEURON, NORMALIZED = "neuron_activations", "simulated_normalized_activations"


def window(**changes):
    return {"slot": 3, "length": 2, "expected": [0.5, -1], "scale": NEURON} | changes


def write(folder, *rows):
    found = Simulations(folder)
    for row in rows:
        found.append(*row)
    found.close()


def test_what_was_written_comes_back(tmp_path):
    dist = {"distribution_values": [[0, 1.23456], []], "distribution_probabilities": [[0.25, 0.75], []]}
    arrays = window(slot=np.int64(7), expected=np.asarray([12345.6, 1 / 3], np.float32))
    write(
        tmp_path,
        (2, 'quo"te \\ }', "model, \u2028 \U0001f600", [window(**dist), arrays]),
        (0, None, None, [window(scale=NORMALIZED)]),
        (2, None, "null", [window(length=1, expected=[1e-30])]),
    )
    first, second, third = read_simulations(tmp_path)
    assert (first["latent"], first["method"], first["model"]) == (
        2,
        'quo"te \\ }',
        "model, \u2028 \U0001f600",
    )
    rounded = {"distribution_values": [[0.0, 1.235], []]}
    assert first["simulations"] == [window(**(dist | rounded)), window(slot=7, expected=[12350.0, 0.3333])]
    assert second == {"latent": 0, "method": None, "model": None, "simulations": [window(scale=NORMALIZED)]}
    assert third["simulations"][0]["expected"] == [1e-30] and third["model"] == "null"
    found = Simulations(tmp_path)
    assert len(found) == 3 and found.get(2, None, "null") == third["simulations"]
    assert found.get(2, None, None) == found.get(1, None, None) == []
    again = tmp_path / "again"
    again.mkdir()
    write(again, *(tuple(row.values()) for row in (first, second, third)))
    assert (again / SIMULATIONS).read_bytes() == (tmp_path / SIMULATIONS).read_bytes()


def test_no_file(tmp_path):
    assert list(read_simulations(tmp_path)) == [] and Simulations(tmp_path).get(0, None, None) == []
    assert not (tmp_path / SIMULATIONS).exists()


def test_the_later_one_counts_also_while_it_is_open(tmp_path):
    write(tmp_path, (1, "m", None, [window()]), (2, "m", None, [window(slot=5)]))
    found = Simulations(tmp_path)
    assert found.get(1, "m", None) == [window()]
    found.append(1, "m", None, [window(slot=9)])
    assert found.get(1, "m", None) == [window(slot=9)] and found.get(2, "m", None) == [window(slot=5)]
    found.append(2, "m", None, [])
    found.close()
    assert [(row["latent"], row["simulations"][0]["slot"]) for row in read_simulations(tmp_path)] == [(1, 9)]
    assert (tmp_path / SIMULATIONS).read_bytes().count(b"\n") == 4


def test_what_a_kill_left(tmp_path):
    write(tmp_path, (1, "m", None, [window()]))
    whole = (tmp_path / SIMULATIONS).read_bytes()
    write(tmp_path, (2, "m", None, [window()]))
    both = (tmp_path / SIMULATIONS).read_bytes()
    for cut in (len(whole) + 1, len(both) - 1, len(whole)):
        (tmp_path / SIMULATIONS).write_bytes(both[:cut])
        assert [row["latent"] for row in read_simulations(tmp_path)] == [1]
        write(tmp_path, (2, "m", None, [window()]))
        assert (tmp_path / SIMULATIONS).read_bytes() == both
    (tmp_path / SIMULATIONS).write_bytes(both[:20])
    write(tmp_path, (1, "m", None, [window()]))
    assert (tmp_path / SIMULATIONS).read_bytes() == whole


def test_two_that_write(tmp_path):
    one, other = Simulations(tmp_path), Simulations(tmp_path)
    one.append(1, None, None, [window()])
    with pytest.raises(InputError, match="only one that adds"):
        other.append(2, None, None, [window()])
    one.append(3, None, None, [window()])
    one.close()
    assert [row["latent"] for row in read_simulations(tmp_path)] == [1, 3]


WRONG = [
    window(slot=-1),
    window(slot=True),
    window(slot=0.5),
    window(length=3),
    window(length=0, expected=[]),
    window(expected=[0.5, math.nan]),
    window(expected=[0.5, math.inf]),
    window(expected=[0.5, "1"]),
    window(expected=[0.5, True]),
    window(expected=7),
    window(scale="other"),
    window(scale=["x"]),
    window(distribution_values=[[1], [1]]),
    window(distribution_values=[[1], [1]], distribution_probabilities=[[1], [1, 2]]),
    window(distribution_values=[[1]], distribution_probabilities=[[1]]),
    window(distribution_values=[[1], [math.nan]], distribution_probabilities=[[1], [1]]),
    {"slot": 1},
    None,
]


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_simulations(tmp_path, wrong):
    found = Simulations(tmp_path)
    if wrong is not None:
        with pytest.raises(InputError, match="simulations of latent 1: expected"):
            found.append(1, "m", None, [window(), wrong])
        assert not (tmp_path / SIMULATIONS).exists()
    row = {"latent": 0, "method": None, "model": None, "simulations": [window()]}
    lines = [row, row | {"latent": 1, "simulations": [wrong]}]
    (tmp_path / SIMULATIONS).write_text("".join(json.dumps(one) + "\n" for one in lines))
    with pytest.raises(InputError, match=r"simulations.jsonl, line 2: expected"):
        list(read_simulations(tmp_path))


def test_lines_of_others(tmp_path):
    """Other spaces, another order, empty lines; and lines that are none."""
    row = {"simulations": [window(later=1)], "latent": 4, "model": "g"}
    good = json.dumps(row, separators=(",", " : ")) + "\n\n"
    (tmp_path / SIMULATIONS).write_text(good)
    [found] = read_simulations(tmp_path)
    assert found == {"latent": 4, "method": None, "model": "g", "simulations": [window()]}
    for wrong in ("x", "[1]", '{"latent": -1, "simulations": []}', '{"latent": 1}', "[" * 100_000, "\xff"):
        (tmp_path / SIMULATIONS).write_bytes((good + wrong + "\n").encode("latin-1"))
        with pytest.raises(InputError, match="simulations.jsonl, line 3: expected"):
            Simulations(tmp_path)
    for key in ({"latent": True}, {"latent": -1}, {"method": 1}, {"model": ["x"]}):
        with pytest.raises(InputError, match="expected"):
            Simulations(tmp_path).append(*({"latent": 1, "method": None, "model": None} | key).values(), [])
