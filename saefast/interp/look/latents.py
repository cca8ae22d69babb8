"""The pages of some latents: their statistics, examples and effects as arrays, latent after latent.

The text of a chunk is a pool of tokens: the union of the windows of all of its examples, so that text that many examples show
is there once.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from saefast.config.records import GROUPS, RecordsConfig
from saefast.interp.effects import Effects, ablations_table
from saefast.interp.look.pack import bfloat16
from saefast.interp.look.tokens import Shown
from saefast.interp.records import Records
from saefast.interp.records.tables import ROWS_PER_GROUP, arrow

MOMENTS = ("mean", "variance", "skewness", "kurtosis", "energy")


class Examples:
    """The examples of the latents in a row group of the records, column by column."""

    def __init__(
        self, records: Records, latents: range, groups: tuple[str, ...] = GROUPS, ablations: Any = None
    ) -> None:
        table = records.examples_table(latents)
        columns = {name: table[name].combine_chunks() for name in table.column_names}
        plain = ("latent", "bin", "rank", "context", "position", "act", "start", "length", "document")
        self.columns: dict[str, np.ndarray] = {name: columns[name].to_numpy() for name in plain}
        self.columns["group"] = _codes(columns["group"], GROUPS)
        self.columns["split"] = _codes(columns["split"], ("explain", "score"))
        self.offsets = columns["at"].offsets.to_numpy()
        self.at = columns["at"].values.to_numpy()
        self.acts = columns["acts"].values.to_numpy()
        self.effects = None if ablations is None else _effects(ablations, records, latents, self.columns)
        wanted = np.isin(self.columns["group"], [GROUPS.index(name) for name in groups])
        self.rows = wanted.nonzero()[0]
        self.latents = self.columns["latent"][self.rows]

    def of(self, latents: np.ndarray) -> np.ndarray:
        """The numbers of the rows of these latents, latent after latent, in the order of the records."""
        begin, end = (np.searchsorted(self.latents, latents, side) for side in ("left", "right"))
        return self.rows[spans(begin, end - begin)]


def chunks(
    records: Records,
    effects: Effects,
    shown: Shown,
    latents: np.ndarray,
    each: int,
    groups: tuple[str, ...] = GROUPS,
) -> Iterator[tuple[Examples, np.ndarray, dict[str, np.ndarray]]]:
    """For `each` latents at a time: the examples of their row group, the latents [m], and the arrays of their pages."""
    table, ablations = records.table(), ablations_table(records.folder)
    histogram = table["histogram"].combine_chunks()
    counts = histogram.values.to_numpy().reshape(len(table), -1)
    moments = {name: table[name].to_numpy() for name in MOMENTS}
    flat, rows = records.text.contexts.ravel(), np.zeros(0, np.int64)
    group, examples = -1, None
    for first in range(0, len(latents), each):
        some = latents[first : first + each]
        parts = []
        for number in np.unique(some // ROWS_PER_GROUP).tolist():
            if number != group:
                at = int(number) * ROWS_PER_GROUP
                group, examples = number, Examples(records, range(at, at + 1), groups, ablations)
            assert examples is not None
            mine = some[some // ROWS_PER_GROUP == number]
            rows = examples.of(mine)
            arrays = {
                "latent": mine.astype(np.uint32),
                "histogram": counts[mine].astype(np.uint32),
                **{name: values[mine].astype(np.float64) for name, values in moments.items()},
                **_examples(examples, mine, rows, flat, records.text.length, shown),
                **_tables(effects, shown, mine),
            }
            parts.append((examples, mine, arrays))
        yield from parts


def _examples(
    examples: Examples, latents: np.ndarray, rows: np.ndarray, flat: np.ndarray, length: int, shown: Shown
) -> dict[str, np.ndarray]:
    columns = {name: column[rows] for name, column in examples.columns.items()}
    first = columns["context"].astype(np.int64) * length + columns["start"]
    places, pool = pool_of(first, columns["length"], flat)
    begin, n_active = examples.offsets[rows], np.diff(examples.offsets)[rows]
    active = spans(begin, n_active)
    found = {
        "n_examples": np.bincount(np.searchsorted(latents, columns["latent"]), minlength=len(latents)),
        "group": columns["group"].astype(np.uint8),
        "bin": columns["bin"].astype(np.uint16),
        "split": columns["split"].astype(np.uint8),
        "context": columns["context"].astype(np.uint32),
        "document": columns["document"].astype(np.uint32),
        "start": columns["start"].astype(np.uint32),
        "length": columns["length"].astype(np.uint16),
        "peak": (columns["position"] - columns["start"]).astype(np.uint16),
        "act": columns["act"].astype(np.float32),
        "place": places.astype(np.uint32),
        "pool": shown(pool),
        "n_active": n_active.astype(np.uint16),
        "at": examples.at[active].astype(np.uint16),
        "acts": examples.acts[active].astype(np.float32),
    }
    found["n_examples"] = found["n_examples"].astype(np.uint32)
    if examples.effects is not None:
        offsets, values = examples.effects
        each = np.diff(offsets)[rows]
        found["n_effects"] = each.astype(np.uint16)
        found["effects"] = bfloat16(values[spans(offsets[rows], each)])
    return found


def _tables(effects: Effects, shown: Shown, latents: np.ndarray) -> dict[str, np.ndarray]:
    """The rows of these latents of each table of effects, under "table.field"."""
    found: dict[str, np.ndarray] = {}
    for name, table in effects._asdict().items():
        if table is None:
            continue
        for field, tensor in table._asdict().items():
            values = tensor.numpy()[latents]
            if field.endswith("_tokens"):
                found[f"{name}.{field}"] = shown(values)
            else:
                dtype = np.float32 if values.dtype.kind == "f" else np.int32
                found[f"{name}.{field}"] = values.astype(dtype)
    return found


def pool_of(first: np.ndarray, length: np.ndarray, flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where in the pool each window begins, [n] int64, and the pool: `flat` at the union of the windows.

    Args:
        first: slot of the first token of each window, [n] int64.
        length: tokens of each, [n].
    """
    order = np.argsort(first, kind="stable")
    begin, end = first[order], first[order] + length[order]
    reach = np.maximum.accumulate(end)
    is_new = np.ones(len(order), bool)
    is_new[1:] = begin[1:] > reach[:-1]
    starts = begin[is_new]
    ends = reach[np.append(is_new.nonzero()[0][1:] - 1, len(order) - 1)] if len(order) else starts
    base = np.cumsum(ends - starts) - (ends - starts)  # of each part in the pool
    part = np.cumsum(is_new) - 1
    places = np.empty(len(order), np.int64)
    places[order] = base[part] + begin - starts[part]
    return places, flat[spans(starts, ends - starts)]


def spans(begin: np.ndarray, length: np.ndarray) -> np.ndarray:
    """begin[0], begin[0] + 1, ... of length[0] numbers, then those from begin[1] on, and so forth; int64."""
    length = length.astype(np.int64)
    before = np.cumsum(length) - length
    return np.arange(int(length.sum()), dtype=np.int64) + np.repeat(begin - before, length)


def _codes(column: Any, names: tuple[str, ...]) -> np.ndarray:
    """A column of strings from a dictionary as numbers of `names`."""
    own = np.asarray([names.index(name) for name in column.dictionary.to_pylist()], np.int64)
    return own[column.indices.to_numpy()] if len(column) else np.zeros(0, np.int64)


def _effects(
    ablations: Any, records: Records, latents: range, columns: dict[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """The ablation effects of each example: offsets [n + 1] into values [N], NaN where there is none."""
    first = latents.start // ROWS_PER_GROUP * ROWS_PER_GROUP
    begin, end = np.searchsorted(ablations["latent"].to_numpy(), [first, first + ROWS_PER_GROUP]).tolist()
    table = ablations.slice(begin, end - begin)
    names = table["group"].cast(arrow().string())
    group = arrow().compute.index_in(names, value_set=arrow().array(GROUPS)).to_numpy().astype(np.int64)
    found = {name: table[name].to_numpy() for name in ("latent", "bin", "rank")} | {"group": group}
    lists = table["effects"].combine_chunks()
    offsets = lists.offsets.to_numpy().astype(np.int64)
    keys, wanted = _keys(found, records.config), _keys(columns, records.config)
    order = np.argsort(keys, kind="stable")
    place = np.searchsorted(keys[order], wanted)
    there = place < len(keys)
    there[there] = keys[order][place[there]] == wanted[there]
    row = order[place[there]]
    lengths = np.zeros(len(wanted), np.int64)
    lengths[there] = np.diff(offsets)[row]
    values = lists.values.to_numpy(zero_copy_only=False).astype(np.float32)
    picked = values[spans(offsets[:-1][row], np.diff(offsets)[row])]
    return np.concatenate([[0], np.cumsum(lengths)]), picked


def _keys(columns: dict[str, np.ndarray], config: RecordsConfig) -> np.ndarray:
    """(latent, group, bin, rank) as one number; bins and ranks are below 2**15."""
    key = columns["latent"].astype(np.int64)
    for name, size in (("group", 8), ("bin", 2**15), ("rank", 2**15)):
        key = key * size + columns[name]
    return key
