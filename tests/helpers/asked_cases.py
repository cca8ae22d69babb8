"""A language model that answers what a test wants, a judge that takes sentences at their word, and units to ask about."""

import re

import numpy as np

from saefast.interp.explain.models import CannotAnswer
from tests.helpers.explained import ID, PIECES, planted, text

THE, AFTER, NEVER_THERE, SCORED, MIXED = range(5)  # units of `units`


class Says:
    """Answers each prompt with `answer(prompt)`; remembers what it was asked."""

    name, at_once, gives_choices, reads_prompts = "says", 1, False, False

    def __init__(self, answer):
        self.answer = answer if callable(answer) else lambda prompt: answer
        self.asked = []

    def write(self, prompts, *, max_tokens, temperature=0.0, n=1, seed=0):
        self.asked += [
            {"prompt": one, "max_tokens": max_tokens, "temperature": temperature, "n": n, "seed": seed}
            for one in prompts
        ]
        answers = [self.answer(one) for one in prompts]
        return [list(one) if isinstance(one, list) else [one] * n for one in answers]

    def choices(self, prompts, choices):
        raise CannotAnswer("no log-probabilities")

    choices_inside = losses = choices


class Literal:
    """Predicts 1 on each token that a sentence has in quotes, as 'on " the"', but for those that come after a token that it has
    behind "not after"."""

    name = "literal"

    def __init__(self):
        self.asked = []

    def simulate(self, explanation, tokens):
        self.asked.append((explanation.sentence, tokens.copy()))
        on, _, refused = explanation.sentence.partition("not after")
        of = [
            [ID[piece] for piece in re.findall(r'"([^"]*)"', part) if piece in ID] for part in (on, refused)
        ]
        back = np.pad(tokens, ((0, 0), (1, 0)), constant_values=-1)[:, :-1]
        return (np.isin(tokens, of[0]) & ~np.isin(back, of[1])) * 1.0


def units(folder):
    """Records of units on " the"; on " law" but not after " of"; never; only in documents for scoring; on " cat" and " dog". A
    document is a context of 64 tokens."""
    contexts = text(120, 64, 11)
    rng = np.random.default_rng(5)
    before = np.pad(contexts, ((0, 0), (1, 0)))[:, :-1]
    contexts[rng.random(contexts.shape) < 0.02] = ID[" law"]
    contexts[:, 1:][(contexts[:, 1:] == ID[" law"]) & (rng.random((120, 63)) < 0.5)] = ID[" law"]
    of_law = (contexts == ID[" law"]).nonzero()
    for row, at in zip(*of_law, strict=True):
        if at and rng.random() < 0.5:
            contexts[row, at - 1] = ID[" of"]
    before = np.pad(contexts, ((0, 0), (1, 0)))[:, :-1]
    acts = np.zeros((*contexts.shape, 5))
    strength = rng.uniform(0.5, 1, contexts.shape)
    acts[..., THE] = 4 * strength * (contexts == ID[" the"])
    acts[..., AFTER] = 3 * strength * ((contexts == ID[" law"]) & (before != ID[" of"]))
    acts[..., SCORED] = contexts == ID[" house"]
    acts[..., MIXED] = 2 * strength * np.isin(contexts, [ID[" cat"], ID[" dog"]])
    plain = planted(folder / "plain", contexts, acts)
    documents = plain.text.documents(np.arange(contexts.size))
    is_scored = plain.text.splits(documents, plain.config).reshape(contexts.shape) == 1
    acts[..., SCORED] *= is_scored
    return planted(folder / "units", contexts, acts)


__all__ = ["PIECES", "Literal", "Says", "units"]
