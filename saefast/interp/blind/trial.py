"""The tool tried on units of which it is known what they are, by a rater that is a program."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from saefast.config.blind import BlindConfig
from saefast.errors import InputError
from saefast.interp.blind.deal import deal
from saefast.interp.blind.leak import Leak, leak_of
from saefast.interp.blind.page import read_page
from saefast.interp.blind.planted import planted
from saefast.interp.blind.ratings import write_ratings
from saefast.interp.blind.scripted import scripted_ratings
from saefast.interp.blind.seal import KEY, PAGE, commitment_of, opened, seal
from saefast.interp.blind.unseal import unseal


class ToolTrial(NamedTuple):
    one_kind: list[int]  # points of the units of one kind, the fewest first
    mixtures: list[int]
    leak: Leak
    refused: dict[str, bool]  # what must not unseal: "partial", "edited", "another key"
    results: dict[str, Any]  # of `unseal`


def tool_trial(folder: str | Path, units: int = 60, *, seed: int = 0) -> ToolTrial:
    """Deal `units` planted units of each sort into FOLDER/deal (and FOLDER/leak), rate them by the program, and unseal.

    Raises:
        InputError: there is a deal in the folder already, or scipy or scikit-learn (extra `interp`) is missing.
    """
    folder = Path(folder)
    made = planted(folder / "planted", units, seed=seed)
    sets, where = {"one kind": made.one_kind, "mixtures": made.mixtures}, folder / "deal"
    config = BlindConfig(units=units)
    dealt = deal(sets, where, made.vocabulary, config, seed=seed, title="A trial of the tool")
    ratings = scripted_ratings(read_page(where / PAGE))
    file = write_ratings(where / "ratings-program.json", dealt.commitment, "a program", ratings)
    refused = _refused(where, dealt.commitment, ratings)
    results = unseal(where, [file], seed=seed)
    points = {name: sorted(r["points"] for r in results["ratings"] if r["set"] == name) for name in sets}
    found = leak_of(sets, folder / "leak", made.vocabulary, config, seed=seed + 1)
    return ToolTrial(points["one kind"], points["mixtures"], found, refused, results)


def _refused(where: Path, commitment: str, ratings: dict[str, dict[str, Any]]) -> dict[str, bool]:
    bad, first = where / "ratings-to-refuse.json", next(iter(ratings))

    def is_refused() -> bool:
        try:
            unseal(where, [bad])
        except InputError:
            return True
        return False

    found = {}
    write_ratings(bad, commitment, "a program", {card: r for card, r in ratings.items() if card != first})
    found["partial"] = is_refused()
    write_ratings(bad, commitment, "a program", ratings)
    bad.write_text(bad.read_text().replace('"none": true', '"none": false', 1))
    found["edited"] = is_refused()
    write_ratings(bad, commitment, "a program", ratings)
    key = (where / KEY).read_bytes()
    salt = np.random.default_rng(0).bytes(32).hex()
    other = seal(where / KEY, opened(where / KEY) | {"salt": salt})
    found["another key"] = is_refused() and other != commitment
    (where / KEY).write_bytes(key)
    bad.unlink()
    assert commitment_of(where / KEY) == commitment
    return found
