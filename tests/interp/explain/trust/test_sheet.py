"""The sheet for people: what is dealt is what the records have, says nothing of methods, and answers are joined with the right key."""

import json
import re

import numpy as np
import pytest

from saefast.errors import InputError
from saefast.interp.blind import read_page
from saefast.interp.blind.seal import opened
from saefast.interp.explain.examples import Tiles
from saefast.interp.explain.trust.sheet import CHOICES, SHADES, key_of, read_sheet, write_answers
from tests.helpers.explanation_sheets import LENGTH, METHODS, dealt, explanations, records_of

RAW = [f" w{i}".encode() for i in range(50)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return records_of(tmp_path_factory.mktemp("records") / "records", RAW)


@pytest.fixture(scope="module")
def sheet(made, tmp_path_factory):
    return dealt(*made, tmp_path_factory.mktemp("sheet") / "sheet.html")


def answers(n=12, choice="holds"):
    return [{"id": str(i + 1), "choice": choice, "note": ""} for i in range(n)]


def test_windows_and_shades_are_those_of_the_records(made, sheet):
    records, _ = made
    page, key = read_page(sheet.page), opened(sheet.key)
    tiles = Tiles(records, "score", LENGTH)
    ids = records.text.contexts.ravel()
    where = {}
    for first in tiles.first.tolist():
        where.setdefault(tuple(ids[first : first + LENGTH].tolist()), []).append(first)
    assert len(page.cards) == sheet.n == 12 and [card["id"] for card in page.cards] == list(key["cards"])
    for card in page.cards:
        latent = key["cards"][card["id"]]["latent"]
        tile, peaks = tiles.peaks(latent)
        slots, acts = records.entries(latent)
        act_of = dict(zip(slots.tolist(), acts.tolist()))
        groups = card["groups"]
        assert groups == [min(5, len(tile)), min(5, max(0, len(tile) - 5)), 3]
        assert len(card["tokens"]) == len(card["shades"]) == sum(groups)
        largest = []
        for i, (numbers, shades) in enumerate(zip(card["tokens"], card["shades"])):
            window = tuple(RAW.index(page.tokens[number]) for number in numbers)
            want = [
                [np.ceil(SHADES * act_of.get(first + j, 0) / peaks.max()) for j in range(LENGTH)]
                for first in where[window]
            ]
            assert shades in want and (max(shades) > 0) == (i < groups[0] + groups[1])
            largest.append(max(shades))
        assert largest[0] == SHADES and largest[: groups[0]] == sorted(largest[: groups[0]], reverse=True)
        assert min(largest[: groups[0]]) >= max(largest[groups[0] : groups[0] + groups[1]], default=0)


def test_nothing_on_the_page_says_who_explained_what(sheet):
    text, page = sheet.page.read_text(), read_page(sheet.page)
    assert not any(method in text for method in METHODS)
    for card in page.cards:
        assert card.keys() == {"id", "sentence", "groups", "tokens", "shades"}
    assert not re.search(r"""(src|href)=["'](?!data:|#main)""", text) and "://" not in re.sub(
        r"http://www.w3.org/\S*", "", text
    )
    drawn = [(one["latent"], one["method"]) for one in opened(sheet.key)["cards"].values()]
    assert len(set(drawn)) == 12 and len({method for _, method in drawn}) > 1 and drawn != sorted(drawn)


def test_a_seed_gives_the_same_sheet_again(made, sheet, tmp_path):
    again = dealt(*made, tmp_path / "again.html")
    assert again.page.read_bytes() == sheet.page.read_bytes() and again.commitment == sheet.commitment
    other = dealt(*made, tmp_path / "other.html", seed=1)
    assert read_page(other.page).cards != read_page(sheet.page).cards


def test_units_that_are_never_active_are_left_out_and_counted(made, tmp_path):
    some = [one for one in explanations() if one["latent"] >= 36]
    sheet = dealt(*made, tmp_path / "sheet.html", some, n=6)
    assert {one["latent"] for one in opened(sheet.key)["cards"].values()} <= {36, 37}
    assert 0 <= sheet.skipped <= 6
    with pytest.raises(InputError, match="expected 7 of units that are active in the texts, found 6 of 12"):
        dealt(*made, tmp_path / "more.html", some, n=7)
    assert not (tmp_path / "more.html").exists() and not key_of(tmp_path / "more.html").exists()


def test_what_cannot_be_dealt(made, sheet):
    with pytest.raises(InputError, match="expected a new sheet.*sheet.key.json"):
        dealt(*made, sheet.page)
    with pytest.raises(InputError, match="n: expected at least 1"):
        dealt(*made, sheet.page.with_name("none.html"), n=0)
    with pytest.raises(InputError, match="latent"):
        dealt(*made, sheet.page.with_name("none.html"), explanations(41)[-3:], n=3)


def test_rates_by_hand(sheet, tmp_path):
    given = answers()
    for i, choice in enumerate(["wrong", "wrong", "wrong", "part", "holds"]):
        given[i]["choice"] = choice
    given[0]["note"] = "line <b>"
    found = read_sheet(write_answers(tmp_path / "a.json", sheet.page, "AB", given[::-1]), sheet.page)
    assert found.rater == "AB" and (found.wrong.hits, found.wrong.n, found.part.hits) == (3, 12, 1)
    assert found.wrong.share == 0.25 and 0.08 < found.wrong.low < 0.25 < found.wrong.high < 0.54
    cards = list(opened(sheet.key)["cards"].values())
    for method, share in found.wrong_by_method.items():
        assert share.n == sum(one["method"] == method for one in cards)
        assert share.hits == sum(one["method"] == method for one in cards[:3])
    assert [row["choice"] for row in found.answers] == [one["choice"] for one in given]
    assert found.answers[0] == {**cards[0], "choice": "wrong", "note": "line <b>"}
    assert sum(share.n for share in found.wrong_by_method.values()) == 12


def test_one_model_and_no_method_have_names(made, tmp_path):
    some = [one | {"method": None, "model": "m" if one["latent"] % 2 else None} for one in explanations(30)]
    sheet = dealt(*made, tmp_path / "sheet.html", some, n=20)
    found = read_sheet(write_answers(tmp_path / "a.json", sheet.page, "AB", answers(20, "wrong")), sheet.page)
    assert set(found.wrong_by_method) == {"no method", "no method (m)"} and found.wrong.share == 1


ONE = {"id": "1", "choice": "holds", "note": ""}
WRONG = {
    "missing": (answers()[2:], r"missing are 2: 1, 2\Z"),
    "none": ([], r"missing are 12: .*, \.\.\."),
    "twice": ([*answers(), ONE], "1 has two"),
    "unknown": ([*answers(), ONE | {"id": "13"}], "no explanation '13'"),
    "another choice": ([ONE | {"choice": "maybe"}], "expected.*holds | part | wrong.*maybe"),
    "no choice": ([{"id": "1", "note": ""}], "got {'id': '1'"),
    "a number": ([ONE | {"id": 1}], "expected.*'id': 1"),
    "a list": ([[1]], r"got \[1\]"),
}


@pytest.mark.parametrize(("given", "message"), WRONG.values(), ids=WRONG)
def test_answers_that_do_not_fit_are_refused(sheet, tmp_path, given, message):
    path = tmp_path / "answers.json"
    path.write_text(
        json.dumps(
            {
                "format": "saefast-explanation-sheet",
                "version": 1,
                "commitment": sheet.commitment,
                "rater": "AB",
                "answers": given,
            }
        )
    )
    with pytest.raises(InputError, match=message):
        read_sheet(path, sheet.page)


def test_other_sheets_edited_pages_and_other_files(made, sheet, tmp_path):
    good = write_answers(tmp_path / "a.json", sheet.page, "AB", answers())
    assert read_sheet(good, sheet.page).wrong.hits == 0
    other = dealt(*made, tmp_path / "other.html", seed=1)
    with pytest.raises(InputError, match="answers to another sheet"):
        read_sheet(good, other.page)
    other.page.write_text(sheet.page.read_text())
    with pytest.raises(InputError, match="edited, or not the page of"):
        read_sheet(good, other.page)
    page = tmp_path / "edited.html"
    page.write_text(sheet.page.read_text().replace("sentence 0", "sentence 9"))
    key_of(page).write_bytes(sheet.key.read_bytes())
    with pytest.raises(InputError, match="edited, or not the page of"):
        read_sheet(good, page)
    key_of(page).unlink()
    with pytest.raises(InputError, match="edited.key.json"):
        read_sheet(good, page)
    for text in ("[]", "{}", json.dumps({"format": "saefast-blind-ratings", "version": 1, "answers": []})):
        good.write_text(text)
        with pytest.raises(InputError, match="expected a file that the page of a sheet saved"):
            read_sheet(good, sheet.page)


def test_choices_of_page_and_reader_are_the_same(sheet):
    assert re.findall(r'\["(\w+)", "It ', sheet.page.read_text()) == list(CHOICES)
