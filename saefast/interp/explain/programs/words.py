"""How tokens, numbers and lists are written in the sentences of explanations."""

from collections.abc import Iterable, Sequence

from saefast.interp.vocabulary import visible

NEVER = "Never active in the documents for explaining: predicted to be inactive everywhere."


def quoted(raw: Iterable[bytes]) -> str:
    """Tokens one after another, as text in quotes."""
    return f'"{visible(b"".join(raw))}"'


def number(value: float) -> str:
    return f"{value:.3g}"


def listed(parts: Sequence[str], last: str = "and", most: int | None = None) -> str:
    """a, b and c; no more than `most` of them, and the number of the others."""
    shown = list(parts[:most])
    if len(shown) < len(parts):
        shown.append(f"{len(parts) - len(shown)} more")
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} {last} {shown[-1]}"
