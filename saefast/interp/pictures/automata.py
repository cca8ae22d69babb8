"""Short cycles of next steps, each in a panel of its own: states in boxes, arrows to the state that comes next."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from saefast.errors import check
from saefast.interp.automata import Automata, Cycle
from saefast.interp.pictures.drawing import TEXT, figure, save, token_label
from saefast.interp.top_tokens import TopTokens
from saefast.interp.vocabulary import Vocabulary

PANEL = 3.6  # inches
BOX = {"boxstyle": "round,pad=0.45", "facecolor": "#f4f7fb", "edgecolor": "#2a6f97", "linewidth": 1.2}
ARROW = {"arrowstyle": "-|>", "color": "#d1495b", "linewidth": 1.6, "mutation_scale": 14, "zorder": 1}


def draw_automata(
    found: Automata,
    path: str | Path,
    vocabulary: Vocabulary | None = None,
    *,
    per_row: int = 4,
    n_tokens: int = 4,
) -> Path:
    """A row of self loops, one of cycles of two states and one of longer ones: the strongest that share no state, of contexts before
    those of single tokens. Beside an arrow is how often the next state follows.

    Raises:
        InputError: there is no cycle, or matplotlib is not installed.
    """
    rows = [
        (title, distinct(cycles, per_row))
        for title, cycles in (
            ("one state", found.loops),
            ("two states", found.pairs),
            ("three states and more", found.longer),
        )
        if cycles
    ]
    check(len(rows) > 0, "found: expected a cycle or more, got none")
    picture = figure(PANEL * per_row, (PANEL + 0.35) * len(rows))
    panels = picture.subplots(len(rows), per_row, squeeze=False)
    picture.subplots_adjust(left=0.01, right=0.99, bottom=0.01, top=0.96, wspace=0.02, hspace=0.12)
    for axes in panels.flat:
        axes.axis("off")
        axes.set(xlim=(-1.5, 1.5), ylim=(-1.5, 1.5), aspect="equal")
    for line, (title, cycles) in zip(panels, rows, strict=True):
        line[0].set_title(title, fontsize=11, weight="bold", loc="left")
        for axes, cycle in zip(line, cycles, strict=False):
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
    places = _places(len(cycle.latents))
    boxes = []
    for (x, y), latent, top in zip(places, cycle.latents, cycle.tokens, strict=True):
        lines = [f"latent {latent}", *_lines(top, vocabulary, n_tokens if len(places) < 3 else 3)]
        text = axes.text(
            x, y, "\n".join(lines), fontsize=8, ha="center", va="center", bbox=BOX, zorder=2, **TEXT
        )
        boxes.append(text.get_bbox_patch())
    axes.figure.canvas.draw()  # the boxes get their size
    from matplotlib.patches import FancyArrowPatch

    for i, ((x0, y0), follow) in enumerate(zip(places, cycle.follow, strict=True)):
        x1, y1 = places[(i + 1) % len(places)]
        share = f"{follow:.0%}"
        if len(places) == 1:
            box = boxes[0].get_window_extent().transformed(axes.transData.inverted())
            ends = (x0 - 0.2, box.y1 + 0.02), (x0 + 0.2, box.y1 + 0.02)
            axes.add_patch(FancyArrowPatch(*ends, connectionstyle="arc3,rad=-1.9", **ARROW))
            at = x0, box.y1 + 0.52
        else:
            bend = 0.35 if len(places) == 2 else 0.15
            ends = (x0, y0), (x1, y1)
            sides = {"patchA": boxes[i], "patchB": boxes[(i + 1) % len(places)], "shrinkA": 3, "shrinkB": 3}
            axes.add_patch(FancyArrowPatch(*ends, connectionstyle=f"arc3,rad={-bend}", **sides, **ARROW))
            length = math.hypot(x1 - x0, y1 - y0)
            out = bend * length / 2 + 0.16
            at = (x0 + x1) / 2 - (y1 - y0) / length * out, (y0 + y1) / 2 + (x1 - x0) / length * out
        axes.text(*at, share, fontsize=9, color="#a3263a", ha="center", va="center", zorder=3, **TEXT)


def _places(n: int) -> list[tuple[float, float]]:
    """Around the middle, clockwise."""
    if n == 1:
        return [(0.0, -0.2)]
    if n == 2:
        return [(-0.85, 0.0), (0.85, 0.0)]
    angles = [math.pi / 2 + math.pi / 4 * (n == 4) - 2 * math.pi * i / n for i in range(n)]
    return [(1.0 * math.cos(angle), 1.0 * math.sin(angle)) for angle in angles]


def _lines(top: TopTokens, vocabulary: Vocabulary | None, n: int) -> list[str]:
    """A line for each token: signs of scripts that are written from the right stay in their own."""
    names = [token_label(vocabulary.raw[t]) if vocabulary is not None else f"#{t}" for t in top.tokens[:n]]
    return [f"{name}  {share:.0%}" for name, share in zip(names, top.shares, strict=False)]
