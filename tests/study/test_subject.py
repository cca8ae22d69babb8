"""The one-layer subject: its loss and gradients, training that goes on, the shuffled control, and the n-gram bars."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from saefast.activations.hooks import HookPoint
from saefast.errors import InputError
from saefast.study.baselines import Bigrams
from saefast.study.subject import (
    HOOK,
    SubjectConfig,
    new_subject,
    next_token_loss,
    shuffled,
    train_subject,
    train_tokenizer,
)

pytest.importorskip("transformers")
from saefast.activations.texts import Texts

TINY = SubjectConfig(tokens=1280, n_vocab=300, d_model=16, d_mlp=24, n_heads=2, context_length=32, batch=4)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    words = np.random.default_rng(0).choice(["tree", " river", " of", "\n", "12", " Stone"], 4000)
    path.write_text("".join(words))
    return Texts(path)


@pytest.fixture(scope="module")
def tokenizer(texts, tmp_path_factory):
    return train_tokenizer(texts, tmp_path_factory.mktemp("tokenizer"), 262)


def config(tokenizer, **changes):
    return SubjectConfig(**(vars(TINY) | {"n_vocab": len(tokenizer)} | changes))


def test_shape_is_the_papers(tokenizer):
    model = new_subject(SubjectConfig(tokens=1), tokenizer.eos_token_id)
    assert (
        model.config.n_layer == 1
        and model.config.n_embd == 128
        and model.config.activation_function == "relu"
    )
    tokens = torch.randint(0, 4096, (2, 8), generator=torch.Generator().manual_seed(0))
    rows = []
    with HookPoint(model, HOOK).attached(lambda x: rows.append(x.detach())):
        model(tokens)
    (row,) = rows
    assert row.shape == (2, 8, 512) and (row >= 0).all() and (row == 0).any()


def test_loss_and_gradients_are_those_of_cross_entropy(tokenizer, monkeypatch):
    monkeypatch.setattr("saefast.study.subject.ROWS_AT_ONCE", 50)  # 4 x 31 rows: two whole pieces and a part
    model = new_subject(config(tokenizer), 0)
    tokens = torch.randint(0, len(tokenizer), (4, 32), generator=torch.Generator().manual_seed(1))
    loss = next_token_loss(model, tokens)
    (3 * loss).backward()
    found = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    exact = F.cross_entropy(model(tokens).logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    (3 * exact).backward()
    torch.testing.assert_close(loss, exact, rtol=1e-6, atol=0)
    for gradient, parameter in zip(found, model.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-7)


def test_an_interrupted_training_goes_on_to_the_same_weights(texts, tokenizer, tmp_path):
    train_subject(texts, tokenizer, tmp_path / "whole", config(tokenizer))
    steps = []

    def stop(n):
        steps.append(n)
        if len(steps) == 6:  # the first call says what was there before
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_subject(texts, tokenizer, tmp_path / "parts", config(tokenizer), stop, checkpoint_seconds=0)
    assert (tmp_path / "parts.training.pt").exists() and not (tmp_path / "parts").exists()
    train_subject(texts, tokenizer, tmp_path / "parts", config(tokenizer))
    from saefast.activations.lm import load_model

    one, other = (load_model(str(tmp_path / name))[0] for name in ("whole", "parts"))
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert not (tmp_path / "parts.training.pt").exists()


def test_training_of_another_config_is_refused(texts, tokenizer, tmp_path):
    def stop(n):
        if (tmp_path / "A.training.pt").exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_subject(texts, tokenizer, tmp_path / "A", config(tokenizer), stop, checkpoint_seconds=0)
    with pytest.raises(InputError, match="expected the training of"):
        train_subject(texts, tokenizer, tmp_path / "A", config(tokenizer, lr=1.0))


def test_a_loss_that_is_no_number_stops_it(texts, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "saefast.study.subject.next_token_loss", lambda model, tokens: torch.tensor(torch.nan)
    )
    with pytest.raises(InputError, match="the loss of step 1 is nan"):
        train_subject(texts, tokenizer, tmp_path / "A", config(tokenizer))
    assert not (tmp_path / "A").exists()


def test_too_little_text_is_said(texts, tokenizer, tmp_path):
    with pytest.raises(InputError, match="expected 1000000 tokens of training text, got"):
        train_subject(texts, tokenizer, tmp_path / "A", config(tokenizer, tokens=1_000_000))


def test_a_vocabulary_that_the_text_cannot_fill_is_refused(texts, tmp_path):
    with pytest.raises(InputError, match="expected enough for a vocabulary of 4096 tokens"):
        train_tokenizer(texts, tmp_path, 4096)


def test_shuffled_has_the_same_numbers_in_other_places(tokenizer):
    model = new_subject(config(tokenizer), 0)
    other = shuffled(model, seed=1)
    for (name, a), b in zip(model.named_parameters(), other.parameters(), strict=True):
        if a.ndim > 1 and len(a.unique()) > 1:
            assert not torch.equal(a, b), name
            assert torch.equal(a.flatten().sort().values, b.flatten().sort().values), name
        else:
            assert torch.equal(a, b), name


def test_bigrams_by_hand():
    """a b a b a c: after a: b twice, c once (T = 2); after b: a twice (T = 1)."""
    counts = Bigrams(4)
    counts.add(torch.tensor([[0, 1, 0, 1, 0, 2]]))
    one = np.array([3 + 1, 2 + 1, 1 + 1, 0 + 1]) / 10
    unigrams, bigrams = counts.losses([torch.tensor([[0, 2, 1]])])
    after_a = (1 + 2 * one[2]) / (3 + 2)
    after_c = one[1]  # never seen before anything: what unigrams say
    assert unigrams == pytest.approx(-(np.log(one[2]) + np.log(one[1])) / 2)
    assert bigrams == pytest.approx(-(np.log(after_a) + np.log(after_c)) / 2)


def test_bigrams_sum_to_one():
    counts, rng = Bigrams(5), np.random.default_rng(0)
    counts.add(torch.from_numpy(rng.integers(0, 4, (3, 20))))
    for first in range(5):
        total = sum(np.exp(-counts.losses([torch.tensor([[first, second]])])[1]) for second in range(5))
        assert total == pytest.approx(1)
