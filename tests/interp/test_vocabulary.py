"""Tokens as bytes, for the kinds of tokenizers that there are, and which tokenizer a text is of."""

import base64
import functools
import json
import random

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from saefast import InputError
from saefast.activations.tokens import encode
from saefast.interp.vocabulary import Vocabulary, pieces, visible
from tests.helpers import tiny_lm

KINDS = ["byte-level", "byte-level without decoder", "llama 2", "gemma", "wordpiece", "unigram"]
LOREM = """The quick brown foxes are jumping over lazy dogs, while {0} programmers wrote functions that returned {1} values;
nobody had explained the meaning of {0} to them. "Understanding," she answered, "begins with {1} observations."
def compute(x, y):
\tif x > {0}:
        return {{"a": [x, y, {1}]}}
"""
RANDOM = random.Random(0)


def words(n):
    return "".join(RANDOM.choice("bcdfgklmnprst") + RANDOM.choice("aeiou") for _ in range(n))


TEXT = "".join(LOREM.format(words(2), words(3)) for _ in range(300))
TEXTS = {
    "prose": TEXT,
    "upper": TEXT.upper(),
    "chinese": "人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心，并应以兄弟关系的精神相对待。" * 30,
    "arabic": "يولد جميع الناس أحرارًا متساوين في الكرامة والحقوق. " * 50,
    "hindi": "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है। " * 30,
    "emoji": "".join(RANDOM.choice("😀👩🚀🧬𝔘𒀀☃") for _ in range(1500)),
    "dna": "".join(RANDOM.choice("ACGT") for _ in range(5000)),
    "base64": base64.b64encode(RANDOM.randbytes(4000)).decode(),
    "digits": "".join(RANDOM.choice("0123456789") for _ in range(3000)),
    "one letter": "a" * 3000,
    "spaces": " " * 3000 + "\n" * 500,
    "short documents": "".join(f"{words(2)}.{words(3)}" for _ in range(500)),
}


@functools.cache
def tokenizer(kind):
    """Trained on the spot, with an added token."""
    options, special = {}, ["<s>", "</s>"]
    kept = {"vocab_size": 1500, "show_progress": False}
    if kind.startswith("byte-level"):
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        if kind == "byte-level":
            made.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(special_tokens=special, initial_alphabet=alphabet, **kept)
    elif kind in ("llama 2", "gemma"):
        made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
        spaces = normalizers.Replace(" ", "▁")
        parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        if kind == "llama 2":
            spaces = normalizers.Sequence([normalizers.Prepend("▁"), spaces])
            parts.append(decoders.Strip(" ", 1, 0))
        made.normalizer, made.decoder = spaces, decoders.Sequence(parts)
        made.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
        special = ["<unk>", *special]
        all_bytes = [f"<0x{i:02X}>" for i in range(256)]
        trainer = trainers.BpeTrainer(special_tokens=special + all_bytes, **kept)
        options["unk_token"] = "<unk>"
    elif kind == "wordpiece":
        made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
        made.decoder = decoders.WordPiece()
        special = ["[UNK]", *special]
        trainer = trainers.WordPieceTrainer(special_tokens=special, **kept)
        options["unk_token"] = "[UNK]"
    else:
        made = Tokenizer(models.Unigram())
        made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        special = ["<unk>", *special]
        trainer = trainers.UnigramTrainer(special_tokens=special, unk_token="<unk>", **kept)
        options["unk_token"] = "<unk>"
    made.train_from_iterator([TEXT, TEXTS["base64"]], trainer)
    if kind in ("llama 2", "gemma"):  # bytes are tokens of the model, not added ones
        state = json.loads(made.to_str())
        state["added_tokens"] = [one for one in state["added_tokens"] if not one["content"].startswith("<0x")]
        made = Tokenizer.from_str(json.dumps(state))
    found = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", **options)
    found.add_tokens([AddedToken("<|im Ġ▁##é|>", special=False)])
    return found


@functools.cache
def vocabulary(kind):
    return Vocabulary(tokenizer(kind))


def contexts(kind, text, length, n=200):
    ids = encode(tokenizer(kind), text)[3:]
    return [ids[i : i + length] for i in range(0, min(len(ids) - length + 1, n * length), length)]


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_the_bytes_of_the_text(kind):
    text = "Understanding the\tmeaning: naïve 世界 😀\n  <|im Ġ▁##é|> end"
    if kind in ("wordpiece", "unigram"):
        text = "understanding the meaning , nobody <|im Ġ▁##é|> wrote"
    found = vocabulary(kind)
    ids = encode(tokenizer(kind), text)
    whole = found.text(ids)
    assert whole.strip() == text.strip() or kind in ("wordpiece", "unigram", "llama 2")
    assert whole.replace(" ", "") == text.replace(" ", "")
    assert found.strings[tokenizer(kind).convert_tokens_to_ids("<|im Ġ▁##é|>")] == "<|im Ġ▁##é|>"
    assert {tokenizer(kind).bos_token_id, tokenizer(kind).eos_token_id} <= found.special
    starts = {raw[:1] == b" " for raw in found.raw if raw.strip()}
    assert starts == {True, False}  # spaces are kept, and not put everywhere
    if kind in ("byte-level", "llama 2", "gemma"):
        assert {bytes([i]) for i in range(128, 256)} <= set(found.raw)


@pytest.mark.slow
@pytest.mark.parametrize("length", [1, 2, 5, 16, 128])
@pytest.mark.parametrize("kind", KINDS)
def test_the_right_tokenizer_is_accepted(kind, length):
    for text in TEXTS.values():
        vocabulary(kind).check_fits(contexts(kind, text, length))
    vocabulary(kind).check_fits([])
    vocabulary(kind).check_fits([[]])
    vocabulary(kind).check_fits([[tokenizer(kind).eos_token_id] * 128] * 4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS[:-1])
def test_another_tokenizer_is_refused(kind):
    size = len(vocabulary(kind))
    for other in KINDS:
        # WordPiece joins so little of others' tokens that how much depends on the order of ties in its training
        clear = kind != "wordpiece" or other == "unigram"
        if clear and other.split()[0] != kind.split()[0] and {other, kind} != {"llama 2", "gemma"}:
            text = [[i for i in one if i < size] for one in contexts(other, TEXT, 128, 60)]
            with pytest.raises(InputError, match="expected the one that made the text, got"):
                vocabulary(kind).check_fits(text)
    draw = random.Random(1)
    mixed = [[draw.randrange(10, size) for _ in range(128)] for _ in range(24)]
    with pytest.raises(InputError, match="pairs of tokens"):
        vocabulary(kind).check_fits(mixed)


def test_ids_beyond_the_tokenizer_are_refused():
    size = len(vocabulary("gemma"))
    with pytest.raises(InputError, match=f"with ids below {size}, the text has token {size}"):
        vocabulary("gemma").check_fits([[5, size]])


def test_ids_without_a_token_are_empty():
    """The largest id is not the number of tokens where ids were left out."""
    state = {"a": 0, "b": 2, "<eos>": 6}
    made = Tokenizer(models.WordLevel(state, unk_token="a"))
    found = Vocabulary(PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>"))
    assert len(found) == 7 and found.raw == [b"a", b"", b"b", b"", b"", b"", b"<eos>"]
    found.check_fits([[0, 2, 6, 3]])


class Slow:
    """A tokenizer in Python, without a backend."""

    all_special_ids, added_tokens_decoder = [0], {}

    def __init__(self, names, decode=None):
        self.names, self.decode = names, decode

    def __len__(self):
        return len(self.names)

    def get_vocab(self):
        return {name: i for i, name in enumerate(self.names)}

    def convert_tokens_to_ids(self, names):
        return [self.names.index(name) for name in names]


def test_a_tokenizer_without_a_backend_is_known_by_its_names():
    byte_level = Slow(["<s>", "Ġthe", "Ċ", "Ã", "©", "Ġ", "x"])
    assert Vocabulary(byte_level).raw[1:] == [b" the", b"\n", b"\xc3", b"\xa9", b" ", b"x"]
    pieces = Slow(["<s>", "▁the", "<0xC3>", "<0xA9>", "ing"])
    assert Vocabulary(pieces).raw[1:] == [b" the", b"\xc3", b"\xa9", b"ing"]
    own = Slow(["<s>", "A", "B"], decode=lambda ids: "".join("?yz"[i] for i in ids))
    assert Vocabulary(own).raw[1:] == [b"y", b"z"]
    Vocabulary(own).check_fits([[1, 2, 2, 1]])


def test_words_of_a_kind_that_is_not_known_are_accepted_if_their_ids_are():
    Vocabulary(tiny_lm.tokenizer()).check_fits([encode(tiny_lm.tokenizer(), tiny_lm.text(300))])


def test_signs_that_cannot_be_seen_have_names():
    raw = "a\n\x00é\u202e".encode() + b"\xff\xe2\x82"
    assert list(pieces(raw)) == [
        ("a", False),
        ("\\n", True),
        ("U+0000", True),
        ("é", False),
        ("U+202E", True),
        ("FF", True),
        ("E2", True),
        ("82", True),
    ]
    assert visible(raw) == "a\\n<U+0000>é<U+202E><FF><E2><82>"
    assert list(pieces(b"")) == []
