"""Simulated activations in place of the real ones, beside one context at a time and naive divergences."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from saefast.errors import InputError
from saefast.interp.explain.examples import Tiles, inactive, joined, top_and_random
from saefast.interp.explain.scores.ablation import (
    AblationScore,
    AblationScorer,
    ablation,
    jensen_shannon,
    over_units,
)
from saefast.interp.explain.scores.statistics import Interval
from saefast.interp.neurons import neurons
from tests.helpers.effects_cases import recorded, sae_of
from tests.helpers.spliced import captured, logits_with

CASES = {
    "llama": (lambda: sae_of(d_sae=40), "llama", "model.layers.1"),
    "layer_norm": (lambda: sae_of(d_sae=40, input_norm="layer_norm"), "llama", "model.layers.0"),
    "neurons": (lambda: neurons(128), "gpt2", "transformer.h.1.mlp.act"),  # negative where GELU is
}


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    make, kind, hook = CASES[request.param]
    sae = make()
    records, _, model = recorded(tmp_path_factory.mktemp("ablation"), sae, kind, hook)
    tiles = Tiles(records, "score", 4)
    counts = [len(tiles.peaks(latent)[0]) for latent in range(records.d_sae)]
    latent = int(np.argmin(np.abs(np.asarray(counts) - len(tiles) // 2)))
    examples = top_and_random(tiles, latent, 4, 4)
    assert 0 < examples.active.sum() < len(examples)
    return SimpleNamespace(
        sae=sae, records=records, model=model, hook=hook, tiles=tiles, examples=examples, latent=latent
    )


def scorer_of(case, **options):
    return AblationScorer(case.records, case.sae, case.model, case.hook, **options)


def naive(clean, changed):
    """[L, V] logits each -> [L]."""
    p, q = (np.exp(each - each.max(axis=1, keepdims=True)) for each in (clean, changed))
    p, q = (each / each.sum(axis=1, keepdims=True) for each in (p, q))
    middle = (p + q) / 2
    return 0.5 * (p * np.log(p / middle)).sum(axis=1) + 0.5 * (q * np.log(q / middle)).sum(axis=1)


def by_hand(case, i, substitute):
    """The divergence after each token of window i, of its whole context: dense codes, one context, plain hooks."""
    examples, length = case.examples, case.records.text.length
    context, start = divmod(int(examples.slots[i]), length)
    window = slice(start, start + examples.tokens.shape[1])
    tokens = torch.from_numpy(case.records.text.contexts[context].astype(np.int64))[None]
    found, clean = captured(case.model, {case.hook}, input_ids=tokens)
    x = found[case.hook]
    code = torch.zeros(length, case.sae.config.d_sae)
    acts, indices = case.sae.encode(x[0])
    code.scatter_add_(1, indices.long(), acts)
    np.testing.assert_allclose(code[window, case.latent].detach(), examples.acts[i], rtol=1e-3, atol=1e-4)
    new, every = code.clone(), torch.arange(code.shape[1]).expand(length, -1)
    new[window, case.latent] = torch.from_numpy(substitute[i]).float()
    change = case.sae.decode(new, every, x[0]) - case.sae.decode(code, every, x[0])
    changed = logits_with(case.model, {case.hook: x + change.detach()}, input_ids=tokens)
    return naive(clean[0].double().numpy(), changed[0].double().numpy())[window]


def test_divergences_are_those_of_one_context_at_a_time(case):
    rng = np.random.default_rng(0)
    shape = case.examples.acts.shape
    substitutes = [np.zeros(shape), case.examples.acts + rng.normal(size=shape)]
    found = scorer_of(case, at_once=3).divergences(case.examples, substitutes)
    for of_one, substitute in zip(found, substitutes, strict=True):
        want = np.asarray([by_hand(case, i, substitute) for i in range(shape[0])])
        assert want.max() > 1e-8  # far above what rounding leaves of a divergence
        np.testing.assert_allclose(of_one, want, rtol=1e-2, atol=1e-4 * want.max())
    again = scorer_of(case, at_once=1).divergences(case.examples, substitutes)
    np.testing.assert_allclose(again, found, rtol=1e-3, atol=1e-5 * found.max())


def test_the_score_is_one_minus_the_ratio_of_means(case):
    acts = case.examples.acts
    mean = float(case.records.entries(case.latent)[1].sum()) / case.records.n_rows
    worse = 2 * mean - acts + np.abs(acts).max()
    one, zero, half, below = scorer_of(case).score(
        case.examples, [acts, np.full(acts.shape, mean), (acts + mean) / 2, worse]
    )
    np.testing.assert_allclose(one.score, 1, atol=1e-9)
    assert one.simulated < 1e-12
    np.testing.assert_allclose(zero.score, 0, atol=1e-4)  # in fp32, passed beside others
    assert 0 < half.score.low <= half.score.value <= half.score.high < 1
    assert below.score.value < 0
    want = [
        [by_hand(case, i, each) for i in range(len(acts))] for each in ((acts + mean) / 2, 0 * acts + mean)
    ]
    assert half.simulated == pytest.approx(np.mean(want[0]), rel=1e-2)
    assert half.mean == zero.mean == pytest.approx(np.mean(want[1]), rel=1e-2)
    assert half.score.value == pytest.approx(1 - np.mean(want[0]) / np.mean(want[1]), abs=1e-2)
    other = scorer_of(case).score(case.examples, [acts * 0], mean=0.0)[0]
    np.testing.assert_allclose(other.score, 0, atol=1e-4)  # the mean that is given


def test_predictions_are_put_on_the_scale_of_the_unit_by_other_windows(case):
    """A judge that knows the activations on another scale gets 1, one that always says the same gets what its calibration gives."""
    left = inactive(case.tiles, case.latent, 99, without=case.examples.slots)
    others = joined(case.examples.take([0]), left)
    scored = case.examples.take(np.arange(1, len(case.examples)))
    known = {row.tobytes(): acts for one in (scored, others) for row, acts in zip(one.tokens, one.acts)}

    class Judge:
        def simulate(self, explanation, tokens):
            acts = np.asarray([known[row.tobytes()] for row in tokens])
            return 7 - 3 * acts if explanation == "turned" else np.full(acts.shape, 4.0)

    turned, same = ablation(scorer_of(case), Judge(), ["turned", "same"], scored, others)
    np.testing.assert_allclose(turned.score, 1, atol=1e-6)
    constant = np.full(scored.acts.shape, others.acts.mean())
    assert same == scorer_of(case).score(scored, [constant])[0]
    with pytest.raises(InputError, match="not scored"):
        ablation(scorer_of(case), Judge(), ["same"], scored, scored)


def test_where_the_mean_changes_nothing_it_is_not_defined(tmp_path):
    sae = sae_of(d_sae=40)
    sae.b_enc.data[7] = -1e6
    records, _, model = recorded(tmp_path, sae)
    examples = inactive(Tiles(records, "score", 4), 7, 3)
    found = AblationScorer(records, sae, model, "model.layers.1").score(examples, [np.ones((3, 4))])[0]
    assert np.isnan(found.score.value) and found.simulated > 0 and found.mean < 1e-12
    assert "changes nothing" in found.why_undefined


def test_what_is_wrong_is_refused(case):
    scorer, acts = scorer_of(case), case.examples.acts
    with pytest.raises(InputError, match="simulated: expected"):
        scorer.score(case.examples, [acts[:-1]])
    with pytest.raises(InputError, match="finite"):
        scorer.score(case.examples, [acts, np.full(acts.shape, np.nan)])
    with pytest.raises(InputError, match="mean"):
        scorer.score(case.examples, [acts], mean=float("inf"))
    with pytest.raises(InputError, match="at least one window"):
        scorer.score(case.examples.of("near"), [acts[:0]])
    with pytest.raises(InputError, match="explanations are made from"):
        scorer.score(top_and_random(Tiles(case.records, "explain", 4), case.latent), [acts])
    with pytest.raises(InputError, match="contexts_at_once"):
        scorer_of(case, at_once=0)
    with pytest.raises(InputError, match="sae: expected"):
        AblationScorer(case.records, sae_of(d_sae=40, seed=9), case.model, case.hook)


def test_over_units_each_counts_by_how_much_it_matters():
    far = AblationScore(Interval(-99.0, -200, 0), 1e-4, 1e-6)
    near = AblationScore(Interval(0.75, 0.5, 1), 1e-3, 4e-3)
    none = AblationScore(Interval(float("nan"), -1, 1), 1.0, 0.0, "nothing")
    found = over_units([far, near, near, none])
    assert found.pooled.value == pytest.approx(1 - 2.1e-3 / 8.001e-3)
    assert (found.median, found.n_units) == (0.75, 3)
    assert found.pooled.low == pytest.approx(-99) and found.pooled.high == pytest.approx(0.75)
    with pytest.raises(InputError, match="for which it is defined"):
        over_units([none])


@pytest.mark.parametrize("shape", [(3, 5, 11), (130, 4), (1, 1, 2)])
def test_the_divergence_is_the_naive_one(shape):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, *shape)) * 3
    found = jensen_shannon(torch.from_numpy(a), torch.from_numpy(b))
    want = naive(a.reshape(-1, shape[-1]), b.reshape(-1, shape[-1])).reshape(shape[:-1])
    np.testing.assert_allclose(found, want, rtol=1e-9)
    assert torch.equal(found, jensen_shannon(torch.from_numpy(b), torch.from_numpy(a)))


def test_the_divergence_of_the_same_is_0_and_of_what_cannot_be_both_is_log_2():
    far = torch.tensor([[1e4, 0.0, -1e4], [0.0, 1e4, -1e4], [0.0, 0.0, 0.0]])
    assert jensen_shannon(far, far).abs().max() < 1e-15
    found = jensen_shannon(far, far[[1, 0, 2]])
    np.testing.assert_allclose(found, [np.log(2), np.log(2), 0], atol=1e-15)
