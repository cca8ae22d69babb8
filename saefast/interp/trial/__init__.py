"""A trial of two dictionaries: are features easier to explain than neurons? Pre-registered, blind, with its controls.

    gates = gate(plant("trial/planted"), explainers_of_planted)          # which explainers may speak at all
    arms = {"features": Arm(records, explainers, logits), "neurons": Arm(...), "shuffled": Arm(...)}
    registration = register("trial/registration.json", arms, TrialConfig(explainers=("lookup", "rules"), primary="rules"))
    print(registration.sha256)                                           # commit the file: scores are bound to it
    score_trial(registration, arms, "trial/scores.jsonl")                # resumes where it was interrupted
    trial_result(registration, "trial/scores.jsonl")                     # only when all units are scored

windows.py: on which text; scores.py: how a prediction is scored; logit_test.py: what a unit does to the output; single_token.py:
units that win for another reason.
"""

from saefast.interp.trial.ground_truth import Gate, another, gate, told_apart
from saefast.interp.trial.logit_test import (
    Following,
    Judged,
    LogitScore,
    choose_tokens,
    logit_score,
)
from saefast.interp.trial.planted import Planted, plant, planted_records
from saefast.interp.trial.registration import Arm, Registration, TrialConfig, Unit, register
from saefast.interp.trial.scores import Scores, scores_of
from saefast.interp.trial.scoring import read_scores, score_trial
from saefast.interp.trial.single_token import SingleToken, single_token
from saefast.interp.trial.unblind import (
    ArmSummary,
    Difference,
    Mean,
    Measured,
    TrialResult,
    difference_of,
    mean_of,
    trial_result,
    unblind,
)
from saefast.interp.trial.windows import EXPLAINED, SCORED, Mix, Places, Windows, draw

__all__ = [
    "EXPLAINED",
    "SCORED",
    "Arm",
    "ArmSummary",
    "Difference",
    "Following",
    "Gate",
    "Judged",
    "LogitScore",
    "Mean",
    "Measured",
    "Mix",
    "Places",
    "Planted",
    "Registration",
    "Scores",
    "SingleToken",
    "TrialConfig",
    "TrialResult",
    "Unit",
    "Windows",
    "another",
    "choose_tokens",
    "difference_of",
    "draw",
    "gate",
    "logit_score",
    "mean_of",
    "plant",
    "planted_records",
    "read_scores",
    "register",
    "score_trial",
    "scores_of",
    "single_token",
    "told_apart",
    "trial_result",
    "unblind",
]
