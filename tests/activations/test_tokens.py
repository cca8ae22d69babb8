"""The tokens of a document that is read in windows are those of the whole document."""

import json
import os
import random
import subprocess
import sys
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from saefast.activations.lm import Texts
from saefast.activations.tokens import WINDOW, encode, token_ids
from tests.helpers import tiny_lm

SMOLLM = Path("data/smollm2-135m/tokenizer.json")
WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat,",
    "wasn't",
    "it?",
    "It's",
    "1234",
    "words'",
    "worth;",
    "naïve",
    "café",
    "—",
    "你好",
    "мир",
    "😀👨\u200d👩\u200d👧",
    "x_1",
    "=",
    "{'a':",
    "[2]}",
]


def varied(n, seed=0):
    """At least n characters: words, line ends, Chinese, emoji, long runs of spaces, one letter or four, special tokens."""
    chance, parts, size = random.Random(seed), [], 0
    while size < n:
        some = chance.randrange(1, 3000)
        parts.append(
            chance.choice(
                [
                    " ".join(chance.choices(WORDS, k=some // 3)),
                    "".join(chr(chance.randrange(0x4E00, 0x9FA5)) for _ in range(some)),
                    "".join(chr(chance.randrange(0x1F300, 0x1F6FF)) for _ in range(some // 9)),
                    " " * (5 * some),
                    "\n" * some + "\r\n\t\t ",
                    "".join(chance.choices("ACGT", k=some)),
                    chance.choice(["=", "-_", "é", "ﬁ", "<|endoftext|>", "word\n"]) * some,
                ]
            )
        )
        size += len(parts[-1])
    return "".join(parts)


def byte_level():
    """Like that of GPT-2."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=900, show_progress=False, initial_alphabet=alphabet)
    made.train_from_iterator([varied(30_000, seed=5)], trainer)
    return made


def no_words():
    """Like that of Llama 2: spaces become a letter, one is put in front, and nothing splits the text into words."""
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    trainer = trainers.BpeTrainer(vocab_size=600, show_progress=False, special_tokens=["<unk>"])
    made.train_from_iterator([varied(30_000, seed=5)], trainer)
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.pre_tokenizer = None
    return made


def unigram():
    made = Tokenizer(models.Unigram())
    made.normalizer, made.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=600, show_progress=False, unk_token="<unk>", special_tokens=["<unk>"]
    )
    made.train_from_iterator([" ".join(WORDS * 50)], trainer)
    return made


def fast(made):
    return PreTrainedTokenizerFast(tokenizer_object=made())


def all_ids(pieces, tokenizer):
    return [token for ids, _ in token_ids(iter(pieces), tokenizer) for token in ids]


@pytest.mark.skipif(not SMOLLM.exists(), reason="the demo's model is not there")
@pytest.mark.parametrize("size", [300_000, pytest.param(2_000_000, marks=pytest.mark.slow)])
def test_tokens_of_smollm2_in_windows_are_those_of_the_whole_text(size):
    tokenizer, text = AutoTokenizer.from_pretrained(SMOLLM.parent), varied(size)
    assert all_ids([(text, True)], tokenizer) == encode(tokenizer, text)


@pytest.mark.parametrize("made", [byte_level, no_words, unigram])
@pytest.mark.parametrize("size", [300_000, pytest.param(2_000_000, marks=pytest.mark.slow)])
def test_tokens_in_windows_are_those_of_the_whole_text(made, size):
    tokenizer, text = fast(made), varied(size, seed=1)
    if made is unigram:  # it takes a run of letters that it does not know for one token, however long
        text = "".join(letter for letter in text if letter in {" ", *"".join(WORDS)})
    assert all_ids([(text, True)], tokenizer) == encode(tokenizer, text)


# (a unigram model takes a run of unknown letters for one token, however long)
REPEATED = {
    "spaces": " " * 200_001 + "a",
    "A": "A" * 200_000,
    "lines": "one line\n" * 20_000,
    "emoji": "😀" * 70_000,
}
REPEATED |= {"runs": ("word" + " " * 50_001) * 5, "chinese": "你好" * 70_000}
MADE = [(made, name) for made in (byte_level, no_words) for name in REPEATED]


@pytest.mark.parametrize("made,name", [*MADE, (unigram, "spaces"), (unigram, "lines"), (unigram, "runs")])
def test_tokens_of_what_repeats_are_those_of_the_whole_text(made, name):
    tokenizer, text = fast(made), REPEATED[name]
    assert all_ids([(text, True)], tokenizer) == encode(tokenizer, text)


@pytest.mark.parametrize("size", [1, WINDOW - 1, WINDOW, WINDOW + 1, 2 * WINDOW + 5, 3 * WINDOW])
def test_pieces_may_be_cut_anywhere_and_documents_stay_apart(size):
    tokenizer, chance = fast(byte_level), random.Random(size)
    texts = [varied(size, seed=size)[:size], "short", varied(100, seed=2)]
    pieces = []
    for text in texts:
        cuts = sorted(chance.choices(range(len(text) + 1), k=5))
        parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        pieces += [(part, False) for part in parts[:-1]] + [(parts[-1], True)]
    documents = [[]]
    for ids, ends in token_ids(iter(pieces), tokenizer):
        documents[-1] += ids
        documents += [[]] if ends else []
    assert documents == [*(encode(tokenizer, text) for text in texts), []]


def slow(text, add_special_tokens, verbose):
    """A tokenizer without offsets, one token a byte (as of ByT5) or a word."""
    return SimpleNamespace(input_ids=list(text.encode()))


def test_a_tokenizer_without_offsets_is_cut_between_words(monkeypatch):
    text = varied(300_000, seed=3)
    assert all_ids([(text, True)], slow) == list(text.encode())
    words = {}

    def by_word(text, **_):
        return SimpleNamespace(input_ids=[words.setdefault(word, len(words)) for word in text.split()])

    lines = tiny_lm.text(60_000)
    assert all_ids([(lines, True)], by_word) == by_word(lines).input_ids


def test_the_windows_of_a_word_that_is_longer_than_one_are_simply_cut():
    pieces = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"))
    pieces.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=pieces)
    assert set(all_ids([("z" * 5 * WINDOW, True)], tokenizer)) == {0}


LARGE = """
import resource, sys, time
from saefast.activations.lm import PackedContexts, Texts
from tests.helpers import tiny_lm

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

contexts = PackedContexts(Texts(sys.argv[1]), tiny_lm.tokenizer(), 64, 16)
times = [time.perf_counter()]
batches, n, total = iter(contexts), 0, 0
for limit in (1, 200, 1000):
    for batch in batches:
        n, total = n + 1, total + int(batch.sum())
        if n == limit:
            break
    times.append(time.perf_counter())
    print(n, total, peak(), times[-1] - times[-2])
"""


@pytest.mark.slow
def test_a_large_file_streams_in_memory_that_does_not_grow_and_linear_time(tmp_path):
    """Of 20 MB in one line, in a process of its own. As one text its first 5 MB took more than 1 GB."""
    line = tiny_lm.text(2_000) + " "
    once = torch.tensor(encode(tiny_lm.tokenizer(), line))
    (tmp_path / "big.txt").write_text(line * (20_000_000 // len(line)))
    command = [sys.executable, "-P", "-c", LARGE, str(tmp_path / "big.txt")]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    found = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    first, some, many = [[float(word) for word in row.split()] for row in found.stdout.splitlines()]
    for n, total, *_ in (first, some, many):
        tokens = int(n) * 1024
        assert total == int(once.repeat(tokens // len(once) + 1)[:tokens].sum())
    assert (first[0], some[0], many[0]) == (1, 200, 1000)
    assert many[2] - first[2] < 100 << 20
    assert first[3] < max(many[3], 2) and many[3] < 20 * some[3]  # 4 times the batches


def test_one_long_document_of_json_lines_and_many_of_an_array_stream(tmp_path):
    words = tiny_lm.text(100_000)
    (tmp_path / "one.jsonl").write_text(json.dumps({"text": words}))
    assert list(Texts(tmp_path / "one.jsonl")) == [words]
    with open(tmp_path / "many.json", "w") as file:
        file.write("[")
        file.writelines(
            json.dumps({"id": i, "text": f"document {i}"}) + (",\n" if i < 49_999 else "]")
            for i in range(50_000)
        )
    tracemalloc.start()
    n = 0
    for n, text in enumerate(Texts(tmp_path / "many.json"), 1):
        assert n > 3 or text == f"document {n - 1}"
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert n == 50_000 and peak < 8 << 20  # as a list the objects of these 2 MB take 25
