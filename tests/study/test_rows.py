"""The acceptance table: each condition on both sides of its bar, and what could not be asked."""

import copy

import pytest

from saefast.study.rows import rows

SUBJECTS = {
    "tokens": 12_000_000,
    "unigrams": 6.5,
    "bigrams": 5.5,
    "A": {"loss": 4.0, "without_mlp": 4.5},
    "B": {"loss": 4.0, "without_mlp": 4.5},
}
DICTIONARIES = {
    "A0": {"recovered": 0.7},
    "A1": {"recovered": 0.8, "l0": 12.0},
    "A2": {"recovered": 0.9},
    "A1-resampled": {"dead": 0.1},
    "A1-not-resampled": {"dead": 0.2},
}
DENSITIES = {
    "A1": {"live": 3000, "dead": 500, "ultra_low": 596, "above_1_percent": 3, "latents": 4096},
    "brute_force": {"largest_difference": 0, "tokens": 100, "latents": 64},
}
EXACTNESS = {
    "resampled": {
        "decoder_norm_error": 1e-8,
        "encoder_norm_error": 1e-8,
        "bias": 0.0,
        "moment": 0.0,
        "untouched": True,
        "p_value": 0.3,
    },
    "projection": {"along": 1e-8, "before": 0.3, "norm_error": 1e-7},
}
TRUTH = {"topk": {"found": 0.99}, "l1": {"found": 0.5}, "topk, without b_dec": {"found": 0.2}}
LEAK = {"metadata": {"logistic": 0.5, "forest": 0.55}, "chance": 0.05}
BLIND = {
    "planted": {"one_kind": [10, 14], "mixtures": [0, 4], "refused": {"partial": True, "edited": True}},
    "leak_planted": LEAK,
    "leak": LEAK,
}
ARMS = ("features", "today", "neurons", "shuffled")
MEANS = {arm: {"n": 9, "mean": mean} for arm, mean in zip(ARMS, (0.6, 0.7, 0.4, 0.5), strict=True)}
LOGITS = {arm: {"mean": mean} for arm, mean in zip(ARMS, (0.7, 0.7, 0.6, 0.5), strict=True)}
GATES = {"rules": {"usable": True, "logit_usable": True, "auc": 0.97}}
TRIAL = {
    "primary": "rules",
    "threshold": 0.01,
    "registered": {"difference": 0.2, "low": 0.1, "high": 0.3, "p": 0.001},
    "also": {"today": {"difference": 0.3, "low": 0.2, "high": 0.4, "p": 0.001}},
    "gates": GATES,
    "arms": {
        "features": {"single_token": 2, "units": 10},
        "neurons": {"single_token": 1, "units": 10},
        "shuffled": {"single_token": 5, "units": 10},
    },
    "measured": {
        "rules": {
            "not single token": {"spearman": {"arms": MEANS}},
            "all": {"logit_accuracy": {"arms": LOGITS}},
        }
    },
}
CONTEXTS = {
    "rows": [
        {
            "context": "dna",
            "dictionary": "A0",
            "missed": [],
            "feature": {"latent": 7, "auc": 0.97, "top_half": 0.9},
            "neuron": {"latent": 3, "auc": 0.8},
        }
    ],
    "skipped": {"hebrew": 12},
}
NEURONS = {"median_best_neuron": 0.4, "median_participation": 30.0}
ARM = {"pinned": {"share": 0.6}, "unpinned": {"share": 0.0}}
CONTROL = {
    "contexts": {"dna": {"ablation": {"ratio": {"value": 9.0}, "inside": {"value": 0.02}}, "pinned": ARM}},
    "splice": {"relative": 1e-8},
}
UNIVERSALITY = {
    "features": {"activation": {"median": 0.7}, "permuted": {"median": 0.01}},
    "neurons": {"activation": {"median": 0.5}},
}
SPLITTING = {"steps": [{"split": 0.6, "lower_density_where_split": 0.8}]}
AUTOMATA = {
    "n_loops_of_contexts": 3,
    "pairs": [1],
    "planted": {"states": [0, 1], "pairs": [[0, 1]], "found": True},
}
ALL = {
    "subjects": SUBJECTS,
    "dictionaries": DICTIONARIES,
    "densities": DENSITIES,
    "exactness": EXACTNESS,
    "ground_truth": TRUTH,
    "blind": BLIND,
    "gates": GATES,
    "trial": TRIAL,
    "contexts": CONTEXTS,
    "neurons": NEURONS,
    "control": CONTROL,
    "universality": UNIVERSALITY,
    "splitting": SPLITTING,
    "automata": AUTOMATA,
}


def failed(found):
    return {row.number for row in rows(found) if row.passed is False}


def test_all_pass_and_what_is_not_in_the_text_is_skipped():
    table = rows(ALL)
    assert failed(ALL) == set()
    assert {row.number for row in table} == {*range(1, 16), 30}
    skipped = [row for row in table if row.passed is None]
    assert len(skipped) == 6 and {row.number for row in skipped} == {11}
    assert "hebrew: 12 tokens of it" in str(skipped[1]) and str(skipped[1]).startswith("row 11 skipped")


CHANGES = [
    (1, ("subjects", "tokens"), 9_999_999),
    (1, ("subjects", "A", "loss"), 5.6),
    (1, ("subjects", "unigrams"), 4.4),
    (1, ("subjects", "B", "without_mlp"), 4.04),
    (2, ("dictionaries", "A1", "l0"), 25.1),
    (2, ("dictionaries", "A1", "l0"), 4.9),
    (2, ("dictionaries", "A1", "recovered"), 0.74),
    (2, ("dictionaries", "A2", "recovered"), 0.8),
    (3, ("densities", "A1", "dead"), 501),
    (3, ("densities", "brute_force", "largest_difference"), 1),
    (4, ("exactness", "resampled", "untouched"), False),
    (4, ("exactness", "resampled", "moment"), 0.1),
    (4, ("exactness", "resampled", "p_value"), 1e-4),
    (4, ("dictionaries", "A1-not-resampled", "dead"), 0.1),
    (5, ("exactness", "projection", "along"), 1e-5),
    (5, ("exactness", "projection", "norm_error"), 2e-6),
    (6, ("ground_truth", "topk", "found"), 0.94),
    (6, ("ground_truth", "topk, without b_dec", "found"), 0.95),
    (7, ("blind", "planted", "one_kind"), [9, 14]),
    (7, ("blind", "planted", "mixtures"), [0, 5]),
    (7, ("blind", "planted", "refused", "edited"), False),
    (7, ("blind", "leak", "metadata", "forest"), 0.61),
    (7, ("blind", "leak_planted", "metadata", "logistic"), 0.39),
    (8, ("trial", "registered", "p"), 0.01),
    (8, ("trial", "registered", "difference"), -0.1),
    (8, ("trial", "also", "today", "p"), 0.02),
    (8, ("gates", "rules", "usable"), False),
    (9, ("trial", "measured", "rules", "all", "logit_accuracy", "arms", "features", "mean"), 0.64),
    (9, ("trial", "measured", "rules", "all", "logit_accuracy", "arms", "shuffled", "mean"), 0.56),
    (10, ("trial", "arms", "shuffled", "single_token"), 2),
    (10, ("trial", "measured", "rules", "not single token", "spearman", "arms", "shuffled", "mean"), 0.61),
    (11, ("contexts", "rows", 0, "missed"), ["auc"]),
    (12, ("neurons", "median_best_neuron"), 0.6),
    (13, ("control", "contexts", "dna", "ablation", "ratio", "value"), 4.9),
    (13, ("control", "contexts", "dna", "ablation", "inside", "value"), -0.1),
    (13, ("control", "contexts", "dna", "pinned", "pinned", "share"), 0.45),
    (13, ("control", "contexts", "dna", "pinned", "unpinned", "share"), 0.1),
    (13, ("control", "splice", "relative"), 2e-5),
    (14, ("universality", "neurons", "activation", "median"), 0.61),
    (14, ("universality", "features", "permuted", "median"), 0.06),
    (15, ("splitting", "steps", 0, "split"), 0.49),
    (15, ("splitting", "steps", 0, "lower_density_where_split"), 0.69),
    (30, ("automata", "n_loops_of_contexts"), 0),
    (30, ("automata", "planted", "found"), False),
]


@pytest.mark.parametrize(
    ("number", "place", "value"), CHANGES, ids=lambda v: v if isinstance(v, int) else None
)
def test_the_other_side_of_each_bar_fails_its_row_alone(number, place, value):
    found = copy.deepcopy(ALL)
    at = found
    for key in place[:-1]:
        at = at[key]
    at[place[-1]] = value
    assert failed(found) == {number}


def test_too_few_live_latents():
    found = copy.deepcopy(ALL)
    found["densities"]["A1"] |= {"live": 2047, "dead": 1453}
    assert failed(found) == {2}


def test_a_stage_that_has_not_run_has_no_row():
    assert {row.number for row in rows({"neurons": NEURONS})} == {12}
    assert rows({}) == []


def test_a_model_that_was_given_has_no_twin():
    found = ALL | {"subjects": {"A": SUBJECTS["A"]}, "universality": {"skipped": "there is one subject only"}}
    passed = {row.number: row.passed for row in rows(found)}
    assert passed[1] is None and passed[14] is None


def test_a_test_on_logits_that_is_not_usable_says_nothing():
    found = copy.deepcopy(ALL)
    found["trial"]["gates"]["rules"]["logit_usable"] = False
    assert [row.passed for row in rows(found) if row.number == 9] == [None]


def test_a_feature_without_an_effect_outside_passes_if_it_has_one_inside():
    found = copy.deepcopy(ALL)
    ablation = found["control"]["contexts"]["dna"]["ablation"]
    ablation["ratio"]["value"] = None
    assert failed(found) == set() and any("no effect outside" in row.found for row in rows(found))
    ablation["inside"]["value"] = 0.0
    assert failed(found) == {13}
