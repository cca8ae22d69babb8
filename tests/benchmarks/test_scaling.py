"""benchmarks/peers/scaling.py and largest_dictionary.py: fits on made-up numbers, the search for the largest, a process that is watched."""

import pytest
import torch

from benchmarks import measuring
from benchmarks.peers import largest_dictionary, scaling


def test_exponent_is_that_of_the_power_law() -> None:
    sizes = (256, 512, 1024, 4096)
    for power in (0.5, 1, 1.7):
        assert scaling.exponent(sizes, [3e-5 * size**power for size in sizes]) == [power, 0]


def test_standard_error_by_hand() -> None:
    """Four points at log2 sizes 0 to 3 and log2 values 0, 1, 2, 4: slope 1.3, residuals 0.2, -0.1, -0.4, 0.3, whose
    squares are 0.3; sqrt(0.3 / 2 / 5) = 0.1732."""
    assert scaling.exponent([1, 2, 4, 8], [1, 2, 4, 16]) == [1.3, 0.173]


def test_who_leaves_early_has_an_exponent_of_what_there_is() -> None:
    def at(**seconds: float) -> dict[str, dict[str, list[float]]]:
        return {name: {"seconds": [value]} for name, value in seconds.items()}

    points = [at(ours=1, peer=1), at(ours=2, peer=4), at(ours=4, peer=16), at(ours=8)]
    assert scaling.axis([1, 2, 4, 8], points, "seconds")["exponents"] == {"ours": [1, 0], "peer": [2, 0]}


def test_rows_of_another_width() -> None:
    rows = torch.arange(15.0).view(5, 3)
    assert torch.equal(scaling.widened(rows, 2), rows[:, :2])
    wide = scaling.widened(rows, 5)  # two tokens side by side, the fifth is left over
    assert wide.tolist() == [[0, 1, 2, 3, 4], [6, 7, 8, 9, 10]]


def made_up(held: float, per_latent: float, budget: float):
    """`largest_dictionary.watched` of a contender whose peak is held + per_latent * d_sae MiB."""

    def attempt(d_sae: int) -> largest_dictionary.Found:
        peak = held + per_latent * d_sae
        return {"d_sae": d_sae, "MiB": peak if peak <= budget else None, "fits": peak <= budget}

    return attempt


def test_line_through_peaks() -> None:
    attempt = made_up(300, 0.02, 10**9)
    slope, d_sae = largest_dictionary.predicted([attempt(size) for size in (4096, 8192, 16384)], budget=2048)
    assert slope == pytest.approx(0.02)
    assert d_sae == 87040  # 85 * 1024, of (2048 - 300) / 0.02 = 87400


def test_largest_fits_and_five_percent_more_does_not() -> None:
    found = largest_dictionary.largest(made_up(300, 0.02, 2048), d_in=576, budget=2048)
    assert found["d_sae"] == found["predicted"] == 87040
    assert found["bytes per latent"] == round(0.02 * 2**20)
    assert [(t["d_sae"], t["fits"]) for t in found["trials"][3:]] == [(87040, True), (92160, False)]


@pytest.mark.parametrize("bend", [-2e-8, 2e-8], ids=["more fits", "less fits"])
def test_largest_where_the_line_is_wrong(bend: float) -> None:
    """Peaks that curve away from it: the search goes on until a size fits and the next does not."""

    def attempt(d_sae: int) -> largest_dictionary.Found:
        return made_up(300 + bend * d_sae**2, 0.02, 2048)(d_sae)

    found = largest_dictionary.largest(attempt, d_in=576, budget=2048)
    fits = {t["d_sae"]: t["fits"] for t in found["trials"]}
    assert found["d_sae"] != found["predicted"] and found["d_sae"] % 1024 == 0
    assert fits[found["d_sae"]] and not fits[min(size for size in fits if size > found["d_sae"])]


def test_nothing_is_claimed_where_a_probe_does_not_fit() -> None:
    found = largest_dictionary.largest(made_up(3000, 0.02, 2048), d_in=576, budget=2048)
    assert found["d_sae"] is None and not found["trials"][-1]["fits"]


def test_process_above_the_budget_is_killed() -> None:
    found = largest_dictionary.watched("saefast", largest_dictionary.FIXED._replace(F=1024), budget=30)
    assert not found["fits"] and found["why"] == "killed above the budget"


def test_peak_of_a_trial() -> None:
    shape = scaling.Shape(64, 64, 8192, 4)
    largest_dictionary.trial("plain PyTorch", shape)  # loads what is loaded on first use
    before, peak = largest_dictionary.trial("plain PyTorch", shape)
    matrix = 8192 * 64 * 4 / 2**20
    assert 8 * matrix < peak - before < 30 * matrix  # two weights, four moments, two gradients


def test_smoke_of_the_times(capsys: pytest.CaptureFixture[str]) -> None:
    plan = scaling.SMOKE._replace(axes=scaling.SMOKE.axes | {"d_sae": (256, 512, 1024)})
    found = scaling.times(plan, scaling.TIMED[:3], measuring.rows_of(None, plan.base))
    assert list(found) == ["d_sae", "d_in", "k", "batch", "SAEs"]
    assert found["SAEs"]["points"][0]["sweep"]["ratio"][0] == 1
    assert capsys.readouterr().out.count("exponent") == 5
