"""Short cycles of next steps, each in a panel of its own: states in boxes, arrows to the state that comes next."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from saefast.errors import check
from saefast.interp.automata import Automata, Cycle
from saefast.interp.pictures.drawing import FROM_LEFT, TEXT, figure, save, token_label
from saefast.interp.top_tokens import TopTokens
from saefast.interp.vocabulary import Vocabulary

WIDTH = 3.6  # inches of a panel
UNIT = WIDTH / 3  # a panel is 3 units wide
HEIGHTS = (1.7, 1.5, 3.1)  # in units, of panels of one state, of two and of more
PAD = 0.06  # units between a text and its box
ARROW: dict[str, Any] = {
    "arrowstyle": "-|>",
    "color": "#d1495b",
    "linewidth": 1.5,
    "mutation_scale": 13,
    "zorder": 3,
}
BEND = 0.3  # of an arrow, times its length

Box = tuple[float, float, float, float]  # middle, half the width, half the height


def draw_automata(
    found: Automata,
    path: str | Path,
    vocabulary: Vocabulary | None = None,
    *,
    per_row: int = 4,
    n_tokens: int = 4,
) -> Path:
    """A row of self loops, one of cycles of two states and one of longer ones: the strongest that share no state, of contexts before
    those of single tokens. Beside an arrow is how often the next state follows, beside a token its share of the activation.

    Raises:
        InputError: there is no cycle, or matplotlib is not installed.
    """
    kinds = ("one state", "two states", "three states and more")
    listed = zip(kinds, HEIGHTS, (found.loops, found.pairs, found.longer), strict=True)
    rows = [(title, height, distinct(cycles, per_row)) for title, height, cycles in listed if cycles]
    check(len(rows) > 0, "found: expected a cycle or more, got none")
    heights = [height + 0.3 for _, height, _ in rows]  # and a title
    picture = figure(WIDTH * per_row, UNIT * sum(heights))
    bottom = 1.0
    for title, height, cycles in rows:
        above, bottom = bottom, bottom - (height + 0.3) / sum(heights)
        picture.text(
            0.01, above - 0.15 / sum(heights), title, fontsize=11, weight="bold", va="center", **TEXT
        )
        for column, cycle in enumerate(cycles):
            place = column / per_row, bottom, 1 / per_row, height / sum(heights)
            axes = picture.add_axes(place)
            axes.axis("off")
            axes.set(xlim=(-1.5, 1.5), ylim=(-height / 2, height / 2))
            _panel(axes, cycle, vocabulary, n_tokens)
    return save(picture, path)


def distinct(cycles: Sequence[Cycle], n: int) -> list[Cycle]:
    """The first n that share no state, those of contexts before the others."""
    chosen: list[Cycle] = []
    used: set[int] = set()
    for one in sorted(cycles, key=lambda cycle: not cycle.is_of_contexts):
        if len(chosen) < n and not used & set(one.latents):
            chosen.append(one)
            used |= set(one.latents)
    return chosen


def _panel(axes: Any, cycle: Cycle, vocabulary: Vocabulary | None, n_tokens: int) -> None:
    from matplotlib.patches import FancyArrowPatch

    places = _places(len(cycle.latents))
    boxes = [
        _state(
            axes,
            place,
            latent,
            _lines(top, vocabulary, (n_tokens, n_tokens, 3, 3, 1)[min(len(places), 5) - 1]),
        )
        for place, latent, top in zip(places, cycle.latents, cycle.tokens, strict=True)
    ]
    for i, follow in enumerate(cycle.follow):
        box, other = boxes[i], boxes[(i + 1) % len(boxes)]
        if len(boxes) == 1:
            top = box[1] + box[3]
            start, end, bend, at = (-0.2, top), (0.2, top), -1.3, (0.0, top + 0.38)
        else:
            start, end, bend, at = _between(box, other, pair=len(boxes) == 2)
        axes.add_patch(
            FancyArrowPatch(start, end, connectionstyle=f"arc3,rad={bend}", shrinkA=1, shrinkB=1, **ARROW)
        )
        axes.text(
            *at, f"{follow:.0%}", fontsize=9, color="#a3263a", ha="center", va="center", zorder=4, **TEXT
        )


def _state(axes: Any, place: tuple[float, float], latent: int, lines: list[str]) -> Box:
    """A box with text around a place."""
    from matplotlib.patches import FancyBboxPatch

    text = "\n".join([f"latent {latent}", *lines])
    drawn = axes.text(*place, text, fontsize=8, ha="center", va="center", zorder=2, **TEXT)
    extent = drawn.get_window_extent().transformed(axes.transData.inverted())
    width, height = extent.width + 2 * PAD, extent.height + 2 * PAD
    corner = place[0] - width / 2, place[1] - height / 2
    style: dict[str, Any] = {
        "boxstyle": "round,pad=0,rounding_size=0.05",
        "facecolor": "#f4f7fb",
        "edgecolor": "#2a6f97",
    }
    axes.add_patch(FancyBboxPatch(corner, width, height, linewidth=1.2, zorder=1, **style))
    return *place, width / 2, height / 2


def _between(
    box: Box, other: Box, pair: bool
) -> tuple[tuple[float, float], tuple[float, float], float, tuple[float, float]]:
    """An arrow from a box to another: where it begins and ends, how it bends, and the place of its number, on its left side. Of the
    two between a pair each has its own side."""
    dx, dy = other[0] - box[0], other[1] - box[1]
    length = math.hypot(dx, dy)
    left = -dy / length, dx / length
    aside = 0.5 * min(box[3], other[3]) if pair else 0.0
    start = _edge(box, dx, dy, left, aside)
    end = _edge(other, -dx, -dy, left, aside)
    bend = BEND if pair else BEND / 2
    out = bend * math.hypot(end[0] - start[0], end[1] - start[1]) / 2 + 0.15
    middle = (start[0] + end[0]) / 2 + left[0] * out, (start[1] + end[1]) / 2 + left[1] * out
    return start, end, -bend, middle


def _edge(box: Box, dx: float, dy: float, left: tuple[float, float], aside: float) -> tuple[float, float]:
    """Where a line from the middle of a box, moved aside, leaves it."""
    x, y = left[0] * aside, left[1] * aside
    steps = []
    for along, at, half in ((dx, x, box[2]), (dy, y, box[3])):
        if abs(along) > 1e-9:
            steps.append((math.copysign(half, along) - at) / along)
    step = min(steps)
    return box[0] + x + dx * step, box[1] + y + dy * step


def _places(n: int) -> list[tuple[float, float]]:
    """Around the middle, clockwise."""
    if n == 1:
        return [(0.0, -0.3)]
    if n == 2:
        return [(-0.9, 0.0), (0.9, 0.0)]
    angles = [math.pi / 2 + math.pi / 4 * (n == 4) - 2 * math.pi * i / n for i in range(n)]
    wide = 1.0 if n == 3 else 1.15
    return [(wide * math.cos(angle), 1.1 * math.sin(angle)) for angle in angles]


def _lines(top: TopTokens, vocabulary: Vocabulary | None, n: int) -> list[str]:
    """A line for each token of at least 1 %: signs of scripts that are written from the right stay in their own."""
    kept = [
        (token, share) for token, share in zip(top.tokens[:n], top.shares, strict=False) if share >= 0.01
    ] or [(top.tokens[0], top.shares[0])]
    names = [token_label(vocabulary.raw[t]) if vocabulary is not None else f"#{t}" for t, _ in kept]
    return [f"{FROM_LEFT}{name}  {share:.0%}" for name, (_, share) in zip(names, kept, strict=True)]
