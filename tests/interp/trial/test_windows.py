"""The windows of a unit against their description, token by token."""

import hashlib

import numpy as np
import pytest

from saefast.config.records import RecordsConfig
from saefast.errors import InputError
from saefast.interp.trial import EXPLAINED, SCORED, Mix, Places, draw
from saefast.interp.trial.windows import GROUPS, N_INTERVALS, apart, key
from tests.helpers.trial_cases import text_of


@pytest.fixture(scope="module")
def places(ground):
    return Places(ground.records.text, ground.records.config, "score")


def latent_of(ground, kind):
    return ground.kinds.index(kind)


def brute_force_places(text, config, split, before, after):
    """Each slot whose whole window has rows and is in one document of the split."""
    slots = np.arange(text.n_slots)
    documents = text.documents(slots)
    splits = text.splits(documents, config)
    found = []
    for slot in slots.tolist():
        window = np.arange(slot - before, slot + after + 1)
        if slot % text.length - before < 0 or slot % text.length + after >= text.length:
            continue
        one = len(set(documents[window].tolist())) == 1 and text.encoded.ravel()[window].all()
        if one and split in (None, ("explain", "score")[splits[slot]]):
            found.append(slot)
    return found


@pytest.mark.parametrize(("before", "after"), [(4, 4), (8, 1), (0, 0)])
@pytest.mark.parametrize("split", ["explain", "score", None])
@pytest.mark.parametrize("separators", [(), (0, 7)])
def test_places_are_those_of_brute_force(monkeypatch, before, after, split, separators):
    monkeypatch.setattr("saefast.interp.trial.windows.AT_ONCE", 100)  # several parts
    rng = np.random.default_rng(1)
    contexts = rng.choice(8, (30, 32), p=[0.02, *[0.16] * 6, 0.02])
    text, config = text_of(contexts, separators, rng.choice(960, 20, replace=False)), RecordsConfig(seed=3)
    places = Places(text, config, split, before, after)
    assert places.slots.tolist() == brute_force_places(text, config, split, before, after)
    assert places.tokens.tolist() == contexts.ravel()[places.slots].tolist()
    assert places.is_place.nonzero()[0].tolist() == places.slots.tolist()


def test_no_place_is_said():
    with pytest.raises(InputError, match="documents of the split 'score' of at least 9 tokens"):
        Places(text_of(np.ones((4, 8))), RecordsConfig(), "score")
    with pytest.raises(InputError, match="got none"):
        Places(text_of(np.ones((4, 32))), RecordsConfig(score_fraction=0), "score")


@pytest.mark.parametrize("kind", ["token class", "pair", "mixture", "noise", "dense"])
@pytest.mark.parametrize("counts", [SCORED, EXPLAINED])
def test_windows_are_what_they_say(ground, places, kind, counts):
    records, latent = ground.records, latent_of(ground, kind)
    windows = draw(places, records, latent, counts)
    text, (slots, acts) = records.text, records.entries(latent)
    dense = np.zeros(text.n_slots)
    dense[slots] = acts
    around = windows.slots[:, None] + np.arange(-4, 5)
    assert (windows.tokens == text.contexts.ravel()[around]).all()
    assert (windows.acts == dense[around]).all()
    assert windows.largest == acts.max()
    assert set(windows.slots.tolist()) <= set(places.slots.tolist())
    assert (text.splits(text.documents(windows.slots), records.config) == 1).all()
    gaps = np.diff(np.sort(windows.slots))
    assert (gaps >= 9).all()  # no two overlap

    middle, groups = dense[windows.slots], [GROUPS[i] for i in windows.group]
    expected = np.minimum(np.floor(middle / acts.max() * N_INTERVALS), N_INTERVALS - 1)
    of_interval = np.isin(groups, ["top", "interval"])
    assert (windows.interval[of_interval] == expected[of_interval]).all() and (middle[of_interval] > 0).all()
    assert (windows.interval[~of_interval] == -1).all()
    assert [i for i, group in enumerate(groups) if group == "top"] == [
        *np.flatnonzero(windows.interval == 12)
    ]
    assert groups.count("random") == counts.random
    assert groups.count("top") <= counts.top and groups.count("token") <= counts.token
    for part in range(N_INTERVALS - 1):
        assert (windows.interval == part).sum() <= counts.per_interval


def test_a_unit_with_enough_of_everything_has_60_windows(ground, places):
    assert SCORED.total == 60 and EXPLAINED.total == 49
    sizes = [draw(places, ground.records, latent).acts.size for latent in range(ground.records.d_sae)]
    assert max(sizes) == 540
    dense = latent_of(ground, "dense")
    windows = draw(places, ground.records, dense, Mix(6, 2, 10, 20))
    for group, n in {"top": 6, "interval": 24, "random": 10, "token": 20}.items():
        of_group = (windows.group == GROUPS.index(group)).sum()
        assert of_group <= n and (group in ("top", "interval") or of_group == n)


def test_the_top_token_is_in_the_middle_and_in_other_contexts(ground, places):
    for latent in range(ground.records.d_sae):
        windows = draw(places, ground.records, latent)
        slots, acts = ground.records.entries(latent)
        top = slots[acts >= 12 / 13 * acts.max()]
        ids = ground.records.text.contexts.ravel()[top]
        assert windows.top_token == np.bincount(ids).argmax()
        is_token = windows.group == GROUPS.index("token")
        assert (windows.tokens[is_token, 4] == windows.top_token).all()
        contexts = windows.slots // ground.records.text.length
        assert not set(contexts[is_token]) & set(contexts[windows.group == GROUPS.index("top")])


def test_weights_are_the_shares_of_what_windows_are_drawn_from(ground, places):
    latent = latent_of(ground, "token class")
    windows, records = draw(places, ground.records, latent), ground.records
    acts = records.entries(latent)[1]
    n = records.n_rows
    for weight, group, interval in zip(windows.weights, windows.group, windows.interval, strict=True):
        if GROUPS[group] in ("top", "interval"):
            low, high = interval / 13 * acts.max(), (interval + 1) / 13 * acts.max()
            inside = ((acts >= low) & (acts < high)) if interval < 12 else acts >= low
            density, given_active = len(acts) / n, inside.sum() / len(acts)
            assert weight == pytest.approx(density * given_active)
        elif GROUPS[group] == "random":
            assert weight == 1
        else:
            assert weight == (records.text.contexts == windows.top_token).sum() / n
    assert windows.weights[windows.group == GROUPS.index("random")].sum() > 0.8 * windows.weights.sum()


def test_a_draw_is_that_of_the_seed(ground, places):
    one, same, other = (draw(places, ground.records, 3, seed=seed) for seed in (5, 5, 6))
    assert all(np.array_equal(a, b) for a, b in zip(one, same, strict=True))
    assert one.slots.tolist() != other.slots.tolist()


def test_random_windows_are_of_all_tokens(ground, places):
    """The middle of many random windows is anywhere: a chi-square of 8 parts of the places, over many units and seeds."""
    slots = [
        draw(places, ground.records, latent, Mix(0, 0, 10, 0), seed).slots
        for latent in range(40)
        for seed in range(5)
    ]
    rank = np.searchsorted(places.slots, np.concatenate(slots)) * 8 // len(places.slots)
    counts = np.bincount(rank, minlength=8)
    expected = counts.sum() / 8
    assert ((counts - expected) ** 2 / expected).sum() < 30  # 7 degrees of freedom: p = 1e-4


def test_apart_takes_all_that_fit():
    candidates = np.arange(0, 200, 3)
    for seed in range(5):
        taken = [90]
        found = apart(candidates, 100, key(1, seed, 0), taken, 9)
        near = np.abs(np.subtract.outer(found + taken, found + taken)) + 9 * np.eye(len(found) + 1)
        assert (near >= 9).all() and taken == [90]
        assert all(np.abs(np.asarray(found + taken) - slot).min() < 9 for slot in candidates.tolist())
    assert apart(candidates, 4, key(1, 0, 0), [], 9) == apart(candidates, 9, key(1, 0, 0), [], 9)[:4]


def test_draws_are_the_same_on_every_machine():
    found = apart(np.arange(1000), 20, key(17, 3, 2), [500], 9)
    text = hashlib.sha256(str(found).encode()).hexdigest()
    assert text[:16] == "7d9ed63294cfcd86"


def test_unusable_units(ground, places):
    windows = draw(places, ground.records, latent_of(ground, "pair"))
    assert windows.unusable is None
    active = np.flatnonzero((windows.acts > 0).any(axis=1))
    assert len(active) >= 20
    acts = windows.acts.copy()
    acts[active[20:]] = 0
    assert windows._replace(acts=acts).unusable is None
    acts[active[3]] = 0  # 19 windows in which it is active
    assert windows._replace(acts=acts).unusable == "few windows"
    assert windows._replace(acts=np.full_like(windows.acts, 2.0)).unusable == "always the same"


def test_a_unit_that_is_never_active(tmp_path):
    import torch

    from saefast.interp.neurons import neurons
    from tests.helpers.small_records import small_records

    x = torch.zeros(40 * 32, 2)
    x[5::9, 0] = 1
    contexts = torch.arange(40 * 32, dtype=torch.int32).view(40, 32) % 50
    records = small_records(tmp_path, neurons(2), contexts, x)
    places = Places(records.text, records.config, "score")
    assert draw(places, records, 0).unusable is None
    with pytest.raises(InputError, match="latent 1 of .* is not"):
        draw(places, records, 1)
