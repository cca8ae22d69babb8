"""Renders every figure of README.md, docs/benchmarks.md and docs/drop-in/ from benchmarks/results/: tables and pictures.

python -m benchmarks.report            rewrite what is between the two markers in each page, and draw the pictures
python -m benchmarks.report --check    exit 1 if a page does not say what the results say
"""

import sys
from pathlib import Path

from benchmarks.report import cost as report_cost
from benchmarks.report import gpu as report_gpu
from benchmarks.report import numbers as report_numbers
from benchmarks.report import peers as report_peers
from benchmarks.report.peers import RESULTS, machine_text, read

ROOT = Path(__file__).resolve().parents[2]
README, BENCHMARKS = ROOT / "README.md", ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- figures: python -m benchmarks.report -->", "<!-- end of figures -->"


def readme() -> str:
    quality, step = read("quality"), read("step")
    return "\n\n".join(
        [
            f"Seconds of training to equal quality (`benchmarks/peers/quality.py`; {machine_text(quality['machine'])}):",
            report_peers.quality_table(quality),
            (f"A step (`benchmarks/peers/step_ratios.py`; {machine_text(step['machine'])}; ratios within interleaved rounds of one "
            "process, median with the 10th and 90th percentile):"),
            report_peers.step_table(step),
            "In another project's trainer (`benchmarks/peers/drop_in.py`):",
            report_peers.drop_in_table(),
            *map(report_gpu.step_table, report_gpu.reports()),
        ]
    )  # fmt: skip


def benchmarks() -> str:
    sections = {
        "Ops": ("ops", report_cost.ops_table),
        "Scaling": ("scaling", report_cost.scaling_tables),
        "The largest dictionary": ("largest", report_cost.largest_table),
        "End to end": ("pipeline", report_cost.pipeline_table),
        "Other architectures": ("parity", report_peers.architecture_table),
        "Numbers": ("parity", report_numbers.numbers_table),
    }
    texts = [
        f"## {title}\n\n{table() if (RESULTS / 'cpu' / f'{name}.json').exists() else 'Not measured.'}"
        for title, (name, table) in sections.items()
    ]
    return "\n\n".join(texts + [report_gpu.section(report) for report in report_gpu.reports()])


def pages() -> dict[Path, str]:
    """Each page that has figures, and what is to stand between its markers."""
    projects = {
        ROOT / "docs" / "drop-in" / f"{project}.md": report_peers.drop_in_text(project)
        for project in report_peers.drop_in()
    }
    return {README: readme(), BENCHMARKS: benchmarks()} | projects


def filled(page: Path, figures: str) -> str:
    head, rest = page.read_text().split(BEGIN)
    return f"{head}{BEGIN}\n{figures}\n{END}{rest.split(END)[1]}"


def main() -> None:
    for page, figures in pages().items():
        wanted = filled(page, figures)
        if "--check" not in sys.argv:
            page.write_text(wanted)
        elif wanted != page.read_text():
            sys.exit(f"{page} does not say what benchmarks/results/ says: run python -m benchmarks.report")
    if "--check" not in sys.argv:
        from benchmarks.report import figures as report_figures

        report_figures.draw()


if __name__ == "__main__":
    main()
