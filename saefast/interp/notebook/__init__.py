"""Latents in a notebook.

    from saefast.interp import show
    show(records, tokenizer, latent=17)

Jupyter, VS Code and nbconvert render what it returns: HTML in one piece, without scripts. In a terminal it prints as text.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from saefast.errors import check
from saefast.interp.effects import Effects, read_ablations
from saefast.interp.explanations import read_explanations
from saefast.interp.notebook.active import ActiveText
from saefast.interp.notebook.page import (
    STYLE,
    Shown,
    latent_html,
    latent_text,
    text_html,
    text_text,
)
from saefast.interp.records import LatentRecord, Records
from saefast.interp.strongest import strongest
from saefast.interp.vocabulary import Vocabulary

__all__ = ["ActiveText", "View", "show"]


class View:
    """What `show` returns."""

    def __init__(self, html: str, text: str) -> None:
        self.html, self.text = html, text

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return self.text


def show(
    what: Records | LatentRecord | ActiveText | Iterable[LatentRecord],
    tokenizer: Any = None,
    *,
    latent: int | Iterable[int] | None = None,
    context: int | None = None,
    effects: Effects | None = None,
    n: int = 5,
) -> View:
    """Latents, or a text with its active latents, to look at.

    Args:
        what: records, of which `latent` or `context` says what to show; or a latent of them, several, or an `ActiveText`.
        tokenizer: the one that made the text, or its `Vocabulary`, which is made once for many calls. Without one,
            tokens are shown by their ids.
        latent: which one, or which ones; without it and `context`, the ten of the largest energy.
        context: the number of a context of the recorded text, to be shown with the latents that are active on it.
        effects: logits, neighbours and so on; default: those in the folder of the records.
        n: examples of each group, of each interval and of each quantile; rows of the tables.

    Raises:
        InputError: there is no such latent or context, or something that cannot be shown.
    """
    check(type(n) is int and n > 0, f"n: expected a positive integer, got {n!r}")
    vocabulary = tokenizer
    if tokenizer is not None and not isinstance(tokenizer, Vocabulary):
        usable = hasattr(tokenizer, "convert_ids_to_tokens")
        check(usable, f"tokenizer: expected a tokenizer or a Vocabulary, got {type(tokenizer).__name__}")
        vocabulary = Vocabulary(tokenizer)
    folder: Path | None = None
    if isinstance(what, Records):
        check(latent is None or context is None, "latent: expected it or context, got both")
        folder = what.folder
        if context is not None:
            what = ActiveText.recorded(what, context)
        elif latent is None:
            what = strongest(what, n_examples=n, max_density=1.0)
        else:
            numbers = [latent] if isinstance(latent, int) else list(latent)
            what = [what.latent(number) for number in numbers]
    else:
        check(latent is None and context is None, "latent, context: expected with records only")
    if isinstance(what, ActiveText):
        return _view([text_html(what, vocabulary, n)], [text_text(what, vocabulary, n)])
    latents = [what] if isinstance(what, LatentRecord) else list(what)
    for one in latents:
        got = type(one).__name__
        check(isinstance(one, LatentRecord), f"show: expected records, latents or an ActiveText, got {got}")
    if effects is None:
        effects = Effects.load(folder) if folder else Effects()
    explanations = read_explanations(folder) if folder else []
    ablations = _ablations(folder) if folder else {}
    shown = [
        Shown(
            one,
            vocabulary,
            effects,
            [entry for entry in explanations if entry["latent"] == one.latent],
            ablations.get(one.latent, {}),
            n,
        )
        for one in latents
    ]
    return _view([latent_html(one) for one in shown], [latent_text(one) for one in shown])


def _ablations(folder: Path) -> dict[int, dict[tuple[str, int, int], Sequence[float | None]]]:
    """Effects on the tokens of windows, by latent, and by group, bin and rank."""
    found: dict[int, dict[tuple[str, int, int], Sequence[float | None]]] = defaultdict(dict)
    for (latent, group, part, rank), effects in read_ablations(folder).items():
        found[latent][group, part, rank] = effects
    return found


def _view(html: Sequence[str], text: Sequence[str]) -> View:
    return View(f'{STYLE}<div class="saefast">{"<hr>".join(html)}</div>', "\n\n".join(text))
