"""Likelihood ratios against those that are written out by hand and against all prefixes."""

import base64 as encoding
import math

import numpy as np
import pytest

from saefast.errors import InputError
from saefast.interp.contexts import BLOCKS, Script, base64, dna, hexadecimal
from saefast.interp.contexts.blocks import SPACES
from saefast.interp.contexts.strings import best_ending
from tests.helpers.byte_text import Pieces, cut, text_of

RARE = math.log(1e-10)
WORDS = b"In the beginning was the word, and the word was long. A cat ACTED as Agatha. "


def dna_text(n=400, letters=b"ACGT", seed=1):
    return bytes(np.random.default_rng(seed).choice(list(letters), n).astype(np.uint8))


def test_ratios_by_hand():
    vocabulary = Pieces([b"AC", b"GT", b"he", b" A", b"a"])
    text = text_of([[1, 2, 3, 1, 0, 2], [4, 2, 1, 1, 1, 0]])
    p = {1: 5 / 12, 2: 3 / 12, 3: 1 / 12, 4: 1 / 12, 0: 2 / 12}
    scores = base64().scores(text, vocabulary)
    one = {token: 2 * math.log(1 / 64) - math.log(p[token]) for token in (1, 2, 3)}
    space = RARE + math.log(1 / 64) - math.log(p[4])
    np.testing.assert_allclose(scores[0, :4], [one[1], one[2], one[3], one[1]], rtol=1e-6)  # all negative
    np.testing.assert_allclose(scores[0, 4:], [RARE - math.log(p[0]), one[2]], rtol=1e-6)
    np.testing.assert_allclose(scores[1, :2], [space, one[2]], rtol=1e-6)

    scores = dna().scores(text, vocabulary)
    one = {token: 2 * math.log(1 / 4) - math.log(p[token]) for token in (1, 2)}
    none = 2 * RARE - math.log(p[3])
    missing = RARE  # a string has two tokens at least
    wanted = [one[1] + missing, one[2] + one[1], none + one[2] + max(one[1], 0), one[1] + none]
    np.testing.assert_allclose(scores[0, :4], wanted, rtol=1e-5)
    np.testing.assert_allclose(scores[0, 5], one[2] + missing, rtol=1e-5)  # the first of its document


@pytest.mark.parametrize("at_least", [1, 2, 3])
def test_the_best_of_all_prefixes(at_least):
    generator = np.random.default_rng(0)
    ratios = generator.normal(size=(7, 15))
    begins = generator.random((7, 15)) < 0.2
    begins[:, 0] = True
    found = best_ending(ratios, begins, at_least)
    for row, starts, got in zip(ratios, begins, found):
        for t in range(15):
            first = max(i for i in range(t + 1) if starts[i])
            sums = [row[j : t + 1].sum() for j in range(first, t + 1) if t + 1 - j >= at_least]
            short = row[first : t + 1].sum() + RARE * (at_least - (t + 1 - first))
            assert got[t] == pytest.approx(max(sums, default=short))


def share_labelled(proxy, passages, length=200):
    """Among other text, so that pieces of the passages are rare."""
    other = [WORDS * 6] * 60
    text, vocabulary = cut([*passages, *other], length, size=2)
    labels = proxy.labels(text, vocabulary)
    return [float(labels[i][text.encoded[i]].mean()) for i in range(len(passages))]


def groups(letters):
    return b"\n".join(
        b"%9d " % i + b" ".join(letters[i + k : i + k + 10] for k in range(0, 60, 10))
        for i in range(0, 360, 60)
    )


@pytest.mark.parametrize("form", ["large", "small", "groups"])
def test_dna_is_labelled_and_words_are_not(form):
    letters = dna_text(letters=b"ACGT" if form == "large" else b"acgt")
    sequence = groups(letters) if form == "groups" else letters
    shares = share_labelled(dna(), [sequence, WORDS * 5, b"CATS ACT AT A TAG: GATTACA is a film. " * 9])
    assert shares[0] > (0.75 if form == "groups" else 0.99) and shares[1] == shares[2] == 0


def test_base64_and_hexadecimal_numbers_are_told_apart():
    data = np.random.default_rng(0).bytes(300)
    names = b"self.getElementsByTagName(documentTypeDefinition) /usr/lib/python3/dist-packages/numpy/core "
    passages = [encoding.encodebytes(data), b"sha256: " + data.hex().encode(), names * 6, WORDS * 5]
    in_base64, in_hex = share_labelled(base64(), passages), share_labelled(hexadecimal(), passages)
    assert in_base64[0] > 0.95 and in_base64[1:] == [0, 0, 0]
    assert in_hex[1] > 0.95 and in_hex[0] == in_hex[2] == in_hex[3] == 0


def by_definition(proxy, text, vocabulary):
    """Of each token the best of all strings that end there, each looked at as a whole."""
    ranges = BLOCKS[proxy.name]

    def inside(char):
        return any(low <= ord(char) <= high for low, high in ranges)

    def blank(char):
        return ord(char) in SPACES

    def passages():
        for row in text.contexts.tolist():
            here = []
            for token in [*row, 0]:
                if token == 0:
                    yield here
                    here = []
                else:
                    here.append(token)

    def chars(passage):
        """(character or None, its first byte, its end) of all bytes."""
        data, at, found = b"".join(vocabulary.raw[token] for token in passage), 0, []
        while at < len(data):
            for size in (1, 2, 3, 4):
                try:
                    found.append((data[at : at + size].decode(), at, at + size))
                    break
                except UnicodeDecodeError:
                    continue
            else:
                found.append((None, at, at + 1))
            at = found[-1][2]
        return found

    uses, good, labelled, n_tokens = {}, {}, 0, 0
    every = [passage for passage in passages() if passage]
    for passage in every:
        ends = np.cumsum([len(vocabulary.raw[token]) for token in passage])
        for token, end in zip(passage, ends):
            first = end - len(vocabulary.raw[token])
            here = [c for c, a, b in chars(passage) if a < end and b > first]
            n_tokens += 1
            labelled += any(c is not None and inside(c) for c in here)
            if None not in here:
                uses[token] = uses.get(token, 0) + 1
                done = [c for c, a, b in chars(passage) if first < b <= end]
                fine = all(inside(c) or blank(c) for c in done) and any(inside(c) for c in here)
                good[token] = good.get(token, 0) + fine
    n_tokens += int((text.contexts == 0).sum())
    prior = math.log(labelled / n_tokens)
    share = {token: math.log(max(good[token] / uses[token], 1e-10)) for token in uses}
    found = []
    for passage in every:
        places = chars(passage)
        ends = np.cumsum([len(vocabulary.raw[token]) for token in passage])
        for t, end in enumerate(ends):
            best = -math.inf
            for j in range(t + 1):
                first = ends[j] - len(vocabulary.raw[passage[j]])
                if j < t and any(a < first and b > ends[j] for _, a, b in places):
                    continue  # it begins with a part of a character that goes on in the second token
                whole = [c for c, a, b in places if a >= first and b <= end and c is not None]
                cut_first = any(a < first < b for _, a, b in places) or places_broken(places, first)
                cut_last = any(a < end < b for _, a, b in places) or places_broken(places, end - 1)
                value = 0.0 if all(inside(c) or blank(c) for c in whole) else RARE
                if value == 0:
                    for k in range(j, t + 1):  # a token without any of the script
                        begin, stop = ends[k] - len(vocabulary.raw[passage[k]]), ends[k]
                        own = [c for c, a, b in places if a < stop and b > begin]
                        cut = any(a < begin < b or a < stop < b for _, a, b in places) or None in own
                        if not cut and not any(c is not None and inside(c) for c in own):
                            value = RARE
                if value == 0:
                    of = ({j} if cut_first else set()) | ({t} if cut_last else set())
                    value = sum(share.get(passage[k], RARE) for k in of)
                best = max(best, value)
            found.append(max(best, RARE) - prior)
    return found


def places_broken(places, at):
    return any(c is None and a <= at < b for c, a, b in places)


@pytest.mark.parametrize(
    ("name", "size"), [("hebrew", 2), ("arabic", 1), ("arabic", 2), ("han", 1), ("han", 4)]
)
def test_scripts_by_definition(name, size):
    passages = [
        "שלום עולם, and שלום",
        "مرحبا بالعالم and 漢字かな交じり文 х",
        "the word word",
        "漢字 漢 ab שלום",
        "ключ и 字",
    ]
    passages += [
        "\u05b0\u0580\u05b1\u0581 \u0750\u0740\u0751",
        "\u3400\u3042\u3401\u3043",
    ]  # of two scripts that begin alike
    text, vocabulary = cut([one.encode() for one in passages], 40, size=size)
    proxy = Script(name)
    found = proxy.scores(text, vocabulary)[text.encoded]
    wanted = np.array(by_definition(proxy, text, vocabulary))
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    assert len(np.unique(found.round(3))) > 2 or size > 1


def test_labels_of_scripts_are_those_of_their_characters():
    passages = [" שלום עולם", "مرحبا", "Привет κόσμε", "नमस्ते", "日本のカナ", "한국어", "plain ASCII"]
    text, vocabulary = cut([one.encode() for one in passages], 40, size=2)
    scripts = ["hebrew", "arabic", "cyrillic", "devanagari", "kana", "hangul"]
    shares = {name: [] for name in scripts}
    for name in scripts:
        labels = Script(name).labels(text, vocabulary)
        shares[name] = [of[row].mean() for of, row in zip(labels, text.encoded)]
    for name, at in (("hebrew", 0), ("arabic", 1), ("devanagari", 3), ("hangul", 5)):
        assert shares[name][at] > 0.8 and sum(shares[name]) == shares[name][at]
    assert 0.4 < shares["cyrillic"][2] < 0.7 and 0.3 < shares["kana"][4] < 0.9
    with pytest.raises(InputError, match="latin"):
        Script("latin")


def test_samples_are_judged_by_the_frequencies_of_another_text():
    recorded, vocabulary = cut([dna_text(), WORDS * 6, WORDS * 6], 150)
    own = text_of(recorded.contexts[:1])
    assert not np.allclose(dna().scores(own, vocabulary), dna().scores(recorded, vocabulary)[:1])
    np.testing.assert_array_equal(
        dna(recorded).scores(own, vocabulary), dna().scores(recorded, vocabulary)[:1]
    )
    hebrew = "שלום עולם".encode()
    recorded, vocabulary = cut([hebrew, WORDS], 40)
    own = text_of(recorded.contexts[:1])
    np.testing.assert_array_equal(
        Script("hebrew", recorded).scores(own, vocabulary), Script("hebrew").scores(recorded, vocabulary)[:1]
    )
    with pytest.raises(InputError, match="vocabulary"):
        dna().scores(text_of([[9999]]), vocabulary)
