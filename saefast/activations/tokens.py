"""Token ids of documents of any length, in time linear in the text and in memory that does not grow with it.

A document of more than WINDOW characters is tokenized in windows that overlap. In the overlap the tokens of both windows are
compared by place and id, and the second window takes over in the middle of the longest stretch where they agree: there, what
a window lacks at its ends no longer matters. A window begins where a token of the one before begins, so that they agree in
long runs of one character too.

The ids are those of the whole document if what a tokenizer does depends on less than half an OVERLAP of text to each side.
That holds for byte-level BPE (GPT-2, Llama 3, Qwen, SmolLM2) and WordPiece unless one word is longer, and in practice for
SentencePiece models, which split at no words. Where the windows do not agree, and for tokenizers that give no offsets (slow
ones), text is cut between two words instead: tokens that hold a space in their middle, or that a tokenizer gives at the
beginning of a text only, are other ones there.
"""

import re
from bisect import bisect_left
from collections.abc import Iterator
from typing import Any, NamedTuple

WINDOW, OVERLAP = 1 << 16, 1 << 12  # characters
AGREEMENT = 8  # tokens that two windows must share
WORD_END = re.compile(r".*\w(?=\s\w)", re.DOTALL)  # greedy: up to the last one


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
                cut = _word_end(text[at : at + WINDOW])
                yield encode(tokenizer, text[at : at + cut])[first:], False
                window, first, at = None, 0, at + cut
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
        return None  # one token reaches through the overlap
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


def _word_end(text: str) -> int:
    """The end of the last word before a space, or of the text if there is none."""
    found = WORD_END.match(text)
    return found.end() if found else len(text)
