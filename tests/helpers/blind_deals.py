"""Small planted units and deals of them, for the tests of the blind evaluation."""

from typing import Any

from saefast.interp.blind import BlindConfig, Dealt, Planted, deal, read_page, write_ratings

SMALL = BlindConfig(units=4, n_intervals=5, per_interval=2, rated=2, before=3, after=2, n_logits=6)


def dealt(made: Planted, out: Any, config: BlindConfig = SMALL, seed: int = 1) -> Dealt:
    sets = {"features": made.one_kind, "neurons": made.mixtures}
    return deal(sets, out, made.vocabulary, config, seed=seed)


def rating(number: int = 1, **changes: Any) -> dict[str, Any]:
    """Every question of a card of `SMALL` answered with `number`, or the most that it takes."""
    most = {"confidence": 3, "tokens": 5, "logits": 3, "separated": 1, "specificity": 3}
    found = {"interpretation": "some words", "none": False, "sets": [min(number, 5)] * SMALL.rated}
    return found | {name: min(number, most) for name, most in most.items()} | changes


def rated(folder: Any, rater: str = "AB", name: str = "ratings.json", **of_cards: Any) -> Any:
    """A file with a rating of every card; those of `of_cards` by the id of the card, None: missing."""
    page = read_page(folder / "cards.html")
    ratings = {card["id"]: rating() for card in page.cards} | of_cards
    ratings = {card: one for card, one in ratings.items() if one is not None}
    return write_ratings(folder / name, page.commitment, rater, ratings)
