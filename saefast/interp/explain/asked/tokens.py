"""How tokens of a window are written where a language model reads them."""

import codecs
import re
from typing import NamedTuple

import numpy as np

from saefast.interp.vocabulary import Vocabulary, visible

OPEN, CLOSE = "<<", ">>"  # around marked text
_OPEN, _CLOSE = "\ue000", "\ue001"  # stand for them until the data has none; `shown` leaves none of these
CONTROL = re.compile(r"<(?=(?:\|[^<>|]{1,40}\||/?s|bos|eos|pad|unk|(?:start|end)_of_turn)>)")


class Words(NamedTuple):
    """A window as strings, each of one token or more."""

    texts: list[str]
    of_token: np.ndarray  # [L] int64, which text each token belongs to, -1 for padding


def words(vocabulary: Vocabulary, tokens: np.ndarray) -> Words:
    """The tokens [L] of one window as strings.

    Tokens of which the bytes end within a character are one string with the next ones, up to the end of the character; of a
    character that never ends, or began before the window, there is a replacement character.
    """
    texts: list[str] = []
    of_token = np.full(len(tokens), -1, np.int64)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    is_open = False  # the last text ends within a character
    for i, token in enumerate(np.asarray(tokens).tolist()):
        if token < 0:
            if is_open:
                texts[-1] += decoder.decode(b"", final=True)
            is_open = False
            continue
        raw = vocabulary.raw[token]
        if is_open and not 0x80 <= raw[:1].ljust(1, b"\x80")[0] < 0xC0:  # does not go on with the character
            texts[-1] += decoder.decode(b"", final=True)
            is_open = False
        text = decoder.decode(raw)
        if is_open:
            texts[-1] += text
        else:
            texts.append(text)
        of_token[i] = len(texts) - 1
        is_open = bool(decoder.getstate()[0])
    if is_open:
        texts[-1] += decoder.decode(b"", final=True)
    return Words(texts, of_token)


def merged(values: np.ndarray, words: Words) -> np.ndarray:
    """Values of tokens [L] -> those of texts [n] float64: the largest of its tokens."""
    found = np.full(len(words.texts), -np.inf)
    is_token = words.of_token >= 0
    np.maximum.at(found, words.of_token[is_token], np.asarray(values, np.float64)[is_token])
    return found


def spread(values: np.ndarray, words: Words) -> np.ndarray:
    """Values of texts [n] -> those of their tokens [L] float64; 0 on padding."""
    padded = np.append(np.asarray(values, np.float64), 0.0)  # -1 is the last
    found: np.ndarray = padded[words.of_token]
    return found


def shown(text: str) -> str:
    """A token in one line: line ends and tabulators as in Python, other signs that cannot be seen by their numbers, and what
    chat templates mean something by (as <|end|>) with a backslash, so that it is text for any tokenizer."""
    return CONTROL.sub(r"<\\", visible(text.encode("utf-8", "replace")))


def shown_line(words: Words, marked: np.ndarray | None = None) -> str:
    """All texts in one line, marked ones [n] bool between OPEN and CLOSE, neighbours together; in the text these are taken apart."""
    line, was = "", False
    for text, is_marked in zip(
        words.texts, [False] * len(words.texts) if marked is None else marked, strict=True
    ):
        if is_marked != was:
            line += _OPEN if is_marked else _CLOSE
        line, was = line + shown(text), bool(is_marked)
    line = CONTROL.sub(r"<\\", line + _CLOSE * was)  # one that is of several tokens
    while OPEN in line or CLOSE in line:
        line = line.replace(OPEN, "< <").replace(CLOSE, "> >")
    return line.replace(_OPEN, OPEN).replace(_CLOSE, CLOSE)
