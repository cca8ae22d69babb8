"""A rater that is a program: it reads the page and nothing else, and applies the rubric to what tokens look like.

Its interpretations are of one kind: the token (or the one before it) has a certain text, begins or ends with a sign, or is of a kind
of signs. It tests the tool, on planted units of which it is known what they are; of real units it sees the simplest only.
"""

import unicodedata
from collections import Counter
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from saefast.interp.blind.cards import SIZES
from saefast.interp.blind.page import Page
from saefast.interp.blind.rubric import MOST

CONVINCED = 2 / 3  # share of the strongly active tokens, beyond chance, from which on something is said
RARE = ((0.02, 3), (0.05, 2), (0.2, 1))  # specificity by the share of all tokens that fit


@cache
def labels(raw: bytes) -> frozenset[str]:
    """What can be said of a token."""
    text = raw.decode("utf-8", "replace")
    inner = text.strip()
    found = {f"is {text!r}"}
    if not inner:
        return frozenset(found | {"white space"})
    found |= {f"begins with {inner[0]!r}", f"ends with {inner[-1]!r}"}
    if "\ufffd" in inner:
        found.add("parts of characters")
    elif inner.isdigit():
        found.add("digits")
    elif not any(sign.isalnum() for sign in inner):
        found.add("punctuation")
    elif not inner.isascii():
        found.add(f"script {unicodedata.name(inner[-1], 'unknown').split()[0]}")
    elif inner.isupper() and len(inner) > 1:
        found.add("capitals")
    elif inner[0].isupper():
        found.add("capitalised")
    return frozenset(found)


class Base(NamedTuple):
    """How often each label fits a token of the windows that was not drawn."""

    share: dict[str, float]

    def beyond(self, fits: np.ndarray | list[bool], label: str) -> float:
        """The share that fits, on a scale from 0 (as often as anywhere) to 1 (all)."""
        chance = self.share.get(label, 0.0)
        share = float(np.mean(fits)) if len(fits) else 0.0
        return max(0.0, (share - chance) / (1 - chance)) if chance < 1 else 0.0


def base_of(page: Page) -> Base:
    at = page.config["before"]
    windows = np.asarray([card["examples"] for card in page.cards], np.int64)
    others = np.delete(windows, at, axis=2)
    counts: Counter[str] = Counter()
    for token, times in zip(*np.unique(others, return_counts=True), strict=True):
        for label in labels(page.tokens[token]):
            counts[label] += int(times)
    return Base({label: times / others.size for label, times in counts.items()})


def scripted_ratings(page: Page) -> dict[str, dict[str, Any]]:
    """Ratings of all cards by the id of the card, as `write_ratings` takes them."""
    base = base_of(page)
    return {card["id"]: _rating(card, page, base) for card in page.cards}


def _rating(card: dict[str, Any], page: Page, base: Base) -> dict[str, Any]:
    config, empty = page.config, dict.fromkeys(MOST)
    rating: dict[str, Any] = {"interpretation": "", "none": True, "sets": [None] * len(card["sets"]), **empty}
    at, n = config["before"], config["n_intervals"]
    level = np.arange(len(card["examples"])) // config["per_interval"]
    strong = level >= n // 2
    best: tuple[float, float, str, np.ndarray] = (0.0, 0.0, "", strong)
    for back in (0, 1) if at else (0,):
        of_examples = [labels(page.tokens[window[at - back]]) for window in card["examples"]]
        for label in sorted(frozenset().union(*of_examples)):
            fits = np.asarray([label in some for some in of_examples])
            words = f"the token {'before ' * back}{label}"
            found = (base.beyond(fits[strong], label), -base.share.get(label, 0.0), label, fits)
            if found[:2] > best[:2]:
                best, said = found, words
    convinced, minus_share, label, fits = best
    if convinced < CONVINCED:
        return rating
    specific = next((number for share, number in RARE if -minus_share <= share), 0)
    rating |= {"interpretation": said, "none": False, "specificity": specific}
    rating["confidence"] = round(MOST["confidence"] * base.beyond(fits, label))
    rating["tokens"] = round(MOST["tokens"] * convinced)
    rating["sets"] = [round(MOST["tokens"] * base.beyond(fits[some], label)) for some in card["sets"]]
    return rating | (_logits(card, page, base) if page.logits else {})


def _logits(card: dict[str, Any], page: Page, base: Base) -> dict[str, int | None]:
    """Whether the raised tokens are of one kind: what follows a token is seldom of its own kind."""
    of_tokens = [labels(page.tokens[token]) for token, _ in card["logits"]]
    sizes = np.asarray([size for _, size in card["logits"]]) / SIZES
    every = sorted(frozenset().union(*of_tokens))
    shares = [base.beyond([label in some for some in of_tokens], label) for label in every]
    fits = np.asarray([every[int(np.argmax(shares))] in some for some in of_tokens])
    found = round(MOST["logits"] * max(shares))
    separated = int(fits.any() and (fits.all() or sizes[fits].min() >= sizes[~fits].max()))
    return {"logits": found, "separated": None if found == MOST["logits"] else separated}
