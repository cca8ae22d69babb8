"""The rubric of "Towards Monosemanticity" for a unit: 14 points.

The rater first says in words what the unit stands for, from all its intervals and its positive logits, and then answers
`ITEMS`. Who can say nothing gives 0 to all of them, which is what the paper's median neuron got. The paper rates intervals:
an interval has the points of its unit with the answer to "tokens" for that interval alone.
"""

from typing import Any, NamedTuple

from saefast.errors import check, shown


class Item(NamedTuple):
    name: str
    most: int  # points
    question: str
    least_means: str  # 0 points
    most_means: str


ITEMS = (
    Item("confidence", 3, "How sure are you of this interpretation?", "a guess", "certain"),
    Item("tokens", 5, "Do the strongly active tokens fit it?", "none fits", "all fit"),
    Item("logits", 3, "Do the tokens with raised logits fit it?", "none fits", "all fit"),
    Item("separated", 1, "Are the logits that fit larger than those that do not?", "no", "yes"),
    Item("specificity", 3, "How specific is the interpretation?", "anything fits", "one narrow thing"),
)
LOGITS = ("logits", "separated")  # left out where no logits are shown
MOST = {item.name: item.most for item in ITEMS}
POINTS, POINTS_WITHOUT_LOGITS, FAIRLY = 14, 11, 8  # above 8 a unit is "fairly interpretable"


def answered(rating: dict[str, Any], rated: int, logits: bool) -> bool:
    """Whether nothing is missing in the rating of a card with `rated` intervals.

    "separated" is left out where all logits fit: there is nothing to separate.
    """
    if rating["none"]:
        return True
    wanted = [name for name in MOST if logits or name not in LOGITS]
    if logits and rating["logits"] == MOST["logits"]:
        wanted.remove("separated")
    numbers = [rating[name] for name in wanted] + list(rating["sets"])
    some = bool(rating["interpretation"].strip())
    return some and len(rating["sets"]) == rated and all(number is not None for number in numbers)


def points(rating: dict[str, Any], tokens: int | None = None) -> int:
    """Of an answered rating, 0 to 14 (11 without logits); with `tokens`, of the interval with that answer."""
    if rating["none"]:
        return 0
    numbers = {name: rating[name] or 0 for name in MOST}
    if rating["logits"] == MOST["logits"]:
        numbers["separated"] = 0
    return sum(numbers.values()) - (0 if tokens is None else numbers["tokens"] - tokens)


def checked(rating: Any, where: str) -> dict[str, Any]:
    """A rating as it is in a file.

    Raises:
        InputError: it has other keys, or an answer that the page cannot give.
    """
    keys = {"interpretation", "none", "sets", *MOST}
    ok = isinstance(rating, dict) and rating.keys() == keys
    check(ok, f"{where}: expected the keys {', '.join(sorted(keys))}, got {shown(rating)}")

    def good(value: Any, most: int) -> bool:
        return value is None or (type(value) is int and 0 <= value <= most)

    ok = isinstance(rating["interpretation"], str) and isinstance(rating["none"], bool)
    ok = ok and all(good(rating[name], most) for name, most in MOST.items())
    ok = ok and isinstance(rating["sets"], list) and all(good(one, MOST["tokens"]) for one in rating["sets"])
    check(ok, f"{where}: expected answers that the page can give, got {shown(rating)}")
    return rating
