"""What a person sees of a token alone: kinds of characters, scripts, case, endings, brackets. Tables over the vocabulary."""

import unicodedata
from collections import Counter
from collections.abc import Callable

import numpy as np

from saefast.interp.vocabulary import Vocabulary

HEX = set("0123456789abcdef")
BASE64 = set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=")
KINDS: dict[str, Callable[[str], bool]] = {  # of the text of a token without spaces around it, not empty
    "digits": lambda text: text.isdecimal(),
    "letters": lambda text: text.isalpha(),
    "lower-case letters": lambda text: text.isalpha() and text.islower(),
    "capital letters": lambda text: text.isalpha() and text.isupper(),
    "capitalised words": lambda text: text.isalpha() and len(text) > 1 and text.istitle(),
    "single letters": lambda text: text.isalpha() and len(text) == 1,
    "letters in mixed case": lambda text: (
        text.isalpha() and text.upper() != text != text.lower() and not text.istitle()
    ),
    "words with a capital": lambda text: text[0].isupper(),
    "letters with digits": lambda text: text.isalnum() and not text.isalpha() and not text.isdecimal(),
    "punctuation": lambda text: all(unicodedata.category(char)[0] in "PS" for char in text),
    "letters A, C, G and T": lambda text: set(text) <= set("ACGT"),
    "letters a, c, g and t": lambda text: set(text) <= set("acgt"),
    "hexadecimal digits": lambda text: set(text) <= HEX or set(text) <= {char.upper() for char in HEX},
    "base64 characters": lambda text: set(text) <= BASE64,
}
ENDINGS = ("s", "ed", "ing", "ly", "er", "ion")
MARKS = ".,:;!?'\"()[]{}<>/\\-_=+*#@&%$|"
SCRIPTS = {"CJK": "Chinese characters", "LATIN": "accented letters"}  # others are "Hebrew letters" and so on
BRACKETS = {
    "round brackets": b"()",
    "square brackets": b"[]",
    "curly brackets": b"{}",
    "angle brackets": b"<>",
}
QUOTE = b'"'
BEFORE_QUOTES = b" \n\t([{=:,<"  # what is before a mark that opens a quotation


class TokenClasses:
    """Attributes are tables of V + 1 rows; the last is that of padding (id -1), for which nothing holds.

    Attributes:
        names: of the classes, in the plural.
        table: [V + 1, C] bool.
        is_script: [C] bool.
        is_rest: [V + 1] bool, tokens that begin with the rest of a character that began before.
        begins_alnum, ends_alnum, begins_space, ends_line, is_space: [V + 1] bool.
        opens, closes: by name of BRACKETS, [V + 1] bool: the last bracket opens; there is one that closes.
        quote, quote_opens: [V + 1] bool: a quotation mark in it; with a space or an open bracket before it.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        special = vocabulary.special
        raws = [b"" if i in special else raw for i, raw in enumerate(vocabulary.raw)] + [b""]
        texts = [raw.decode("utf-8", "ignore") for raw in raws]
        scripts = [_script(raw) for raw in raws]
        inner = [_inner(raw) for raw in raws]
        columns = {kind: [bool(text) and of(text) for text in inner] for kind, of in KINDS.items()}
        for end in ENDINGS:
            columns[f"words ending in {end}"] = [text.isalpha() and text.endswith(end) for text in inner]
        for mark in MARKS:
            columns[f"tokens with {mark}"] = [mark in text for text in inner]
        columns["base64 characters"] = [
            found and not text[:1].isspace()
            for found, text in zip(columns["base64 characters"], texts, strict=True)
        ]
        scripted: set[str] = set()
        for script, _ in Counter(filter(None, scripts)).most_common():
            name = SCRIPTS.get(script, f"{script.capitalize()} letters")
            columns[name] = [one == script for one in scripts]
            scripted.add(name)
        self.is_script = np.array([name in scripted for name in columns] + [False] * 4, bool)
        columns["line breaks"] = [bool(text) and text.isspace() and "\n" in text for text in texts]
        columns["spaces"] = [bool(text) and text.isspace() and "\n" not in text for text in texts]
        columns["parts of characters"] = [bool(raw) and not _is_text(raw) for raw in raws]
        columns["special tokens"] = [i in special for i in range(len(raws))]
        self.names = list(columns)
        self.table = np.array(list(columns.values()), bool).T.copy()
        self.is_rest = np.array([0x80 <= raw[0] < 0xC0 if raw else False for raw in raws])
        self.begins_alnum = np.array([text[:1].isalnum() for text in texts])
        self.ends_alnum = np.array([text[-1:].isalnum() for text in texts])
        self.begins_space = np.array([text[:1].isspace() for text in texts])
        self.ends_line = np.array([raw.rstrip(b" \t").endswith((b"\n", b"\r")) for raw in raws])
        self.is_space = np.array([bool(text) and text.isspace() for text in texts])
        self.opens = {
            n: np.array([raw.rfind(pair[:1]) > raw.rfind(pair[1:]) for raw in raws])
            for n, pair in BRACKETS.items()
        }
        self.closes = {n: np.array([pair[1:] in raw for raw in raws]) for n, pair in BRACKETS.items()}
        self.quote = np.array([QUOTE in raw for raw in raws])
        self.quote_opens = np.array([_opens_quote(raw) for raw in raws])


def _inner(raw: bytes) -> str:
    """The text of a token without spaces around it; nothing if there are parts of characters in it."""
    return raw.decode().strip() if _is_text(raw) else ""


def _is_text(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def _opens_quote(raw: bytes) -> bool:
    place = raw.rfind(QUOTE)
    return place > 0 and raw[place - 1] in BEFORE_QUOTES


def _script(raw: bytes) -> str | None:
    """The script of all letters in it, as the names of characters begin; None for unaccented Latin ones, or without letters.

    Of a token that ends within a character, the script of most of the characters that it can become.
    """
    text = raw.decode("utf-8", "ignore")
    found = {
        _script_of(char) for char in text if not char.isascii() and unicodedata.category(char)[0] in "LM"
    }
    ascii_letters = any(char.isascii() and char.isalpha() for char in text)
    if found:
        return found.pop() if len(found) == 1 and not (ascii_letters and found != {"LATIN"}) else None
    tail = _unfinished(raw)
    if not tail or ascii_letters:
        return None
    missing = 2 + (tail[0] >= 0xE0) + (tail[0] >= 0xF0) - len(tail)
    chars = [
        (tail + bytes([byte]) + b"\x90" * (missing - 1)).decode("utf-8", "ignore")
        for byte in range(0x80, 0xC0)
    ]
    scripts = Counter(_script_of(char) for char in chars if char and unicodedata.category(char)[0] in "LM")
    script, count = scripts.most_common(1)[0] if scripts else (None, 0)
    return script if 2 * count > len(chars) else None


def _unfinished(raw: bytes) -> bytes:
    """The bytes at the end that begin a character which is not finished."""
    for n in range(1, min(3, len(raw)) + 1):
        lead = raw[-n]
        if lead >= 0xC2:
            return raw[-n:] if n < 2 + (lead >= 0xE0) + (lead >= 0xF0) else b""
        if lead < 0x80:
            return b""
    return b""


def _script_of(char: str) -> str | None:
    name = unicodedata.name(char, "").split(" ")[0]
    return (
        None
        if name in ("", "COMBINING", "MODIFIER", "FEMININE", "MASCULINE", "MICRO")
        else name.partition("-")[0]
    )
