"""Explanations and scores of delphi's runs, both ways."""

import json

import pytest

from saefast.errors import InputError
from saefast.interp.exchange.delphi_explanations import export_delphi_explanations, read_delphi_explanations
from tests.helpers.delphi_cache import HOOK


def judged(*pairs):
    """What delphi's scorers write of (prediction, activating)."""
    one = {"str_tokens": ["a"], "activations": [0.0], "distance": 1, "probability": None}
    return [one | {"prediction": p, "activating": a, "correct": p == a} for p, a in pairs]


def a_run(folder, hook=HOOK):
    """Explanations of latents 2 and 11, and scores."""
    files = {
        f"explanations/{hook}_latent11.txt": "ends with “_latent3.txt”\n\U0001f600",
        f"explanations/{hook}_latent2.txt": "dates",
        "run_config.json": {"explainer_model": "a model"},
    }
    flat = hook.replace("/", "--")
    true, false = (True, True), (False, False)
    files[f"scores/fuzz/{flat}_latent2.txt"] = judged(true, true, true, (False, True), false, (True, False))
    files[f"scores/fuzz/{flat}_latent11.txt"] = judged((None, True), (None, False))
    files[f"scores/detection/{flat}_latent2.txt"] = judged(false, false, (None, True))
    overall = {"distance": 0, "ev_correlation_score": 0.25}
    files[f"scores/simulation/{flat}_latent2.txt"] = [{"distance": 1, "ev_correlation_score": "nan"}, overall]
    files[f"scores/simulation/{flat}_latent11.txt"] = [overall | {"ev_correlation_score": "nan"}]
    files[f"scores/embedding/{flat}_latent2.txt"] = [{"text": "a", "similarity": 1.0}]
    for name, value in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(value), encoding="utf-8")
    return folder


@pytest.mark.parametrize("hook", [HOOK, "layer_3/width_16k"])
def test_explanations_and_scores_of_a_run(tmp_path, hook):
    dates, other = read_delphi_explanations(a_run(tmp_path, hook))
    assert (dates["latent"], dates["explanation"], dates["method"], dates["model"]) == (
        2,
        "dates",
        "delphi",
        "a model",
    )
    # 3 of 4 active ones found, 1 of 2 others passed: (3/4 + 1/2) / 2; precision 3/4, recall 3/4
    assert dates["scores"] == {
        "fuzz": 0.625,
        "fuzz_f1": 0.75,
        "detection": 0.5,
        "detection_f1": 0.0,
        "simulation": 0.25,
    }
    assert other["latent"] == 11 and other["explanation"].endswith("\U0001f600") and other["scores"] == {}


def test_explanations_go_there_and_back(tmp_path):
    lines = [
        {"latent": i, "explanation": text}
        for i, text in ((3, "old"), (7, '“"\n\u2028\U0001f600'), (3, "new"))
    ]
    assert export_delphi_explanations(lines, tmp_path, hookpoint="layer_3/a") == 2
    assert (tmp_path / "explanations" / "layer_3" / "a_latent3.txt").read_bytes() == b'"new"'
    back = read_delphi_explanations(tmp_path)
    assert [(one["latent"], one["explanation"], one["model"]) for one in back] == [
        (3, "new", None),
        (7, lines[1]["explanation"], None),
    ]


@pytest.mark.parametrize(
    "name, text, message",
    [
        (f"explanations/{HOOK}_latent2.txt", "[1]", "expected an explanation, a JSON string"),
        (f"explanations/{HOOK}_latent2.txt", '"cut', "expected JSON"),
        (f"scores/fuzz/{HOOK}_latent2.txt", "{}", "expected a list of results of delphi's fuzz"),
        (
            f"scores/fuzz/{HOOK}_latent2.txt",
            '[{"prediction": "yes", "activating": true}]',
            "expected a list of results",
        ),
        (f"scores/simulation/{HOOK}_latent2.txt", '[{"distance": 0}]', "expected a list of results"),
        (f"scores/fuzz/{HOOK}_latent3.txt", "[]", "the score of an explanation that is not there"),
    ],
)
def test_damaged_results_are_named(tmp_path, name, text, message):
    (a_run(tmp_path) / name).write_text(text)
    with pytest.raises(InputError, match=f"{name}: {message}"):
        read_delphi_explanations(tmp_path)


def test_runs_with_several_hookpoints_or_none(tmp_path):
    with pytest.raises(InputError, match="found none"):
        read_delphi_explanations(tmp_path)
    export_delphi_explanations([{"latent": 1, "explanation": "x"}], a_run(tmp_path), hookpoint="layers.30")
    with pytest.raises(InputError, match=r"hookpoint: expected one of layers.3, layers.30, got None"):
        read_delphi_explanations(tmp_path)
    assert [one["latent"] for one in read_delphi_explanations(tmp_path, "layers.30")] == [1]
