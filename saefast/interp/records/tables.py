"""What was selected, as Parquet files of which a reader takes only the row groups and columns that it needs.

latents.parquet has a row for each latent: latent, `STATISTICS`, histogram.
examples.parquet has a row for each example, those of `ROWS_PER_GROUP` latents in a row group:
    latent int32; group, bin, rank (see `RecordsConfig.places`); context int32 and position int32 of its token; act float32;
    document int64 and split ("explain" or "score"); start and length int32: the window is these tokens of the context;
    at list<int16>, acts list<float32>: where in the window, from its start on, the latent is active, and how strongly.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from saefast.config.records import GROUPS, SPLITS, RecordsConfig
from saefast.errors import InputError, check, line
from saefast.files import file_checksum, refuse_pointer, write_atomic
from saefast.interp.records import engine
from saefast.interp.records.select import STATISTICS, Block, Selected
from saefast.interp.records.text import Text

ROWS_PER_GROUP = 512  # latents
LATENTS, EXAMPLES = "latents.parquet", "examples.parquet"


def arrow() -> Any:
    """pyarrow with its Parquet module: what every tool for tables reads.

    Raises:
        InputError: it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise InputError("records need pyarrow: pip install 'saefast[interp]'") from None
    return pyarrow


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """While a Parquet file is read: what is wrong with it is an InputError that names it."""
    refuse_pointer(path)
    check(path.is_file(), f"{path}: expected a file, found none")
    try:
        yield
    except (arrow().ArrowException, OSError, KeyError) as error:
        raise InputError(f"{path}: corrupt or not written by saefast ({line(error)})") from None


def write_tables(
    folder: Path,
    selections: Iterator[tuple[int, Selected]],
    blocks: Sequence[Block],
    text: Text,
    config: RecordsConfig,
) -> dict[str, str]:
    """Both files, from (first latent, what was selected of it and those that follow). Returns their checksums by name."""
    pa = arrow()

    def write(temporary: Path) -> None:
        latents = examples = None
        # a dictionary of numbers that are all different costs most of the time
        options = {"compression": "zstd", "compression_level": 1, "write_page_checksum": True}
        options |= {"use_dictionary": ["group", "split", "bin", "rank", "latent"]}
        try:
            with ThreadPoolExecutor(1) as pool:  # while one group is written the next is selected
                written: list[Future[None]] = []
                for first, selected in selections:
                    of_latents = _latents(pa, first, selected)
                    of_examples = _examples(pa, first, selected, blocks, text, config)
                    latents = latents or pa.parquet.ParquetWriter(temporary, of_latents.schema, **options)
                    examples = examples or pa.parquet.ParquetWriter(
                        temporary.with_name(EXAMPLES), of_examples.schema, **options
                    )
                    for one in written:
                        one.result()
                    written = [pool.submit(latents.write_table, of_latents, len(of_latents) or None)]
                    written += [pool.submit(examples.write_table, of_examples, len(of_examples) or None)]
                for one in written:
                    one.result()
        finally:
            for writer in (latents, examples):
                if writer is not None:
                    writer.close()
        write_atomic(folder / EXAMPLES, temporary.with_name(EXAMPLES).rename)

    write_atomic(folder / LATENTS, write)
    return {name: file_checksum(folder / name) for name in (LATENTS, EXAMPLES)}


def _latents(pa: Any, first: int, selected: Selected) -> Any:
    n = len(selected.statistics)
    columns: dict[str, Any] = {"latent": np.arange(first, first + n, dtype=np.int32)}
    columns |= dict(zip(STATISTICS, selected.statistics.T, strict=True))
    columns["count"] = columns["count"].astype(np.int64)
    columns["max"] = columns["max"].astype(np.float32)
    n_bins = selected.histogram.shape[1]
    columns["histogram"] = pa.FixedSizeListArray.from_arrays(selected.histogram.ravel(), n_bins)
    return pa.table(columns)


def _examples(
    pa: Any, first: int, selected: Selected, blocks: Sequence[Block], text: Text, config: RecordsConfig
) -> Any:
    row, place = (selected.slots >= 0).nonzero()
    slots, act = selected.slots[row, place], selected.acts[row, place]
    documents, windows = engine.documents(slots, text), engine.windows(slots, text, config)
    context, position = np.divmod(slots, text.length)
    bounds = (context * text.length)[:, None] + windows
    offsets, at, acts = engine.window_acts(blocks, row + first, bounds)
    groups, bins, ranks = zip(*config.places, strict=True) if config.places else ((), (), ())
    group = np.asarray([GROUPS.index(name) for name in groups], np.int8)[place]
    named = pa.DictionaryArray.from_arrays
    return pa.table(
        {
            "latent": (row + first).astype(np.int32),
            "group": named(group, list(GROUPS)),
            "bin": np.asarray(bins, np.int16)[place],
            "rank": np.asarray(ranks, np.int16)[place],
            "context": context.astype(np.int32),
            "position": position.astype(np.int32),
            "act": act,
            "document": documents,
            "split": named(text.splits(documents, config), list(SPLITS)),
            "start": windows[:, 0],
            "length": windows[:, 1] - windows[:, 0],
            "at": pa.ListArray.from_arrays(offsets, at),
            "acts": pa.ListArray.from_arrays(offsets, acts),
        }
    )
