"""The map of a ladder: latents of all dictionaries as points, parents joined to their children, clusters named by tokens."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from saefast.interp.ladder_map import Cluster, LadderMap
from saefast.interp.pictures.drawing import COLORS, TEXT, figure, save, tokens_label
from saefast.interp.splitting import Splitting
from saefast.interp.vocabulary import Vocabulary

SIZES = (46, 12, 3.5)  # of the points of a dictionary, from the smallest; the last for all further ones


def draw_ladder_map(
    found: LadderMap,
    splitting: Splitting | None,
    path: str | Path,
    vocabulary: Vocabulary | None = None,
    *,
    clusters: Sequence[Cluster] = (),
    names: Sequence[str] | None = None,
    most_named: int = 40,
) -> Path:
    """
    Args:
        splitting: of the same ladder; a line goes from each child to the nearest of its parents.
        clusters: those to name, the most important first, as `common_tokens` gives them; a name that would cover an earlier one
            is left out.
        names: of the dictionaries; default: A/0, A/1, ...

    Raises:
        InputError: matplotlib is not installed.
    """
    picture = figure(13, 11)
    axes = picture.add_axes((0.01, 0.01, 0.98, 0.95))
    axes.set_xticks([])
    axes.set_yticks([])
    places = found.atlas.coordinates.numpy()
    there = ~np.isnan(places[:, 0])
    if splitting is not None:
        _links(axes, found, splitting, places)
    for level in range(len(found.first) - 1):
        rows = np.flatnonzero(there & (found.level == level))
        name = names[level] if names is not None else f"A/{level}"
        color, size = COLORS[level % len(COLORS)], SIZES[min(level, len(SIZES) - 1)]
        edge = {"edgecolors": "white", "linewidths": 0.6} if level == 0 else {"linewidths": 0}
        label = f"{name}: {len(rows):,} latents"
        axes.scatter(*places[rows].T, s=size, color=color, alpha=0.85, zorder=10 - level, label=label, **edge)
    axes.margins(0.03)
    legend = axes.legend(loc="upper left", fontsize=10, markerscale=1.3, framealpha=0.95)
    axes.set_title(
        "rows of W_dec, UMAP by cosine; a line joins each child to the nearest of its parents", fontsize=11
    )
    _named(axes, found, places, clusters, vocabulary, most_named, legend)
    return save(picture, path)


def _links(axes: Any, found: LadderMap, splitting: Splitting, places: np.ndarray) -> None:
    from matplotlib.collections import LineCollection

    for level, step in enumerate(splitting.steps):
        nearest = np.lexsort([-step.cosine, step.children])
        first = nearest[np.unique(step.children[nearest], return_index=True)[1]]
        ends = np.stack(
            [
                places[found.rows(level, step.parents[first])],
                places[found.rows(level + 1, step.children[first])],
            ],
            axis=1,
        )
        ends = ends[~np.isnan(ends).any(axis=(1, 2))]
        alpha = float(np.clip(150 / max(len(ends), 1), 0.05, 0.5))
        axes.add_collection(
            LineCollection(list(ends), colors="#6b7785", linewidths=0.5, alpha=alpha, zorder=1)
        )


def _named(
    axes: Any,
    found: LadderMap,
    places: np.ndarray,
    clusters: Sequence[Cluster],
    vocabulary: Vocabulary | None,
    most: int,
    legend: Any,
) -> None:
    axes.figure.draw_without_rendering()  # the limits and the legend are settled
    taken, frame, n = [legend.get_window_extent()], axes.get_window_extent(), 0
    numbers = found.atlas.clusters.numpy()
    for cluster in clusters:
        if n == most:
            break
        middle = np.nanmedian(places[numbers == cluster.number], axis=0)
        label = tokens_label(cluster.tokens[:3], vocabulary, 26)
        box = {
            "boxstyle": "round,pad=0.15",
            "facecolor": "white",
            "edgecolor": "#b8c1cc",
            "alpha": 0.85,
            "lw": 0.5,
        }
        text = axes.annotate(
            label, middle, xytext=(0, 9), textcoords="offset points", ha="center", fontsize=7.5, zorder=30, bbox=box, **TEXT
        )  # fmt: skip
        extent = text.get_window_extent().padded(4)
        inside = (
            frame.x0 < extent.x0 and extent.x1 < frame.x1 and frame.y0 < extent.y0 and extent.y1 < frame.y1
        )
        if not inside or any(extent.overlaps(other) for other in taken):
            text.remove()
            continue
        taken.append(extent)
        n += 1
