"""The bank: its texts and marks are what the file says, and a file that is wrong is told what is wrong."""

import copy
import json
import re

import numpy as np
import pytest

from saefast.errors import InputError
from saefast.interp.explain.trust import load_bank
from saefast.interp.explain.trust.bank import LEAST_FALSE, LEAST_TEXTS

UNIT = {
    "name": "dogs",
    "kind": "single word",
    "true": ["a barking animal", "‣dog"],
    "false": [["animals", "‣(dog|cat)"], ["the word before", "‣the"], ["words of three letters", r"‣\w{3}"]],
    "texts": ["the dog^10 ran", "A dog^3!", "dog^4", "the cat", "cats", "a", "b", "it\nwas"],
}


@pytest.fixture(scope="module")
def bank():
    return load_bank()


def written(folder, *units):
    path = folder / "bank.json"
    path.write_text(json.dumps({"version": 1, "units": units}), encoding="utf-8")
    return path


def changed(**changes):
    return copy.deepcopy(UNIT) | changes


def test_the_bank_is_large_and_various(bank):
    assert len(bank) >= 24 and len({unit.kind for unit in bank}) >= 12
    for unit in bank:
        assert len(unit.explanations) - 1 >= LEAST_FALSE and 8 <= len(unit.tokens) <= 12
        assert {one.latent for one in unit.explanations} == {bank.index(unit)}
        there, active = unit.tokens >= 0, unit.acts > 0
        assert unit.acts.max() <= 10 and not active[~there].any()
        assert 2 <= active.any(axis=1).sum() <= len(unit.tokens) - 2
        assert unit.vocabulary is bank[0].vocabulary and unit.tokens[there].min() > 0


def test_texts_and_marks_are_read_as_they_are_written(tmp_path):
    (unit,) = load_bank(written(tmp_path, UNIT))
    strings = unit.vocabulary.strings
    rows = [[strings[i] for i in row if i >= 0] for row in unit.tokens.tolist()]
    assert rows[:2] == [["the", " dog", " ran"], ["A", " dog", "!"]] and rows[-1] == ["it", "\n", "was"]
    assert unit.acts[:3].tolist() == [[0, 10, 0], [0, 3, 0], [4, 0, 0]] and not unit.acts[3:].any()
    text = unit.vocabulary.text(unit.tokens[0])
    assert text == "the dog ran"


def test_signs_of_chinese_and_japanese_are_tokens_of_their_own(bank):
    unit = next(unit for unit in bank if unit.name == "hiragana")
    strings = [unit.vocabulary.strings[i] for i in unit.tokens[0] if i >= 0]
    assert len(strings) > 4 and all(len(one) == 1 for one in strings)


def test_a_rule_sees_the_text_before_a_token_and_nothing_after(bank):
    for unit in bank[::3]:
        for one in unit.explanations:
            whole = one.predict(unit.tokens)
            assert set(np.unique(whole)) <= {0, 1} and not whole[unit.tokens < 0].any()
            cut = one.predict(unit.tokens[:, :5])
            np.testing.assert_array_equal(cut, whole[:, :5])


def test_a_rule_holds_where_it_says(tmp_path):
    (unit,) = load_bank(written(tmp_path, changed(true=["after the article", r"the‣\w+"])))
    found = unit.explanations[0].predict(unit.tokens)
    assert found[0].tolist() == [0, 1, 0] and found[3].tolist() == [0, 1, 0] and found.sum() == 2
    shifted = np.concatenate([np.full((8, 1), -1), unit.tokens], axis=1)
    np.testing.assert_array_equal(unit.explanations[0].predict(shifted)[:, 1:], found)
    with pytest.raises(InputError, match="tokens: expected ids"):
        unit.explanations[0].predict(unit.tokens + len(unit.vocabulary))


TEXTS = UNIT["texts"]
WRONG = {
    "no name": ({"name": ""}, "unit 0: expected name, kind"),
    "texts that are no list": ({"texts": "dog"}, "unit 0: expected name, kind"),
    "two false": ({"false": UNIT["false"][:2]}, f"at least {LEAST_FALSE} false explanations, got 2"),
    "no rule": ({"true": ["a barking animal"]}, r"'dogs'.*\[sentence, rule\]"),
    "no regular expression": ({"true": ["a barking animal", "‣(dog"]}, "'dogs'.*regular expression.*dog"),
    "a rule without the sign": ({"true": ["a barking animal", "dog"]}, "'dogs'.*where the token begins"),
    "an explanation twice": (
        {"true": ["Animals", "‣dog"]},
        "explanations: expected each once, got 'animals'",
    ),
    "few texts": ({"texts": TEXTS[:7]}, f"at least {LEAST_TEXTS} texts, got 7"),
    "a text twice": ({"texts": [*TEXTS, "a"]}, "texts: expected each once, got 'a' twice"),
    "a number": ({"texts": [*TEXTS, 3]}, "texts that are strings"),
    "an empty text": ({"texts": [*TEXTS, ""]}, "got an empty one"),
    "always active": ({"texts": [f"dog^{i}" for i in range(1, 9)]}, "got 8 and 0"),
    "never active": ({"texts": [text.replace("^", "") for text in TEXTS]}, "got 0 and 8"),
    "too strong": ({"texts": [*TEXTS, "a dog^11"]}, r"'dogs'.*\^1 to \^10.*got \^11"),
    "strength 0": ({"texts": [*TEXTS, "no^0 dog"]}, r"got \^0"),
    "two marks": ({"texts": [*TEXTS, "a dog^3^4"]}, "at most one mark"),
    "a mark on a space": ({"texts": [*TEXTS, "a ^3dog"]}, "behind a token"),
    "a mark without a number": ({"texts": [*TEXTS, "a dog^ ran"]}, "at most one mark"),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_named(tmp_path, change, message):
    load_bank(written(tmp_path, UNIT))
    with pytest.raises(InputError, match=message):
        load_bank(written(tmp_path, changed(**change)))


def test_files_that_are_no_bank(tmp_path):
    with pytest.raises(InputError, match="expected each once, got 'dogs' twice"):
        load_bank(written(tmp_path, UNIT, UNIT))
    with pytest.raises(InputError, match="at least one unit"):
        load_bank(written(tmp_path))
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(InputError, match=re.escape('{"version": 1')):
        load_bank(tmp_path / "list.json")
    with pytest.raises(InputError, match="found none"):
        load_bank(tmp_path / "missing.json")
