"""From a scale to two files of text, one to train on and one held out."""

import json
import random
from pathlib import Path
from typing import Any, Literal

import numpy as np

from saefast.errors import check, shown
from saefast.files import read_json, staged
from saefast.study.downloads import Stopwatch
from saefast.study.text.mixture import Document, interleave, rooms, size_of
from saefast.study.text.overlap import clusters
from saefast.study.text.pool import HELDOUT, SCALES, Pool, own, packaged
from saefast.study.text.sources import CONTEXTS, RARE, SHARES, highest

TRAIN_FILE, HELDOUT_FILE, REPORT_FILE = "train.jsonl", "heldout.jsonl", "corpus.json"
ScaleName = Literal["ci", "laptop", "gpu"]


def prepare(
    folder: str | Path,
    scale: ScaleName = "laptop",
    text: str | Path | None = None,
    size: float | None = None,
    cache: str | Path | None = None,
    seed: int = 0,
) -> Path:
    """Write `train.jsonl` and `heldout.jsonl`, one {"text", "kind", "source"} a line, and `corpus.json`, which says what is in them.

    No held-out document shares a passage of 200 signs with the text to train on (spaces and upper case do not count): documents
    that share one, directly or through others, are always on the same side. Any beginning of a file is a balanced mix of all kinds.
    What is in the folder already, from the same arguments, stays as it is.

    Args:
        text: a file or folder of your own text instead of the packages'; in .jsonl, an object may have a "kind".
        size: bytes to train on, instead of the scale's.
        cache: where downloads are kept, for other scales too; `packages` beside the folder if not given.

    Returns:
        The folder.

    Raises:
        InputError: too little text; the folder has text of other arguments; `text` cannot be read.
    """
    folder, log = Path(folder), Stopwatch("text")
    check(scale in SCALES, f"scale: expected one of {list(SCALES)}, got {scale!r}")
    wanted = {"scale": scale, "text": None if text is None else str(text), "size": size, "seed": seed}
    if _is_there(folder, wanted):
        return folder
    kept = Path(cache) if cache is not None else folder.parent / "packages"
    chosen = SCALES[scale] if size is None else SCALES[scale]._replace(size=size, least=0.75 * size)
    pool = packaged(chosen, kept, log, seed) if text is None else own(Path(text))
    mix = list(interleave(pool.documents, room(pool, chosen.size, text is not None), seed))
    log(f"chose {sum(size_of(mix).values()) / 1e6:.1f} MB")
    train, heldout = divide(mix, seed)
    log(f"divided {len(train)} documents to train on, {len(heldout)} held out")
    sizes = size_of(train)
    got = sum(sizes.values())
    absent = [kind for kind in CONTEXTS if kind not in sizes]
    scarce = [kind for kind in CONTEXTS if kind in sizes and sizes[kind] < RARE[0] * got]
    missing = f"; not to be had: {', '.join(pool.skipped)}" if pool.skipped else ""
    check(
        got >= chosen.least,
        f"text: the scale {scale} needs {chosen.least / 1e6:.1f} MB of text to train on, got {got / 1e6:.1f} MB{missing}",
    )
    for kind in absent:
        log(f"there is no text of the kind {kind}")
    for kind in scarce:
        log(f"only {sizes[kind] / got:.2%} of the text is of the kind {kind}")
    parts = {TRAIN_FILE: train, HELDOUT_FILE: heldout}
    with staged(folder, "text") as scratch:
        for name, documents in parts.items():
            with (scratch / name).open("w", encoding="utf-8") as lines:
                for document in interleave(documents, size_of(documents), seed):
                    row = {"text": document.text, "kind": document.kind, "source": document.source}
                    lines.write(json.dumps(row, ensure_ascii=False) + "\n")
        missed = {"absent": absent, "scarce": scarce, "skipped": pool.skipped}
        report = wanted | {"kinds": _kinds(parts, pool)} | missed
        (scratch / REPORT_FILE).write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", "utf-8")
    log(
        f"wrote {folder} ({got / 1e6:.1f} MB to train on, {sum(size_of(heldout).values()) / 1e6:.1f} MB held out)"
    )
    return folder


def _is_there(folder: Path, wanted: dict[str, Any]) -> bool:
    if not all((folder / name).exists() for name in (TRAIN_FILE, HELDOUT_FILE, REPORT_FILE)):
        return False
    found = read_json(folder / REPORT_FILE)
    check(isinstance(found, dict), f"{folder / REPORT_FILE}: expected a JSON object, got {shown(found)}")
    other = [f"{name} {found.get(name)!r}" for name in wanted if found.get(name) != wanted[name]]
    check(
        not other,
        f"text: {folder} holds the text of another call, with {', '.join(other)}: take another folder",
    )
    return True


def room(pool: Pool, size: float | None, own: bool = False) -> dict[str, float]:
    """Bytes of each kind, held-out text included. The user's own text is taken as it is mixed."""
    available = size_of(pool.documents)
    everything = float(sum(available.values()))
    whole = everything if size is None else min(size / (1 - HELDOUT), everything)
    if own:
        return {kind: there * whole / everything for kind, there in available.items()}
    if size is None:
        whole = min([available[kind] / RARE[0] for kind in CONTEXTS if kind in available] + [everything])
    return rooms(available, SHARES, {kind: highest(kind) for kind in available}, whole)


def divide(documents: list[Document], seed: int = 0) -> tuple[list[Document], list[Document]]:
    """Documents to train on and held-out ones, about HELDOUT of the bytes of each kind.

    Held out are whole clusters of documents that share passages or are of one work, chosen at random: first of the single documents
    and of those clusters with less than a quarter of what is to be held out of the kind, then of the larger ones that fit. Of a
    kind where none fits it is the smallest one, unless that is all there is.
    """
    grouped = clusters([document.text for document in documents], [document.work for document in documents])
    members: dict[int, list[int]] = {}
    for i, cluster in enumerate(grouped.tolist()):
        members.setdefault(cluster, []).append(i)
    sizes = np.array([len(document.text.encode()) for document in documents])
    order = random.Random(seed).sample(sorted(members), len(members))
    held: set[int] = set()
    for kind, size in size_of(documents).items():
        wanted, total = HELDOUT * size, 0
        groups = [members[cluster] for cluster in order if documents[cluster].kind == kind]
        # stable: within each part the order stays random
        groups.sort(key=lambda group: len(group) > 1 and sizes[group].sum() >= wanted / 4)
        for group in groups:
            more = int(sizes[group].sum())
            if total < wanted and total + more < 1.25 * wanted:
                held.update(group)
                total += more
        if not total and len(groups) > 1:
            held.update(min(groups, key=lambda group: sum(sizes[i] for i in group)))
    parts: tuple[list[Document], list[Document]] = [], []
    for i, document in enumerate(documents):
        parts[i in held].append(document)
    return parts


def _kinds(parts: dict[str, list[Document]], pool: Pool) -> dict[str, Any]:
    """The part of the report on each kind: how much of it is in each file, and where it is from."""
    described: dict[str, Any] = {}
    for name, documents in parts.items():
        sizes = size_of(documents)
        whole = sum(sizes.values())
        for kind, size in sizes.items():
            number = sum(document.kind == kind for document in documents)
            figures = {"documents": number, "bytes": size, "share": round(size / whole, 4)}
            described.setdefault(kind, {})[name.removesuffix(".jsonl")] = figures
    for kind, found in described.items():
        found["sources"] = [source for source in pool.sources if source["kind"] == kind]
    return dict(sorted(described.items()))
