"""All units: their rows, what a kill leaves, controls, and what the summary and the report say of them."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from saefast.errors import InputError
from saefast.interp.explain.every import RESULTS, Scored, Units, explain_every, tried
from saefast.interp.explain.examples import Tiles, top_and_random
from saefast.interp.explain.report import lines_of, write_report
from saefast.interp.explain.scores.program import ProgramJudge
from saefast.interp.explain.scoring import Scoring
from saefast.interp.explain.summary import MAIN, Summary, flat
from saefast.interp.lines import read_lines
from tests.helpers.scored_units import N_UNITS, NEVER, RARE, records_of, true_of

SETTINGS = {"explained by": "the truth"}


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return records_of(tmp_path_factory.getbasetemp() / "scored_units")


@pytest.fixture(scope="module")
def scoring(records):
    judge = ProgramJudge(Tiles(records, "explain", 32))
    return Scoring(records, judge, ["fuzz", "simulation", "detection"], draws=20)


class Explains:
    """Counts whom it is asked about, and gives up after some of them."""

    name = "truth"

    def __init__(self, most=10**9):
        self.asked, self.most = [], most

    def explain(self, latent):
        if len(self.asked) == self.most:
            raise InputError("budget: reached")
        self.asked.append(latent)
        return true_of(latent)


def units(records, scoring, latents, explainer=None, kind="features"):
    is_single = lambda latent: latent % 2 == 0
    return Units(kind, records, np.asarray(latents), explainer or Explains(), scoring, is_single)


def rows_of(out):
    lines = read_lines(out / RESULTS)
    next(lines)
    return [{name: value for name, value in row.items() if name != "seconds"} for row in lines]


def test_every_unit_has_a_row_with_the_scores_that_it_has_alone(records, scoring, tmp_path):
    kept = []
    path = explain_every(
        [units(records, scoring, range(N_UNITS + 3))],
        tmp_path,
        SETTINGS,
        controls=5,
        keep=lambda of, latent, simulations: kept.append((of.kind, latent, simulations)),
    )
    rows = {row["latent"]: row for row in rows_of(tmp_path)}
    assert path == tmp_path / RESULTS and sorted(rows) == list(range(N_UNITS + 3))
    for latent in (0, 7, RARE):
        alone = scoring(latent, true_of(latent))
        assert rows[latent]["scores"] == json.loads(json.dumps(alone.scores))
        assert list(alone.scores) == ["simulation", "fuzz", "detection"]
    assert "never active" in rows[NEVER]["unscored"] and rows[NEVER]["scores"] == {}
    assert rows[0]["single_token"] is True and rows[1]["single_token"] is False
    assert sum("controls" in row for row in rows.values()) == 5
    # the windows that were simulated are those that were scored
    (simulations,) = [found for _, latent, found in kept if latent == 7]
    examples = top_and_random(Tiles(records, "score", 64), 7)
    assert [one["slot"] for one in simulations] == examples.slots.tolist()
    assert np.allclose([one["expected"] for one in simulations], true_of(7).predict(examples.tokens))
    true, said = examples.acts.ravel(), np.concatenate([one["expected"] for one in simulations])
    want = np.corrcoef(true, said)[0, 1]
    assert rows[7]["scores"]["simulation"]["ev_correlation_score"] == pytest.approx(want, abs=2e-6)


@pytest.mark.parametrize("at_once", [1, 3])
def test_goes_on_where_it_stopped_and_ends_as_if_it_had_not(records, scoring, tmp_path, at_once):
    latents, options = range(12), {"controls": 4, "seed": 3}
    explain_every([units(records, scoring, latents)], tmp_path / "whole", SETTINGS, **options)
    stopped = units(records, scoring, latents, Explains(most=6))
    with pytest.raises(InputError, match=r"features \d+: budget: reached"):
        explain_every([stopped], tmp_path / "parts", SETTINGS, at_once=at_once, **options)
    there = len(rows_of(tmp_path / "parts"))
    assert 0 < there < 12
    with open(tmp_path / "parts" / RESULTS, "ab") as file:
        file.write(b'{"kind": "features", "lat')  # what a kill leaves
    again, seen = Explains(), []
    explain_every(
        [units(records, scoring, latents, again)],
        tmp_path / "parts",
        SETTINGS,
        progress=seen.append,
        **options,
    )
    assert rows_of(tmp_path / "parts") == rows_of(tmp_path / "whole")
    assert seen == [there, *[1] * (12 - there)]
    assert len(again.asked) <= 12 - there + 1  # the last one before is a control
    with pytest.raises(InputError, match="explained by 'the truth' and not 'others'"):
        explain_every(
            [units(records, scoring, latents)], tmp_path / "parts", {"explained by": "others"}, **options
        )


def test_fewer_units_are_a_random_part_and_more_go_on(records, scoring, tmp_path):
    for limit in (3, 8, None):
        explain_every([units(records, scoring, range(20))], tmp_path, SETTINGS, limit=limit, controls=2)
        order = [row["latent"] for row in rows_of(tmp_path)]
        assert len(order) == (limit or 20)
    assert order != sorted(order) and sorted(order) == list(range(20))


def test_controls_are_explanations_of_other_units_and_constants(records, scoring, tmp_path):
    both = [units(records, scoring, range(N_UNITS), kind=kind) for kind in ("features", "neurons")]
    explain_every(both, tmp_path, SETTINGS, controls=15)
    summary = Summary(tmp_path / RESULTS)
    assert dict(summary.units) == {"features": N_UNITS, "neurons": N_UNITS}
    for kind in ("features", "neurons"):
        for name, chance in ((MAIN, 0), ("detection.auc", 0.5), ("fuzz.balanced_accuracy", 0.5)):
            group = summary.groups[kind, "all", name]
            assert group.mean.value > 0.85 and group.n_controls == 15
            assert group.controls["always 0"] == group.controls["always 1"] == pytest.approx(chance)
            assert abs(group.controls["shuffled"] - chance) < 0.1


def test_trying_writes_nothing(records, scoring):
    explains = Explains()
    assert tried([units(records, scoring, range(9), explains)], 3, controls=3) == 3
    assert len(explains.asked) == 3


def test_the_summary_by_hand(tmp_path):
    def row(kind, latent, value, is_single, other=None):
        made = {
            "kind": kind,
            "latent": latent,
            "explanation": f"e{latent}",
            "single_token": is_single,
            "seconds": 0.5,
        }
        made["scores"] = {
            "simulation": {"ev_correlation_score": value, "ev_correlation_score_low": 0.0, "defined": True}
        }
        if other is not None:
            made["controls"] = {"shuffled": {"simulation": {"ev_correlation_score": other}}}
        return made

    rows = [
        row("features", 1, 0.8, True, 0.1),
        row("features", 2, 0.4, False, 0.3),
        row("features", 3, 0.9, False),
    ]
    rows += [row("neurons", 1, 0.2, False)]
    rows += [{**row("neurons", 2, 0, False), "scores": {}, "unscored": "too few"}]
    path = tmp_path / RESULTS
    path.write_text("".join(json.dumps(one) + "\n" for one in [SETTINGS, *rows]))
    found = Summary(path)
    of_all = found.groups["features", "all", MAIN]
    assert (of_all.units, of_all.median, of_all.above) == (3, 0.8, 2)
    assert of_all.mean.value == pytest.approx(0.7) and of_all.controls == {"shuffled": pytest.approx(0.2)}
    single, others = (found.groups["features", part, MAIN] for part in ("single tokens", "others"))
    assert (single.units, single.mean.value, single.controls["shuffled"]) == (1, 0.8, pytest.approx(0.1))
    assert (others.units, others.controls["shuffled"]) == (2, pytest.approx(0.3))
    assert ("neurons", "single tokens", MAIN) not in found.groups
    assert [(unit.latent, unit.value) for unit in found.good] == [(3, 0.9), (1, 0.8)]
    assert dict(found.unscored["neurons"]) == {"too few": 1} and found.seconds == 2.5
    assert flat({"a": {"b": 1, "b_low": 0, "n_windows": 3, "is": True, "why": "x"}}) == {"a.b": 1.0}
    table = list(lines_of(found))
    assert table[0] == "3 features" and "2 neurons; 1 not scored: too few" in table
    assert table[-1] == "2 units with a correlation of at least 0.8"


def test_the_report_has_every_good_unit_and_text_is_inert(records, tmp_path):
    def scorer(latent, explanation):
        return Scored({"simulation": {"ev_correlation_score": 0.5 + latent / 40}}, None, [])

    said = SimpleNamespace(
        name="x",
        explain=lambda latent: SimpleNamespace(latent=latent, sentence=f"<script>{latent}|\n</script>"),
    )
    of = Units("features", records, np.arange(20), said, scorer, lambda latent: False)
    explain_every([of], tmp_path, SETTINGS, controls=0)
    page = write_report(tmp_path, "T", ["a note"], lambda kind, latent: f"{kind}.html#latent/{latent}")
    html, markdown = page.read_text(), (tmp_path / "report.md").read_text()
    assert "<script>" not in html and "a note" in html and "8 of 20 features" in markdown
    assert (tmp_path / "pictures" / "scores.png").read_bytes().startswith(b"\x89PNG")
    listed = [line.split("\t") for line in (tmp_path / "good.tsv").read_text().splitlines()[1:]]
    assert [int(latent) for _, latent, _, _ in listed] == list(range(19, 11, -1))
    assert all(f"features.html#latent/{latent}" in html for _, latent, _, _ in listed)
