"""What becomes of the results: explanations beside the records, pages, notes for the report."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from saefast.errors import check
from saefast.interp.blocks import Table
from saefast.interp.explain.asked.given import Given
from saefast.interp.explain.every import RESULTS, Units
from saefast.interp.explain.summary import flat
from saefast.interp.explain.trust import Trust
from saefast.interp.explanations import add_explanations, read_explanations
from saefast.interp.lines import read_lines
from saefast.interp.records import Records
from saefast.interp.vocabulary import Vocabulary

NAMES = {  # of scores in explanations.jsonl, where other tools have one number for each
    "simulation.ev_correlation_score": "simulation",
    "simulation.rsquared_score": "rsquared_score",
    "simulation.absolute_dev_explained_score": "absolute_dev_explained_score",
    "detection.balanced_accuracy": "detection",
    "detection.auc": "detection_auc",
    "fuzz.balanced_accuracy": "fuzz",
    "fuzz.auc": "fuzz_auc",
    "intruder.share": "intruder",
    "embedding.auc": "embedding",
    "examples.auc": "examples",
    "surprisal.auc": "surprisal",
    "ablation.score": "ablation",
    "saebench.accuracy": "saebench",
}


def add_to_records(
    out: Path, sets: Sequence[Units], method: str, model: str | None, usable: Sequence[str]
) -> None:
    """All explanations into explanations.jsonl of their records, with the scores of a judge that may speak. Those that were given keep
    the method and the model they had."""
    kinds = {one.kind: one.records for one in sets}
    given = {one.kind: one.explainer for one in sets if isinstance(one.explainer, Given)}
    rows: dict[str, list[dict[str, Any]]] = {kind: [] for kind in kinds}
    lines = read_lines(out / RESULTS)
    next(lines)
    for row in lines:
        numbers = flat({name: of for name, of in row["scores"].items() if name in usable})
        scores = {NAMES[name]: value for name, value in numbers.items() if name in NAMES}
        from_others = given.get(row["kind"])
        of, by = (method, model) if from_others is None else from_others.who(row["latent"])
        one = {"latent": row["latent"], "explanation": row["explanation"], "method": of, "model": by}
        rows[row["kind"]].append(one | {"scores": scores})
    for kind, records in kinds.items():
        add_explanations(records.folder, rows[kind])


def pages_of(out: Path, kinds: Mapping[str, Records], vocabulary: Vocabulary, title: str) -> dict[str, str]:
    """The pages of `saefast look`, by kind: where they are from OUT."""
    from tqdm import tqdm

    from saefast.interp.atlas import Atlas
    from saefast.interp.effects import Effects
    from saefast.interp.look import write_site

    found = {}
    for kind, records in kinds.items():
        atlas = Atlas.load(records.folder)
        with tqdm(total=records.d_sae, unit="unit", desc=f"pages of {kind}") as bar:
            write_site(
                records,
                out / kind,
                vocabulary,
                Effects.load(records.folder),
                title=f"{title}: {kind}",
                coordinates=None if atlas is None else atlas.coordinates.numpy(),
                clusters=None if atlas is None else atlas.clusters.numpy(),
                progress=bar.update,
            )
        found[kind] = f"{kind}/index.html"
    return found


def trust_notes(trusted: Trust | None, asked: Sequence[str], usable: Sequence[str]) -> Iterator[str | Table]:
    """What the judge did on the bank."""
    if trusted is None:
        return
    yield f"The judge, {trusted.judge}, on units whose explanation is known: how often it puts the true one first. Its numbers are shown from 80 % on."
    rows = [
        (
            name,
            f"{way.share.share:.0%} of {way.share.n}",
            f"{way.share.low:.0%} to {way.share.high:.0%}",
            f"{trusted.chance:.0%}",
            way.usable,
        )
        for name, way in trusted.ways.items()
    ]
    yield Table(("way", "true one first", "95 %", "chance", "may speak"), rows)
    untrusted = [name for name in asked if name not in usable]
    if untrusted:
        yield f"NOT TO BE TRUSTED: {', '.join(untrusted)}. The judge does not know true explanations from false ones that way; its numbers are here because --untrusted was given."


def sheet_notes(
    out: Path,
    kinds: Mapping[str, Records],
    vocabulary: Vocabulary,
    n: int,
    checked: Path | None,
    seed: int,
) -> Iterator[str]:
    """A sheet for people, which is written once, and what they said."""
    from saefast.interp.explain.trust.sheet import deal_sheet, key_of, read_sheet

    kind, records = next(iter(kinds.items()))
    page = out / "sheet.html"
    if n and not key_of(page).exists():
        deal_sheet(records.folder, read_explanations(records.folder), page, vocabulary, n, seed)
        yield f"sheet.html asks people which of {n} explanations of {kind} hold; give what they save to --checked."
    if checked is not None:
        check(key_of(page).exists(), f"checked: expected a sheet that --sheet wrote, there is none at {page}")
        found = read_sheet(checked, page)
        wrong, part = found.wrong, found.part
        yield (
            f"By hand ({found.rater}): {wrong.share:.0%} of {wrong.n} explanations of {kind} are wrong ({wrong.low:.0%} to {wrong.high:.0%}), "
            f"{part.share:.0%} hold in part."
        )
