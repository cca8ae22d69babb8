"""No score is made of text that an explainer saw."""

from saefast.errors import check
from saefast.interp.explain.examples import Examples


def check_held_out(examples: Examples) -> None:
    """Raise InputError if windows are not of the split "score": explainers read the others."""
    got = f"windows of {examples.split!r}, which explanations are made from"
    check(examples.split == "score", f'examples: expected windows of the split "score", got {got}')
