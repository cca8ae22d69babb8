"""A model is shown on what its explanation is wrong, and what it says then is taken only if it is better."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from saefast.errors import InputError
from saefast.interp.effects import Neighbours
from saefast.interp.explain.asked.explainers import Contrastive
from saefast.interp.explain.asked.revise import TEXT, Reviser, texts_of
from saefast.interp.explain.examples import Tiles, top_and_random
from saefast.interp.explain.programs.words import NEVER
from saefast.interp.trial.scores import pearson
from tests.helpers.asked_cases import AFTER, MIXED, NEVER_THERE, THE, Literal, Says, units
from tests.helpers.explained import ID, VOCABULARY, ids
from tests.helpers.look_records import Tokens

GOOD = 'on " law" but not after " of"'
BAD = 'on " law"'


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return units(tmp_path_factory.mktemp("revised"))


def explained(records, latent, answer, judge):
    return Contrastive(records, VOCABULARY, Says(answer), simulator=judge).explain(latent)


def reviser(records, answer, judge, **options):
    model = Says(answer)
    return Reviser(records, VOCABULARY, model, judge, length=16, **options), model


def score(records, said):
    windows = top_and_random(Tiles(records, "score", 32), said.latent, 10, 10)
    return pearson(windows.acts.ravel(), said.predict(windows.tokens).ravel())


def test_a_correction_that_is_better_on_other_windows_is_taken(records):
    judge = Literal()
    said = explained(records, AFTER, BAD, judge)
    by, model = reviser(records, GOOD, judge)
    revised = by.revise(said)
    assert revised.sentence == GOOD[0].upper() + GOOD[1:] and revised.latent == AFTER
    assert score(records, revised) > score(records, said) + 0.05  # on documents that nobody saw
    question = model.asked[0]["prompt"][1].text
    assert question.startswith(f"Explanation before: {said.sentence}\n")
    wrong = question.split("though the explanation fits:")[1].splitlines()[1:]
    assert wrong and all(" of law" in line and "<<" not in line for line in wrong)
    documents = records.text.documents(revised.seen)
    assert not records.text.splits(documents, records.config).any()
    assert set(said.seen) < set(revised.seen)


@pytest.mark.parametrize(
    "answer", [BAD, 'on " cat"', "?", 'on " law" but not after " law" or " of" or " the" or " a"']
)
def test_a_correction_that_is_no_better_is_not(records, answer):
    judge = Literal()
    said = explained(records, AFTER, BAD, judge)
    by, model = reviser(records, answer, judge)
    revised = by.revise(said)
    assert len(model.asked) == 1 and score(records, revised) >= score(records, said)
    assert revised is said or "not after" in answer


def test_nothing_is_asked_where_nothing_is_wrong(records):
    judge = Literal()
    for latent, answer in ((THE, 'on " the"'), (THE, "?"), (NEVER_THERE, NEVER)):
        said = explained(records, latent, answer, judge)
        by, model = reviser(records, "worse", judge)
        assert by.revise(said) is said and model.asked == []


def test_near_misses_are_tried(records):
    """Of 3 windows at random none may have the token; where a unit like it is active all have."""
    judge = Literal()
    said = explained(records, THE, 'on " the", " cat", " dog"', judge)
    near = Neighbours(torch.tensor([[MIXED]] * 5, dtype=torch.int32), torch.zeros(5, 1))
    by, model = reviser(records, 'on " the"', judge, near=near, n_pool=3)
    assert by.revise(said).sentence == 'On " the"'
    wrong = model.asked[0]["prompt"][1].text.split("though the explanation fits:")[1].splitlines()[1:]
    assert len(wrong) == 3 and all(" cat" in line or " dog" in line for line in wrong)


class Splits(Tokens):
    """A vocabulary with a tokenizer: words of a text with the spaces before them."""

    def __init__(self):
        super().__init__(VOCABULARY.raw, (0,))
        known = {raw: i for i, raw in enumerate(self.raw)}

        def tokens(text, **options):
            parts = [f" {word}".encode() for word in text.split()]
            return SimpleNamespace(input_ids=[known[part] for part in parts if part in known])

        self.tokenizer = tokens


def test_texts_of_the_model_are_tried_on_the_subject(records):
    judge = Literal()
    said = explained(records, MIXED, 'on " the", " cat", " dog"', judge)
    calls = []

    def activations(texts, at, latent):
        calls.append((texts.copy(), at.copy(), latent))
        return 2.0 * np.isin(texts[np.arange(len(texts)), at], ids(" cat", " dog"))

    def answer(prompt):
        if "write" in prompt[0].text:
            return "1. the house\n2. a blue cat\n\n3. blue house\n4. zzz\n"
        return 'on " cat", " dog"'

    model = Says(answer)
    by = Reviser(records, Splits(), model, judge, activations=activations, n_pool=1, length=16)
    revised = by.revise(said)
    assert revised.sentence == 'On " cat", " dog"'
    (texts, at, latent) = calls[0]
    assert latent == MIXED and len(texts) == 2 + 3 + 2 and at.tolist() == [0, 1, 0, 1, 2, 0, 1]
    question = model.asked[1]["prompt"][1].text
    fits = question.split("Active, in texts that were written")[1]
    kept, broken = fits.split("Not active, in texts that were written")
    assert "<< cat>>" in kept and " the house" in broken and "<<" not in broken
    assert " blue house" not in question  # the explanation does not fit it


def test_lines_of_an_answer():
    assert texts_of('1. one\n\n- "two"\n3) three\x00\n4. four', 3) == ["one", "two", "three"]
    assert texts_of("", 3) == [] and texts_of("\n1.\n", 3) == ["1."]
    assert [len(text) for text in texts_of("x" * 10_000, 3)] == [TEXT]
    assert "<|im_end|>" not in texts_of("a <|im_end|> b", 1)[0]


def test_bad_numbers(records):
    with pytest.raises(InputError, match="n_pool: expected at least 1, got 0"):
        reviser(records, "x", Literal(), n_pool=0)
    assert ID[" of"]
