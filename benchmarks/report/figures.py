"""The pictures of README.md and docs/benchmarks.md, drawn from benchmarks/results/ to docs/: `python -m benchmarks.report`.

Opaque white, so that they can be read on light and dark pages.
"""

from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from benchmarks.report.peers import DOCS, PICTURES, fingerprint, read

OURS, GREY = "#c1121f", "#7f7f7f"
COLOURS = {
    "plain PyTorch": "#222222", "best PyTorch ops": "#222222", "sparsify Adam": "#2a9d8f", "sparsify signum": "#2a9d8f",
    "dictionary_learning": "#6a4c93", "SAELens": "#1f6fb2", "SAELens sparse": "#1f6fb2", "llamascopium": "#b5651d",
    "overcomplete": "#6b8e23",
}  # fmt: skip
DASHED = ("best PyTorch ops", "sparsify signum", "SAELens sparse", "saefast, free decoder")


def draw() -> None:
    """docs/bench_<result>.png of every result that has a picture."""
    for name in PICTURES:
        figure = {"quality": quality, "step": step}[name](read(name))
        # the fingerprint is how a test knows that the picture is of the result as it is
        about = {"Software": None, "Description": fingerprint(name)}
        figure.savefig(DOCS / f"bench_{name}.png", dpi=110, facecolor="white", metadata=about)


def plain_numbers(axis: Any) -> None:
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def colour(name: str) -> str:
    return OURS if name.startswith("saefast") else COLOURS.get(name, GREY)


def quality(found: dict[str, Any]) -> Figure:
    """Held-out FVU over seconds of training, a line for each contender."""
    curves, shape = found["[seconds, tokens, FVU]"], found["shape"]
    figure = Figure(figsize=(10, 5.6), layout="constrained")
    axes = figure.subplots()
    for name, curve in sorted(curves.items(), key=lambda item: item[1][-1][0]):  # as long as they train
        wide = 2.2 if name.startswith("saefast") else 1.4
        style = ":" if name == found["long"] else "--" if name in DASHED else "-"
        axes.plot(
            [point[0] for point in curve], [point[2] for point in curve], style, color=colour(name), linewidth=wide,
            marker=".", markersize=4, label=name,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.legend(loc="lower left", fontsize=8, frameon=False)
    best = min(curve[-1][2] for curve in curves.values())
    axes.set_ylim(best * 0.93, 0.6)
    axes.set_yticks([t for t in (0.12, 0.15, 0.2, 0.3, 0.4, 0.6) if t >= best * 0.93])
    axes.set_xlabel("seconds of training")
    axes.set_ylabel("FVU on held-out activations")
    axes.set_title(
        f"The same {shape['tokens']:,} activations (SmolLM2-135M, attention sinks dropped), "
        f"{shape['d_sae']} latents, k = {shape['k']}",
        fontsize=10,
    )
    for axis in (axes.xaxis, axes.yaxis):
        plain_numbers(axis)
    axes.grid(alpha=0.25, which="both")
    return figure


def step(found: dict[str, Any]) -> Figure:
    """How many times as long as ours a step takes, with both settings of glibc's allocator."""
    shapes = [name for name in ("demo", "residual", "mlp") if name in found["shapes"]]
    figure = Figure(figsize=(10, 0.5 + 3.9), layout="constrained")
    panels = figure.subplots(1, len(shapes), sharey=True, squeeze=False)[0]
    for axes, name in zip(panels, shapes, strict=True):
        case = found["shapes"][name]
        rows = [n for n in case["glibc"]["contenders"] if not n.startswith("the encoder")]
        rows.sort(key=lambda n: case["glibc"]["contenders"][n]["times ours"][0], reverse=True)
        if axes is panels[0]:
            order = rows
        for allocator, offset, alpha in (("glibc", 0.2, 1.0), ("glibc, keeping", -0.2, 0.5)):
            values = [case[allocator]["contenders"][n]["times ours"] for n in order]
            axes.barh(
                [i + offset for i in range(len(order))], [v[0] for v in values], 0.36, alpha=alpha,
                color=[OURS if n == "saefast" else COLOURS["SAELens"] for n in order],
                label="glibc as it is" if alpha == 1 else "keeping its buffers",
            )  # fmt: skip
            for i, (median, *_) in enumerate(values):
                axes.text(median, i + offset, f" {median:.1f}", va="center", fontsize=7)
        axes.set_yticks(range(len(order)), order, fontsize=8)
        axes.set_title("B {B}, d_in {d_in}, d_sae {d_sae}, k {k}".format(**case["shape"]), fontsize=9)
        axes.set_xlabel("time of a step, times ours", fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.1)
    panels[-1].legend(fontsize=8, loc="upper right", frameon=False)
    return figure
