"""Documents, how a text is cut into them, and mixes of them whose every prefix is balanced."""

import random
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

MIN_CHARS, MAX_CHARS = 200, 8000  # of a document


class Document(NamedTuple):
    text: str
    kind: str
    source: str  # the archive it came from
    work: str = ""  # the same for pieces that were cut from one text


def split(text: str) -> list[str]:
    """Cut a text into documents, at line ends where it can; pieces that are too short are dropped."""
    pieces = re.findall(rf".{{1,{MAX_CHARS - 1}}}(?:\n|\Z)|.{{1,{MAX_CHARS}}}", text.strip(), re.DOTALL)
    return [piece.strip("\n") for piece in pieces if len(piece.strip("\n")) >= MIN_CHARS]


def size_of(documents: Iterable[Document]) -> dict[str, int]:
    """Bytes of each kind, in the order of their names."""
    sizes: dict[str, int] = {}
    for document in documents:
        sizes[document.kind] = sizes.get(document.kind, 0) + len(document.text.encode())
    return dict(sorted(sizes.items()))


def rooms(
    available: Mapping[str, int], shares: Mapping[str, float], limits: Mapping[str, float], size: float
) -> dict[str, float]:
    """Bytes of each kind in a mix of `size` bytes: its share, or all that there is. What is missing then is given to the kinds
    that have more, in proportion to their shares, until they are at their limit, which is a part of the whole. The mix gets
    smaller where that is not enough.
    """
    while True:
        most = {kind: min(available[kind], limits[kind] * size) for kind in available}
        room = {kind: min(most[kind], shares[kind] * size) for kind in available}
        while (missing := size - sum(room.values())) > 1e-6 * size:
            open_kinds = [kind for kind in room if room[kind] < most[kind]]
            if not open_kinds:
                break
            part = missing / sum(shares[kind] for kind in open_kinds)
            room |= {
                kind: min(most[kind], room[kind] + part * shares[kind] + 1e-9 * size) for kind in open_kinds
            }
        if sum(room.values()) >= 0.999 * size:
            return room
        size = sum(room.values())


def interleave(documents: Iterable[Document], room: Mapping[str, float], seed: int = 0) -> Iterator[Document]:
    """Shuffle, then always give the kind that has had the smallest part of its room so far: any prefix is a balanced mix.

    A kind ends when its room is full; one with less text ends earlier, and the others go on without it.
    """
    waiting: dict[str, list[Document]] = {}
    documents = list(documents)
    for document in random.Random(seed).sample(documents, len(documents)):
        waiting.setdefault(document.kind, []).append(document)
    given = dict.fromkeys(sorted(waiting), 0)  # bytes
    while given:
        kind = min(given, key=lambda kind: given[kind] / room[kind])
        if waiting[kind] and given[kind] < room[kind]:
            document = waiting[kind].pop()
            given[kind] += len(document.text.encode())
            yield document
        else:
            del given[kind]
