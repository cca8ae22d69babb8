"""The folder of a site: index.html is written last, and every file of data carries the token of the build it belongs to."""

import hashlib
import html
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import saefast
from saefast.errors import check
from saefast.files import digest, file_checksum, naming, write_atomic
from saefast.interp.effects import ABLATIONS, Effects, Neighbours
from saefast.interp.look import lists, texts
from saefast.interp.look.latents import chunks
from saefast.interp.look.pack import pack
from saefast.interp.look.tokens import Shown
from saefast.interp.records import Records
from saefast.interp.vocabulary import Vocabulary

INDEX, DATA, ASSETS, MARK = "index.html", "data", "assets", "saefast-look.json"
SEARCHED = 1024  # latents whose examples one file of the search has
Arrays = dict[str, np.ndarray]


class Compared(NamedTuple):
    """Another SAE beside the one that is shown, and its latents that are most like each of that one."""

    records: Records  # over a text of the same tokenizer
    decoder: Neighbours | None = None  # [F, n] latents of the other SAE by cosine of W_dec
    coactivation: Neighbours | None = None  # [F, n], by correlation of activations
    title: str = "the other SAE"


def write_site(
    records: Records,
    out: str | Path,
    vocabulary: Vocabulary,
    effects: Effects | None = None,
    *,
    title: str = "Look inside",
    latents: Sequence[int] | None = None,
    compare: Compared | None = None,
    coordinates: np.ndarray | None = None,
    clusters: np.ndarray | None = None,
    n_texts: int = 64,
    latents_per_file: int = 32,
    progress: Callable[[int], object] = lambda n_latents: None,
) -> Path:
    """Write the site of these records. The same arguments give the same bytes.

    Args:
        out: made if it does not exist; a site that is there is replaced.
        effects: `Effects.load(records.folder)`; without any, the page says what is missing.
        latents: those to show; default: all.
        compare: a second SAE, whose nearest latents are shown beside each.
        coordinates: [F, 2] places of all latents on the map; NaN: not on it.
        clusters: [F] integers, -1: in none.
        n_texts: contexts, evenly spaced, that can be read with all active latents; about 8 bytes per activation.
        latents_per_file: of one file of data; more make the folder smaller, fewer a page faster.
        progress: called with the number of latents of each file that was written.

    Returns:
        The page to open.

    Raises:
        InputError: `out` has something else in it, an argument does not fit the records, or explanations.jsonl is damaged.
        OSError: a file could not be written; what is there then says that it is not complete.
    """
    effects = effects if effects is not None else Effects()
    out = Path(out).absolute()
    chosen = np.unique(np.asarray(range(records.d_sae) if latents is None else latents, np.int64))
    _check(records, chosen, effects, compare, coordinates, clusters)
    check(n_texts >= 0, f"n_texts: expected at least 0, got {n_texts}")
    check(latents_per_file > 0, f"latents_per_file: expected at least 1, got {latents_per_file}")
    logits = effects.logits
    tables = [] if logits is None else [logits.positive_tokens.numpy(), logits.negative_tokens.numpy()]
    others = [] if compare is None else [compare.records.text.contexts]
    shown = Shown(vocabulary, [records.text.contexts, *tables, *others])
    said = lists.explanations(records, chosen)
    contexts = texts.chosen(len(records.text.contexts), n_texts)
    around: dict[str, Arrays] = {"vocabulary": shown.arrays()}
    if coordinates is not None:
        around["map"] = {"places": np.asarray(coordinates, np.float32)[chosen].ravel()}
        if clusters is not None:
            around["map"]["clusters"] = np.asarray(clusters)[chosen].astype(np.int32)
    settings = {"title": title, "latents_per_file": latents_per_file, "version": saefast.__version__}
    if compare is not None:
        settings["other"] = compare.title
    build = _build(records, effects, compare, settings, [said, chosen.tolist(), contexts.tolist()], around)

    _clear(out)
    data = out / DATA
    data.mkdir(parents=True)

    def write(name: str, arrays: Arrays, values: dict[str, Any] | None = None) -> None:
        text = pack(name, build, arrays, values)
        path = data / f"{name}.js"
        with naming(path):  # whole or not is seen by index.html, which is written last
            path.write_bytes(text)

    for name, arrays in around.items():
        write(name, arrays)
    write("explanations", {}, {"explanations": said})
    for context, arrays in zip(contexts.tolist(), texts.pages(records, contexts, chosen, shown), strict=True):
        write(f"text-{context}", arrays)
    head: Arrays = {**lists.statistics(records, chosen), "contexts": contexts.astype(np.uint32)}
    search = _Search(write)
    starts, peaks, each = [0], [], latents_per_file
    for number, (examples, some, arrays) in enumerate(chunks(records, effects, shown, chosen, each)):
        write(f"latents-{number}", arrays)
        starts.append(starts[-1] + len(some))
        peaks.append(lists.peaks(examples, some, records, shown).ravel())
        search.add(some, lists.texts(examples, some, records, shown))
        progress(len(some))
    search.flush()
    head |= {"starts": np.asarray(starts, np.uint32), "searched": np.asarray(search.starts, np.uint32)}
    head["peaks"] = np.concatenate([np.zeros(0, np.uint16), *peaks])
    other = None
    if compare is not None:
        other = _write_other(compare, shown, chosen, each, write)
        head |= other.pop("arrays")
    write("head", head, _described(records, settings, effects, coordinates, other, len(said)))
    _write_page(out, build, title)
    return out / INDEX


class _Search:
    """Gathers the text of `SEARCHED` latents for a file."""

    def __init__(self, write: Callable[[str, Arrays], None]) -> None:
        self.write, self.starts = write, [0]
        self.parts: list[tuple[np.ndarray, ...]] = []
        self.n = 0

    def add(self, latents: np.ndarray, part: tuple[np.ndarray, ...]) -> None:
        self.parts.append(part)
        self.n += len(latents)
        if self.n >= SEARCHED:
            self.flush()

    def flush(self) -> None:
        if self.n:
            names = ("examples", "lengths", "peaks", "tokens")
            columns = map(np.concatenate, zip(*self.parts, strict=True))
            self.write(f"search-{len(self.starts) - 1}", dict(zip(names, columns, strict=True)))
            self.starts.append(self.starts[-1] + self.n)
            self.parts, self.n = [], 0


def _write_other(
    compare: Compared, shown: Shown, chosen: np.ndarray, each: int, write: Callable[[str, Arrays], None]
) -> dict[str, Any]:
    """The pages of the latents of the other SAE that are near any that is shown: strongest examples only."""
    tables = {"decoder": compare.decoder, "coactivation": compare.coactivation}
    arrays: Arrays = {}
    near = [np.zeros(0, np.int64)]
    for name, table in tables.items():
        if table is not None:
            indices = table.indices.numpy()[chosen]
            near.append(indices.ravel().astype(np.int64))
            arrays[f"other.{name}.indices"] = indices.astype(np.int32)
            arrays[f"other.{name}.values"] = table.values.numpy()[chosen].astype(np.float32)
    latents = np.unique(np.concatenate(near))
    latents = latents[latents >= 0]
    starts, table = [0], compare.records.table(["count", "max"])
    count, largest = table["count"].to_numpy(), table["max"].to_numpy()
    pages = chunks(compare.records, Effects(), shown, latents, each, ("top",))
    for number, (_, some, of_some) in enumerate(pages):
        of_some |= {"count": count[some].astype(np.uint32), "max": largest[some].astype(np.float32)}
        write(f"other-{number}", of_some)
        starts.append(starts[-1] + len(some))
    arrays |= {"other.latent": latents.astype(np.uint32), "other.starts": np.asarray(starts, np.uint32)}
    return {"arrays": arrays, "n_rows": compare.records.n_rows, "d_sae": compare.records.d_sae}


def _described(
    records: Records, settings: dict[str, Any], effects: Effects, coordinates: Any, other: Any, n_said: int
) -> dict[str, Any]:
    keys = ("model_name", "hook_name", "architecture", "dictionary")
    config = records.config
    return {
        **settings,
        "d_sae": records.d_sae,
        "d_in": records.index["sae"]["d_in"],
        "sae": {key: str(records.index["sae"][key]) for key in keys if records.index["sae"].get(key)},
        "source": {key: str(value) for key, value in _flat(records.index["source"])},
        "n_rows": records.n_rows,
        "n_contexts": len(records.text.contexts),
        "context_length": records.text.length,
        "config": {
            "n_bins": config.n_bins,
            "n_intervals": config.n_intervals,
            "n_quantiles": config.n_quantiles,
        },
        "effects": [name for name, table in effects._asdict().items() if table is not None],
        "ablations": (records.folder / ABLATIONS).exists(),
        "map": coordinates is not None,
        "compared": other,
        "n_explanations": n_said,
    }


def _flat(source: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in source.items():
        if isinstance(value, str | int | float):
            yield key, value


def _check(
    records: Records, chosen: np.ndarray, effects: Effects, compare: Any, coordinates: Any, clusters: Any
) -> None:
    n = records.d_sae
    ok = len(chosen) > 0 and chosen[0] >= 0 and chosen[-1] < n
    check(
        ok, f"latents: expected some from 0 to {n - 1}, got {chosen[:1].tolist()} to {chosen[-1:].tolist()}"
    )
    near = [] if compare is None else [compare.decoder, compare.coactivation]
    for table in (*effects, *near):
        for tensor in table or ():
            check(len(tensor) == n, f"effects: expected a row for each of {n} latents, got {len(tensor)}")
    for name, array, shape in (("coordinates", coordinates, (n, 2)), ("clusters", clusters, (n,))):
        got = shape if array is None else np.shape(array)
        check(got == shape, f"{name}: expected shape {list(shape)}, got {list(got)}")


def _build(
    records: Records, effects: Effects, compare: Any, settings: Any, values: Any, around: dict[str, Arrays]
) -> str:
    """A token that is another one if anything that the site shows is."""
    blake = hashlib.blake2b(digest_size=12)
    tables = {"effects": effects} if compare is None else {"effects": effects, "near": compare[1:3]}
    tensors = {
        f"{kind}.{i}.{j}": tensor
        for kind, some in tables.items()
        for i, table in enumerate(some)
        for j, tensor in enumerate(table or ())
    }
    indices = [records.index] if compare is None else [records.index, compare.records.index]
    ablations = records.folder / ABLATIONS
    values = [settings, values, indices, file_checksum(ablations) if ablations.exists() else None]
    blake.update(json.dumps(values, sort_keys=True).encode())
    blake.update(digest(tensors).encode())
    for arrays in around.values():
        for array in arrays.values():
            blake.update(np.ascontiguousarray(array).data)
    for path in _assets():
        blake.update(path.read_bytes())
    return blake.hexdigest()


def _assets() -> list[Any]:
    folder = resources.files(__package__) / ASSETS
    return sorted((path for path in folder.iterdir() if path.is_file()), key=lambda path: path.name)


def _clear(out: Path) -> None:
    """A folder without a site, in which a page says that one is being written."""
    if out.exists():
        check(out.is_dir(), f"out: expected a folder, got the file {out}")
        begun = f".{MARK}.tmp"  # killed while it wrote its first file
        names = sorted(path.name for path in out.iterdir() if path.name != begun)
        ours = not names or (out / MARK).exists()
        check(ours, f"out: expected an empty folder or a site to replace, {out} has {', '.join(names[:3])}")
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / MARK, lambda path: path.write_text('{"format": "saefast-look", "version": 1}\n'))
    unfinished = next(path for path in _assets() if path.name == "unfinished.html")
    write_atomic(out / INDEX, lambda path: path.write_bytes(unfinished.read_bytes()))
    for name in (DATA, ASSETS):  # what else is there stays
        if (out / name).exists():
            shutil.rmtree(out / name)


def _write_page(out: Path, build: str, title: str) -> None:
    page = ""
    (out / ASSETS).mkdir()
    for path in _assets():
        if path.name == INDEX:
            page = path.read_text(encoding="utf-8")
        elif path.suffix in (".js", ".css", ".svg"):
            with naming(out / ASSETS / path.name):
                (out / ASSETS / path.name).write_bytes(path.read_bytes())
    page = page.replace("{build}", build).replace("{title}", html.escape(title))
    write_atomic(out / INDEX, lambda path: path.write_text(page, encoding="utf-8"))
