"""Token ids of documents of any length, in time linear in the text and in memory that does not grow with it.

A document of more than WINDOW characters is tokenized in windows that overlap. In the overlap the tokens of both windows are
compared by place and id, and the second window takes over in the middle of the longest stretch where they agree: there, what
a window lacks at its ends no longer matters. A window begins where a token of the one before begins, so that they agree in
long runs of one character too.

The ids are those of the whole document if what a tokenizer does depends on less than half an OVERLAP of text to each side.
That holds for byte-level BPE (GPT-2, Llama 3, Qwen, SmolLM2) and WordPiece unless one word is longer, and in practice for
SentencePiece models, which split at no words. Where two windows do not agree, and for tokenizers that give no offsets (slow
ones), text is cut between a word and the space after it instead, or, where there is none in half a window, before a token, or
anywhere: a token that reaches across, or that a tokenizer gives at the beginning of a text only, is another one there.
"""

import re
from bisect import bisect_left
from collections.abc import Iterator
from typing import Any, NamedTuple

WINDOW, OVERLAP = 1 << 16, 1 << 12  # characters
AGREEMENT = 8  # tokens that two windows must share
# Greedy: up to the end of the last word. A space is better: SentencePiece models do not split at others.
WORD_ENDS = (re.compile(r".*\w(?= )", re.DOTALL), re.compile(r".*\w(?=\s)", re.DOTALL))


class _Window(NamedTuple):
    ids: list[int]
    starts: list[int]  # the character at which each token begins


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids of `text` alone, without those that the tokenizer puts around it."""
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    return ids


def token_ids(pieces: Iterator[tuple[str, bool]], tokenizer: Any) -> Iterator[tuple[list[int], bool]]:
    """Token ids, and whether a document ends with them. `pieces` are those of `Texts.pieces`."""
    is_fast = bool(getattr(tokenizer, "is_fast", False))
    parts: list[str] = []
    length, first = 0, 0
    window: _Window | None = (
        None  # at the beginning of what is left of a long document; token `first` comes next
    )
    for piece, ends in pieces:
        parts.append(piece)
        length += len(piece)
        if length <= 2 * WINDOW and not ends:
            continue
        text, at = "".join(parts), 0
        while len(text) - at > (WINDOW if ends else 2 * WINDOW):
            joint = None
            if is_fast:
                window = window or _window(tokenizer, text[at : at + WINDOW])
                joint = _joint(tokenizer, text[at : at + 2 * WINDOW], window)
            if joint is not None and window is not None:
                step, last, following, then = joint
                yield window.ids[first:last], False
                window, first, at = following, then, at + step
            else:
                ids, step = _cut(tokenizer, text[at : at + WINDOW], window)
                yield ids[first:], False
                window, first, at = None, 0, at + step
        parts, length = [text[at:]], len(text) - at
        if ends:
            yield window.ids[first:] if window else encode(tokenizer, parts[0]), True
            parts, length, window, first = [], 0, None, 0


def _window(tokenizer: Any, text: str) -> _Window:
    found = tokenizer(text, add_special_tokens=False, verbose=False, return_offsets_mapping=True)
    return _Window(found["input_ids"], [start for start, _ in found["offset_mapping"]])


def _joint(tokenizer: Any, text: str, window: _Window) -> tuple[int, int, _Window, int] | None:
    """Where the next window of `text` begins, the token of `window` before which it takes over, the next window, and its
    token that comes then; None if the two do not agree."""
    ids, starts = window
    begin = bisect_left(starts, WINDOW - OVERLAP)
    if begin == len(starts):
        return None
    step = starts[begin]
    following = _window(tokenizer, text[step : step + WINDOW])
    place = {
        start: i for i, start in reversed(list(enumerate(starts[begin:], begin)))
    }  # the first token there
    longest, run = (0, 0, 0), (0, 0, 0)  # tokens that agree, and the first of them in either window
    for j, (token, start) in enumerate(zip(*following, strict=True)):
        if start + step > starts[-1]:
            break
        n, i_first, j_first = run
        i = i_first + n if n else place.get(start + step, len(ids))
        if i < len(ids) and (ids[i], starts[i]) == (token, start + step):
            run = (n + 1, i_first if n else i, j_first if n else j)
            longest = max(longest, run)
        else:
            run = (0, 0, 0)
    n, i_first, j_first = longest
    if n < AGREEMENT:
        return None
    middle = i_first + n // 2
    while middle > i_first and starts[middle] == starts[middle - 1]:
        middle -= 1  # the bytes of one character are not torn apart
    return step, middle, following, j_first + middle - i_first


def _cut(tokenizer: Any, text: str, window: _Window | None) -> tuple[list[int], int]:
    """Tokens of the beginning of `text` up to a place in its second half, and that place."""
    found = (pattern.match(text, len(text) // 2) for pattern in WORD_ENDS)
    word = next((match for match in found if match), None)
    if word is None and window is not None:
        last = bisect_left(window.starts, len(text) // 2)
        if last < len(window.starts):
            return window.ids[:last], window.starts[last]
    end = word.end() if word else len(text)
    return encode(tokenizer, text[:end]), end
