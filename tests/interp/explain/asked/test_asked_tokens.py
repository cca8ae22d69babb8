"""Tokens as strings: whole characters, one line each, nothing that poses as the prompt."""

from types import SimpleNamespace

import numpy as np
import pytest

from saefast.interp.explain.asked.tokens import merged, shown, shown_line, spread, words

RAW = [b"a", b" b", b"\xe2\x99", b"\xbb", b"\xf0", b"\x9f", b"\x98", b"\x80", b"\n", b"", b"<", b"|im_end|>"]
VOCABULARY = SimpleNamespace(raw=RAW)


@pytest.mark.parametrize(
    "tokens, texts, of",
    [
        ([0, 1], ["a", " b"], [0, 1]),
        ([0, 2, 3, 1], ["a", "\u267b", " b"], [0, 1, 1, 2]),
        ([4, 5, 6, 7, 0], ["\U0001f600", "a"], [0, 0, 0, 0, 1]),
        ([3, 0], ["\ufffd", "a"], [0, 1]),  # began before the window
        ([0, 2], ["a", "\ufffd"], [0, 1]),  # never ends
        ([2, -1, 3], ["\ufffd", "\ufffd"], [0, -1, 1]),  # padding is between them
        ([2, 9, 3], ["\u267b"], [0, 0, 0]),
        ([9, 0], ["", "a"], [0, 1]),
        ([2, 0, 3], ["\ufffd", "a", "\ufffd"], [0, 1, 2]),  # never goes on: the next token is its own text
        ([2, 4, 5, 6, 7], ["\ufffd", "\U0001f600"], [0, 1, 1, 1, 1]),
        ([-1, -1], [], [-1, -1]),
        ([], [], []),
    ],
)
def test_tokens_are_merged_until_they_are_characters(tokens, texts, of):
    found = words(VOCABULARY, np.array(tokens, np.int64))
    assert found.texts == texts and found.of_token.tolist() == of and found.of_token.dtype == np.int64


def test_values_of_tokens_and_of_texts():
    found = words(VOCABULARY, np.array([-1, 0, 2, 3, 1, -1]))
    assert merged(np.array([9, 1, 2, 5, -3, 9]), found).tolist() == [1, 5, -3]
    assert spread(np.array([1, 5, -3]), found).tolist() == [0, 1, 5, 5, -3, 0]
    empty = words(VOCABULARY, np.array([-1]))
    assert merged(np.array([9]), empty).tolist() == [] and spread(np.zeros(0), empty).tolist() == [0]


@pytest.mark.parametrize("text", ["a\nb", "a\tb", "\r\n", "\x00", "\u2028", "\x85", "\u202e", "\U000e0041"])
def test_a_token_stays_in_its_line(text):
    assert len(shown(text).splitlines()) == 1 and "\t" not in shown(text) and shown(text).isprintable()


def test_what_a_chat_template_means_something_by_is_text():
    for text in ("<|im_start|>", "<|endoftext|>", "</s>", "<start_of_turn>"):
        assert text not in shown(f"x{text}y")
    for text in ("<span>", "a < b", "<|", "if (a<s>b)"[:6]):
        assert shown(text) == text
    assert "<|im_end|>" not in shown_line(words(VOCABULARY, np.array([10, 11])))


def test_marks_are_ours_only():
    found = words(VOCABULARY, np.array([0, 1, 1, 0]))
    assert shown_line(found) == "a b ba"
    assert shown_line(found, np.array([False, True, True, False])) == "a<< b b>>a"
    assert shown_line(found, np.array([True, False, False, True])) == "<<a>> b b<<a>>"
    data = words(VOCABULARY, np.array([10, 10, 10, 0]))
    assert shown_line(data) == "< < <a"
    assert shown_line(data, np.array([False, False, False, True])) == "< < <<<a>>"
    assert shown_line(words(VOCABULARY, np.array([], np.int64)), np.zeros(0, bool)) == ""
