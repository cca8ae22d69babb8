"""Whether a model listens to its latents, on a planted one."""

import pytest
import torch

from saefast import InputError
from saefast.activations.lm import ModelSource
from saefast.interp.records import record
from saefast.interp.steering import listens, mean_interval
from tests.helpers.effects_cases import HOOKS, SMALL, recorded, sae_of
from tests.helpers.steering_cases import PLACE, CycleLM, N, cycle_text, rows_as_latents


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A latent for each token, with its own direction; the model is calibrated, so that every change of it hurts."""
    model = CycleLM()
    sae = rows_as_latents(model.embed.weight.detach(), "jumprelu")
    sae.threshold.data.fill_(0.5)
    batches = cycle_text(48, 20).split(16)
    return (
        record(sae, ModelSource(model, PLACE, batches), tmp_path_factory.mktemp("cycle"), SMALL),
        sae,
        model,
    )


def test_the_planted_latents_are_heard_and_other_directions_are_not(planted):
    records, sae, model = planted
    found = listens(records, sae, model, PLACE, range(N), n_contexts=8, draws=2)
    assert [one.latent for one in found.latents] == list(range(N))
    for at, factor in zip(found.factors, (0.0, 2.0), strict=True):
        assert at.factor == factor and at.scaled.low > 0.15
        assert at.above_random.low > 0.1 and at.above_covariance.low > 0.1
        assert at.share_above_random.low > 0.6 and at.share_above_random.n == N
    assert found == listens(records, sae, model, PLACE, range(N), n_contexts=8, draws=2)


def test_the_figures_are_those_of_plain_passes(planted):
    records, sae, model = planted
    latent = 5
    slots, _acts = records.entries(latent)
    contexts = torch.from_numpy(records.text.contexts[sorted(set(slots // 20))]).long()
    found = listens(records, sae, model, PLACE, [latent], (0.0, 3.0), n_contexts=1000, draws=1).latents[0]
    losses = []
    for factor in (1.0, 0.0, 3.0):
        x = model.embed(contexts)
        x = x + (factor - 1) * (contexts == latent)[..., None] * x
        log_p = model.unembed(x).log_softmax(-1)[:, :-1].detach()
        losses.append(-float(log_p.gather(2, contexts[:, 1:, None]).double().sum()))
    assert found.n_tokens == len(slots)
    want = [(loss - losses[0]) / len(slots) for loss in losses[1:]]
    assert found.scaled == pytest.approx(want, rel=1e-3, abs=1e-5)


def test_a_model_of_hugging_face_with_silent_latents_and_bad_input(tmp_path):
    sae = sae_of(d_sae=40)
    sae.b_enc.data[7] = -1e6
    records, _, model = recorded(tmp_path, sae)
    found = listens(records, sae, model, HOOKS["llama"], range(40), (0.0,), n_contexts=2, draws=1)
    counts = records.table()["count"].to_pylist()
    assert [one.latent for one in found.latents] == [i for i in range(40) if counts[i]] and not counts[7]
    call = lambda **given: listens(records, sae, model, HOOKS["llama"], **({"latents": [3]} | given))
    for given, message in (
        ({"latents": [7]}, "latents: expected some that are active in the records, got none"),
        ({"latents": [40]}, "latent: expected 0 to 39, got 40"),
        ({"factors": (1.0,)}, "factors: expected others than 1"),
        ({"factors": ()}, "factors: expected at least 1"),
        ({"draws": 0}, "draws: expected at least 1, got 0"),
    ):
        with pytest.raises(InputError, match=message):
            call(**given)
    with pytest.raises(InputError, match="sae: expected the one of the records"):
        listens(records, sae_of(d_sae=40, seed=9), model, HOOKS["llama"], [3])


def test_bootstrap_intervals_cover_the_mean():
    generator, covered = torch.Generator().manual_seed(0), 0
    for seed in range(200):
        at = mean_interval((3 + torch.randn(40, generator=generator)).tolist(), seed, draws=400)
        covered += at.low <= 3 <= at.high
    assert 0.88 < covered / 200 < 0.99
    with pytest.raises(InputError, match="values: expected at least one"):
        mean_interval([])
