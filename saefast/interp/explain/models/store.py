"""Tables in one file of SQLite, which survive a kill at any moment: answers (cache.py) and spending (budget.py).

SQLite of the standard library, not diskcache: that keeps values as pickles, which run code when they are read, and has had no
release since 2023. With a write-ahead log a commit is in the file or not there at all.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from typing import Any

from saefast.errors import InputError, line

WAIT = 60.0  # seconds for another process that writes


class Store:
    """One connection for all threads.

    Args:
        path: the file, which is made, its folder too; None keeps the tables in memory.
        tables: CREATE TABLE IF NOT EXISTS statements.

    Raises:
        InputError: the file is damaged or no file of SQLite; the message names it. Also by every method.
        OSError: it could not be read or written (a full disk, no rights). Also by every method.
    """

    def __init__(self, path: Path | None, tables: str) -> None:
        self.path, self._lock = path, RLock()
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        with self._naming():
            self._db = sqlite3.connect(
                path or ":memory:", timeout=WAIT, isolation_level=None, check_same_thread=False
            )
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute(
                "PRAGMA synchronous = NORMAL"
            )  # a power cut may take the last answers, a kill none
            self._db.executescript(tables)

    def read(self, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with self._lock, self._naming():
            return self._db.execute(query, values).fetchall()

    @contextmanager
    def changing(self) -> Iterator[sqlite3.Connection]:
        """A transaction: all that is done in it, or, after an error, nothing. No other process writes meanwhile."""
        with self._lock, self._naming():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _naming(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise OSError(f"{self.path}: {line(error)}") from None
        except sqlite3.DatabaseError as error:
            raise self.damaged(line(error)) from None

    def damaged(self, why: str) -> InputError:
        return InputError(f"{self.path}: damaged ({why}): move it away to begin anew")
