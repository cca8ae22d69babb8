"""Right calls of the bindings of records: the code of a small text, sorted, and what is selected from it."""

from typing import Any

import numpy as np

from saefast import _C, reference
from saefast.config.records import RecordsConfig
from saefast.interp.records import codes, select
from saefast.interp.records.text import Text
from tests.faults.boundary_calls import Call, Random, code, size, tensor, threads
from tests.interp.records.brute_force import blocks_of, case

SIZES = ("n_top", "n_intervals", "per_interval", "n_quantiles", "per_quantile", "n_random", "n_inactive")


def equal(got: Any, want: Any) -> None:
    for one, other in zip(got, want, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)


def small(rng: Random) -> tuple[Text, list[select.Block], dict[str, Any]]:
    """A text, its code in one to three blocks, and how it is given."""
    m, length = max(1, size(rng, 12)), max(1, size(rng, 12))
    dense, contexts, encoded = case(int(rng.integers(2**31)), m=m, length=length)
    text = Text(contexts, encoded, [[], [0], [0, 1, 2]][int(rng.integers(3))])
    edges = np.unique([0, *rng.integers(0, m + 1, 2), m])
    blocks = blocks_of(dense, length, np.diff(edges).tolist())
    views = {"ends": text.ends.view(np.uint8), "encoded": text.encoded.view(np.uint8)}
    return text, blocks, views


def select_examples(rng: Random) -> Call:
    text, blocks, views = small(rng)
    first, n_bins, seed = int(rng.integers(0, 7)), int(rng.integers(1, 5)), int(rng.integers(2**15))
    n = int(rng.integers(0, 8 - first))
    sizes = {name: int(rng.integers(0, 4)) for name in SIZES}
    config = RecordsConfig(**sizes, n_bins=n_bins, before=int(rng.integers(5)), after=2, seed=seed)
    out = {"statistics": np.empty((n, 8)), "histogram": np.empty((n, n_bins), np.int64)}
    n_examples = len(config.places)
    out |= {"slots": np.empty((n, n_examples), np.int64), "acts": np.empty((n, n_examples), np.float32)}
    args = {"blocks": list(map(tuple, blocks)), "first": first} | views | {"n_rows": text.n_rows}
    args |= {"wanted": [*sizes.values(), n_bins, config.before, config.after], "seed": seed}
    args |= out | {"threads": threads(rng)}

    def verify(_: None) -> None:
        equal(out.values(), select.select(blocks, first, first + n, text, config))

    return Call("select_examples", _C.select_examples, args, verify)


def windows_or_documents(rng: Random) -> Call:
    text, _, views = small(rng)
    slots = rng.integers(0, text.n_slots, size(rng))
    given = {"slots": slots, "ends": views["ends"]}
    if rng.random() < 0.5:
        out: Any = np.empty((len(slots), 2), np.int32)
        config = RecordsConfig(before=int(rng.integers(5)), after=int(rng.integers(5)))
        given |= {"before": config.before, "after": config.after, "windows": out}
        want = [text.window(slot, config) for slot in slots.tolist()]
        return Call("token_windows", _C.token_windows, given, lambda _: equal(out.tolist(), want))
    out = np.empty(len(slots), np.int64)
    given |= {"first_document": text.first_document, "documents": out}
    return Call("token_documents", _C.token_documents, given, lambda _: equal(out, text.documents(slots)))


def entries_in(rng: Random) -> Call:
    text, blocks, _ = small(rng)
    latents = rng.integers(0, 7, size(rng))
    begin = rng.integers(0, text.length, len(latents))
    end = begin + rng.integers(0, text.length - begin + 1)
    base = rng.integers(0, len(text.contexts), len(latents)) * text.length
    args = {"blocks": list(map(tuple, blocks)), "latents": latents}
    args |= {"bounds": np.stack([base + begin, base + end], axis=1)}

    def verify(got: Any) -> None:
        equal(got, select.window_acts(blocks, latents, args["bounds"]))

    return Call("entries_in", _C.entries_in, args, verify)


def sort_code(rng: Random) -> Call:
    B, F = size(rng), size(rng)
    acts, indices, offsets = code(rng, B, F)
    if offsets is None:
        offsets = (np.arange(B + 1) * acts.shape[1]).astype(np.int32)
    acts, indices = np.abs(acts.ravel()) + np.float32(0.1), indices.ravel()
    rows = np.sort(rng.permutation(3 * B)[:B]).astype(np.int32)
    out = {"offsets": np.empty(F + 1, np.int64), "slots": np.empty(len(acts), np.int32)}
    out |= {"sorted_acts": np.empty(len(acts), np.float32)}
    args = {"acts": acts, "indices": indices, "row_offsets": offsets, "rows": rows} | out
    args |= {"threads": threads(rng)}

    def verify(_: None) -> None:
        want = codes.sorted_code(reference, *map(tensor, (acts, indices, offsets, rows)), F)
        equal(out.values(), [one.numpy() for one in want])

    return Call("sort_code", _C.sort_code, args, verify)


KINDS = {select_examples: 2, windows_or_documents: 4, entries_in: 4, sort_code: 4}
