"""Families of latents, drawn from left to right: a latent, what it splits into, and what they split into."""

from collections.abc import Sequence
from pathlib import Path

from saefast.errors import check
from saefast.interp.pictures.drawing import COLORS, TEXT, figure, save, tokens_label
from saefast.interp.splitting import Family, Member
from saefast.interp.vocabulary import Vocabulary

LINE = 0.21  # inches of height of a member
COLUMN = 4.1  # inches of width of a level


def draw_families(
    families: Sequence[Family],
    path: str | Path,
    vocabulary: Vocabulary | None = None,
    *,
    names: Sequence[str] | None = None,
    most_children: int = 6,
) -> Path:
    """Each member with its number, how often it is active and the tokens on which it is most active; the thicker a line, the
    larger the masked cosine.

    Args:
        names: of the dictionaries; default: A/0, A/1, ...
        most_children: of one parent that are drawn; the others are counted.

    Raises:
        InputError: no families, or matplotlib is not installed.
    """
    check(len(families) > 0, "families: expected one or more, got none")
    n_levels = max(len(family.levels) for family in families)
    columns = list(names) if names is not None else [f"A/{level}" for level in range(n_levels)]
    drawn: list[_Drawn] = []
    top = 0.0
    for family in families:
        one = _Drawn(family, top, most_children)
        drawn.append(one)
        top = one.end + 1.2
    height = LINE * (top + 1.5)
    picture = figure(COLUMN * n_levels + 0.3, height)
    axes = picture.add_axes((0, 0, 1, 1))
    axes.set_xlim(-0.1, COLUMN * n_levels + 0.2)
    axes.set_ylim(top - 0.5, -2)
    axes.axis("off")
    for level, name in enumerate(columns[:n_levels]):
        color = COLORS[level % len(COLORS)]
        axes.text(COLUMN * level, -1.3, name, fontsize=11, weight="bold", color=color, va="center", **TEXT)
    for one in drawn:
        for (x0, y0), (x1, y1), cosine in one.lines:
            middle = (x0 + x1) / 2
            axes.plot(
                [x0, middle, middle, x1],
                [y0, y0, y1, y1],
                color="#9aa5b1",
                lw=0.5 + 2.5 * cosine**2,
                zorder=1,
            )
        for x, y, member in one.members:
            color = COLORS[member.level % len(COLORS)]
            axes.plot([x - 0.05], [y], "o", color=color, markersize=4, zorder=2)
            number = f"{member.latent}  ({member.density:.2%})"
            axes.text(x + 0.02, y, number, fontsize=7, color=color, va="center", zorder=3, **TEXT)
            label = tokens_label(member.tokens, vocabulary)
            axes.text(x + 1.0, y, label, fontsize=8, color="#1b2430", va="center", zorder=3, **TEXT)
        for x, y, text in one.notes:
            axes.text(x + 0.02, y, text, fontsize=7, color="#5c6773", style="italic", va="center", **TEXT)
    return save(picture, path)


class _Drawn:
    """Where everything of a family is: each member that has no children has a line of its own, a parent is beside the middle of its
    children."""

    def __init__(self, family: Family, top: float, most_children: int) -> None:
        self.members: list[tuple[float, float, Member]] = []
        self.lines: list[tuple[tuple[float, float], tuple[float, float], float]] = []
        self.notes: list[tuple[float, float, str]] = []
        self.end, self.most, self.levels = top, most_children, family.levels
        self._place(0, 0)

    def _place(self, level: int, place: int) -> float:
        """Put a member and all below it from `end` on; returns its height."""
        member, x = self.levels[level][place], COLUMN * level + 0.1
        below = self.levels[level + 1] if level + 1 < len(self.levels) else []
        children = [i for i, child in enumerate(below) if child.parent == place]
        heights = [self._place(level + 1, child) for child in children[: self.most]]
        if len(children) > self.most:
            self.notes.append((x + COLUMN, self.end, f"and {len(children) - self.most} more"))
            self.end += 1
        if not heights:
            y = self.end
            self.end += 1
        else:
            y = (heights[0] + heights[-1]) / 2
        for child, height in zip(children, heights, strict=False):
            start = x + COLUMN - 0.75, y
            self.lines.append((start, (x + COLUMN - 0.05, height), float(below[child].cosine or 0)))
        self.members.append((x, y, member))
        return y
