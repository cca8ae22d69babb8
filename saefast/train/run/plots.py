"""Curves of a run as PNG; needs the extra `viz` (matplotlib)."""

import logging
from pathlib import Path
from typing import Any

from saefast.files import write_atomic
from saefast.train.run.loggers import read_lines

log = logging.getLogger("saefast")


def curves(folder: Path) -> Path | None:
    """Plot RUN/metrics.jsonl to RUN/curves.png; returns its path, or None (and says so) without matplotlib."""
    try:
        from matplotlib.figure import Figure  # no pyplot: no global state, no display
        from matplotlib.ticker import EngFormatter
    except ImportError:
        log.warning("curves.png was not drawn: it needs `pip install saefast[viz]`")
        return None
    lines = read_lines(folder / "metrics.jsonl")
    if not lines:
        return None
    tokens = [line["tokens"] for line in lines]
    figure = Figure(figsize=(11, 6), layout="constrained")
    axes = figure.subplots(2, 3).flatten()
    panels = [
        ("fvu", "FVU (fraction of variance unexplained)", "log"),
        ("l0", "L0 (active latents per token)", "linear"),
        ("dead_frac", "dead latents (share)", "linear"),
        ("lr", "learning rate", "linear"),
        ("tokens_per_second", "tokens per second", "linear"),
    ]
    for axis, (key, title, scale) in zip(axes, panels, strict=False):
        axis.plot(tokens, [line[key] for line in lines], color="tab:blue", linewidth=1.2)
        axis.set_title(title, fontsize=10)
        axis.set_yscale(scale)
        if scale == "linear":
            axis.set_ylim(0, 1.1 * max(line[key] for line in lines) or 1)
    counted = [line for line in lines if "density_histogram" in line]
    if counted:
        labels = ["<1e-5\nor never", "1e-5", "1e-4", "1e-3", "1e-2", ">0.1"]
        axes[5].bar(labels, counted[-1]["density_histogram"], color="tab:blue")
        counted_over = f"{counted[-1]['density_tokens']:,} tokens"
        axes[5].set_title(f"latents by density, last {counted_over}", fontsize=10)
    for axis in axes[:5]:
        axis.set_xlabel("tokens")
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))  # 400k
        axis.grid(alpha=0.3)
    path = folder / "curves.png"
    options: dict[str, Any] = {
        "format": "png",
        "dpi": 110,
        "facecolor": "white",
    }  # opaque: readable on light and dark pages
    write_atomic(path, lambda temporary: figure.savefig(temporary, **options))
    return path
