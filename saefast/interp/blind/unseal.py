"""Unsealing: ratings and key are joined when every card is rated."""

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from saefast.errors import check
from saefast.files import read_json, write_json
from saefast.interp.blind.page import Page, digest_of, read_page
from saefast.interp.blind.ratings import Ratings, read_ratings
from saefast.interp.blind.rubric import LOGITS, MOST, POINTS, POINTS_WITHOUT_LOGITS, answered, points
from saefast.interp.blind.seal import KEY, PAGE, commitment_of, opened
from saefast.interp.blind.statistics import alpha, compared, curve, summary

RESULTS = "results.json"


class Status(NamedTuple):
    """How far the raters are. Nothing of the key is in it."""

    commitment: str
    n_cards: int
    rated: dict[str, int]  # cards by rater


def status(folder: str | Path, files: Sequence[str | Path] = ()) -> Status:
    """How many cards each file has rated.

    Raises:
        InputError: as `unseal`, but for ratings that are missing.
    """
    page, found = _checked(Path(folder), files)
    return Status(page.commitment, len(page.cards), {one.rater: _count(page, one) for one in found})


def unseal(folder: str | Path, files: Sequence[str | Path], *, seed: int = 0) -> dict[str, Any]:
    """Join the ratings with the key, write FOLDER/results.json and return what is in it.

    Of each set: "units" and "intervals" (`Summary` of their points; of several raters the means), "curve" (by interval: see
    `curve`; of the rated intervals that borrowed nothing), "borrowed" (share of the examples), "drawn". Of each pair of sets "comparisons" (`Comparison`). "agreement" of several raters: Krippendorff's
    alpha of the points and of each item. "ratings": every rating with the set, the unit and the points.

    Args:
        folder: of the deal.
        files: one of each rater.
        seed: of bootstrap and permutations.

    Raises:
        InputError: a card is not rated, a file was edited or belongs to another deal, or the key or the page is not that of the deal.
    """
    folder = Path(folder)
    check(len(files) > 0, "ratings: expected at least one file of ratings, got none")
    page, raters = _checked(folder, files)
    missing = {one.rater: len(page.cards) - _count(page, one) for one in raters}
    open_ = ", ".join(f"{n} of {len(page.cards)} by {name!r}" for name, n in missing.items() if n)
    check(not open_, f"ratings: the key is opened when all cards are rated, missing are {open_}")
    key = opened(folder / KEY)
    check(
        digest_of(page.cards) == key["page"], f"{folder / PAGE}: edited: these are not the cards of the key"
    )
    write_json(folder / RESULTS, _results(key, page, raters, seed))
    return dict(read_json(folder / RESULTS))


def _checked(folder: Path, files: Sequence[str | Path]) -> tuple[Page, list[Ratings]]:
    """The page and the files, which all belong to the key."""
    commitment, page = commitment_of(folder / KEY), read_page(folder / PAGE)
    same = page.commitment == commitment
    check(
        same, f"{folder / KEY}: not the key that the page is committed to ({commitment}, {page.commitment})"
    )
    found = [read_ratings(path) for path in files]
    ids = {card["id"] for card in page.cards}
    for one in found:
        mine = one.commitment == commitment and one.ratings.keys() <= ids
        check(
            mine, f"{one.path}: these ratings belong to another key (theirs {one.commitment}, {commitment})"
        )
    names = [one.rater for one in found]
    check(len(set(names)) == len(names), f"ratings: expected one file of each rater, got {', '.join(names)}")
    return page, found


def _count(page: Page, one: Ratings) -> int:
    ratings = (one.ratings.get(card["id"]) for card in page.cards)
    rated = page.config["rated"]
    return sum(rating is not None and answered(rating, rated, page.logits) for rating in ratings)


def _results(key: dict[str, Any], page: Page, raters: list[Ratings], seed: int) -> dict[str, Any]:
    rows = [
        {"rater": one.rater, "card": card, **_place(where), **_pointed(one.ratings[card])}
        for one in raters
        for card, where in key["cards"].items()
    ]
    n, n_cards = page.config["n_intervals"], len(key["cards"])
    shape = (len(raters), n_cards)
    of_set = np.asarray([where["set"] for where in key["cards"].values()])
    units = np.asarray([row["points"] for row in rows], np.float64).reshape(*shape, 1).mean(0)
    places = np.asarray([where["intervals"] for where in key["cards"].values()], np.int64).reshape(
        n_cards, -1
    )
    parts = np.asarray([row["interval_points"] for row in rows], np.float64).reshape(*shape, -1).mean(0)
    tokens = np.asarray([row["interval_tokens"] for row in rows], np.float64).reshape(*shape, -1).mean(0)
    each, n_rated = page.config["per_interval"], page.config["rated"]
    own = np.asarray([where["own"] for where in key["cards"].values()], np.int64)
    whole = np.take_along_axis(own, places, axis=1) == each
    levels = {"units": units} | ({"intervals": parts} if n_rated else {})
    sets: dict[str, Any] = {}
    for name, drawn in key["sets"].items():
        here = of_set == name
        sets[name] = {level: summary(values[here], seed)._asdict() for level, values in levels.items()}
        some = whole & here[:, None]
        sets[name] |= {"curve": curve(places[some], parts[some], tokens[some], n), "drawn": drawn}
        sets[name]["borrowed"] = float(1 - own[here].mean() / each)
    pairs = [
        {"first": a, "second": b, "of": level, **compared(v[of_set == a], v[of_set == b], seed)._asdict()}
        for a, b in combinations(key["sets"], 2)
        for level, v in levels.items()
    ]
    return {
        "commitment": page.commitment,
        "seed_of_deal": key["seed"],
        "config": key["config"],
        "most_points": POINTS if page.logits else POINTS_WITHOUT_LOGITS,
        "raters": [one.rater for one in raters],
        "n_cards": n_cards,
        "sets": sets,
        "comparisons": pairs,
        "agreement": _agreement(rows, shape, page.logits) if len(raters) > 1 else None,
        "ratings": rows,
    }


def _place(where: dict[str, Any]) -> dict[str, Any]:
    """With intervals counted from 1, as the page does."""
    return {"set": where["set"], "unit": where["unit"], "intervals": [i + 1 for i in where["intervals"]]}


def _pointed(rating: dict[str, Any]) -> dict[str, Any]:
    tokens = [0 if rating["none"] else one for one in rating["sets"]]
    of_intervals = [points(rating, one) for one in tokens]
    found = {"points": points(rating), "interval_points": of_intervals, "interval_tokens": tokens}
    return found | {name: rating[name] for name in ("interpretation", "none", *MOST)}


def _agreement(rows: list[dict[str, Any]], shape: tuple[int, int], logits: bool) -> dict[str, float | None]:
    """ "separated" is left out: it is not asked on every card."""
    names = [name for name in MOST if name != "separated" and (logits or name not in LOGITS)]
    found = {}
    for name in ("points", *names):
        numbers = [0 if row["none"] else row[name] for row in rows]
        found[name] = alpha(np.asarray(numbers, np.float64).reshape(shape).T)
    return found
