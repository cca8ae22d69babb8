"""Samples: the same for the same seed, of the distribution of the model; pinned ones against a planted model."""

import pytest
import torch

from saefast import InputError
from saefast.interp.steering import Edit, parse_edit, pin, pinned_sampling, sample, steered, wilson
from saefast.interp.steering.edits import described
from tests.helpers import tiny_lm
from tests.helpers.effects_cases import HOOKS, language_model, recorded, sae_of
from tests.helpers.steering_cases import writer

PROMPTS = ["w1 w2 w3", "w4", "w5 w6 w7 w8 w9 w10"]
HOOK = "transformer.h.0"


def tokens_of(samples):
    return [one.tokens for one in samples]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_same_samples_whatever_the_batch_size(kind):
    model, tokenizer = language_model(kind), tiny_lm.tokenizer()
    found = [sample(model, tokenizer, PROMPTS, 4, 12, 5.0, 3, size) for size in (1, 3, 12)]
    assert found[0] == found[1] == found[2]
    assert [(one.prompt, one.number) for one in found[0]] == [(p, i) for p in range(3) for i in range(4)]
    assert len(set(map(str, tokens_of(found[0])))) > 6
    other = sample(model, tokenizer, PROMPTS, 4, 12, 5.0, 4)
    assert tokens_of(other) != tokens_of(found[0])
    names = [tokenizer.convert_ids_to_tokens(one.tokens) for one in other]
    assert [one.text for one in other] == ["".join(of) for of in names]


def test_temperature_0_is_greedy_and_the_models_own_settings_do_not_count():
    model, tokenizer = language_model("llama"), tiny_lm.tokenizer()
    ids = torch.tensor([tokenizer("w1 w2 w3").input_ids])
    want = model.generate(ids, do_sample=False, max_new_tokens=9, pad_token_id=0)[0, 3:].tolist()
    want = want[: want.index(0)] if 0 in want else want
    own = model.generation_config
    before = sample(model, tokenizer, PROMPTS, 2, 9, 0.7)
    model.generation_config = type(own)(
        repetition_penalty=5.0, temperature=0.1, top_k=1, do_sample=True, eos_token_id=0
    )
    mine = model.generation_config
    try:
        assert sample(model, tokenizer, ["w1 w2 w3"], 2, 9, 0.0)[1].tokens == want
        assert sample(model, tokenizer, PROMPTS, 2, 9, 0.7) == before and model.generation_config is mine
    finally:
        model.generation_config = own


def test_samples_have_the_distribution_of_the_model():
    model, tokenizer = language_model("gpt2"), tiny_lm.tokenizer()
    with torch.no_grad():
        logits = model(torch.tensor([[3, 4]])).logits[0, -1] / 3
    p = logits.double().softmax(0)
    found = sample(model, tokenizer, [[3, 4]], 2000, 1, 3.0, batch_size=500)
    counts = torch.bincount(torch.tensor([(one.tokens or [0])[0] for one in found]), minlength=64)
    expected = 2000 * p
    often = expected > 5
    chi = float(((counts - expected)[often].square() / expected[often]).sum())
    n = int(often.sum())
    assert n > 10 and chi < n + 5 * (2 * n) ** 0.5


def test_a_sample_ends_where_a_text_ends():
    model, sae = writer()
    tokenizer = tiny_lm.tokenizer()
    with steered(model, sae, HOOK, [Edit(0, 50.0)]):  # the latent that writes the end of a text
        assert tokens_of(sample(model, tokenizer, PROMPTS, 2, 5)) == [[]] * 6


def test_pinning_a_latent_that_writes_a_token_forces_that_token():
    model, sae = writer()
    tokenizer, latent = tiny_lm.tokenizer(), 12
    judge = lambda one: one.tokens.count(latent) >= 5
    found = pinned_sampling(model, tokenizer, sae, HOOK, [Edit(latent, 30.0)], judge, ["w1 w2 w3"], 20, 6)
    assert found.pinned.share.share == 1 and found.unpinned.share.share == 0 == found.random.share.share
    assert (found.pinned.share.hits, found.pinned.share.n, len(found.pinned.samples)) == (20, 20, 20)
    assert found.pinned.passed == [judge(one) for one in found.pinned.samples]
    assert found.figures()["unpinned"]["n"] == 20 and found.figures()["edits"][0]["latent"] == latent
    assert found.unpinned.samples == sample(model, tokenizer, ["w1 w2 w3"], 20, 6)
    again = pinned_sampling(
        model,
        tokenizer,
        sae,
        HOOK,
        [Edit(latent, 30.0)],
        judge,
        ["w1 w2 w3"],
        20,
        6,
        batch_size=7,
        control=False,
    )
    assert again.pinned == found.pinned and again.random is None and again.figures()["random"] is None


def test_the_effect_grows_with_the_value():
    model, sae = writer()
    ids, chances = torch.tensor([[3, 4, 5, 6]]), []
    for value in (-30.0, -10.0, -3.0, 0.0, 3.0, 10.0, 30.0):
        with steered(model, sae, HOOK, [Edit(12, value)]), torch.no_grad():
            chances.append(float(model(ids).logits[0, -1].log_softmax(0)[12]))
    up = chances[3:]  # far below 0 the final norm leaves nothing to push
    assert up == sorted(up) and chances[-1] > -0.1 and max(chances[:2]) < chances[3] - 1


def test_edits_as_they_are_written(tmp_path):
    records, _, _ = recorded(tmp_path, sae_of(), "llama")
    counts = records.table()["count"].to_pylist()
    latent = max(range(len(counts)), key=counts.__getitem__)
    largest = records.latent(latent).max
    assert pin(records, latent) == Edit(latent, largest)
    assert pin(records, latent, -2, "prompt") == Edit(latent, -2 * largest, "set", "prompt")
    of = {17: 2.0, 9: 3.0}.__getitem__
    assert parse_edit("17=5x", of) == Edit(17, 10.0)
    assert parse_edit("17=-0.5x", of) == Edit(17, -1.0)
    assert parse_edit(" 4=-2.0 ") == Edit(4, -2.0)
    assert parse_edit("9+2x", of) == Edit(9, 6.0, "add") and parse_edit("9-1.5") == Edit(9, -1.5, "add")
    assert parse_edit("9*0", at="generated") == Edit(9, 0.0, "scale", "generated")
    assert parse_edit("3=1e2") == Edit(3, 100.0)
    assert described(Edit(9, -1.5, "add", "prompt")) == "latent 9 plus -1.5, on the prompt"
    for text in ("17", "17=", "=5", "a=5", "17=5y", "17==5", "17=nan", "-3=1", "17=5 6"):
        with pytest.raises(InputError, match="expected one like 17=5x"):
            parse_edit(text, of)
    for text, message in (("9*2x", "a factor without x"), ("9=2x", "since there are no records")):
        with pytest.raises(InputError, match=message):
            parse_edit(text, None)
    silent = [i for i, count in enumerate(counts) if not count]
    for latent in silent[:1]:
        with pytest.raises(InputError, match=f"{latent} is active nowhere"):
            pin(records, latent)
    with pytest.raises(InputError, match="latent: expected 0 to 18, got 19"):
        pin(records, 19)


def test_wilsons_interval():
    """By the formula in its usual form, and the published one of 81 of 263 (Newcombe 1998, 0.2553 to 0.3662)."""
    share = wilson(81, 263)
    assert (round(share.low, 4), round(share.high, 4)) == (0.2553, 0.3662)
    assert wilson(0, 20).low == 0 and round(wilson(0, 20).high, 4) == 0.1611
    assert wilson(20, 20).high == 1 and wilson(20, 20).low == pytest.approx(1 - wilson(0, 20).high)
    assert wilson(5, 20, 0.99).low < wilson(5, 20).low
    for hits, n in ((1, 0), (3, 2), (-1, 2)):
        with pytest.raises(InputError, match="hits: expected 0 to n"):
            wilson(hits, n)


def test_bad_input_is_refused():
    model, tokenizer = language_model("gpt2"), tiny_lm.tokenizer()
    for given, message in (
        ({"n": 0}, "n: expected at least 1, got 0"),
        ({"max_new_tokens": 0}, "max_new_tokens: expected at least 1"),
        ({"temperature": -1.0}, "temperature: expected 0 or more, got -1.0"),
        ({"seed": -1}, "seed: expected 0 or more"),
        ({"prompts": "w1"}, "prompts: expected a list of prompts, got one: 'w1'"),
        ({"prompts": [[3, 99]]}, "prompts: expected token ids from 0 to 63, got 99"),
        ({"prompts": [[]]}, "prompts: expected at least one token in each"),
        ({"max_new_tokens": 40}, "max_new_tokens: expected contexts of at most 32 tokens"),
        ({"model": torch.nn.Linear(2, 2)}, "model: expected a language model of Hugging Face that generates"),
    ):
        with pytest.raises(InputError, match=message):
            sample(**({"model": model, "tokenizer": tokenizer, "prompts": ["w1"]} | given))
    huge = steered(model, sae_of(), HOOKS["gpt2"], [Edit(3, 3e38), Edit(4, -3e38)])
    with pytest.raises(InputError, match="expected logits that are numbers, got NaN or Inf"), huge:
        sample(model, tokenizer, ["w1"], max_new_tokens=2)
    with pytest.raises(InputError, match="edits: expected at least one, got none"):
        pinned_sampling(model, tokenizer, sae_of(), HOOKS["gpt2"], [], bool)
