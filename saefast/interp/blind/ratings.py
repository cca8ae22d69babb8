"""Files of ratings, as the page saves them.

    {"format": "saefast-blind-ratings", "version": 1, "commitment": of the key, "rater": "their initials",
     "ratings": {card: {"interpretation": text, "none": false, "confidence": 0-3, ..., "sets": [0-5, ...]}}, "checksum": ...}

An answer that is missing is null. The checksum finds damage and edits by hand; who knows how it is made can forge it.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from saefast.errors import check, shown
from saefast.files import read_json, write_json
from saefast.interp.blind.rubric import checked

FORMAT = "saefast-blind-ratings"


class Ratings(NamedTuple):
    path: Path
    rater: str
    commitment: str
    ratings: dict[str, dict[str, Any]]  # by the id of the card


def checksum(found: dict[str, Any]) -> str:
    """SHA-256 of the contents but for "checksum": as assets/store.js makes it, from ASCII JSON with sorted keys."""
    contents = {name: value for name, value in found.items() if name != "checksum"}
    text = json.dumps(contents, sort_keys=True, separators=(",", ":"))
    return "sha256-" + hashlib.sha256(text.encode()).hexdigest()


def write_ratings(path: Path, commitment: str, rater: str, ratings: dict[str, dict[str, Any]]) -> Path:
    """As the page does: for raters that are programs."""
    found = {"format": FORMAT, "version": 1, "commitment": commitment, "rater": rater, "ratings": ratings}
    write_json(path, found | {"checksum": checksum(found)})
    return path


def read_ratings(path: str | Path) -> Ratings:
    """Some or all ratings of a rater.

    Raises:
        InputError: no such file, something else, or one that was edited or damaged after it was saved.
    """
    path = Path(path)
    found = read_json(path)
    ok = isinstance(found, dict) and found.get("format") == FORMAT and found.get("version") == 1
    check(ok, f"{path}: expected a file of ratings that the page of a deal saved, got something else")
    edited = found.get("checksum") != checksum(found)
    check(not edited, f"{path}: edited or damaged after the page saved it: its checksum is another one")
    texts = all(isinstance(found.get(name), str) for name in ("commitment", "rater"))
    ok = texts and isinstance(found.get("ratings"), dict)
    check(ok, f"{path}: expected a commitment, a rater and ratings, got {shown(sorted(found))}")
    ratings = {name: checked(rating, f"{path}, card {name}") for name, rating in found["ratings"].items()}
    return Ratings(path, found["rater"], found["commitment"], ratings)
