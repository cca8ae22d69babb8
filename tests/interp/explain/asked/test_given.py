"""Explanations of others: which are scored, and that they stay theirs."""

import json

import numpy as np
import pytest

from saefast.cli.explain import after
from saefast.errors import InputError
from saefast.interp.explain.asked.given import Given
from saefast.interp.explain.every import RESULTS, Scored, Units, explain_every
from saefast.interp.explanations import add_explanations, read_explanations
from tests.helpers.scored_units import records_of


class Seven:
    name = "seven"

    def simulate(self, explanation, tokens):
        return np.full(np.shape(tokens), 7.0)


def said(latent, text, method, model=None):
    return {"latent": latent, "explanation": text, "method": method, "model": model, "scores": {}}


def test_the_last_one_of_a_unit_counts_and_the_judge_predicts(tmp_path):
    add_explanations(tmp_path, [said(3, "a", "x"), said(1, "b", "y", "m"), said(3, "c", "y")])
    given = Given(tmp_path, Seven())
    assert given.latents.tolist() == [1, 3]
    assert given.said == [(1, "b", "y", "m"), (3, "c", "y", None)]
    assert (
        given.explain(1).model == "m"
        and given.explain(3).predict(np.zeros((2, 3), int)).tolist() == [[7.0] * 3] * 2
    )
    assert Given(tmp_path, Seven(), method="x").said == [(3, "a", "x", None)]
    with pytest.raises(InputError, match="latent: expected one with an explanation, got 2"):
        given.explain(2)
    with pytest.raises(InputError, match="method: expected one of x, y in .*, got 'z'"):
        Given(tmp_path, Seven(), method="z")


def test_scores_are_put_beside_the_explanation_that_was_given(tmp_path_factory, tmp_path):
    records = records_of(tmp_path_factory.mktemp("given"), 60)
    add_explanations(records.folder, [said(3, "a", "delphi", "big"), said(5, "b", "mine")])

    def scorer(latent, explanation):
        return Scored({"detection": {"balanced_accuracy": latent / 10, "auc": 0.5}}, None, [])

    units = [
        Units(
            "features",
            records,
            np.array([3, 5]),
            Given(records.folder, Seven()),
            scorer,
            lambda latent: False,
        )
    ]
    explain_every(units, tmp_path, {}, controls=0)
    assert json.loads((tmp_path / RESULTS).read_text().splitlines()[1])["explanation"] in "ab"
    for usable in ([], ["detection"], ["detection"]):
        after.add_to_records(tmp_path, units, "given", None, usable)
        found = {one["latent"]: one for one in read_explanations(records.folder)}
        assert len(found) == len(read_explanations(records.folder)) == 2
        assert (found[3]["method"], found[3]["model"], found[5]["method"]) == ("delphi", "big", "mine")
        want = {"detection": 0.3, "detection_auc": 0.5} if usable else {}
        assert found[3]["scores"] == want
