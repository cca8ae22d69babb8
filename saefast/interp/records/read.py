"""Reading records."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from saefast.config.records import GROUPS, RecordsConfig
from saefast.errors import check
from saefast.files import file_checksum
from saefast.interp.records.codes import check_files, read_blocks, read_text
from saefast.interp.records.index_file import INDEX, read_index
from saefast.interp.records.select import STATISTICS, Block, entries
from saefast.interp.records.tables import EXAMPLES, LATENTS, ROWS_PER_GROUP, arrow, reading
from saefast.interp.records.text import Text


class Example(NamedTuple):
    """A token on which a latent is active (or, in the group "inactive", is not), and the text around it."""

    group: str  # one of GROUPS
    bin: int  # which interval or quantile, 0 the weakest; else 0
    rank: int  # in its group and bin
    act: float
    context: int
    position: int  # of the token in its context
    document: int
    split: str  # "explain" or "score", by document
    start: int  # of the window in the context
    tokens: list[int]  # ids of the window
    acts: list[float]  # of the latent on each token of the window; 0 where it is not active or has no row

    @property
    def at(self) -> int:
        """Where in the window the token is."""
        return self.position - self.start


@dataclass(frozen=True)
class LatentRecord:
    """What is recorded of one latent; statistics are described at `saefast.interp.records.select.select`."""

    latent: int
    count: int  # tokens on which it is active
    density: float
    mean: float
    variance: float
    skewness: float
    kurtosis: float
    max: float
    energy: float
    histogram: list[int]  # of the activations over (0, max]
    examples: dict[str, list[Example]]  # by group, in the order of bin and rank


class Records:
    """Records in a folder.

    Attributes:
        index: what was recorded from what: "sae", "source", "config", "separators", "blocks".
        config: how many examples, how much text.
        text: the contexts, with `documents` and `window`.

    Raises:
        InputError: there are no records, they are not complete, or a file is not the one that was written.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).absolute()
        how = "`saefast look RUN SOURCE` makes records"
        there = (self.folder / INDEX).exists()
        check(there, f"records: expected a folder with records, found none at {self.folder}; {how}")
        self.index = index = read_index(self.folder)
        check(
            index["complete"],
            f"{self.folder}: these records are incomplete; {how}: it goes on where it stopped",
        )
        self.config = RecordsConfig(**index["config"])
        self.d_sae: int = index["sae"]["d_sae"]
        self._examples: tuple[int, Any] = (-1, None)
        self._checked: set[str] = set()  # tables whose checksums were compared

    @cached_property
    def text(self) -> Text:
        return read_text(self.folder, self.index)

    @cached_property
    def blocks(self) -> list[Block]:
        """The sparse code, sorted by latent, memory-mapped."""
        return read_blocks(self.folder, self.index)

    @property
    def n_rows(self) -> int:
        return sum(block["n_rows"] for block in self.index["blocks"])

    def entries(self, latent: int) -> tuple[np.ndarray, np.ndarray]:
        """All activations of a latent: slots [n] int64 (context * context_length + position), acts [n] float32.

        Raises:
            InputError: no such latent, or these cannot be its activations; `check` finds every damage.
        """
        self._check(latent)
        slots, acts = entries(self.blocks, latent)
        n_slots = sum(block["n_contexts"] for block in self.index["blocks"]) * self.index["context_length"]
        good = not len(slots) or (
            slots[0] >= 0 and slots[-1] < n_slots and bool((slots[1:] > slots[:-1]).all())
        )
        good = good and bool(((acts > 0) & np.isfinite(acts)).all())
        check(good, f"{self.folder}: the code of latent {latent} is damaged; `Records.check` names the file")
        return slots, acts

    def check(self) -> None:
        """Read all files and compare their checksums, at about 1 GB/s. (Of the code, which may have gigabytes, not all is
        checked when it is read.)

        Raises:
            InputError: a file is missing or damaged; the message names it.
        """
        check_files(self.folder, self.index["blocks"])
        self._checked.clear()
        for name in (LATENTS, EXAMPLES):
            self._read(name, lambda file: file.metadata)

    def table(self, columns: list[str] | None = None) -> Any:
        """A pyarrow Table with a row for each latent; `.to_pandas()` is a DataFrame."""
        return self._read(LATENTS, lambda file: file.read(columns))

    def examples_table(self, latents: range | None = None) -> Any:
        """A pyarrow Table of the examples of the row groups in which these latents are, or of all."""
        if latents is None:
            return self._read(EXAMPLES, lambda file: file.read())
        groups = list(range(latents.start // ROWS_PER_GROUP, -(-latents.stop // ROWS_PER_GROUP)))
        return self._read(EXAMPLES, lambda file: file.read_row_groups(groups))

    def latent(self, latent: int) -> LatentRecord:
        """Everything about one latent, as plain values."""
        self._check(latent)
        group, examples = latent // ROWS_PER_GROUP, self._examples
        if examples[0] != group:
            statistics = self._read(LATENTS, lambda file: file.read_row_group(group))
            table = self.examples_table(range(latent, latent + 1))
            bounds = np.searchsorted(
                table["latent"].to_numpy(), np.arange(ROWS_PER_GROUP + 1) + group * ROWS_PER_GROUP
            )
            self._examples = examples = group, (statistics, table, bounds)
        statistics, table, bounds = examples[1]
        place = latent - group * ROWS_PER_GROUP
        row = statistics.slice(place, 1).to_pylist()[0]
        begin, end = bounds[place : place + 2].tolist()
        found: dict[str, list[Example]] = {name: [] for name in GROUPS}
        for example in table.slice(begin, end - begin).to_pylist():
            found[example["group"]].append(self._example(example))
        numbers = {name: row[name] for name in ("latent", *STATISTICS, "histogram")}
        return LatentRecord(**numbers, examples=found)

    def _read(self, name: str, read: Callable[[Any], Any]) -> Any:
        """What `read` takes from a table, whose checksum is compared before the first time."""
        path = self.folder / name
        with reading(path):
            if name not in self._checked:
                expected, got = self.index.get("tables", {}).get(name), file_checksum(path)
                check(expected in (None, got), f"{path}: corrupt: expected checksum {expected}, got {got}")
                self._checked.add(name)
            with arrow().parquet.ParquetFile(path, page_checksum_verification=True) as file:
                return read(file)

    def _example(self, row: dict[str, Any]) -> Example:
        start, length = row["start"], row.pop("length")
        acts = [0.0] * length
        for at, act in zip(row.pop("at"), row.pop("acts"), strict=True):
            acts[at] = act
        tokens = self.text.contexts[row["context"], start : start + length].tolist()
        del row["latent"]
        return Example(**row, tokens=tokens, acts=acts)

    def _check(self, latent: int) -> None:
        ok = not isinstance(latent, bool) and isinstance(latent, Integral) and 0 <= latent < self.d_sae
        check(ok, f"latent: expected 0 to {self.d_sae - 1}, got {latent!r}")
