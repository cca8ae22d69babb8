"""How scores are distributed over units."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from saefast.errors import check
from saefast.interp.pictures.drawing import COLORS, figure, save

BINS = 40


def draw_scores(
    values: Mapping[str, np.ndarray], path: str | Path, name: str, good: float | None = None
) -> Path:
    """A histogram for each kind of unit, as shares, with its mean and the share from `good` on in the legend.

    Args:
        values: by kind, [n] numbers; kinds without any are left out.
        name: of the score, below the axis.
        good: a line is drawn there.

    Raises:
        InputError: nothing to draw, or matplotlib is not installed.
    """
    there = {kind: np.asarray(some, np.float64) for kind, some in values.items() if len(some)}
    check(len(there) > 0, "values: expected scores of at least one kind of unit, got none")
    picture = figure(6.2, 3.6)
    picture.set_layout_engine("constrained")
    axes = picture.subplots()
    low = min(0.0, *(float(some.min()) for some in there.values()))
    edges = np.linspace(max(low, -1.0), 1, BINS + 1)
    for i, (kind, some) in enumerate(there.items()):
        share = np.histogram(some.clip(edges[0], 1), edges)[0] / len(some)
        label = f"{len(some):,} {kind}: mean {some.mean():.3f}"
        if good is not None:
            label += f", {(some >= good).mean():.1%} from {good:g} on"
        axes.stairs(share, edges, fill=True, color=COLORS[i % len(COLORS)], alpha=0.45)
        axes.stairs(share, edges, color=COLORS[i % len(COLORS)], lw=1.4, label=label)
    if good is not None:
        axes.axvline(good, color="#5c6773", lw=0.8, ls=":")
    axes.set_xlim(edges[0], 1)
    axes.set_xlabel(name)
    axes.set_ylabel("share of the units")
    axes.legend(fontsize=8)
    return save(picture, path)
