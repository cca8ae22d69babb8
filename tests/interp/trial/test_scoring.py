"""Scores are made once, blind, bound to the registration, and go on after an interruption."""

import json
import os

import numpy as np
import pytest

from saefast.errors import InputError
from saefast.interp.trial import (
    Arm,
    Following,
    Places,
    Registration,
    choose_tokens,
    draw,
    logit_score,
    read_scores,
    register,
    score_trial,
    scores_of,
    unblind,
)
from tests.helpers.trial_cases import Means, Table, arms_of, config


@pytest.fixture(scope="module")
def explainers(ground):
    return [Means(ground.records), Means(ground.records, "again")]


CONFIG = config(n_units=4, explainers=("means", "again"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory, ground, explainers):
    """A finished trial, in a folder that no test changes."""
    folder = tmp_path_factory.mktemp("finished")
    arms = arms_of(ground, explainers)
    registration = register(folder / "registration.json", arms, CONFIG)
    score_trial(registration, arms, folder / "scores.jsonl")
    return folder


@pytest.fixture
def trial(tmp_path, ground, explainers, finished):
    """A copy of it: registration, arms, path of the scores."""
    for name in ("registration.json", "scores.jsonl"):
        (tmp_path / name).write_bytes((finished / name).read_bytes())
    return (
        Registration(tmp_path / "registration.json"),
        arms_of(ground, explainers),
        tmp_path / "scores.jsonl",
    )


def test_rows_are_the_scores_of_the_units(trial, ground):
    registration, arms, path = trial
    rows, key = read_scores(registration, path), registration.key()
    assert len(rows) == 24
    text, of = ground.records.text, ground.records.config
    places, following = Places(text, of, "score"), Following(text, of, least=8)
    for i, row in enumerate(rows):
        unit = key[row["unit"]]
        other = key[registration.ids[(i // 2 + 1) % 12]]
        windows = draw(places, ground.records, unit.latent)
        chosen = choose_tokens(ground.logits, unit.latent, following)
        for latent, scores, logits in (
            (unit.latent, "scores", "logits"),
            (other.latent, "other", "other_logits"),
        ):
            explanation = arms["features"].explainers[0].explain(latent)
            predicted = explanation.predict(windows.tokens)
            expected = scores_of(windows.acts, predicted, windows.weights, windows.largest)._asdict()
            assert row[scores] == {name: expected[name] for name in row[scores]}
            assert row[logits] == logit_score(following.judge(explanation), chosen)._asdict()
        assert row["registration"] == registration.sha256
    assert set(rows[0]["other"]) == {"spearman", "spearman_weighted"} and len(rows[0]["scores"]) == 8


def test_scores_are_blind(trial):
    """Nothing in the file says of which arm a unit is, and rows come in the order of the ids."""
    registration, _, path = trial
    text = path.read_text()
    assert not any(name in text for name in ("features", "neurons", "shuffled", "latent", "single"))
    ids = [json.loads(line)["unit"] for line in text.splitlines()]
    assert ids[::2] == ids[1::2] == registration.ids


def test_each_unit_is_explained_once_by_each_explainer(tmp_path, ground):
    explainer = Means(ground.records)
    arms = arms_of(ground, [explainer])
    registration = register(tmp_path / "registration.json", arms, config(n_units=4))
    seen = []
    score_trial(registration, arms, tmp_path / "scores.jsonl", lambda done, total: seen.append((done, total)))
    assert len(explainer.explained) == 13  # the last one is beside the first one again
    assert seen == [(i, 12) for i in range(13)]
    explainer.explained.clear()
    score_trial(registration, arms, tmp_path / "scores.jsonl")
    assert explainer.explained == []


def test_an_interruption_loses_nothing(tmp_path, ground, finished):
    class Stops(Means):
        def explain(self, latent):
            if len(self.explained) == 7:
                raise KeyboardInterrupt
            return super().explain(latent)

    stops = arms_of(ground, [Means(ground.records), Stops(ground.records, "again")])
    registration = register(tmp_path / "registration.json", stops, CONFIG)
    path = tmp_path / "scores.jsonl"
    with pytest.raises(KeyboardInterrupt):
        score_trial(registration, stops, path)
    rows = read_scores(registration, path)
    assert 6 < len(rows) < 24
    with pytest.raises(
        InputError, match="expected the scores of all units .* 24 rows, got 1.: units stay blind"
    ):
        unblind(registration, path)
    arms = arms_of(ground, [Means(ground.records), Means(ground.records, "again")])
    score_trial(registration, arms, path)
    assert path.read_bytes() == (finished / "scores.jsonl").read_bytes()


@pytest.mark.parametrize(("rows", "left"), [(0, 1), (3, 200), (23, 40)])
def test_a_kill_in_the_middle_of_a_row(trial, left, rows):
    registration, arms, path = trial
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:rows]) + lines[rows][:left])
    assert len(read_scores(registration, path)) == rows
    score_trial(registration, arms, path)
    assert path.read_bytes() == whole


def edited(lines, number, change):
    row = json.loads(lines[number])
    change(row)
    return [*lines[:number], json.dumps(row).encode() + b"\n", *lines[number + 1 :]]


@pytest.mark.parametrize(
    "tamper",
    [
        lambda lines: edited(lines, 5, lambda row: row["scores"].update(spearman=0.99)),
        lambda lines: edited(lines, 23, lambda row: row["logits"].update(accuracy=0.99)),
        lambda lines: edited(lines, 5, lambda row: row.update(unit="0" * 16)),
        lambda lines: [*lines[:4], *lines[5:]],  # left out
        lambda lines: [lines[1], lines[0], *lines[2:]],
        lambda lines: [*lines[:5], lines[4], *lines[5:]],  # twice
        lambda lines: [*lines[:5], b"{}\n", *lines[6:]],
        lambda lines: [*lines[:5], b"\xff\n", *lines[6:]],
    ],
)
def test_rows_that_were_edited(trial, tamper):
    registration, arms, path = trial
    data = b"".join(tamper(path.read_bytes().splitlines(keepends=True)))
    path.write_bytes(data)
    for call in (lambda: score_trial(registration, arms, path), lambda: unblind(registration, path)):
        with pytest.raises(InputError, match=r"scores\.jsonl, line \d+: "):
            call()
    assert path.read_bytes() == data


def test_a_registration_changed_after_scores_were_made(trial):
    registration, arms, path = trial
    text = registration.path.read_text()
    registration.path.write_text(text.replace('"threshold": 0.01', '"threshold": 0.05'))
    changed = Registration(registration.path)
    for call in (lambda: score_trial(changed, arms, path), lambda: unblind(changed, path)):
        with pytest.raises(
            InputError, match="line 1: expected scores of the registration .* changed after scores"
        ):
            call()
    registration.path.write_text(text + " ")  # not even a space
    with pytest.raises(InputError, match="changed after scores"):
        unblind(Registration(registration.path), path)


def test_a_registration_of_hand_picked_units(trial):
    """Changed before any score is there: it does not fit the draw."""
    registration, arms, path = trial
    path.unlink()
    content = registration.content
    drawn = content["arms"]["features"]["units"]
    content["arms"]["features"]["units"] = [
        *drawn[1:],
        next(i for i in arms["features"].pool if i not in drawn),
    ]
    from saefast.interp.trial.registration import _key

    content["units"] = sorted(_key(content["arms"], 0))
    registration.path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="expected arms = .* which these records give"):
        score_trial(Registration(registration.path), arms, path)
    assert not path.exists()


def test_two_processes_do_not_write_one_file(trial, ground):
    registration, _, path = trial
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:4]))

    class Meanwhile(Means):
        def explain(self, latent):
            path.write_bytes(b"".join(lines[:6]))  # another process is faster
            return super().explain(latent)

    arms = arms_of(ground, [Means(ground.records), Meanwhile(ground.records, "again")])
    with pytest.raises(InputError, match="expected to be the only one that writes scores"):
        score_trial(registration, arms, path)
    assert path.read_bytes() == b"".join(lines[:6])


def test_what_scoring_needs(trial, ground):
    registration, arms, path = trial
    path.unlink()
    lacks = arms_of(ground, [Means(ground.records)])
    with pytest.raises(InputError, match=r"expected explainers \['again'\] of 'features', got \['means'\]"):
        score_trial(registration, lacks, path)
    arm = arms["neurons"]
    without = arms | {"neurons": Arm(arm.records, arm.explainers, None, arm.pool)}
    with pytest.raises(InputError, match="expected the logits of 'neurons'"):
        score_trial(registration, without, path)

    class Broken(Means):
        def explain(self, latent):
            return Table(np.full(len(self.counts), np.nan))

    broken = arms_of(ground, [Means(ground.records), Broken(ground.records, "again")])
    with pytest.raises(InputError, match="explainer 'again', unit [0-9a-f]{16}: predicted: expected"):
        score_trial(registration, broken, path)
    assert len(read_scores(registration, path)) == 1


def test_without_logits(tmp_path, ground):
    arms = {
        name: Arm(arm.records, arm.explainers, None, arm.pool)
        for name, arm in arms_of(ground, [Means(ground.records)]).items()
    }
    registration = register(tmp_path / "registration.json", arms, config(n_units=2, logit_test=False))
    rows = score_trial(registration, arms, tmp_path / "scores.jsonl")
    assert len(rows) == 6 and all(row["logits"] is row["other_logits"] is None for row in rows)
    assert rows == read_scores(registration, tmp_path / "scores.jsonl")


def test_a_disk_that_is_full_is_named(trial, monkeypatch):
    registration, arms, path = trial
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:3]))

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device.*scores.jsonl"):
        score_trial(registration, arms, path)
