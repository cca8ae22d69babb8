"""Documents that share a passage are found, wherever it stands; others are not."""

import random
import string

import numpy as np
import pytest

from saefast.study.text.overlap import PASSAGE, clusters, fingerprints


def letters(count: int, seed: int) -> str:
    return "".join(random.Random(seed).choices(string.ascii_lowercase, k=count))


def same(first: str, second: str) -> bool:
    a, b = clusters([first, second], ["", ""])
    return bool(a == b)


@pytest.mark.parametrize("seed", range(40))
def test_a_common_passage_is_found_at_any_place(seed):
    places = random.Random(seed)
    passage = letters(PASSAGE, 3 * seed)
    first, second = (
        letters(places.randrange(900), 3 * seed + 1 + i)
        + passage
        + letters(places.randrange(900), 7000 + seed + i)
        for i in range(2)
    )
    assert same(first, second)


@pytest.mark.parametrize("seed", range(20))
def test_half_a_passage_is_not_enough(seed):
    passage = letters(PASSAGE // 2 - 1, seed)
    assert not same(letters(500, 100 + seed) + passage, passage + letters(500, 200 + seed))


def test_spaces_line_ends_and_upper_case_do_not_count():
    text = letters(PASSAGE, 0)
    broken = "\n ".join(text[i : i + 60].upper() for i in range(0, PASSAGE, 60))
    assert same(text, "..." + broken)
    assert not same(text, text[::-1])


def test_a_text_that_is_too_short_is_alone():
    text = letters(PASSAGE - 1, 0)
    assert fingerprints(text).size == 0 and not same(text, text)
    assert fingerprints(letters(PASSAGE, 0)).size == 1


def test_neighbours_of_neighbours_and_pieces_of_one_work_are_together():
    first, second = letters(400, 0), letters(400, 1)
    texts = [first, letters(500, 2), first + second, letters(500, 3), second, letters(500, 4)]
    works = ["", "w", "", "w", "", ""]
    np.testing.assert_array_equal(clusters(texts, works), [0, 1, 0, 1, 0, 5])
    assert clusters([], []).size == 0


def test_few_hashes_are_kept():
    """2 of (window + 1), Schleimer et al., theorem 1."""
    text = letters(200_000, 0)
    assert fingerprints(text).size / len(text) == pytest.approx(2 / (PASSAGE // 2 + 2), rel=0.1)
