"""The report: one page with every figure, the verdict whatever it is, and links to what each latent is; the same as Markdown.

OUT/report.html, OUT/report.md     beside pictures/, look/ (the browser) and blind/ (the cards)
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from saefast.files import write_atomic
from saefast.interp.blocks import VERDICTS, Section, Table, as_html, as_markdown
from saefast.study.rows import Row
from saefast.study.sections import sections
from saefast.study.world import World


def write_report(world: World, results: dict[str, dict[str, Any]], found: Sequence[Row]) -> Path:
    """Write both, and return the page."""
    written = [_verdict(found), *sections(world, results)]
    title = f"Towards Monosemanticity, at the scale {world.scale.name}"
    page, text = world.path / "report.html", world.path / "report.md"
    write_atomic(page, lambda temporary: temporary.write_text(as_html(title, written), encoding="utf-8"))
    write_atomic(text, lambda temporary: temporary.write_text(as_markdown(title, written), encoding="utf-8"))
    return page


def _verdict(found: Sequence[Row]) -> Section:
    counts = {verdict: sum(row.passed is verdict for row in found) for verdict in VERDICTS}
    said = f"{counts[True]} conditions passed, {counts[False]} failed, {counts[None]} skipped."
    lines = [(row.number, row.what, row.bar, row.found, VERDICTS[row.passed]) for row in found]
    return Section("Verdict", [said, Table(("row", "what", "asked", "found", "verdict"), lines)])
