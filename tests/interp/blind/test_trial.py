"""The tool on units of which it is known what they are, and whether what betrays a type is found."""

from dataclasses import replace

import pytest

from saefast.interp.blind import draw_results, leak, leak_of, planted, read_page, tool_trial
from saefast.interp.blind.seal import opened, seal
from tests.helpers.blind_deals import SMALL, dealt


def holds(found):
    assert found.one_kind[0] >= 10 and found.mixtures[-1] <= 4
    assert all(0.4 < auc < 0.6 for auc in found.leak.metadata.values()), found.leak
    assert found.leak.shades == {"logistic": 0.5, "forest": 0.5}
    assert found.refused == {"partial": True, "edited": True, "another key": True}


def test_planted_units_are_told_apart_and_their_cards_are_not(tmp_path):
    found = tool_trial(tmp_path, 16)
    holds(found)
    picture = draw_results(found.results, tmp_path / "results.png")
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 5))
def test_planted_units_are_told_apart_with_any_seed(tmp_path, seed):
    holds(tool_trial(tmp_path, 60, seed=seed))


def test_a_deck_in_the_order_of_types_is_found_out(tmp_path):
    made = planted(tmp_path, 20)
    dealt(made, tmp_path / "deal", replace(SMALL, units=20))
    page, key = read_page(tmp_path / "deal/cards.html"), opened(tmp_path / "deal/key.json")
    for place, card in enumerate(page.cards):  # as if it had not been shuffled
        key["cards"][card["id"]] |= {"set": "features" if place < 20 else "neurons", "unit": place}
    seal(tmp_path / "deal/key.json", key)
    assert leak([tmp_path / "deal"], "features", "neurons").metadata["forest"] > 0.8


@pytest.mark.slow
def test_shades_of_all_tokens_betray_how_dense_a_unit_is(tmp_path):
    made = planted(tmp_path, 8)
    dense = planted(tmp_path / "dense", 8, share=0.6)
    sets, config = (
        {"features": made.one_kind, "neurons": dense.mixtures},
        replace(SMALL, units=8, shade="all"),
    )
    found = leak_of(sets, tmp_path / "all", made.vocabulary, config, deals=2)
    assert found.shades["logistic"] > 0.9
    found = leak_of(sets, tmp_path / "drawn", made.vocabulary, replace(config, shade="drawn"), deals=2)
    assert found.shades["logistic"] == 0.5
