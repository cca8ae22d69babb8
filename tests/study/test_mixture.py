"""How documents are cut out of a text, how much of each kind a mix gets, and in which order."""

from itertools import accumulate

import pytest

from saefast.study.text.mixture import MAX_CHARS, MIN_CHARS, Document, interleave, rooms, size_of, split

KINDS = ("bible", "code", "logs")


@pytest.fixture
def documents():
    """Three kinds with documents of different lengths and different amounts of text."""
    lengths = {"code": [900] * 40, "bible": [300, 500] * 60, "logs": [200] * 20}
    return [
        Document(f"{i:04}".ljust(length, "é"), kind, "fixture")
        for kind, kind_lengths in lengths.items()
        for i, length in enumerate(kind_lengths)
    ]


def size(document) -> int:
    return len(document.text.encode())


def test_interleave_is_deterministic(documents):
    room = dict.fromkeys(KINDS, 20_000)
    first = list(interleave(documents, room))
    assert first == list(interleave(documents, room))
    assert first != list(interleave(documents, room, seed=1))
    assert len(set(first)) == len(first)


def test_every_prefix_is_balanced_until_a_kind_runs_out(documents):
    mixed = list(interleave(documents, dict.fromkeys(KINDS, 10**9)))
    assert sorted(mixed) == sorted(documents)
    given = dict.fromkeys(KINDS, 0)
    left = {kind: sum(d.kind == kind for d in documents) for kind in given}
    for document in mixed:
        given[document.kind] += size(document)
        left[document.kind] -= 1
        going_on = [given[kind] for kind in given if left[kind]]
        if going_on:
            assert max(going_on) - min(going_on) <= max(map(size, documents))


def test_every_prefix_has_the_proportions_of_the_rooms(documents):
    room = size_of(documents)
    given = dict.fromkeys(KINDS, 0)
    for document in interleave(documents, room):
        given[document.kind] += size(document)
        parts = [given[kind] / room[kind] for kind in KINDS]
        assert max(parts) - min(parts) <= max(size(d) / room[d.kind] for d in documents)
    assert given == room


def test_a_room_ends_its_kind_within_one_document(documents):
    mixed = list(interleave(documents, dict.fromkeys(KINDS, 5_000)))
    for kind in KINDS:
        *_, before, total = accumulate(size(d) for d in mixed if d.kind == kind)
        assert before < 5_000 <= total


def test_split_keeps_the_text_within_the_limits():
    lines = [f"    line {i}" + "x" * (i % 200) for i in range(1000)]
    pieces = split("\n".join(lines))
    assert [line for piece in pieces for line in piece.splitlines()] == [lines[0].strip(), *lines[1:]]
    assert all(MIN_CHARS <= len(piece) <= MAX_CHARS for piece in pieces)
    assert split("too short") == []
    assert [len(piece) for piece in split("x" * 20_000)] == [8000, 8000, 4000]  # no line end to cut at


def test_rooms_are_the_shares_where_there_is_enough():
    shares = {"a": 0.5, "b": 0.3, "c": 0.2}
    room = rooms(dict.fromkeys("abc", 10**9), shares, dict.fromkeys("abc", 1.0), 1000)
    assert room == pytest.approx({kind: 1000 * share for kind, share in shares.items()})


def test_what_a_kind_lacks_goes_to_the_others_up_to_their_limits():
    shares, limits = {"a": 0.5, "b": 0.3, "c": 0.2}, {"a": 0.6, "b": 0.4, "c": 0.25}
    room = rooms({"a": 400, "b": 10**9, "c": 10**9}, shares, limits, 1000)
    assert room == pytest.approx({"a": 400, "b": 360, "c": 240})
    room = rooms({"a": 350, "b": 10**9, "c": 10**9}, shares, limits, 1000)
    assert room == pytest.approx({"a": 350, "b": 400, "c": 250})  # c is at its limit


def test_a_mix_without_enough_text_gets_smaller_and_keeps_the_limits():
    limits = {"a": 0.5, "b": 0.5, "c": 0.25}
    room = rooms({"a": 100, "b": 10**9, "c": 10**9}, {"a": 0.4, "b": 0.4, "c": 0.2}, limits, 10_000)
    whole = sum(room.values())
    assert room["a"] == 100 and whole == pytest.approx(400, rel=0.01)  # 100 and, at most, 1/2 and 1/4 of all
    assert all(room[kind] <= limits[kind] * whole * 1.01 for kind in room)
