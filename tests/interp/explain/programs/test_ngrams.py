"""Patterns of planted latents, and of random ones as a plain implementation finds them."""

import numpy as np
import pytest
import torch

from saefast import SAE, SAEConfig
from saefast.errors import InputError
from saefast.interp.explain.programs.ngrams import NGrams, padding_token
from saefast.interp.explain.programs.trie import ANY
from saefast.interp.explain.subject import model_activations
from saefast.interp.neurons import neurons
from saefast.interp.records import RecordsConfig
from tests.helpers import tiny_lm
from tests.helpers.explained import CONFIG, ID, VOCABULARY, ids, planted, text
from tests.helpers.look_records import Tokens

ALL = RecordsConfig(**{**CONFIG.__dict__, "score_fraction": 0.0})
PAD = ID["."]


def of_all(function):
    """(texts, at, latent) from a function of the tokens up to one."""
    return lambda texts, at, latent: np.array(
        [function(row[: n + 1].tolist()) for row, n in zip(texts, at, strict=True)], float
    )


def explained(tmp_path, function, contexts, **options):
    acts = np.array([[function(row[: i + 1]) for i in range(len(row))] for row in contexts.tolist()])
    records = planted(tmp_path, contexts, acts[..., None], config=ALL)
    return NGrams(records, VOCABULARY, of_all(function), padding=PAD, **options).explain(0)


def test_a_token_after_another_with_one_between_them(tmp_path):
    """The text before it, the token between, and other tokens do not matter."""
    the, cat = ID[" the"], ID[" cat"]

    def function(tokens):
        return 3.0 if len(tokens) > 2 and (tokens[-3], tokens[-1]) == (the, cat) else 0.0

    rng = np.random.default_rng(0)
    contexts = rng.choice(ids(" the", " cat", " of", " blue"), (60, 24)).astype(np.int32)
    found = explained(tmp_path, function, contexts)
    assert [one.tokens for one in found.patterns] == [(the, ANY, cat)] and found.patterns[0].act == 3.0
    assert found.patterns[0].count == found.n_examples == 32 and found.n_left_out == 0
    assert found.sentence == 'Active on the last token of " the" [any] " cat" (3).'
    window = [ids(" the", " of", " cat", " cat", " the", " the", " cat")]
    assert found.predict(np.array(window)).tolist() == [[0, 0, 3, 0, 0, 0, 3]]


def test_the_token_itself_can_be_a_wild_card(tmp_path):
    found = explained(
        tmp_path, lambda tokens: 2.0 * (len(tokens) > 1 and tokens[-2] == ID[" the"]), text(12, 32)
    )
    assert found.sentence == 'Active on the last token of " the" [any] (2).'
    assert found.predict(np.array([ids(" the", " the", " of", ".")])).tolist() == [[0, 2, 2, 0]]


def test_wild_cards_hold_together(tmp_path):
    """Either of the two tokens before it will do, one of them must be there: each alone gives way, not both."""
    the, cat = ID[" the"], ID[" cat"]
    contexts = np.array([ids(" of", " the", " the", " cat") * 3] * 4, np.int32)

    def function(tokens):
        return 4.0 * (tokens[-1] == cat and the in tokens[-3:-1] and len(tokens) > 3)

    found = explained(tmp_path, function, contexts, n_random=0)
    assert [one.tokens for one in found.patterns] == [(the, cat)]


def test_what_needs_more_text_than_there_may_be_is_left_out(tmp_path):
    found = explained(tmp_path, lambda tokens: float(len(tokens) > 20), text(6, 24), longest=8)
    assert found.n_left_out == found.n_examples > 0 and not found.predict(text(2, 9)).any()
    assert found.sentence.startswith(
        "No short text makes it active (22 examples need more text than 8 tokens)"
    )


def test_a_latent_that_is_always_active_and_one_that_never_is(tmp_path):
    always = explained(tmp_path / "a", lambda tokens: 1.5, text(6, 24))
    assert always.sentence == "Active on the last token of any text (1.5)."
    assert (always.predict(text(2, 9)) == 1.5).all()
    never = explained(tmp_path / "b", lambda tokens: 0.0, text(6, 24))
    assert "Never active" in never.sentence and not never.predict(text(2, 9)).any()


def plain(function, examples, longest):
    """N2G one text at a time: {pattern: activations of its suffixes}."""
    found = {}
    for tokens, act in examples:
        for n in range(1, min(longest, len(tokens)) + 1):
            suffix = tokens[-n:]
            own = function([PAD, *suffix])
            if own >= act / 2:
                break
        else:
            continue
        pattern = []
        for j in range(n):
            without = function([PAD, *suffix[:j], PAD, *suffix[j + 1 :]])
            pattern.append(ANY if without > own / 2 else suffix[j])
        while (
            function([PAD, *(PAD if token == ANY else token for token in pattern)]) <= own / 2
            and ANY in pattern
        ):
            wild = [j for j in range(n) if pattern[j] == ANY]
            j = min(wild, key=lambda j: (function([PAD, *suffix[:j], PAD, *suffix[j + 1 :]]), -j))
            pattern[j] = suffix[j]
        while pattern and pattern[0] == ANY:
            pattern = pattern[1:]
        found.setdefault(tuple(pattern), []).append(own)
    return {pattern: sum(acts) / len(acts) for pattern, acts in found.items()}


@pytest.mark.parametrize("seed", range(6))
def test_as_a_plain_implementation(tmp_path, seed):
    """Of a latent that is a random function of the last four tokens; all examples are the strongest ones."""
    rng = np.random.default_rng(seed)
    tables = [rng.normal(size=len(VOCABULARY)) * scale for scale in (2, 1.5, 1, 0.7)]

    def function(tokens):
        return max(0.0, sum(tables[back][token] for back, token in enumerate(tokens[::-1][:4])) - 3)

    contexts = text(24, 12, seed)
    found = explained(tmp_path, function, contexts, n_top=10, n_random=0, longest=6)
    peaks = []
    for row in contexts.tolist():
        acts = [np.float32(function(row[: i + 1])) for i in range(len(row))]
        place = int(np.argmax(acts))
        if acts[place] > 0:
            peaks.append((row[: place + 1], float(acts[place])))
    peaks.sort(key=lambda one: -one[1])
    want = plain(function, peaks[:10], 6)
    got = {one.tokens: one.act for one in found.patterns}
    assert got.keys() == want.keys() and len(got) > 1
    np.testing.assert_allclose([got[key] for key in want], list(want.values()), rtol=1e-12)


@pytest.mark.parametrize("dictionary", ["latents", "neurons"])
def test_activations_are_those_of_the_model(dictionary, monkeypatch):
    model, hook = tiny_lm.model(), "model.layers.1.mlp.down_proj:in"
    sae = neurons(48)
    if dictionary == "latents":
        sae = SAE(SAEConfig(d_in=48, d_sae=96, activation="topk", k=5), 0)
    texts = torch.randint(0, 64, (7, 6), generator=torch.Generator().manual_seed(0))
    at = np.array([0, 5, 3, 2, 5, 1, 4])
    seen = []
    handle = model.model.layers[1].mlp.down_proj.register_forward_pre_hook(
        lambda module, args: seen.append(args[0])
    )
    with torch.no_grad():
        for row, n in zip(texts, at, strict=True):
            model(row[None, : n + 1])  # what is behind it does not matter
    handle.remove()
    acts, indices = sae.encode(torch.cat([one[0, -1:] for one in seen]))
    dense = torch.zeros(7, sae.config.d_sae).scatter_add_(1, indices.long(), acts.detach())
    monkeypatch.setattr("saefast.interp.explain.subject.TOKENS", 18)
    activations = model_activations(model, hook, sae)
    for latent in dense.sum(dim=0).topk(3).indices.tolist():
        got = activations(texts.numpy(), at, latent)
        np.testing.assert_allclose(got, dense[:, latent], rtol=1e-4, atol=1e-5)  # sums in another order
        assert got.any()


def test_bad_input(tmp_path):
    records = planted(tmp_path, text(3, 12), np.ones((3, 12, 1)))
    for options, message in [
        ({"n_top": 0, "n_random": 0}, "expected at least one example, got 0 and 0"),
        ({"longest": 0}, "longest: expected at least 1, got 0"),
        ({"padding": 999}, "padding: expected a token id from 0 to .*, got 999"),
    ]:
        with pytest.raises(InputError, match=message):
            NGrams(records, VOCABULARY, of_all(lambda tokens: 1.0), **options)
    with pytest.raises(InputError, match="expected one row of width d_in = 9 for each token, got"):
        model_activations(tiny_lm.model(), "model.layers.1", neurons(9))(
            np.zeros((3, 4), int), np.zeros(3, int), 0
        )


def test_the_padding_token_says_little():
    assert padding_token(Tokens([b"a", b"_", b" _", b" _"])) == 2
    assert padding_token(Tokens([b"a", b".", b"_"])) == 2 and padding_token(Tokens([b"a", b"b"])) == 0
