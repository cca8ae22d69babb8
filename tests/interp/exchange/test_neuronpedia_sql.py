"""The SQL of an export: every row of it once, in literals that no text can end. What it does is tested in tests/peers."""

import gzip
import json
import re

import pytest

from saefast.errors import InputError
from saefast.interp.exchange import neuronpedia_sql as sql
from saefast.interp.exchange.neuronpedia import export_neuronpedia
from tests.helpers.hostile_records import IDS, Words, hostile_effects, hostile_records, rows

TAKE = re.compile(r"DO \$do\$ BEGIN PERFORM pg_temp.take\('(\w+)', \$json\$([^$]*)\$json\$\); END \$do\$;\n")


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    records, _, _ = hostile_records(tmp_path_factory.mktemp("records"))
    hostile = {
        "latent": 4,
        "explanation": "$json$); DROP \u2028 \0 '\"\\ \\u0000",
        "method": "it's $",
        "model": "g",
    }
    with (records.folder / "explanations.jsonl").open("a") as file:
        file.write(json.dumps(hostile) + "\n")
    return export_neuronpedia(records, hostile_effects(), Words(), tmp_path_factory.mktemp("out"), **IDS)


def taken(export):
    """{table: rows} of statements that are nothing but the filling of tables."""
    begin, *parts, end = sql.neuronpedia_sql(export)
    assert begin.startswith("\\set ON_ERROR_STOP on") and "\nBEGIN;\n" in begin and end.endswith("COMMIT;\n")
    found = {}
    for part in parts:
        table, array = TAKE.fullmatch(part).groups()
        found.setdefault(table, []).append(json.loads(array))
    return found


def test_every_row_once(export, monkeypatch):
    monkeypatch.setattr(sql, "ROWS", 100)
    found = taken(export)
    order = ["User", *sql.SMALL.values(), "Neuron", "Activation"]
    order += ["ExplanationType", "ExplanationModelType", "Explanation"]
    assert list(found) == [*order, "ExplanationScoreType", "ExplanationScoreModel", "ExplanationScore"]
    for part, table in sql.BULK.items():
        assert [row for some in found[table] for row in some] == rows(export, part)
    assert max(map(len, found["Activation"])) == 100 < len(rows(export, "activations"))
    for part, table in sql.SMALL.items():
        assert found[table] == [[json.loads((export / f"{part}.jsonl").read_text())]]
    [[user]] = found["User"]
    assert user["id"] == "me" and re.fullmatch(r"[a-z0-9.-]{1,39}", user["name"])
    assert {row["name"] for row in found["ExplanationType"][0]} == {"m", "it's $"}
    assert [row["name"] for row in found["ExplanationModelType"][0]] == ["g"]
    assert [row["name"] for row in found["ExplanationScoreType"][0]] == ["d"]
    assert [row["name"] for row in found["ExplanationScoreModel"][0]] == ["unknown"]


def test_ends_of_lines_inside_of_texts(export, tmp_path):
    """Neuronpedia's own files have them as they are."""
    for part in sql.SMALL:
        (tmp_path / f"{part}.jsonl").write_bytes((export / f"{part}.jsonl").read_bytes())
    (tmp_path / "explanations").mkdir()
    line = json.dumps({"id": "a", "description": "x\u2028y\x85z"}, ensure_ascii=False)
    for number in (10, 9):
        data = gzip.compress(f"{line}\n{line}\n".encode())
        (tmp_path / f"explanations/batch-{number}.jsonl.gz").write_bytes(data)
    assert taken(tmp_path)["Explanation"] == [[json.loads(line)] * 2] * 2


def test_nul_is_a_space_and_spelled_out_it_stays(export, tmp_path):
    for part in sql.SMALL:
        (tmp_path / f"{part}.jsonl").write_bytes((export / f"{part}.jsonl").read_bytes())
    (tmp_path / "explanations").mkdir()
    lines = [json.dumps({"id": text}) for text in ("a\0b", "a\\u0000b", "a\\\0b", "\0\0", "$")]
    assert all("\\u0000" in line for line in lines[:-1])
    data = gzip.compress("\n".join(lines).encode())
    (tmp_path / "explanations/batch-0.jsonl.gz").write_bytes(data)
    [found] = taken(tmp_path)["Explanation"]
    assert [row["id"] for row in found] == ["a b", "a\\u0000b", "a\\ b", "  ", "$"]


def test_what_is_no_export(export, tmp_path):
    with pytest.raises(InputError, match="release.jsonl: expected an export"):
        next(sql.neuronpedia_sql(tmp_path))
    for part in sql.SMALL:
        (tmp_path / f"{part}.jsonl").write_bytes((export / f"{part}.jsonl").read_bytes())
    (tmp_path / "features").mkdir()
    (tmp_path / "features/batch-0.jsonl.gz").write_bytes(b"none")
    with pytest.raises(InputError, match="expected gzip"):
        list(sql.neuronpedia_sql(tmp_path))
    (tmp_path / "model.jsonl").write_text("[]")
    with pytest.raises(InputError, match="creatorId"):
        next(sql.neuronpedia_sql(tmp_path))
