"""Texts as vectors."""

import sys
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from saefast.errors import InputError
from saefast.interp.explain.scores.embedders import HashedNgrams, SentenceEmbedder

TEXTS = ["the cat sat on the mat", "a cat on a mat", "aaaaaaa", "\u05d0\u05d1 \u4e2d", "x", "xy", "yx"]


def counted(text, longest):
    return Counter(text[i : i + n] for n in range(1, longest + 1) for i in range(len(text) - n + 1))


def cosine(a, b):
    """Of 1 + log(count) of n-grams, by dictionaries."""
    a, b = ({gram: 1 + np.log(n) for gram, n in each.items()} for each in (a, b))
    norms = [np.sqrt(sum(value**2 for value in each.values())) for each in (a, b)]
    return sum(value * b.get(gram, 0) for gram, value in a.items()) / (norms[0] * norms[1])


@pytest.mark.parametrize("longest", [1, 3, 4])
def test_where_hashes_do_not_meet_cosines_are_those_of_ngrams(longest):
    found = HashedNgrams(2**18, longest).embed(TEXTS)
    want = [[cosine(counted(a, longest), counted(b, longest)) for b in TEXTS] for a in TEXTS]
    assert found.dtype == np.float32 and found.shape == (len(TEXTS), 2**18)
    np.testing.assert_allclose(found @ found.T, want, atol=1e-3)
    assert longest == 1 or want[5][6] < 1  # the order of characters counts, if there is more than one


def test_ngrams_that_share_a_place_cancel_on_average():
    """Texts that have no character in common: their cosines are around 0, not above it."""
    alphabet = [chr(code) for code in range(0x4E00, 0x4E00 + 4000)]
    texts = ["".join(alphabet[i : i + 40]) for i in range(0, 4000, 40)]
    vectors = HashedNgrams(64).embed(texts)
    cosines = np.asarray([a @ b for a, b in pairwise(vectors)])
    assert np.abs(cosines).max() > 0.05  # they do share places
    assert abs(cosines.mean()) < 4 * cosines.std() / np.sqrt(len(cosines))


def test_texts_that_are_hard_to_hash():
    embedder = HashedNgrams(7)
    found = embedder.embed(["", "a", "\ud800", "\U0001f600" * 5000, "\x00"])
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), [0, 1, 1, 1, 1], atol=1e-6)
    assert embedder.embed([]).shape == (0, 7)
    assert np.array_equal(embedder.embed(["a", "b"])[1], embedder.embed(["b"])[0])
    assert set(HashedNgrams(1).embed(["ab", "cd", "ef"]).ravel().tolist()) <= {-1.0, 0.0, 1.0}


@pytest.mark.parametrize("wrong", [{"d": 0}, {"longest": 0}])
def test_no_places_and_no_characters_are_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        HashedNgrams(**wrong)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A BERT of random weights and a tokenizer of letters."""
    torch = pytest.importorskip("torch")
    hf = pytest.importorskip("transformers")
    pytest.importorskip("sentence_transformers")
    folder = tmp_path_factory.mktemp("encoder")
    letters = [f"{mark}{chr(code)}" for mark in ("", "##") for code in range(ord("a"), ord("z") + 1)]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters]
    (folder / "vocab.txt").write_text("\n".join(words))
    hf.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    config = hf.BertConfig(
        vocab_size=len(words),
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        initializer_range=0.5,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        hf.BertModel(config).save_pretrained(folder)
    return folder


def test_a_sentence_encoder_gives_the_mean_of_its_tokens(folder):
    import torch
    import transformers as hf

    texts = ["abc", "a longer text of more words", "z"]
    tokenizer, model = hf.AutoTokenizer.from_pretrained(folder), hf.AutoModel.from_pretrained(folder).eval()
    want = []
    for text in texts:  # one by one: no padding
        with torch.no_grad():
            mean = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(dim=0)
        want.append((mean / mean.norm()).numpy())
    embedder = SentenceEmbedder(folder, batch=2, device="cpu")
    found = embedder.embed(texts)
    assert found.dtype == np.float32 and embedder.name == folder.name
    np.testing.assert_allclose(found, want, atol=1e-5)
    assert len(embedder.embed([])) == 0
    assert np.isfinite(embedder.embed(["", "x" * 10_000])).all()


def test_an_encoder_that_is_broken_is_refused(folder, tmp_path):
    with pytest.raises(InputError, match="embedder: expected a sentence encoder"):
        SentenceEmbedder(tmp_path)
    embedder = SentenceEmbedder(folder, device="cpu")
    embedder.encoder[0].auto_model.embeddings.LayerNorm.weight.data.fill_(float("nan"))
    with pytest.raises(InputError, match="finite"):
        embedder.embed(["abc"])
    with pytest.raises(InputError, match="batch"):
        SentenceEmbedder(folder, batch=0)


def test_without_the_library_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(InputError, match=r"pip install 'saefast\[embed\]'"):
        SentenceEmbedder("all-MiniLM-L6-v2")
