"""Answers that are not what was asked for: they are counted, and stand for nothing."""

import numpy as np
import pytest

from saefast.interp.explain.asked.detect import read_bits, read_numbers
from saefast.interp.explain.asked.judge import ModelJudge
from saefast.interp.explain.asked.simulate import read_list
from saefast.interp.explain.asked.tokens import Words
from tests.helpers.explained import VOCABULARY, ids
from tests.helpers.scripted import Said, Scripted

NONSENSE = ["", " ", "I cannot do that.", "\ufffd\x00", "[", "][", "[]", "{}", "9" * 5000, "[1" * 99]
WORDS = Words([" the", "```", "", " ", " 42", "a b", "\t"], np.arange(7))
RIGHT = " the\t0\n```\t3\n\t10\n \t0\n 42\t1\na b\t2\n\\t\t0"


def answers(text, **given):
    return ModelJudge(Scripted(answer=text, choices=False, inside=False), VOCABULARY, **given)


@pytest.mark.parametrize(
    "answer",
    [
        *("[1, 0, 1]", " [1,0,1]\n", "[ 1 , 0 , 1 ]", "1, 0, 1", "```json\n[1, 0, 1]\n```"),
        *("The list is [1, 0, 1].", "<think>one of them</think>\n[1, 0, 1]", "[[1, 0, 1]]"),
    ],
)
def test_lists_that_are_one_list_of_as_many_numbers(answer):
    assert read_bits(answer, 3) == [1, 0, 1]


@pytest.mark.parametrize(
    "answer",
    [
        *(*NONSENSE, "[1, 0]", "[1, 0, 1, 0]", "[1, 0, 2]", "[1, 0, -1]", "[1, 0, 0.5]", "[1 0 1]", "101"),
        *(
            "[1, 0, 1] [1, 0, 1]",
            "[yes, no, yes]",
            "[1, 0, ]",
            "Texts 1, 0, 1",
            "[0x1, 0, 1]",
            "[\u0661, 0, 1]",
        ),
    ],
)
def test_what_is_no_list_of_as_many_numbers(answer):
    assert read_bits(answer, 3) is None
    asked = answers(answer)
    tokens = np.array([ids(" cat"), ids(" the"), ids(" cat")])
    assert asked.detect(Said(), tokens).tolist() == [0.5] * 3
    assert asked.malformed == {"detect": 4}  # once together and once each


def test_a_list_that_cannot_be_read_is_asked_for_once_more_one_by_one():
    asked = answers("[1]", per_prompt=2)
    tokens = np.array([ids(" cat")] * 3)
    assert asked.detect(Said(), tokens).tolist() == [1, 1, 1]  # the third alone at first, the others then
    assert asked.malformed == {"detect": 1} and [len(prompt) for prompt in asked.model.asked] == [10] * 4
    assert asked.fuzz(Said(), tokens, tokens >= 0).tolist() == [1, 1, 1]
    assert asked.malformed == {"detect": 1, "fuzz": 1} and asked.malformed.total() == 2
    alone = answers("so", per_prompt=1)
    assert alone.detect(Said(), tokens).tolist() == [0.5] * 3
    assert len(alone.model.asked) == 3  # the same question would have the same answer


@pytest.mark.parametrize(
    "answer, numbers",
    [
        *(("1, 3", [1, 3]), ("[3,1]", [1, 3]), (" 2.\n", [2]), ("None", []), ("none.", []), ("[]", [])),
        *(("4", None), ("0", None), ("1, 1", None), ("1 3", None), ("Text 1", None), ("1, 2, 3, 4", None)),
        *((one, None) for one in NONSENSE if one != "[]"),
    ],
)
def test_numbers_of_texts(answer, numbers):
    tokens = np.array([ids(" cat")] * 3)
    asked = answers(answer)
    assert asked.select(Said(), tokens).tolist() == [n in (numbers or []) for n in (1, 2, 3)]
    assert asked.malformed["select"] == (numbers is None)
    found = read_numbers(answer, 3)
    assert (found is None) == (numbers is None)


@pytest.mark.parametrize(
    "answer, place", [("2", 1), (" 3.\n", 2), ("4", None), ("Text 2", None), ("2, 3", None)]
)
def test_the_number_of_an_intruder(answer, place):
    tokens = np.array([ids(" cat")] * 3)
    asked = answers(answer)
    found = asked.intruder(tokens, tokens >= 0)
    assert found.tolist() == ([1 / 3] * 3 if place is None else [float(i == place) for i in range(3)])
    assert asked.malformed["intruder"] == (place is None)


@pytest.mark.parametrize(
    "change",
    [
        *(lambda text: text, lambda text: f"```\n{text}\n```\n", lambda text: text.replace("\t", "  ")),
        *(lambda text: text.replace("\n", "\r\n"), lambda text: text.replace("\n", "\n\n")),
        *(lambda text: text.replace(" the", "the"), lambda text: text.replace("a b", "ab")),
    ],
)
def test_lists_that_differ_by_spaces(change):
    assert read_list(change(RIGHT), WORDS, 10) == [0, 3, 10, 0, 1, 2, 0]


@pytest.mark.parametrize(
    "change",
    [
        *(
            lambda text: text.rsplit("\n", 1)[0],
            lambda text: f"{text}\n the\t0",
            lambda text: f"Here:\n{text}",
        ),
        *(lambda text: text.replace("10", "11"), lambda text: text.replace("10", "-1")),
        *(lambda text: text.replace("10", "5.5"), lambda text: text.replace("10", "?")),
        *(lambda text: text.replace(" the", " The"), lambda text: text.replace("a b\t2", "a b2")),
        *(lambda text: text.replace("a b\t2\n\\t\t0", "\\t\t0\na b\t2"), lambda text: text.replace("\t", "")),
        lambda text: text.replace("10", "1" * 5000),
        *((lambda text, one=one: one) for one in NONSENSE),
    ],
)
def test_what_is_not_the_list_of_these_tokens(change):
    assert change(RIGHT) != RIGHT and read_list(change(RIGHT), WORDS, 10) is None


def test_a_window_of_which_the_list_cannot_be_read_is_0_everywhere():
    right = " cat\t7\n the\t3"
    asked = answers(right, how="written")
    tokens = np.array([ids(" cat", " the"), ids(" the", " cat"), [-1, *ids(" cat")], ids(" cat", " the")])
    assert asked.simulate(Said(), tokens).tolist() == [[7, 3], [0, 0], [0, 0], [7, 3]]
    assert asked.malformed == {"simulate": 2}
