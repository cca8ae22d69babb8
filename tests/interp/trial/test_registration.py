"""What is written down before any score is computed."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest

from saefast.errors import InputError
from saefast.interp.trial import Arm, Registration, TrialConfig, Unit, register
from saefast.interp.trial.registration import _key, draw_order
from tests.helpers.trial_cases import arms_of, config, planted


@pytest.fixture
def arms(ground):
    return arms_of(ground)


def test_units_are_those_of_the_draw(tmp_path, arms):
    found = register(tmp_path / "new" / "registration.json", arms, config(seed=4))
    assert len(found.ids) == 36 and found.ids == sorted(found.ids)
    key = found.key()
    for name, arm in arms.items():
        units = [unit.latent for unit in key.values() if unit.arm == name]
        assert len(units) == 12 and set(units) <= set(arm.pool)
        expected = draw_order(arm.pool, name, 4)
        assert set(units) <= set(expected[: 12 + sum(found.dropped[name].values())])
    assert {len(one) for one in found.ids} == {16}
    # an id says nothing: sorted, the arms come in no order
    order = [key[one].arm for one in found.ids]
    assert sum(order[i] != order[i - 1] for i in range(1, 36)) > 12


def test_it_says_what_will_be_done(tmp_path, arms):
    found = register(tmp_path / "registration.json", arms, config())
    content = json.loads((tmp_path / "registration.json").read_text())
    assert content["hypothesis"].startswith("Explanations (means) of features predict")
    assert "not" not in content["statistic"] and "no single token" in content["statistic"]
    assert "one-sided, 999 permutations" in content["test"] and "p < 0.01" in content["test"]
    assert content["windows"] == {"top": 6, "per_interval": 2, "random": 10, "token": 20}
    assert found.config == config() and content["config"]["seed"] == 0
    assert not {"latent", "scores"} & content.keys()


def test_the_draw_is_the_same_on_every_machine():
    order = draw_order(range(4096), "features", 7)
    assert order[:4] == [284, 2611, 839, 2522] and sorted(order) == list(range(4096))
    assert hashlib.sha256(str(order).encode()).hexdigest()[:16] == "2e60a83857dc784e"
    assert draw_order(np.arange(4096), "neurons", 7) != order != draw_order(range(4096), "features", 8)
    key = _key({"features": {"units": [17], "single_token": [True]}}, 7)
    assert key == {"fbc651d3315623c7": Unit("features", 17, True)}


def test_the_same_again_is_the_same_file(tmp_path, arms):
    path = tmp_path / "registration.json"
    one = register(path, arms, config())
    before = path.read_bytes()
    assert register(path, arms, config()).sha256 == one.sha256 and path.read_bytes() == before
    with pytest.raises(InputError, match="expected no registration or the same one"):
        register(path, arms, config(seed=1))
    assert path.read_bytes() == before
    one.check_fits(arms)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["arms"]["features"]["units"].reverse(),
        lambda content: content["arms"]["features"]["single_token"].__setitem__(0, True),
        lambda content: content["arms"]["neurons"].update(records="0" * 64),
        lambda content: content["config"].update(threshold=0.5),
        lambda content: content.update(hypothesis="Something else."),
        lambda content: content.update(more=1),
    ],
)
def test_a_registration_that_was_edited_does_not_fit(tmp_path, arms, change):
    path = tmp_path / "registration.json"
    register(path, arms, config())
    content = json.loads(path.read_text())
    content["arms"]["features"]["single_token"][0] = False
    path.write_text(json.dumps(content))
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"registration\.json: expected"):
        Registration(path).check_fits(arms)


def test_other_records_do_not_fit(tmp_path, arms, ground):
    found = register(tmp_path / "registration.json", arms, config())
    other = arms_of(planted(tmp_path / "other", seed=5))
    with pytest.raises(InputError, match="which these records give"):
        found.check_fits(other)
    with pytest.raises(InputError, match="expected those of the text of"):
        found.check_fits(arms | {"neurons": other["neurons"]})
    fewer = replace(arms["features"], pool=arms["features"].pool[:20])
    with pytest.raises(InputError, match="which these records give"):
        found.check_fits(arms | {"features": fewer})


def test_units_with_few_windows_are_dropped_and_counted(tmp_path, arms, monkeypatch):
    from saefast.interp.trial import registration

    drawn = registration.draw

    def few(places, records, latent, *rest):
        windows = drawn(places, records, latent, *rest)
        return windows._replace(acts=windows.acts[:19]) if latent % 2 else windows

    monkeypatch.setattr(registration, "draw", few)
    found = register(tmp_path / "registration.json", arms, config())
    key = found.key()
    assert all(unit.latent % 2 == 0 for unit in key.values())
    for name, arm in arms.items():
        n = sum(unit.arm == name for unit in key.values())
        dropped = found.dropped[name]["few windows"]
        assert dropped > 0 and (n == 12 or n + dropped == len(arm.pool))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"explainers": ()}, "explainers: expected different names"),
        ({"explainers": ("means", "means")}, "explainers: expected different names"),
        ({"primary": "other"}, "primary: expected one of"),
        ({"worse": "features"}, "better, worse: expected two arms"),
        ({"also": ("neurons",)}, "also: expected other arms"),
        ({"also": ("today", "today")}, "also: expected other arms"),
        ({"n_units": 1}, "n_units: expected an integer of at least 2"),
        ({"seed": -1}, "seed: expected"),
        ({"n_permutations": 10}, "n_permutations: expected"),
        ({"threshold": 1.5}, "threshold: expected a number from 0 to 1"),
    ],
)
def test_bad_configs(change, message):
    with pytest.raises(InputError, match=message):
        config(**change)


def test_bad_arms(tmp_path, arms, ground):
    path = tmp_path / "registration.json"
    with pytest.raises(InputError, match=r"expected \['features', 'neurons'\]"):
        register(path, {"features": arms["features"]}, config())
    with pytest.raises(InputError, match="'today'"):
        register(path, arms, config(also=("today",)))
    with pytest.raises(InputError, match="at least 2 usable units of 'neurons', got 1 of 1"):
        register(path, arms | {"neurons": Arm(ground.records, pool=[3])}, config())
    for pool in ([3, 3], [10**6]):
        with pytest.raises(InputError, match="pool of different active latents of 'neurons'"):
            register(path, arms | {"neurons": Arm(ground.records, pool=pool)}, config())
    assert not path.exists()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "saefast-trial", "version": 1}', "x"])
def test_no_registration(tmp_path, text):
    path = tmp_path / "registration.json"
    with pytest.raises(InputError, match="registration.json: expected"):
        Registration(path)
    path.write_text(text)
    with pytest.raises(InputError, match=r"registration\.json: expected"):
        Registration(path)


def test_the_pool_is_all_that_are_ever_active(tmp_path, ground):
    arms = {"features": Arm(ground.records), "neurons": Arm(ground.records)}
    found = register(
        tmp_path / "registration.json", arms, TrialConfig(explainers=("a",), primary="a", n_units=5)
    )
    assert found.content["arms"]["features"]["alive"] == ground.records.d_sae
    # the same dictionary twice: other units, because the arm counts
    units = [found.content["arms"][name]["units"] for name in arms]
    assert units[0] != units[1]
