"""Tokens in HTML: coloured by a number, signs that cannot be seen by their names, each for itself in its direction.

The text is that of a corpus and can be anything: all of it goes through `html.escape`, and nothing else of it is in the page.
"""

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from saefast.interp.vocabulary import Vocabulary, pieces, visible

STRONG = (
    0.7  # from here on the colour is so strong that only black is read on it, on a light and on a dark page
)


class Token(NamedTuple):
    """A token as it is shown."""

    id: int
    share: float  # of the largest activation, 0 to 1: how strong its colour is
    title: str = ""  # what is said of it besides
    effect: float = 0.0  # -1 to 1, the colour of the line under it
    is_example: bool = False


def token_html(token: int, vocabulary: Vocabulary | None) -> str:
    """The text of a token; without a vocabulary, and for ids that it does not know, the id."""
    raw = None if vocabulary is None or not 0 <= token < len(vocabulary) else vocabulary.raw[token]
    if not raw:
        return f'<i class="saefast-sign">#{token}</i>'
    return "".join(
        f'<i class="saefast-sign">{escape(text)}</i>' if named else escape(text)
        for text, named in pieces(raw)
    )


def token_text(token: int, vocabulary: Vocabulary | None) -> str:
    """The same in plain text."""
    known = vocabulary is not None and 0 <= token < len(vocabulary) and vocabulary.raw[token]
    return visible(vocabulary.raw[token]) if known and vocabulary is not None else f"<#{token}>"


def line_html(tokens: Sequence[Token], vocabulary: Vocabulary | None) -> str:
    """Tokens one after another, each in a `bdi`: no mark of one turns the direction of the others."""
    return "".join(_span(token, vocabulary) for token in tokens)


def _span(token: Token, vocabulary: Vocabulary | None) -> str:
    style = ""
    if token.share > 0:
        strength = 0.12 + 0.8 * min(token.share, 1.0)
        style = f"background:rgba(255,140,0,{strength:.2f});" + ("color:#000;" if strength >= STRONG else "")
    if token.effect:
        colour = "60,130,246" if token.effect > 0 else "220,38,38"
        strength = 0.2 + 0.8 * min(abs(token.effect), 1.0)
        style += f"border-bottom:2px solid rgba({colour},{strength:.2f});"
    attributes = ' class="saefast-at"' if token.is_example else ""
    attributes += f' title="{escape(token.title, quote=True)}"' if token.title else ""
    attributes += f' style="{style}"' if style else ""
    return f"<bdi{attributes}>{token_html(token.id, vocabulary)}</bdi>"
