"""What all pictures share: a figure, its file, and tokens as labels."""

import unicodedata
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from saefast.errors import InputError
from saefast.files import write_atomic
from saefast.interp.vocabulary import SHORT, Vocabulary, pieces

COLORS = ["#d1495b", "#2a6f97", "#8fb339", "#edae49", "#6d597a"]  # of dictionaries, from the smallest
TEXT: dict[str, Any] = {"family": "DejaVu Sans", "parse_math": False}  # a "$" is a dollar
BLANK = "\u2423"  # a space in a label
FROM_LEFT = "\u200e"  # before a line: tokens of scripts that are written from the right do not turn it around


def figure(width: float, height: float) -> Any:
    """An empty figure in inches.

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure  # no pyplot: no global state, no display
    except ImportError:
        raise InputError("pictures need matplotlib: pip install 'saefast[viz]'") from None
    return Figure(figsize=(width, height), dpi=110)


def save(drawn: Any, path: str | Path) -> Path:
    """As PNG on white: readable on light and dark pages."""
    target = Path(path)
    write_atomic(target, lambda to: drawn.savefig(to, format="png", facecolor="white"))
    return target


def token_label(raw: bytes, most: int = 12) -> str:
    """A token in at most about `most` signs. What the font has no glyph for, a mark that needs a letter before it, and a byte that
    is no character are shown as their number in angle brackets."""
    signs: list[str] = []
    for text, named in pieces(raw):
        if named:
            signs.append(text if text in SHORT.values() else f"<{text}>")
            continue
        for char in text:
            is_mark = unicodedata.category(char).startswith("M")
            known = ord(char) in _glyphs() and not is_mark
            signs.append(BLANK if char == " " else char if known else f"<U+{ord(char):04X}>")
    length = 0
    kept: list[str] = []
    for sign in signs:
        if length + len(sign) > most and kept:
            return "".join(kept) + "\u2026"
        kept.append(sign)
        length += len(sign)
    return "".join(kept)


def tokens_label(tokens: Iterable[int], vocabulary: Vocabulary | None, most: int = 30) -> str:
    """As many of them, from the first on, as fit in `most` signs; without a vocabulary their ids."""
    label = FROM_LEFT
    for token in tokens:
        one = token_label(vocabulary.raw[token]) if vocabulary is not None else f"#{token}"
        if label != FROM_LEFT and len(label) + 1 + len(one) > most:
            break
        label += one if label == FROM_LEFT else f"  {one}"
    return label


@cache
def _glyphs() -> frozenset[int]:
    """Code points that the font has."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    return frozenset(get_font(findfont(FontProperties(family="DejaVu Sans"))).get_charmap())
