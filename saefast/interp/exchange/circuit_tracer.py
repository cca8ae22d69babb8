"""circuit-tracer's feature files, which its pages of attribution graphs show: written, and read.

    features/layer_L.bin         of each latent a uint32 (least byte first), then so many bytes: gzip of its JSON
    features/index.json.gz       {"L": {"filename": "layer_L.bin", "offsets": [F + 1]}}, for each layer
    features/ID.json             instead: a file for each latent, ID = `pair_id(layer, latent)`

The JSON has the fields of circuit_tracer/frontend/feature_models.py. Neuronpedia's graphs read the files ID.json too, from
the address in a graph's metadata.feature_details.feature_json_base_url.

Tokens are text. Bytes that are no UTF-8 alone are written as \\xNN, which the pages join with those of the next tokens.
"""

import gzip
import json
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from itertools import groupby
from math import isqrt
from numbers import Integral
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from saefast.errors import InputError, check, line, shown
from saefast.files import read_json, refuse_pointer, staged, write_atomic
from saefast.interp.effects import Effects
from saefast.interp.exchange.dashboards import dashboards, short
from saefast.interp.records.read import Records
from saefast.interp.vocabulary import Vocabulary

FEATURES, INDEX = "features", "index.json.gz"
ESCAPE = re.compile(r"\\(?=x[0-9a-f]{2})")
LENGTH = struct.Struct("<I")


def export_circuit_tracer(
    records: Records,
    effects: Effects,
    vocabulary: Vocabulary,
    out: str | Path,
    *,
    layer: int,
    scan: str,
    groups: Sequence[str] = ("top", "interval"),
    n_logits: int = 10,
    a_file_each: bool = False,
) -> Path:
    """Write the features of one layer to out/features; the same arguments give the same bytes.

    Other layers that are there stay as they are; the same layer is replaced. `serve(features_dir="out/features")` shows them for
    graphs whose scan begins with "/"; on the Hub, `out` is the repository that the scan names. Latents that never fire have no
    examples.

    Of a latent: histogram is from 0 (act_min) to the largest activation (act_max); quantile_values are the 1st to the 100th
    percentile of all of its activations, each of them one of these; activation_frequency is its density. An example whose
    token is shown further up already is a repeated datapoint.

    Args:
        layer: of the language model, counted from 0.
        scan: the set of transcoders that a graph names; written as transcoder_id.
        groups: which examples, as of `dashboards`: strongest first.
        n_logits: tokens of the logit weights, in each direction.
        a_file_each: files ID.json instead of one for the layer.

    Returns: out/features.

    Raises:
        InputError: see `dashboards`; a negative layer; an index that is damaged.
    """
    check(type(layer) is int and layer >= 0, f"layer: expected a number from 0 on, got {layer!r}")
    folder = Path(out) / FEATURES
    folder.mkdir(parents=True, exist_ok=True)
    name = f"layer_{layer}.bin"
    pages = _pages(records, effects, vocabulary, scan, groups, n_logits)
    _index(folder)  # whether it can be read, before the work
    if a_file_each:
        with staged(folder, f"layer_{layer}") as scratch:
            for latent, page in pages:
                (scratch / f"{pair_id(layer, latent)}.json").write_bytes(page)
        _enter(folder, layer, None)
        (folder / name).unlink(missing_ok=True)
        _remove(folder, layer, records.d_sae)
        return folder
    offsets = [0]

    def write(path: Path) -> None:
        with open(path, "wb") as file:
            for _, page in pages:
                data = gzip.compress(page, compresslevel=5, mtime=0)
                offsets.append(offsets[-1] + file.write(LENGTH.pack(len(data)) + data))
        _enter(folder, layer, None)  # a layer is not in the index while its file is another one

    write_atomic(folder / name, write)
    _enter(folder, layer, {"filename": name, "offsets": offsets})
    _remove(folder, layer, 0)
    return folder


def pair_id(layer: int, latent: int) -> int:
    """The number that a graph has for a latent: Cantor's pairing of layer and latent."""
    return (layer + latent) * (layer + latent + 1) // 2 + latent


def unpair(number: int) -> tuple[int, int]:
    """Layer and latent of a `pair_id`."""
    total = (isqrt(8 * number + 1) - 1) // 2
    latent = number - total * (total + 1) // 2
    return total - latent, latent


def escaped(raw: bytes) -> str:
    """A token as the pages read it; a backslash before x and two digits, which they would take for a byte, is a byte too."""
    text = ESCAPE.sub(r"\\x5c", raw.decode("utf-8", "surrogateescape"))
    return "".join(f"\\x{ord(char) - 0xDC00:02x}" if "\udc80" <= char <= "\udcff" else char for char in text)


def _pages(
    records: Records,
    effects: Effects,
    vocabulary: Vocabulary,
    scan: str,
    groups: Sequence[str],
    n_logits: int,
) -> Iterator[tuple[int, bytes]]:
    """(latent, JSON) of all latents, in order."""
    strings = [escaped(raw) for raw in vocabulary.raw]
    for features in dashboards(records, effects, vocabulary, groups, n_logits, strings):
        for feature in features:
            latent = feature["feature_index"]
            acts = np.sort(records.entries(latent)[1])
            page: dict[str, Any] = {"transcoder_id": scan, "index": latent}
            page["examples_quantiles"] = _groups(feature, groups)
            page |= {"top_logits": feature["pos_str"], "bottom_logits": feature["neg_str"], "act_min": 0.0}
            page["act_max"] = short(acts[-1:])[0] if len(acts) else 0.0
            places = (np.arange(1, 101) * len(acts) + 99) // 100 - 1  # rounded up, counted from 0
            page["quantile_values"] = short(acts[places]) if len(acts) else []
            page["histogram"] = feature["freq_hist_data_bar_heights"]
            page["activation_frequency"] = feature["frac_nonzero"]
            yield latent, json.dumps(page, separators=(",", ":"), allow_nan=False).encode()


def _groups(feature: dict[str, Any], groups: Sequence[str]) -> list[dict[str, Any]]:
    found, seen = [], set()
    order = {name: i for i, name in enumerate(groups)}
    # bins from the strongest on; within one the order stays
    activations = sorted(feature["activations"], key=lambda one: (order[one["group"]], -one["bin"]))
    for (group, part), some in groupby(activations, key=lambda one: (one["group"], one["bin"])):
        examples, name = [], "Top"
        for one in some:
            if group != "top":
                name = f"{group.capitalize()} {part + 1}: {one['bin_min']:.3g} to {one['bin_max']:.3g}"
            example: dict[str, Any] = {"tokens_acts_list": one["values"]}
            example["train_token_ind"] = one["qualifying_token_index"]
            example["is_repeated_datapoint"] = one["slot"] in seen
            seen.add(one["slot"])
            examples.append(example | {"tokens": one["tokens"]})
        found.append({"quantile_name": name, "examples": examples})
    return found


def _enter(folder: Path, layer: int, entry: dict[str, Any] | None) -> None:
    """Put a layer into the index, or take it out. The index is read again: other layers may be written at the same time."""
    index = _index(folder)
    if index.pop(str(layer), None) is None and entry is None:
        return
    index |= {} if entry is None else {str(layer): entry}
    ordered = {key: index[key] for key in sorted(index, key=int)}
    data = gzip.compress(json.dumps(ordered, separators=(",", ":")).encode(), mtime=0)
    write_atomic(folder / INDEX, lambda path: path.write_bytes(data))


def _remove(folder: Path, layer: int, first: int) -> None:
    """The files ID.json of a layer from a latent on, of an earlier export."""
    for path in folder.glob("*.json"):
        of_layer, latent = unpair(int(path.stem)) if re.fullmatch("[0-9]{1,30}", path.stem) else (-1, -1)
        if of_layer == layer and latent >= first:
            path.unlink()


def _index(folder: Path) -> dict[str, Any]:
    """By layer, as text; empty without one. A list, as some write it, is taken too."""
    path = folder / INDEX
    if not path.exists():
        return {}
    refuse_pointer(path)
    try:
        index = json.loads(zlib.decompress(path.read_bytes(), 47))
    except (zlib.error, ValueError, RecursionError) as error:
        raise InputError(f"{path}: expected gzip of JSON, got {line(error)}") from None
    if isinstance(index, list):
        index = {str(i): entry for i, entry in enumerate(index) if entry is not None}
    ok = isinstance(index, dict) and all(re.fullmatch("[0-9]{1,9}", key) for key in index)
    check(ok, f"{path}: expected layers with their file and offsets, as circuit-tracer reads it")
    return index


def read_circuit_tracer(folder: str | Path, layer: int, latent: int) -> dict[str, Any]:
    """The JSON of one latent; of a layer's file only the bytes of that latent are read.

    Args:
        folder: the one that has "features" in it.

    Raises:
        InputError: the latent is not there; a file that is missing or damaged, with its name.
    """
    for name, number in (("layer", layer), ("latent", latent)):
        ok = isinstance(number, Integral) and number >= 0
        check(ok, f"{name}: expected a number from 0 on, got {number!r}")
    folder = Path(folder) / FEATURES
    entry, single = _index(folder).get(str(layer)), folder / f"{pair_id(layer, latent)}.json"
    if entry is None and single.exists():
        return _checked(read_json(single), single)
    check(entry is not None, f"{folder}: expected layer {layer} in {INDEX}, or {single.name}; found neither")
    listed: dict[str, Any] = entry if isinstance(entry, dict) else {}
    filename: Any = listed.get("filename")
    offsets: Any = listed.get("offsets")
    ok = (
        isinstance(filename, str)
        and Path(filename).name == filename
        and isinstance(offsets, list)
        and len(offsets) > 0
    )
    ok = ok and all(type(offset) is int and offset >= 0 for offset in offsets)
    check(ok, f"{folder / INDEX}: expected a file and offsets for layer {layer}")
    n = len(offsets) - 1
    check(latent < n, f"latent: expected 0 to {n - 1} in layer {layer}, got {latent!r}")
    path = folder / filename
    begin, end = offsets[latent : latent + 2]
    check(end > begin, f"{path}: has nothing of latent {latent}")
    check(path.is_file(), f"{path}: expected the file of layer {layer}, found none")
    refuse_pointer(path)
    size = path.stat().st_size
    check(end <= size, f"{path}: expected at least {end} bytes for latent {latent}, got {size}")
    with open(path, "rb") as file:
        file.seek(begin)
        return _checked(_unpacked(file, end - begin, f"{path}, latent {latent}"), f"{path}, latent {latent}")


def _unpacked(file: BinaryIO, size: int, where: str) -> Any:
    data = file.read(size)
    n = LENGTH.unpack_from(data)[0] if len(data) >= LENGTH.size else -1
    check(
        len(data) == size and 0 <= n <= size - LENGTH.size,
        f"{where}: expected {size} bytes with their number",
    )
    try:
        return json.loads(zlib.decompress(data[LENGTH.size : LENGTH.size + n], 47))  # gzip or zlib
    except (zlib.error, ValueError, RecursionError) as error:
        raise InputError(f"{where}: expected gzip of JSON, got {line(error)}") from None


def _checked(value: Any, where: str | Path) -> dict[str, Any]:
    """What every reader needs is there."""
    quantiles: Any = value.get("examples_quantiles") if isinstance(value, dict) else None
    ok = isinstance(quantiles, list) and all(isinstance(one, dict) for one in quantiles)
    check(ok, f"{where}: expected a feature with examples_quantiles, got {shown(value)}")
    for quantile in quantiles:
        examples: Any = quantile.get("examples")
        ok = isinstance(quantile.get("quantile_name"), str) and isinstance(examples, list)
        for one in examples if ok else []:
            tokens, acts = _lists(one)
            ok = ok and isinstance(tokens, list) and isinstance(acts, list) and len(tokens) == len(acts)
        check(ok, f"{where}: expected examples with a number for each token")
    return value


def _lists(one: Any) -> tuple[Any, Any]:
    return (one.get("tokens"), one.get("tokens_acts_list")) if isinstance(one, dict) else (None, None)
