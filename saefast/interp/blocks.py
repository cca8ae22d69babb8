"""What a report is made of, and how it becomes a page and Markdown."""

import html
from collections.abc import Sequence
from typing import NamedTuple

STYLE = """:root { color-scheme: light dark }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto }
td, th { border-bottom: 1px solid #8884; padding: .25rem .6rem; text-align: left; vertical-align: top }
img { max-width: 100%; background: white } code { overflow-wrap: anywhere }
.passed { color: #1a7f37 } .failed { color: #cf222e; font-weight: 600 } .skipped { opacity: .6 }
"""


def file_of(picture: str) -> str:
    """Where a picture lies in the folder of the study: without spaces, which a link of Markdown cannot have."""
    return f"pictures/{picture.replace(' ', '-')}.png"


VERDICTS = {True: "passed", False: "failed", None: "skipped"}


class Table(NamedTuple):
    head: Sequence[str]
    lines: Sequence[Sequence[object]]


class Picture(NamedTuple):
    name: str  # of the file, see `file_of`
    what: str


class Link(NamedTuple):
    text: str
    to: str


class Section(NamedTuple):
    title: str
    parts: Sequence["str | Table | Picture | Link"]


def as_html(title: str, written: Sequence[Section]) -> str:
    parts = [f"<h1>{html.escape(title)}</h1>"]
    for section in written:
        parts.append(f"<h2>{html.escape(section.title)}</h2>")
        parts += [_html_of(part) for part in section.parts]
    body = "\n".join(parts)
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{html.escape(title)}</title>'
    return f"<!doctype html><html lang='en'><head>{head}<style>{STYLE}</style></head><body>\n{body}\n</body></html>\n"


def _html_of(part: "str | Table | Picture | Link") -> str:
    if isinstance(part, Picture):
        source, what = html.escape(file_of(part.name)), html.escape(part.what)
        return f'<figure><img src="{source}" alt="{what}"><figcaption>{what}</figcaption></figure>'
    if isinstance(part, Link):
        return f'<p><a href="{html.escape(part.to)}">{html.escape(part.text)}</a></p>'
    if isinstance(part, Table):
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in part.head)
        lines = ["".join(_cell(cell) for cell in line) for line in part.lines]
        return f"<table><tr>{head}</tr>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"
    return f"<p>{html.escape(part)}</p>"


def _cell(cell: object) -> str:
    text = html.escape(str(cell))
    if isinstance(cell, Link):
        text = f'<a href="{html.escape(cell.to)}">{html.escape(cell.text)}</a>'
    verdict = f' class="{cell}"' if cell in VERDICTS.values() else ""
    return f"<td{verdict}>{text}</td>"


def as_markdown(title: str, written: Sequence[Section]) -> str:
    parts = [f"# {title}"]
    for section in written:
        parts.append(f"## {section.title}")
        parts += [_markdown_of(part) for part in section.parts]
    return "\n\n".join(parts) + "\n"


def _markdown_of(part: "str | Table | Picture | Link") -> str:
    if isinstance(part, Picture):
        return f"![{part.what}]({file_of(part.name)})"
    if isinstance(part, Link):
        return f"[{part.text}]({part.to})"
    if isinstance(part, Table):
        lines = [part.head, ["---"] * len(part.head), *part.lines]
        return "\n".join("| " + " | ".join(_plain(cell) for cell in line) + " |" for line in lines)
    return part


def _plain(cell: object) -> str:
    text = f"[{cell.text}]({cell.to})" if isinstance(cell, Link) else str(cell)
    return text.replace("|", "\\|").replace("\n", " ")
