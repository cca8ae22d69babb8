"""An export for Neuronpedia as SQL, for the database of a Neuronpedia of your own:

    python -m saefast.interp.exchange.neuronpedia_sql exports/MODEL/SOURCE | psql "$POSTGRES_URL_NON_POOLING"

Its own import reads only a bucket of Neuronpedia's. As that import does (apps/webapp/lib/db/import.ts there), this takes the
columns from the first line of a file and leaves rows that are there as they are, so a second time adds nothing. What the
import needs beforehand is added, too: the user who is the creator, and the names of the methods and models of explanations and of
scores. All of it is one transaction.
"""

import argparse
import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from saefast.errors import InputError, check, line

SMALL = {"release": "SourceRelease", "model": "Model", "sourceset": "SourceSet", "source": "Source"}
BULK = {"features": "Neuron", "activations": "Activation", "explanations": "Explanation"}
BULK |= {"explanation_scores": "ExplanationScore"}
NAMED = {"typeName": "ExplanationType", "explanationModelName": "ExplanationModelType"}
NAMED |= {
    f"explanationScore{what}Name": f"ExplanationScore{what}" for what in ("Type", "Model")
}  # tables of names that rows refer to
ROWS = 5000  # in a statement
NUL = re.compile(r"(?<!\\)((?:\\\\)*)\\u0000")  # escaped, not the letters after a backslash

BEGIN = r"""\set ON_ERROR_STOP on
\set QUIET on
SET client_encoding = 'UTF8';
SET client_min_messages = warning;
BEGIN;
CREATE TEMPORARY TABLE taken (name text, n bigint) ON COMMIT DROP;
CREATE FUNCTION pg_temp.take(name text, lines jsonb) RETURNS void LANGUAGE plpgsql AS $take$
DECLARE columns text; n bigint;
BEGIN
  SELECT string_agg(quote_ident(column_name), ', ') INTO columns FROM information_schema.columns
    WHERE table_schema = current_schema() AND table_name = name AND lines -> 0 ? column_name;
  EXECUTE format('INSERT INTO %1$I (%2$s) SELECT %2$s FROM jsonb_populate_recordset(NULL::%1$I, $1) '
    'ON CONFLICT DO NOTHING', name, columns) USING lines;
  GET DIAGNOSTICS n = ROW_COUNT;
  INSERT INTO taken VALUES (name, n);
END $take$;
"""
END = """SELECT name AS "table", sum(n) AS "rows added" FROM taken GROUP BY name ORDER BY name;
COMMIT;
"""


def neuronpedia_sql(folder: str | Path) -> Iterator[str]:
    """Statements for psql that put an export (.../model_id/source_id) into a database with Neuronpedia's tables.

    Raises:
        InputError: a file is missing or cannot be read.
    """
    folder = Path(folder)
    about = {name: _first(folder / f"{name}.jsonl") for name in SMALL}
    creator = about["release"]["creatorId"]
    yield BEGIN
    name = re.sub(r"[^a-z0-9.-]+", "-", creator.lower())[:39]
    yield _take("User", [json.dumps({"id": creator, "name": name, "emailUnsubscribeCode": creator})])
    for part, table in SMALL.items():
        yield _take(table, [json.dumps(about[part])])
    described = {"description": "", "creatorName": name}
    for part, table in BULK.items():
        for path in sorted((folder / part).glob("batch-*.jsonl.gz")):
            lines = _lines(path)
            if part.startswith("explanation"):
                parsed = [json.loads(one) for one in lines]
                for key, of in NAMED.items():
                    names = sorted({row[key] for row in parsed if row.get(key) is not None})
                    rows = [
                        {"name": one, "displayName": one, "creatorId": creator} | described for one in names
                    ]
                    if rows:
                        yield _take(of, list(map(json.dumps, rows)))
            for first in range(0, len(lines), ROWS):
                yield _take(table, lines[first : first + ROWS])
    yield END


def _take(table: str, lines: list[str]) -> str:
    r"""Lines of JSON as a literal between dollars: it holds no dollar of its own, and spaces for \u0000, as Neuronpedia has them."""
    array = NUL.sub(r"\1 ", "[" + ",\n".join(lines) + "]").replace("$", "\\u0024")
    return f"DO $do$ BEGIN PERFORM pg_temp.take('{table}', $json${array}$json$); END $do$;\n"


def _first(path: Path) -> dict[str, Any]:
    check(path.exists(), f"{path}: expected an export for Neuronpedia, found no such file")
    try:
        row = json.loads(path.read_bytes().split(b"\n")[0])
        check(isinstance(row, dict) and "creatorId" in row, f'{path}: expected a line with "creatorId"')
    except ValueError as error:
        raise InputError(f"{path}: expected JSON, got {line(error)}") from None
    return dict(row)


def _lines(path: Path) -> list[str]:
    try:
        lines = gzip.decompress(path.read_bytes()).decode().split("\n")
    except (OSError, EOFError, ValueError) as error:
        raise InputError(f"{path}: expected gzip of text, got {line(error)}") from None
    return [one for one in lines if one.strip()]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "export", type=Path, help="a folder MODEL/SOURCE of `saefast export --to neuronpedia`"
    )
    for part in neuronpedia_sql(parser.parse_args().export):
        print(part, end="")


if __name__ == "__main__":
    main()
