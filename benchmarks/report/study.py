"""Puts the report of a finished study into docs/: its text, the pictures of what was asked for, and the registration of its trial.

python -m benchmarks.report.study RUN        RUN: OUT of `saefast study monosemanticity --scale laptop --out OUT`

Links into the browser and other files of the run become plain text: they lie in the run.
"""

import re
import shutil
import sys
from pathlib import Path

from benchmarks.measuring import commit, machine
from saefast.files import write_atomic
from saefast.interp.blocks import file_of
from saefast.study.control import ASKED

DOCS = Path(__file__).resolve().parents[2] / "docs"
NAME = "monosemanticity"
CONTEXTS = "pictures/context-"
PICTURE, LINK = (
    re.compile(r"!\[([^\]]*)\]\((pictures/[^)]*)\)\n\n"),
    re.compile(r"(?<!!)\[([^\]]*)\]\([^)]*\)"),
)


def study_page(run: Path, docs: Path = DOCS) -> Path:
    """Write docs/monosemanticity.md and docs/monosemanticity/ of the run, and return the page."""
    text, pictures = (run / "report.md").read_text(encoding="utf-8"), docs / NAME
    title, rest = text.split("\n\n", 1)
    shutil.rmtree(pictures, ignore_errors=True)
    pictures.mkdir(parents=True)
    rest = LINK.sub(r"\1", PICTURE.sub(lambda found: _picture(found, run, pictures), rest + "\n"))
    shutil.copy(run / "trial" / "registration.json", pictures)
    page = docs / f"{NAME}.md"
    write_atomic(
        page, lambda file: file.write_text(f"{title}\n\n{_head()}\n\n{rest.strip()}\n", encoding="utf-8")
    )
    return page


def _picture(found: re.Match[str], run: Path, pictures: Path) -> str:
    """The picture in docs; nothing for a context that was not asked for."""
    what, path = found.groups()
    asked = {file_of(f"context-{name}") for name in ASKED}
    if path.startswith(CONTEXTS) and path not in asked:
        return ""
    shutil.copy(run / path, pictures)
    return f"![{what}]({NAME}/{Path(path).name})\n\n"


def _head() -> str:
    here = machine()
    versions = ", ".join(f"{name} {version}" for name, version in here["versions"].items())
    return (
        "What `saefast study monosemanticity --scale laptop` wrote ([study.md](study.md) says what it does), put here by "
        f"`python -m benchmarks.report.study RUN`: {here['device']}, {here['threads']} threads, {here['date']}, commit {commit()}, {versions}. "
        f"The registration of the trial is [{NAME}/registration.json]({NAME}/registration.json)."
    )


if __name__ == "__main__":
    print(study_page(Path(sys.argv[1])))
