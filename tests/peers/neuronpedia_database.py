"""Load an export into a Neuronpedia database of its own, made from the migrations of a checkout of hijohnnylin/neuronpedia.

    python -m tests.peers.neuronpedia_database out/model/source --schema CHECKOUT

Postgres from Debian (`apt-get install postgresql`) runs in a temporary folder, without a port. Rows go in as lib/db/import.ts
there puts them: columns of the first line, jsonb_to_recordset, ON CONFLICT DO NOTHING. Without pgvector the embedding is an array.
"""

import argparse
import gzip
import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

SMALL = {"release": "SourceRelease", "model": "Model", "sourceset": "SourceSet", "source": "Source"}
BULK = {"features": "Neuron", "activations": "Activation", "explanations": "Explanation"}


def database(checkout: Path) -> str:
    """The migrations in order, as SQL; what needs pgvector is left out."""
    sql = []
    for path in sorted((checkout / "apps/webapp/prisma/migrations").glob("*/migration.sql")):
        text = re.sub(r"vector\(\d+\)", "double precision[]", path.read_text())
        kept = [s for s in text.split(";") if not re.search(r"EXTENSION|hnsw|ivfflat|vector_\w+_ops", s)]
        sql.append(";".join(kept))
    return ";\n".join(sql)


class Postgres:
    """A server of the user postgres in a temporary folder."""

    def __init__(self) -> None:
        self.bin = max(Path("/usr/lib/postgresql").glob("*/bin"))
        self.folder = Path(tempfile.mkdtemp(prefix="neuronpedia-"))
        shutil.chown(self.folder, "postgres", "postgres")
        self.run(self.bin / "initdb", "-D", self.folder / "data", "-A", "trust", "--no-sync", "-E", "UTF8")
        options = f"-c listen_addresses='' -c fsync=off -k {self.folder}"
        log = self.folder / "log"
        self.run(self.bin / "pg_ctl", "-D", self.folder / "data", "-o", options, "-l", log, "-w", "start")

    def run(self, *command: object, text: str = "") -> str:
        whole = ["runuser", "-u", "postgres", "--", *map(str, command)]
        done = subprocess.run(whole, check=False, input=text, text=True, capture_output=True, cwd="/")
        if done.returncode:
            raise SystemExit(f"{command[0]}: {done.stderr[-2000:]}")
        return done.stdout.strip()

    def sql(self, text: str, stop: bool = True) -> str:
        return self.run("psql", "-h", self.folder, "-qAt", "-v", f"ON_ERROR_STOP={int(stop)}", text=text)

    def insert(self, table: str, lines: list[str]) -> int:
        """Returns how many rows the table has then."""
        names = ", ".join(f"'{name}'" for name in json.loads(lines[0]))
        columns = self.sql(
            "SELECT quote_ident(column_name) || '|' || CASE WHEN data_type = 'ARRAY' THEN "
            "substr(udt_name, 2) || '[]' WHEN data_type = 'USER-DEFINED' THEN quote_ident(udt_name) ELSE data_type END "
            f"FROM information_schema.columns WHERE table_name = '{table}' AND column_name IN ({names})"
        )
        pairs = [line.split("|") for line in columns.splitlines()]
        listed, typed = ", ".join(n for n, _ in pairs), ", ".join(f"{n} {t}" for n, t in pairs)
        for first in range(0, len(lines), 5000):
            array = "[" + ",".join(lines[first : first + 5000]).replace("\\u0000", " ") + "]"
            assert "$json$" not in array
            self.sql(
                f'INSERT INTO "{table}" ({listed}) SELECT {listed} FROM '
                f"jsonb_to_recordset($json${array}$json$::jsonb) AS t({typed}) ON CONFLICT DO NOTHING;"
            )
        return int(self.sql(f'SELECT count(*) FROM "{table}";'))

    def close(self) -> None:
        self.run(self.bin / "pg_ctl", "-D", self.folder / "data", "-m", "immediate", "stop")
        shutil.rmtree(self.folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("export", type=Path)
    parser.add_argument("--schema", type=Path, required=True)
    args = parser.parse_args()
    server = Postgres()
    try:
        server.sql(database(args.schema), stop=False)
        release = json.loads((args.export / "release.jsonl").read_text())
        user = {"id": release["creatorId"], "name": "someone", "emailUnsubscribeCode": "x"}
        server.insert("User", [json.dumps(user)])
        for name, table in SMALL.items():
            assert server.insert(table, (args.export / f"{name}.jsonl").read_text().splitlines()) == 1, table
        for folder, table in BULK.items():
            n_lines = n_rows = 0
            for path in sorted((args.export / folder).glob("*.jsonl.gz")):
                lines = gzip.decompress(path.read_bytes()).decode().splitlines()
                n_lines, n_rows = n_lines + len(lines), server.insert(table, lines)
            print(f"{table}: {n_rows} rows of {n_lines} lines")
            assert n_rows == n_lines, f"{table}: {n_lines - n_rows} lines were not taken"
    finally:
        server.close()


if __name__ == "__main__":
    os.environ.setdefault("LC_ALL", "C.UTF-8")
    main()
