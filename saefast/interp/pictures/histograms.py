"""Histograms of densities and of similarities."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from saefast.errors import check
from saefast.interp.density import DensitySets
from saefast.interp.pictures.drawing import COLORS, figure, save
from saefast.interp.universality import BINS, Universality


def draw_densities(sets: Mapping[str, DensitySets], path: str | Path) -> Path:
    """log10 of the densities of each dictionary, its ultra-low cluster in another colour.

    Args:
        sets: by the name of the dictionary.

    Raises:
        InputError: no dictionary, or matplotlib is not installed.
    """
    check(len(sets) > 0, "sets: expected one dictionary or more, got none")
    picture = figure(4.6 * len(sets), 3.6)
    picture.set_layout_engine("constrained")
    for axes, (name, one) in zip(picture.subplots(1, len(sets), squeeze=False)[0], sets.items(), strict=True):
        found = one.histogram()
        edges, live, low = (np.asarray(found[key]) for key in ("edges", "live", "ultra_low"))
        axes.stairs(live, edges, fill=True, color=COLORS[1], alpha=0.75, label=f"live: {live.sum():,}")
        axes.stairs(
            live + low,
            edges,
            baseline=live,
            fill=True,
            color=COLORS[0],
            alpha=0.85,
            label=f"ultra-low: {low.sum():,}",
        )
        axes.plot([], [], " ", label=f"dead: {int(one.dead.sum()):,}")
        axes.axvline(-2, color="#5c6773", lw=0.8, ls=":")
        above = int((one.density > 0.01).sum())
        axes.set_title(f"{name}: {above:,} of {len(one.dead):,} above 1 %", fontsize=10)
        axes.set_xlabel("log10 of the density (share of tokens)")
        axes.set_ylabel("latents")
        axes.legend(fontsize=8)
    return save(picture, path)


def draw_similarities(found: Mapping[str, Universality], path: str | Path) -> Path:
    """The best match in the other model by activation, logit weights and attribution, a line for each name (features, neurons);
    dotted: with the tokens of the other model permuted.

    Raises:
        InputError: nothing to draw, or matplotlib is not installed.
    """
    check(len(found) > 0, "found: expected one comparison or more, got none")
    panels = [
        "activation",
        *(["logits", "attribution"] if any(one.logits is not None for one in found.values()) else []),
    ]
    titles = {"activation": "activations", "logits": "logit weights", "attribution": "attributions"}
    picture = figure(4.6 * len(panels), 3.6)
    picture.set_layout_engine("constrained")
    edges = np.linspace(-1, 1, BINS + 1)
    for axes, panel in zip(picture.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for i, (name, one) in enumerate(found.items()):
            matches = getattr(one, panel)
            lines = [] if matches is None else [(matches.best, "-", name)]
            lines += [(one.permuted, ":", f"{name}, permuted tokens")] if panel == "activation" else []
            for values, style, label in lines:
                there = values[~np.isnan(values)]
                share = np.histogram(there, edges)[0] / max(len(there), 1)
                median = f"{np.median(there):.2f}" if len(there) else "none"
                axes.stairs(share, edges, color=COLORS[i], ls=style, lw=1.6, label=f"{label}: {median}")
        axes.set_xlim(-0.2 if panel == "activation" else -0.5, 1)
        axes.set_title(titles[panel], fontsize=10)
        axes.set_xlabel("correlation with the best match")
        axes.set_ylabel("share of the latents")
        axes.legend(fontsize=8, title="median", title_fontsize=8)
    return save(picture, path)
