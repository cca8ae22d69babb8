"""Log-probabilities of the tokens of a prompt, as servers give them that echo it, found again in its text."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

REACH = 12  # characters within which a text is found again after tokens that are no text (special ones, parts of a character)


class Echo(NamedTuple):
    """The tokens of a prompt and one that was written after it."""

    tokens: list[str]
    logprobs: list[float | None]  # None of the first
    tops: list[dict[str, float] | None]  # the most probable ones at each place
    starts: list[int]  # where each begins in the text
    is_sure: list[bool]  # False at tokens that are no part of the text as they stand

    def at(self, starts: Sequence[int]) -> list[str | None]:
        """The tokens that begin at these places; None where none does."""
        places = self._places()
        return [self.tokens[places[start]] if start in places else None for start in starts]

    def after(self, ends: Sequence[int], choices: Sequence[str]) -> np.ndarray | None:
        """Probabilities of choices as the token at these places, [ends, choices] float64, those that are not among the most probable
        0; None if a token begins at none of the places."""
        places = self._places()
        tops = [self.tops[places[end]] if end in places else None for end in ends]
        rows = [[float(np.exp((top or {}).get(choice, -np.inf))) for choice in choices] for top in tops]
        return np.asarray(rows, np.float64) if any(tops) else None

    def losses(self, begin: int, end: int) -> np.ndarray:
        """Negative log-probabilities of the tokens that end after `begin` and start before `end`, [tokens] float64."""
        rows = zip(self.tokens, self.starts, self.logprobs, strict=True)
        found = [p for token, at, p in rows if p is not None and at < end and at + len(token) > begin]
        return -np.asarray(found, np.float64)

    def _places(self) -> dict[int, int]:
        """The first token that begins at each place of the text."""
        found: dict[int, int] = {}
        for i, (start, is_sure) in enumerate(zip(self.starts, self.is_sure, strict=True)):
            if is_sure:
                found.setdefault(start, i)
        return found


def read_echo(answer: dict[str, Any], text: str) -> Echo | None:
    """What an answer of the completions endpoint says of the prompt `text`; None if it says nothing of it."""
    try:
        found = answer["choices"][0]["logprobs"]
        tokens = [str(token) for token in found["tokens"]]
        logprobs = [None if one is None else float(one) for one in found["token_logprobs"]]
        tops = [
            None if one is None else {str(token): float(p) for token, p in one.items()}
            for one in found["top_logprobs"]
        ]
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        return None
    starts, is_sure = _aligned(tokens, text)
    ends_in_text = any(
        sure and start + len(token) == len(text)
        for token, start, sure in zip(tokens, starts, is_sure, strict=True)
    )
    whole = len(tokens) == len(logprobs) == len(tops) and ends_in_text and len(tokens) > 1
    known = whole and all(one is not None for one in logprobs[1:]) and all(tops[1:])
    return Echo(tokens, logprobs, tops, starts, is_sure) if known else None


def _aligned(tokens: list[str], text: str) -> tuple[list[int], list[bool]]:
    starts, is_sure, at, lost = [], [], 0, False
    for token in tokens:
        if at == len(text):  # written after it
            found = at
        else:
            found = text.find(token, at, at + len(token) + (REACH if lost else 0)) if token else -1
        lost = found < 0
        starts.append(at if lost else found)
        is_sure.append(not lost)
        at = at if lost else min(found + len(token), len(text))
    return starts, is_sure
