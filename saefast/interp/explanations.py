"""What latents were said to stand for, and how well that was scored: explanations.jsonl in a folder of records.

A line of it is an explanation of a latent, which may have several:
    {"latent": 17, "explanation": "dates", "method": "delphi", "model": "the explainer's name", "scores": {"fuzz": 0.9}}
method and model may be null, scores may be empty.
"""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from saefast.errors import InputError, shown
from saefast.files import refuse_pointer, write_atomic

EXPLANATIONS = "explanations.jsonl"


def read_explanations(folder: str | Path) -> list[dict[str, Any]]:
    """The explanations in a folder of records, each with all five keys, in the order of the file. No file: none.

    Raises:
        InputError: a line is no explanation; the message has the file and the number of the line.
    """
    path, found = Path(folder) / EXPLANATIONS, []
    if not path.exists():
        return []
    refuse_pointer(path)
    for number, text in enumerate(path.read_bytes().split(b"\n"), 1):
        if text.strip():
            try:
                value = json.loads(text.decode("utf-8"))
            except (ValueError, RecursionError):
                value = text
            found.append(_checked(value, f"{path}, line {number}"))
    return found


def write_explanations(folder: str | Path, explanations: Iterable[dict[str, Any]]) -> Path:
    """Write these in place of those that are there.

    Raises:
        InputError: one of them is no explanation.
    """
    path = Path(folder) / EXPLANATIONS
    given = [_checked(value, f"explanation {i}") for i, value in enumerate(explanations)]
    data = "".join(json.dumps(one) + "\n" for one in given).encode()
    write_atomic(path, lambda temporary: temporary.write_bytes(data))
    return path


def add_explanations(folder: str | Path, explanations: Iterable[dict[str, Any]]) -> Path:
    """Write these after those that are there, and in place of those of the same latent, method and model.

    Raises:
        InputError: one of them, or one that is there, is no explanation.
    """
    new = [_checked(value, f"explanation {i}") for i, value in enumerate(explanations)]
    keys = ("latent", "method", "model")
    replaced = {tuple(one[key] for key in keys) for one in new}
    kept = [one for one in read_explanations(folder) if tuple(one[key] for key in keys) not in replaced]
    return write_explanations(folder, kept + new)


def _checked(value: Any, where: str) -> dict[str, Any]:
    want = '{"latent": number, "explanation": text, "method": text, "model": text, "scores": {name: number}}'
    try:
        found = {"latent": value["latent"], "explanation": value["explanation"]}
        found |= {"method": value.get("method"), "model": value.get("model")}
        found["scores"] = scores = value.get("scores") or {}
        good = type(found["latent"]) is int and found["latent"] >= 0 and isinstance(found["explanation"], str)
        good = good and all(found[key] is None or isinstance(found[key], str) for key in ("method", "model"))
        good = good and all(type(score) in (int, float) and math.isfinite(score) for score in scores.values())
        found["explanation"].encode()  # half of a pair of surrogates is no text
    except (ValueError, KeyError, AttributeError, TypeError, OverflowError):
        good = False
    if not good:
        raise InputError(f"{where}: expected {want}, got {shown(value)}")
    return found
