"""Fill a Neuronpedia database of its own with an export, compare what is in it with the export, and fill it again.

    python -m tests.peers.neuronpedia_database out/model/source --schema CHECKOUT

CHECKOUT: of hijohnnylin/neuronpedia; its migrations make the tables. Postgres from Debian (`apt-get install postgresql`) runs
in a temporary folder, without a port. Where there is no pgvector, embeddings are arrays and their indices are left out.
"""

import argparse
import gzip
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from saefast.interp.exchange.neuronpedia_sql import BULK, SMALL, neuronpedia_sql

EVERY = 97  # of so many latents one is compared value by value
NOT_COLUMNS = {
    "Source": {"inferenceHosts"},
    "Explanation": {"triggeredById"},
}  # their import takes these two, too


class Postgres:
    """A server of the user postgres in a temporary folder, with Neuronpedia's tables."""

    def __init__(self, checkout: Path) -> None:
        self.bin = max(Path("/usr/lib/postgresql").glob("*/bin"))
        self.folder = Path(tempfile.mkdtemp(prefix="neuronpedia-"))
        shutil.chown(self.folder, "postgres", "postgres")
        self.run(self.bin / "initdb", "-D", self.folder / "data", "-A", "trust", "--no-sync", "-E", "UTF8")
        options = f"-c listen_addresses='' -c fsync=off -c autovacuum=off -k {self.folder}"
        log = self.folder / "log"
        self.run(self.bin / "pg_ctl", "-D", self.folder / "data", "-o", options, "-l", log, "-w", "start")
        has_vector = self.sql("SELECT count(*) FROM pg_available_extensions WHERE name = 'vector';") == "1"
        self.has_vector = has_vector
        for path in sorted((checkout / "apps/webapp/prisma/migrations").glob("*/migration.sql")):
            text = path.read_text()
            if not has_vector:
                text = re.sub(r"vector\(\d+\)", "double precision[]", text)
                kept = [
                    s for s in text.split(";") if not re.search(r"EXTENSION|hnsw|ivfflat|vector_\w+_ops", s)
                ]
                text = ";".join(kept)
            self.sql(text)

    def run(self, *command: object, text: Iterable[str] = ()) -> str:
        whole = ["runuser", "-u", "postgres", "--", *map(str, command)]
        with tempfile.TemporaryFile("w+") as errors:
            pipe = subprocess.PIPE
            process = subprocess.Popen(whole, stdin=pipe, stdout=pipe, stderr=errors, text=True, cwd="/")
            assert process.stdin and process.stdout
            try:
                for part in text:
                    process.stdin.write(part)
                process.stdin.close()
            except BrokenPipeError:
                pass  # it stopped at an error, which follows
            found = process.stdout.read()
            if process.wait():
                errors.seek(0)
                raise SystemExit(f"{command[0]}: {errors.read()[-2000:]}")
        return found.strip()

    def sql(self, *text: str) -> str:
        return self.run("psql", "-h", self.folder, "-qAt", "-v", "ON_ERROR_STOP=1", text=text)

    def fill(self, export: Path) -> dict[str, int]:
        """As a user does it. Returns how many rows were added to each table."""
        found = self.run("psql", "-h", self.folder, "-At", text=neuronpedia_sql(export))
        return {name: int(n) for name, n in (row.split("|") for row in found.splitlines())}

    def rows(self, table: str, where: str = "true") -> list[dict[str, Any]]:
        found = self.sql(f'SELECT to_jsonb(t) FROM "{table}" t WHERE {where};')
        return [json.loads(row) for row in found.split("\n")]  # there are other ends of lines in the texts

    def close(self) -> None:
        self.run(self.bin / "pg_ctl", "-D", self.folder / "data", "-m", "immediate", "stop")
        shutil.rmtree(self.folder)


def lines_of(export: Path, part: str) -> Iterable[dict[str, Any]]:
    for path in sorted((export / part).glob("*.jsonl.gz")):
        yield from map(json.loads, gzip.decompress(path.read_bytes()).splitlines())


def compare(row: dict[str, Any], stored: dict[str, Any], table: str) -> None:
    """Every value of an exported row is in the database, and every key is one of its columns."""
    unknown = set(row) - set(stored) - NOT_COLUMNS.get(table, set())
    assert not unknown, f"{table} has no column {sorted(unknown)}"
    for name in set(row) & set(stored):
        value = row[name]
        if name == "createdAt" or name == "updatedAt":
            value = value.removesuffix("Z").removesuffix(".000")
        assert stored[name] == value, (
            f"{table} {row.get('index')} {name}: {stored[name]!r}, exported {value!r}"
        )


def check(server: Postgres, export: Path, every: int = EVERY) -> dict[str, int]:
    """Fill, compare, fill again; of every `every`-th latent value by value. Returns the rows of each table."""
    added = server.fill(export)
    for name, table in SMALL.items():
        [stored] = server.rows(table)
        compare(json.loads((export / f"{name}.jsonl").read_text()), stored, table)
    for part, table in BULK.items():
        owner = "explanationId" if part == "explanation_scores" else "index"
        per_latent: Counter[str] = Counter()
        sample = []
        for row in lines_of(export, part):
            per_latent[row[owner]] += 1
            if part.startswith("explanation") or int(row["index"]) % every == 0:
                sample.append(row)
        found = server.sql(f'SELECT "{owner}", count(*) FROM "{table}" GROUP BY "{owner}";')
        counts = {of: int(n) for of, n in (row.split("|") for row in found.splitlines())}
        assert counts == per_latent, f"{table}: other {owner}s than exported"
        assert added.get(table, 0) == per_latent.total()
        key = "index" if part == "features" else "id"
        wanted = "true" if part.startswith("explanation") else f"index::int % {every} = 0"
        stored = {row[key]: row for row in server.rows(table, wanted)}
        assert len(stored) == len(sample)
        for row in sample:
            compare(row, stored[row[key]], table)
    again = server.fill(export)
    assert not any(again.values()), f"the second time added {again}"
    return added


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("export", type=Path)
    parser.add_argument("--schema", type=Path, required=True)
    args = parser.parse_args()
    server = Postgres(args.schema)
    try:
        for table, n in check(server, args.export).items():
            print(f"{table}: {n} rows, as exported; a second time adds none")
        print(f"pgvector: {'yes' if server.has_vector else 'no'}")
    finally:
        server.close()


if __name__ == "__main__":
    os.environ.setdefault("LC_ALL", "C.UTF-8")
    main()
