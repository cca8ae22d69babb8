"""What is done to a latent: an edit, and how one is written on a command line."""

import math
import re
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, get_args

from saefast.errors import check
from saefast.interp.records import Records

How = Literal["set", "add", "scale"]
Where = Literal["all", "prompt", "generated"]
# 17=5x, 4=-2.0, 9+3, 9-3, 9*0; a value that ends in x is a multiple of the largest activation in the records
WRITTEN = re.compile(r"\s*(\d+)\s*([=+*-])\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(x?)\s*")


class Edit(NamedTuple):
    """Of one latent, in the unit of its activations."""

    latent: int
    value: float
    how: How = "set"  # its activation becomes value, or value more, or value times as large
    at: Where = "all"  # on which tokens


def pin(records: Records, latent: int, times: float = 1.0, at: Where = "all") -> Edit:
    """The latent at so many times its largest activation in the records. ("Towards Monosemanticity" pins features to their
    maximum, "Scaling Monosemanticity" to -10 to 10 times it.)

    Raises:
        InputError: no such latent, or one that is never active there.
    """
    return Edit(latent, times * largest_activation(records, latent), "set", at)


def largest_activation(records: Records, latent: int) -> float:
    """Of a latent in the records; see `pin`."""
    largest = float(records.latent(latent).max)
    check(largest > 0, f"latent: expected one that is active in {records.folder}, {latent} is active nowhere")
    return largest


def parse_edit(text: str, largest: Callable[[int], float] | None = None, at: Where = "all") -> Edit:
    """An edit as it is written on a command line:

        17=5x      set to 5 times its largest activation      9+3   add 3 (9-3: take 3 away; 9+2x: twice the largest)
        4=-2.0     set to -2.0                                9*0   scale by 0

    Args:
        largest: the largest activation of a latent, for values with x.

    Raises:
        InputError: it is written otherwise, or has an x and `largest` is None.
    """
    found = WRITTEN.fullmatch(text)
    check(found is not None, f"latent: expected one like 17=5x, 4=-2.0, 9+3 or 9*0, got {text!r}")
    assert found is not None
    latent, sign, value, is_multiple = int(found[1]), found[2], float(found[3]), bool(found[4])
    check(not (sign == "*" and is_multiple), f"latent: expected a factor without x after *, got {text!r}")
    if is_multiple:
        want = "a number, since there are no records with the largest activation (`saefast look` makes them)"
        check(largest is not None, f"latent: expected {want}, got {text!r}")
        assert largest is not None
        value *= largest(latent)
    how: How = {"=": "set", "*": "scale"}.get(sign, "add")  # type: ignore[assignment]
    return Edit(latent, -value if sign == "-" else value, how, at)


def checked_edits(edits: Sequence[Edit], d_sae: int) -> list[Edit]:
    """The edits, after it was seen that they can be made of an SAE with so many latents.

    Raises:
        InputError: a latent that there is not, two edits of a latent on the same tokens, or a value that is no number.
    """
    edits = [Edit(*edit) for edit in edits]
    seen: set[tuple[int, str]] = set()
    for edit in edits:
        is_number = not isinstance(edit.latent, bool) and hasattr(edit.latent, "__index__")
        ok = is_number and 0 <= edit.latent < d_sae
        check(ok, f"latent: expected 0 to {d_sae - 1}, got {edit.latent!r}")
        check(
            math.isfinite(edit.value),
            f"value: expected a finite number for latent {edit.latent}, got {edit.value}",
        )
        for name, kind in (("how", How), ("at", Where)):
            value = getattr(edit, name)
            check(value in get_args(kind), f"{name}: expected one of {list(get_args(kind))}, got {value!r}")
        places = ("prompt", "generated") if edit.at == "all" else (edit.at,)
        twice = any((edit.latent, place) in seen for place in places)
        check(not twice, f"edits: expected one for each latent on the same tokens, got two of {edit.latent}")
        seen |= {(edit.latent, place) for place in places}
    return edits


def described(edit: Edit) -> str:
    """An edit in words."""
    value = f"{edit.value:.4g}"
    words = {"set": f"set to {value}", "add": f"plus {value}", "scale": f"times {value}"}[edit.how]
    where = {"all": "", "prompt": ", on the prompt", "generated": ", on what is generated"}[edit.at]
    return f"latent {edit.latent} {words}{where}"
