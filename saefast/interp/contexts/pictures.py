"""Pictures of a context: what the activations of its feature and of its neuron are made of. They need the extra `viz`.

As in "Towards Monosemanticity": above, the distribution of the activations (tokens, logarithmic), below it the same weighted by
the activation, which shows where the expected value comes from; tokens in the context in one colour, all others in another.
"""

from pathlib import Path
from typing import Any

from saefast.errors import InputError
from saefast.files import write_atomic
from saefast.interp.contexts.table import ActivationHistogram, Row, Unit

INSIDE, OUTSIDE = "tab:orange", "tab:blue"


def context_picture(
    path: str | Path, row: Row, feature: ActivationHistogram, neuron: ActivationHistogram
) -> Path:
    """Write the picture of one context as PNG.

    Args:
        feature, neuron: of `row.feature` and `row.neuron`, by `saefast.interp.contexts.activation_histogram`.

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure  # no pyplot: no global state, no display
    except ImportError:
        raise InputError("pictures need matplotlib: pip install 'saefast[viz]'") from None
    figure = Figure(figsize=(9.5, 5.6), layout="constrained")
    axes = figure.subplots(2, 2, sharex="col")
    for column, (kind, unit, of_unit) in enumerate(
        (("feature", row.feature, feature), ("neuron", row.neuron, neuron))
    ):
        middle, width = (of_unit.edges[1:] + of_unit.edges[:-1]) / 2, of_unit.edges[1] - of_unit.edges[0]
        pairs = (of_unit.inside, of_unit.outside), (of_unit.mass_inside, of_unit.mass_outside)
        for axis, (inside, outside) in zip(axes[:, column], pairs, strict=True):
            axis.bar(middle, outside, width, color=OUTSIDE, label="other text")
            axis.bar(middle, inside, width, bottom=outside, color=INSIDE, label=row.context)
            axis.grid(alpha=0.3)
        axes[0, column].set_yscale("symlog", linthresh=1)
        axes[0, column].set_title(_title(kind, unit), fontsize=10)
        axes[1, column].set_xlabel("activation")
    axes[0, 0].set_ylabel("tokens")
    axes[1, 0].set_ylabel("sum of activations (expected value)")
    axes[0, 0].legend(fontsize=8)
    head = f"{row.context}: {row.description}, {row.share:.2%} of the tokens"
    figure.suptitle(head, fontsize=11)
    options: dict[str, Any] = {
        "format": "png",
        "dpi": 110,
        "facecolor": "white",
    }  # readable on light and dark pages
    write_atomic(Path(path), lambda scratch: figure.savefig(scratch, **options))
    return Path(path)


def _title(kind: str, unit: Unit) -> str:
    shown = "none" if unit.top_half is None else f"{unit.top_half:.0%}"
    return f"{kind} {unit.latent}: AUC {unit.auc:.3f}, upper half in the context: {shown}"
