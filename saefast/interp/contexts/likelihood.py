"""Proxies by likelihood, as in "Towards Monosemanticity" (appendix "Feature proxies"):

    score = log P(s | context) - log P(s), the largest for the strings s that end at the token

P(s) is the product of the frequencies of its tokens. `Alphabet`: the characters of a context are independent, so that
P(s | context) is a product as well. `Script`: by Bayes, P(s | context) / P(s) = P(context | s) / P(context).

For text that somebody else made, such as samples, give the text whose frequencies count as `sample`.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from saefast.errors import check
from saefast.interp.contexts.blocks import BLOCKS, SPACE, script_of
from saefast.interp.contexts.strings import OTHER, best_ending, unigram
from saefast.interp.contexts.written import characters, written
from saefast.interp.records.text import Text
from saefast.interp.vocabulary import Vocabulary

RARE = 1e-10  # the probability of what a context does not have


@dataclass(frozen=True, eq=False)
class Alphabet:
    """Random strings of some characters.

    Attributes:
        alphabets: of each variant of the context the probability of each byte that it has, by byte; any other has 1e-10. The
            score is that of the likeliest variant.
        run: what a string of the context looks like, as a pattern of bytes. Strings of fewer letters are found in any text.
        is_one: whether what matches the pattern is such a string.
        at_least: tokens of a string.
        sample: whose frequencies P(s) is made of; default: those of the text that is scored.

    The label of a token is true if it is in a run whose tokens have a positive log P(s | context) - log P(s) together.
    """

    name: str
    description: str
    alphabets: tuple[dict[int, float], ...]
    run: re.Pattern[bytes]
    is_one: Callable[[bytes], bool]
    at_least: int = 1
    sample: Text | None = None

    def ratios(self, vocabulary: Vocabulary, sample: Text) -> np.ndarray:
        """log P(token | variant) - log P(token), [variants, V] float64; a special token is nothing that a context has."""
        log_p = unigram(sample, vocabulary)
        found = np.full((len(self.alphabets), len(vocabulary)), OTHER)
        for of_variant, alphabet in zip(found, self.alphabets, strict=True):
            log_of = [float(np.log(alphabet.get(byte, RARE))) for byte in range(256)]
            for i, raw in enumerate(vocabulary.raw):
                if raw and i not in vocabulary.special:
                    of_variant[i] = sum(log_of[byte] for byte in raw)
        return found - log_p

    def scores(self, text: Text, vocabulary: Vocabulary) -> np.ndarray:
        """[m, L] float32, in nats."""
        begins = written(text, vocabulary).begins
        ratios = self.ratios(vocabulary, self.sample or text)
        ratios = np.concatenate(
            [ratios, np.full((len(ratios), 1), OTHER)], axis=1
        )  # of -1, which is no token
        found = [best_ending(of_variant[text.contexts], begins, self.at_least) for of_variant in ratios]
        return np.max(found, axis=0).astype(np.float32)

    def labels(self, text: Text, vocabulary: Vocabulary) -> np.ndarray:
        """[m, L] bool."""
        made = written(text, vocabulary)
        page, place = made.page()
        ratios = self.ratios(vocabulary, self.sample or text)
        tokens, starts = text.contexts.ravel(), made.starts
        inside = np.zeros(len(made.data), bool)
        for match in self.run.finditer(page):
            begin, end = np.searchsorted(place, match.span()).tolist()
            # tokens that are wholly in the run
            whole = slice(*np.searchsorted(starts, [begin, end + 1], side="left").tolist())
            whole = slice(whole.start, whole.stop - 1)
            of_run = ratios[:, tokens[whole]]
            if of_run.shape[1] >= self.at_least and of_run.sum(axis=1).max() > 0 and self.is_one(match[0]):
                inside[begin:end] = True
        return made.of_tokens(inside)


@dataclass(frozen=True, eq=False)
class Script:
    """A writing system, by its Unicode blocks.

    P(script | s) is 1 if all characters of s are in the blocks, else 1e-10; a token that begins or ends within a character
    gives its share of uses in the script, over the tokens of the sample whose characters are known. White space counts as
    part of the script where its token has something else of it, since tokens begin with the space before a word.
    P(script) is the share of tokens that are in the script.

    Attributes:
        name: of a script in `saefast.interp.contexts.blocks.BLOCKS`.
        sample: where the shares are from; default: the text that is scored.

    The label of a token is true if it has a byte of a character of the script. It knows the whole character, of which the
    score at its first tokens knows the beginning only.
    """

    name: str
    sample: Text | None = None

    def __post_init__(self) -> None:
        check(self.name in BLOCKS, f"name: expected one of {', '.join(BLOCKS)}, got {self.name!r}")

    @property
    def description(self) -> str:
        return f"text in {self.name.capitalize()} script"

    def scores(self, text: Text, vocabulary: Vocabulary) -> np.ndarray:
        """[m, L] float32, in nats; the largest is -log P(script)."""
        number = list(BLOCKS).index(self.name)
        share, prior = _shares(self.sample or text, vocabulary, number)
        parts = _parts(text, vocabulary)
        begins = written(text, vocabulary).begins
        has, other, other_begun = (
            each.reshape(begins.shape) for each in _of_script(text, vocabulary, number)
        )
        cut_first, cut_last = parts.cut_first.reshape(begins.shape), parts.cut_last.reshape(begins.shape)
        of_token = np.log(np.maximum(np.concatenate([share, [RARE]])[text.contexts], RARE))
        can_be = has | cut_first | cut_last
        own = np.where(other | ~can_be, OTHER, 0.0)
        own_with_first = np.where(other | other_begun | ~can_be, OTHER, 0.0)
        alone = own + np.where(cut_first | cut_last, of_token, 0)
        # a longer string does not begin with a part of a character that goes on in its second token
        start = own + np.where(cut_first, np.where(parts.is_inner.reshape(begins.shape), OTHER, of_token), 0)
        tail = np.where(cut_last, of_token, 0)
        # best: of the strings that go on; the share of the fragment at their end is not in it
        best, found = start.copy(), np.maximum(alone, OTHER)
        for t in range(1, begins.shape[1]):
            longer = np.where(begins[:, t], OTHER, best[:, t - 1] + own_with_first[:, t])
            found[:, t] = np.maximum(found[:, t], longer + tail[:, t])
            best[:, t] = np.maximum(start[:, t], longer)
        return (found - prior).astype(np.float32)

    def labels(self, text: Text, vocabulary: Vocabulary) -> np.ndarray:
        """[m, L] bool."""
        here = _scripts(text, vocabulary) == list(BLOCKS).index(self.name)
        page = written(text, vocabulary)
        return (page.counts(here) > 0).reshape(page.begins.shape)


@dataclass(frozen=True)
class _Parts:
    """Of each token [m * L] bool."""

    cut_first: np.ndarray  # it begins within a character
    cut_last: np.ndarray  # it ends within one
    is_inner: np.ndarray  # it begins within a character and no character ends in it
    unknown: np.ndarray  # it has bytes of a character that is not whole in the passage


@lru_cache(maxsize=2)
def _parts(text: Text, vocabulary: Vocabulary) -> _Parts:
    page, chars = written(text, vocabulary), characters(text, vocabulary)
    some = page.lengths > 0
    first, last = page.starts[:-1][some], page.starts[1:][some] - 1
    broken = chars.code < 0
    continues = page.data & 0xC0 == 0x80
    cut_first, cut_last = np.zeros(len(some), bool), np.zeros(len(some), bool)
    cut_first[some] = np.where(broken[first], continues[first], chars.first[first] < first)
    cut_last[some] = np.where(broken[last], page.data[last] >= 0x80, ~chars.is_last[last])
    is_inner = cut_first & (page.counts(chars.is_last) == 0)
    return _Parts(cut_first, cut_last, is_inner, page.counts(broken) > 0)


@lru_cache(maxsize=2)
def _scripts(text: Text, vocabulary: Vocabulary) -> np.ndarray:
    """The script of each byte, [n] int16, as `script_of`."""
    return script_of(characters(text, vocabulary).code)


def _of_script(text: Text, vocabulary: Vocabulary, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each token [m * L] bool: whether it has a byte of the script; whether a character that begins and ends in it is of
    another one (or none); whether one that began before and ends in it is."""
    page, chars = written(text, vocabulary), characters(text, vocabulary)
    script = _scripts(text, vocabulary)
    ends_other = chars.is_last & (script != number) & (script != SPACE)
    begun = chars.first < np.repeat(page.starts[:-1], page.lengths)
    return (
        page.counts(script == number) > 0,
        page.counts(ends_other & ~begun) > 0,
        page.counts(ends_other & begun) > 0,
    )


@lru_cache(maxsize=2 * len(BLOCKS))
def _shares(text: Text, vocabulary: Vocabulary, number: int) -> tuple[np.ndarray, float]:
    """Of each token id the share of its uses in the script, [V] float64, and log P(script)."""
    has, other, other_begun = _of_script(text, vocabulary, number)
    flat, size = text.contexts.ravel(), len(vocabulary)
    known = ~_parts(text, vocabulary).unknown & (flat >= 0)
    uses = np.bincount(flat[known], minlength=size)
    good = np.bincount(flat[known & has & ~other & ~other_begun], minlength=size)
    prior = max(int(has.sum()), 1) / max(int((flat >= 0).sum()), 1)
    return good / np.maximum(uses, 1), float(np.log(prior))


def _uniform(characters: bytes, share: float = 1.0) -> dict[int, float]:
    return dict.fromkeys(characters, share / len(characters))


def _is_base64(run: bytes) -> bool:
    """With the letters of a word, of an identifier or of a number in hexadecimal digits alone it is none."""
    kinds = (rb"[A-Z]", rb"[a-z]", rb"[0-9+/]", rb"[g-zG-Z]")
    return all(re.search(kind, run) for kind in kinds)


def _is_dna(run: bytes) -> bool:
    return len(set(run.lower()) & set(b"acgt")) >= 3


def _is_hex(run: bytes) -> bool:
    return bool(re.search(rb"[a-fA-F]", run) and re.search(rb"[0-9]", run))


def base64(sample: Text | None = None) -> Alphabet:
    """base64: 64 characters, each with probability 1/64."""
    letters = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    # the first and the last line of a passage may be the rest and the beginning of a longer one
    run = re.compile(
        rb"(?:(?<=\0\n)[A-Za-z0-9+/]+\r?\n)?[A-Za-z0-9+/]{20,}(?:\r?\n[A-Za-z0-9+/]{20,})*"
        rb"(?:\r?\n[A-Za-z0-9+/]+(?==|\n\0))?={0,2}"
    )
    return Alphabet("base64", "data in base64", (_uniform(letters),), run, _is_base64, sample=sample)


def dna(sample: Text | None = None) -> Alphabet:
    """DNA: ACGT with probability 1/4 each, at least two tokens; also in small letters, and those in groups of ten, as in
    GenBank and EMBL files."""
    small = b"acgt"
    alphabets = (_uniform(b"ACGT"), _uniform(small), _uniform(small, 10 / 11) | {ord(" "): 1 / 11})
    run = re.compile(rb"[ACGTN]{8,}(?: [ACGTN]+(?![A-Za-z]))*|[acgtn]{8,}(?: [acgtn]+(?![A-Za-z]))*")
    return Alphabet("dna", "a DNA sequence", alphabets, run, _is_dna, at_least=2, sample=sample)


def hexadecimal(sample: Text | None = None) -> Alphabet:
    """Numbers in hexadecimal digits, such as checksums: 16 digits with probability 1/16 each, letters in one case."""
    run = re.compile(rb"(?<![0-9A-Za-z])(?:[0-9a-f]{8,}|[0-9A-F]{8,})(?![0-9A-Za-z])")
    alphabets = _uniform(b"0123456789abcdef"), _uniform(b"0123456789ABCDEF")
    return Alphabet("hexadecimal", "a long hexadecimal number", alphabets, run, _is_hex, sample=sample)
