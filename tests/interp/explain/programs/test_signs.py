"""What is seen at a token: kinds of tokens, and signs of texts against plain loops."""

import numpy as np
import pytest

from saefast.interp.explain.programs.classes import TokenClasses
from saefast.interp.explain.programs.signs import REACH, STATES, Reading, Sign, fixed_signs
from tests.helpers.explained import ID, PIECES, VOCABULARY, ids, text

CLASSES = TokenClasses(VOCABULARY)


def of(piece):
    return {name for name, has in zip(CLASSES.names, CLASSES.table[ID[piece]], strict=True) if has}


@pytest.mark.parametrize(
    "piece, want",
    [
        (" the", {"letters", "lower-case letters"}),
        ("7", {"digits", "hexadecimal digits", "base64 characters"}),
        (" 19", {"digits", "hexadecimal digits"}),
        (" Paris", {"letters", "capitalised words", "words with a capital", "words ending in s"}),
        (
            "GT",
            {
                "letters",
                "capital letters",
                "words with a capital",
                "letters A, C, G and T",
                "base64 characters",
            },
        ),
        ("Qx9Z", {"letters with digits", "words with a capital", "base64 characters"}),
        (" (", {"punctuation", "tokens with ("}),
        ("\n", {"line breaks"}),
        ("  ", {"spaces"}),
        ("<eos>", {"special tokens"}),
        ("\u05d1\u05d2", {"letters", "Hebrew letters"}),
        ("\u0414\u0430", {"letters", "capitalised words", "words with a capital", "Cyrillic letters"}),
        ("\u4e2d", {"letters", "single letters", "Chinese characters"}),
        (b"\xd7", {"parts of characters", "Hebrew letters"}),
        (b"\x95", {"parts of characters"}),
    ],
)
def test_kinds_of_tokens(piece, want):
    assert of(piece) == want
    assert not CLASSES.table[-1].any()


def seen(tokens, sign):
    """Where a sign holds, as pieces."""
    line = np.array([-1] * REACH + tokens + [-1] * REACH)
    found = Reading(CLASSES, line).column(sign)
    assert not found[line < 0].any()
    return [PIECES[line[i]] if line[i] < len(PIECES) else "rest" for i in found.nonzero()[0]]


def test_the_rest_of_a_character_is_of_its_script():
    tokens = ids(b"\xd7", b"\x95", "A", b"\x95", "\u0414\u0430", b"\x95")
    assert seen(tokens, Sign("is", "Hebrew letters")) == ["rest", "rest"]
    assert seen(ids("\u05d0", b"\xd7", b"\x95"), Sign("run", "Hebrew letters", 2)) == ["rest", "rest"]


def test_states():
    words = ids(" cat", "s", ".", " law", "ing", "A", "\n", "  ", " of", "\n", "C", "7")
    assert seen(words, Sign("state", "begins")) == [" cat", " law", " of", "C"]
    assert seen(words, Sign("state", "continues")) == ["s", "ing", "A", "7"]
    assert seen(words, Sign("state", "ends")) == ["s", "A", " of"]
    assert seen(words, Sign("state", "line")) == [" of", "C"]
    brackets = ids(" (", " cat", ")", "s", "(", "A", "(", "C", "GT", "<", "AC", "TT", ">", "7")
    assert seen(brackets, Sign("state", "round brackets")) == [
        " cat",
        *("A", "(", "C", "GT", "<", "AC", "TT", ">", "7"),
    ]
    assert seen(brackets, Sign("state", "angle brackets")) == ["AC", "TT"]
    quotes = ids(" cat", ' "', " dog", "s", '"', " of", "(", '"', "A", '"')
    assert seen(quotes, Sign("state", "quotes")) == [" dog", "s", "A"]
    again = ids(
        " cat", " dog", " cat", *[" of", " law", " blue", " house", "s", "ing", "A", "C"], " dog", "C"
    )
    assert seen(again, Sign("state", "repeated")) == [" cat", "C"]


def test_a_bracket_that_is_far_away_is_out_of_sight():
    assert len(seen(ids("(", *["A"] * 12), Sign("state", "round brackets"))) == REACH


def test_neighbours_and_sets():
    tokens = ids(" the", "7", " cat", " of", " cat")
    cat, the = ID[" cat"], ID[" the"]
    assert seen(tokens, Sign("after", "digits")) == [" cat"] and seen(tokens, Sign("before", "digits")) == [
        " the"
    ]
    assert seen(tokens, Sign("token", tokens=(cat, the))) == [" the", " cat", " cat"]
    assert seen(tokens, Sign("previous", tokens=(cat, the))) == ["7", " of"]
    assert seen(tokens, Sign("second", tokens=(cat, the))) == [" cat", " cat"]
    assert seen(tokens, Sign("near", tokens=(the,))) == ["7", " cat", " of", " cat"]
    assert seen(tokens, Sign("near", tokens=(cat,))) == [" the", "7", " cat", " of", " cat"]


@pytest.mark.parametrize("seed", range(3))
def test_runs_as_a_loop_counts_them(seed):
    tokens = text(1, 1000, seed)[0].tolist()
    for name in ("digits", "letters A, C, G and T", "Hebrew letters", "letters"):
        has, run = CLASSES.table[:, CLASSES.names.index(name)], 0
        want = {2: [], 4: []}
        for token in tokens:
            run = run + 1 if has[token] else 0
            for n, found in want.items():
                found += [PIECES[token]] * (run >= n)
        assert want[2] and {n: seen(tokens, Sign("run", name, n)) for n in want} == want


def test_no_sign_sees_past_the_end_of_a_text():
    """Two texts side by side are read as each alone."""
    signs = [
        *fixed_signs(CLASSES),
        *(Sign(kind, tokens=tuple(range(6))) for kind in ("token", "previous", "second", "near")),
    ]
    assert len({sign for sign in signs}) == len(signs) > len(STATES)
    gap = np.full(REACH, -1)
    lines = [np.concatenate([gap, row, gap]) for row in text(4, 30, 7).astype(np.int64)]
    together = Reading(CLASSES, np.concatenate(lines))
    alone = [Reading(CLASSES, line) for line in lines]
    for sign in signs:
        want = np.concatenate([one.column(sign) for one in alone])
        np.testing.assert_array_equal(together.column(sign), want, err_msg=str(sign))
