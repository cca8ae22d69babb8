"""The tokens of a tokenizer as what they are: bytes of text."""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from itertools import groupby, pairwise
from random import Random
from typing import Any

from saefast.activations.tokens import encode
from saefast.errors import InputError, check, line

BYTE = re.compile(r"<0x([0-9A-F]{2})>")
SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
SPACE = "\u2581"  # as SentencePiece writes it
FEW = 3  # lost pairs of tokens that prove nothing
FAR = 5  # how many times fewer pairs than at random the right tokenizer loses: some where documents meet without a separator


def tokenizer_of(model: str | None) -> tuple["Vocabulary", int | None]:
    """The tokens of a Hugging Face model, a local folder or a name on the Hub, and the one that ends a text.

    Raises:
        InputError: no model was named, it has no tokenizer, or the extra `lm` (transformers) is missing.
    """
    named = "model: expected the language model that made the activations, they name none: give its name"
    check(bool(model), named)
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise InputError("model: the tokens of a text need `pip install saefast[lm]`") from None
    try:
        tokenizer = AutoTokenizer.from_pretrained(model)
    except Exception as error:  # noqa: BLE001 (a corrupt tokenizer.json raises a bare Exception)
        raise InputError(
            f"model: expected one with a tokenizer, {model!r} has none ({line(error)})"
        ) from None
    return Vocabulary(tokenizer), tokenizer.eos_token_id


class Vocabulary:
    """What each token id stands for.

    Attributes:
        raw: the bytes of each id, which are not always whole characters. Tokens that byte-level BPE, SentencePiece with bytes
            or WordPiece make are taken apart; of other tokenizers, what they decode the id to.
        special: ids that stand for no text (beginning and end of text, padding).
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        names = _names(tokenizer)
        self.special: set[int] = set(tokenizer.all_special_ids)
        added = set(getattr(tokenizer, "added_tokens_decoder", {}))  # kept as they are written
        bytes_of = _reader(tokenizer, [name for i, name in enumerate(names) if name and i not in added])
        self._is_taken_apart = bytes_of is not None
        bytes_of = bytes_of or (lambda name: _utf8(_decoded(tokenizer, name)))
        self.raw: list[bytes] = [
            b"" if name is None else _utf8(name) if i in added else bytes_of(name)
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
        """Raise InputError unless these token ids can be this tokenizer's.

        All must be known, and the text that they stand for must give them back. Those of another tokenizer stand for tokens in an
        order in which nobody writes, of which some would be joined otherwise; in a random order as many are. So the right
        tokenizer is known by losing far fewer pairs of neighbours than are lost when its tokens are shuffled.
        The ends of a context, where a word or a character may be cut, do not count; a text with too few pairs is accepted, and
        so is any known id of a tokenizer whose tokens cannot be taken apart.

        How sure it is, on 16 tokenizers that played no part in choosing it (tests/interp/test_vocabulary_pairs.py): of 240 pairs
        it took 3 on 8,192 tokens, 4 on 2,048 and 9 on 512, nearly all of them for Unigram (T5), which joins little. The right
        one was never refused, but is where documents of less than about 100 tokens were cut in the middle of words and come
        one after another without separators: that is not what it would give.
        """
        runs: list[list[int]] = []
        for tokens in contexts:
            largest, want = max(tokens, default=0), f"the one that made the text, with ids below {len(self)}"
            check(largest < len(self), f"tokenizer: expected {want}, the text has token {largest}")
            known = ((token in self.special or not self.raw[token], token) for token in tokens)
            for skip, run in groupby(known, key=lambda one: one[0]):
                runs += [] if skip else [self._whole([token for _, token in run])]
        if not self._is_taken_apart:
            return
        lost, total = self._lost(runs)
        mixed = [token for run in runs for token in run]
        Random(0).shuffle(mixed)
        drawn = iter(mixed)
        lost_at_random, total_at_random = self._lost([[next(drawn) for _ in run] for run in runs])
        share, at_random = lost / max(total, 1), lost_at_random / max(total_at_random, 1)
        fits = lost < FEW or share * FAR <= at_random
        kind, got = type(self.tokenizer).__name__, f"{lost} of {total} pairs of tokens are another text's"
        check(fits, f"tokenizer: expected the one that made the text, got {kind}, of which {got}")

    def _whole(self, run: list[int]) -> list[int]:
        """Without the tokens at both ends that are parts of a character of which the rest is not there."""
        first, end = 0, len(run)
        while first < end and 0x80 <= self.raw[run[first]][0] < 0xC0:
            first += 1
        while first < end and self.text(run[max(first, end - 4) : end]).endswith("\ufffd"):
            end -= 1
        return run[first:end]

    def _lost(self, runs: list[list[int]]) -> tuple[int, int]:
        """How many different pairs of neighbours within these runs the tokenizer does not give back, and of how many."""
        lost: set[tuple[int, int]] = set()
        total: set[tuple[int, int]] = set()
        for run in runs:
            text = self.text(run)
            pairs = list(pairwise(run))
            again = set(pairwise(encode(self.tokenizer, text)))
            if text.startswith(" "):  # SentencePiece puts one there
                again |= set(pairwise(encode(self.tokenizer, text[1:])))
            found = [i for i, pair in enumerate(pairs) if pair in again]
            inside = pairs[found[0] : found[-1] + 1] if found else []
            total |= set(inside)
            lost |= {pair for pair in inside if pair not in again}
        return len(lost), len(total)


def _names(tokenizer: Any) -> list[str | None]:
    """Of all ids up to the largest one, which is not always the number of tokens; None: no token."""
    vocabulary = tokenizer.get_vocab() if hasattr(tokenizer, "get_vocab") else {}
    size = max(len(tokenizer), max(vocabulary.values(), default=-1) + 1)
    names: list[str | None] = [None] * size
    for name, i in vocabulary.items():
        names[i] = name
    if not vocabulary:
        names = list(tokenizer.convert_ids_to_tokens(list(range(size))))
    return names


def _reader(tokenizer: Any, names: list[str]) -> Callable[[str], bytes] | None:
    """How the name of a token is turned into its bytes; None: of a kind that is not known. A tokenizer without a backend, or
    whose backend has no decoder, is known by its names."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    parts = json.loads(backend.to_str()) if backend is not None else {}
    kinds = json.dumps(parts.get("decoder") or parts.get("pre_tokenizer"), ensure_ascii=False)
    of_char = {char: byte for byte, char in _byte_chars().items()}
    has_spaces = any(name.startswith(SPACE) for name in names)
    by_names = parts.get("decoder") is None and not has_spaces and {chr(0x120), chr(0x10A)} <= set(names)
    if '"ByteLevel"' in kinds or by_names:

        def of_bytes(name: str) -> bytes:
            known = all(char in of_char for char in name)
            return bytes(of_char[char] for char in name) if known else _utf8(name)

        return of_bytes
    if '"ByteFallback"' in kinds or SPACE in kinds or (backend is None and has_spaces):

        def of_pieces(name: str) -> bytes:
            byte = BYTE.fullmatch(name)
            return bytes([int(byte[1], 16)]) if byte else _utf8(name.replace(SPACE, " "))

        return of_pieces
    if '"WordPiece"' in kinds:
        prefix = parts["decoder"].get("prefix", "##") if parts["decoder"]["type"] == "WordPiece" else "##"

        def of_words(name: str) -> bytes:
            return _utf8(name.removeprefix(prefix) if name.startswith(prefix) else f" {name}")

        return of_words
    return None


def _decoded(tokenizer: Any, name: str) -> str:
    return str(tokenizer.decode(tokenizer.convert_tokens_to_ids([name])))


def _utf8(text: str) -> bytes:
    """A lone half of a pair of surrogates, which is no text, is a question mark."""
    return text.encode("utf-8", "replace")


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


def _byte_chars() -> dict[int, str]:
    """The characters that byte-level BPE writes for bytes: printable ones for themselves, the others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (byte for byte in range(256) if byte not in printable)
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
