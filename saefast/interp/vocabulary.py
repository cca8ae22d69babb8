"""The tokens of a tokenizer as what they are: bytes of text."""

import json
import re
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import pairwise
from typing import Any

from saefast.activations.tokens import encode
from saefast.errors import check

BYTE = re.compile(r"<0x([0-9A-F]{2})>")
SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
LEAST_AGREEMENT = (
    0.5  # of token ids with those of their own text; the right tokenizer gives nearly all of them back
)


class Vocabulary:
    """What each token id stands for.

    Attributes:
        raw: the bytes of each id, which are not always whole characters. Tokens that byte-level BPE, SentencePiece with bytes
            or WordPiece make are taken apart; of other tokenizers, what they decode the id to.
        special: ids that stand for no text (beginning and end of text, padding).
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        backend = getattr(tokenizer, "backend_tokenizer", None)
        kinds = json.dumps(json.loads(backend.to_str())["decoder"]) if backend is not None else ""
        names = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
        self.special: set[int] = set(tokenizer.all_special_ids)
        added = set(getattr(tokenizer, "added_tokens_decoder", {}))  # kept as they are written
        if '"ByteLevel"' in kinds:
            of_char = {char: byte for byte, char in _byte_chars().items()}

            def bytes_of(name: str) -> bytes:
                known = all(char in of_char for char in name)
                return bytes(of_char[char] for char in name) if known else name.encode()

        elif '"ByteFallback"' in kinds or "\u2581" in kinds:

            def bytes_of(name: str) -> bytes:
                byte = BYTE.fullmatch(name)
                return bytes([int(byte[1], 16)]) if byte else name.replace("\u2581", " ").encode()

        elif '"WordPiece"' in kinds:

            def bytes_of(name: str) -> bytes:
                return (name[2:] if name.startswith("##") else f" {name}").encode()

        else:

            def bytes_of(name: str) -> bytes:
                return str(tokenizer.decode(tokenizer.convert_tokens_to_ids([name]))).encode()

        self.raw: list[bytes] = [
            b"" if name is None else name.encode() if i in added else bytes_of(name)
            for i, name in enumerate(names)
        ]

    def __len__(self) -> int:
        return len(self.raw)

    @cached_property
    def strings(self) -> list[str]:
        """Each token alone as text; bytes that are no UTF-8 alone are the replacement character, as other tools show them."""
        return [raw.decode("utf-8", "replace") for raw in self.raw]

    def text(self, tokens: Iterable[int]) -> str:
        """Tokens one after another as text, with characters whose bytes are in several of them."""
        return b"".join(self.raw[token] for token in tokens).decode("utf-8", "replace")

    def check_fits(self, contexts: Iterable[list[int]]) -> None:
        """Raise InputError unless these token ids can be this tokenizer's: all are known, and most are what it gives for
        the text that they stand for. (Those of another tokenizer stand for a text that nobody would write.)
        """
        same = total = 0
        for tokens in contexts:
            largest, want = max(tokens, default=0), f"the one that made the text, with ids below {len(self)}"
            check(largest < len(self), f"tokenizer: expected {want}, the text has token {largest}")
            own = [token for token in tokens if token not in self.special]
            again = set(_pairs(encode(self.tokenizer, self.text(own))))
            same, total = same + sum(pair in again for pair in _pairs(own)), total + max(len(own) - 1, 0)
        got = f"which gives {same} of {total} pairs of tokens of the text back"
        fits = same >= LEAST_AGREEMENT * total
        check(
            fits,
            f"tokenizer: expected the one that made the text, got {type(self.tokenizer).__name__}, {got}",
        )


def pieces(raw: bytes) -> Iterator[tuple[str, bool]]:
    """Bytes of text as what can be shown of them: (text, False), or (a name, True) for each sign that cannot be seen as it is.

    The name of a byte that is no UTF-8 is its two hexadecimal digits; that of a control or format sign (NUL, a mark for the
    direction of text, a soft hyphen) is U+ and its number, but for the end of a line, a return and a tabulator.
    """
    plain = ""
    for char in raw.decode("utf-8", "surrogateescape"):
        code = ord(char)
        if char.isprintable():
            plain += char
            continue
        if plain:
            yield plain, False
            plain = ""
        byte = 0xDC80 <= code <= 0xDCFF
        yield f"{code - 0xDC00:02X}" if byte else SHORT.get(char, f"U+{code:04X}"), True
    if plain:
        yield plain, False


def visible(raw: bytes) -> str:
    """Bytes of text in one line without signs that act on a terminal: the names of `pieces` in angle brackets, line ends and
    tabulators as in Python."""
    return "".join(
        (text if text in SHORT.values() else f"<{text}>") if named else text for text, named in pieces(raw)
    )


def _pairs(tokens: list[int]) -> Iterable[tuple[int, int]]:
    return pairwise(tokens)


def _byte_chars() -> dict[int, str]:
    """The characters that byte-level BPE writes for bytes: printable ones for themselves, the others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (byte for byte in range(256) if byte not in printable)
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
