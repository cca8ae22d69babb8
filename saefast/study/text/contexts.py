"""Readers of the rare contexts: DNA, base64, HTTP, Hebrew, Arabic, licences. Each gives texts of almost nothing else."""

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from saefast.study.text.archives import read, read_bytes

BODY = 300  # characters of the body of an HTTP message that are kept
# A record of GenBank or EMBL: its name, the line that describes it, its sequence in lines with spaces and positions.
_FLAT = re.compile(
    r"^(?:LOCUS|ID) +([\w.]+).*?^(?:DEFINITION|DE) +(.+?)$.*?^(?:ORIGIN|SQ)[^\n]*\n(.*?)^//",
    re.MULTILINE | re.DOTALL,
)
_FASTA = re.compile(r"^>([^\n]*)\n([ACGTNRYKMSWBDHVacgtn\n]+)(?=^>|\Z)", re.MULTILINE)
_BASE64 = re.compile(
    r"(?:^[^\n]{1,300}\n){0,6}\n?(?:^[A-Za-z0-9+/]{60,76}\n){5,}^[A-Za-z0-9+/]*={0,2}", re.MULTILINE
)
_PEM = re.compile(r"(?:^#[^\n]*\n)*^-----BEGIN.*?^-----END[^\n]*$", re.MULTILINE | re.DOTALL)
_POINTS = re.compile("[\u0591-\u05bd\u05bf-\u05c7]")  # vowels and accents of Hebrew
_TEXTUAL = ("text/", "application/json", "application/xml", "application/javascript")


def dna(archive: Path, *patterns: str, width: int = 60) -> Iterator[str]:
    """Nucleotide sequences as FASTA: a line that names the sequence, then upper-case letters, `width` a line.

    Records of GenBank and EMBL are brought into this form without their annotation. Proteins are left out.
    """
    for pattern in patterns:
        for text in read(archive, pattern):
            text = text.replace("\r\n", "\n")
            records = [(f"{name} {about}", sequence) for name, about, sequence in _FLAT.findall(text)]
            for title, sequence in records + _FASTA.findall(text):
                letters = re.sub(r"[^A-Za-z]", "", sequence).upper()
                if len(letters) >= 200 and sum(map(letters.count, "ACGT")) > 0.95 * len(letters):
                    lines = [letters[i : i + width] for i in range(0, len(letters), width)]
                    yield "\n".join([f">{title}", *lines])


def certificates(archive: Path, pattern: str) -> Iterator[str]:
    """PEM blocks with the comments before them, three a text."""
    for text in read(archive, pattern):
        blocks = _PEM.findall(text.replace("\r\n", "\n"))
        for i in range(0, len(blocks), 3):
            yield "\n\n".join(blocks[i : i + 3])


def attachments(archive: Path, pattern: str) -> Iterator[str]:
    """What is encoded as base64 in mails, with at most six lines of header."""
    for data in read_bytes(archive, pattern):
        yield from _BASE64.findall(data.decode("latin-1").replace("\r\n", "\n"))


def _message(first: str, headers: dict[str, Any], body: object, skipped: tuple[str, ...] = ()) -> str:
    """An HTTP message: the first line, the fields of its header, a blank line and the beginning of its body, if it is text."""
    fields = []
    for name, value in headers.items():
        if name.lower() not in skipped:
            fields += [f"{name}: {one}" for one in (value if isinstance(value, list) else [value])]
    text = body if isinstance(body, str) else json.dumps(body) if body else ""
    return "\n".join([first, *fields, "", text[:BODY]]).rstrip()


def _exchange(
    method: str, uri: str, request: tuple[dict, Any], status: str, response: tuple[dict, Any]
) -> str:
    """A request and its response."""
    parts = urlsplit(uri)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    asked = {"Host": parts.netloc} | request[0]
    first = f"{method.upper()} {path} HTTP/1.1"
    return (
        _message(first, asked, request[1]) + "\n\n" + _message(f"HTTP/1.1 {status}", response[0], response[1])
    )


def cassettes(archive: Path, pattern: str, most: int = 6) -> Iterator[str]:
    """Requests and responses that VCR-like tools have recorded as JSON (Betamax's format); the first `most` of a file."""
    for text in read(archive, pattern):
        try:
            recorded = json.loads(text)
        except ValueError:  # a test of a broken file
            continue
        for one in (recorded.get("http_interactions") or recorded.get("interactions") or [])[:most]:
            asked, got = one["request"], one["response"]
            if "status" in got:  # some tests keep less than a whole exchange
                sides = (asked["headers"], _body(asked)), (got["headers"], _body(got))
                status = f"{got['status']['code']} {got['status']['message']}"
                yield _exchange(asked["method"], asked["uri"], sides[0], status, sides[1])


def _body(message: dict[str, Any]) -> object:
    body = message.get("body", "")
    return body.get("string", "") if isinstance(body, dict) else body


def nock(archive: Path, pattern: str) -> Iterator[str]:
    """Requests and responses that nock has recorded as JSON."""
    for text in read(archive, pattern):
        for one in json.loads(text):
            fields = one.get("rawHeaders") or one.get("headers") or {}
            if isinstance(fields, list):
                fields = dict(zip(fields[::2], fields[1::2], strict=True))
            asked, got = (one.get("reqheaders") or {}, one["body"]), (fields, one["response"])
            yield _exchange(one["method"], one["scope"] + one["path"], asked, str(one["status"]), got)


def web_archive(archive: Path, pattern: str) -> Iterator[str]:
    """The HTTP messages of WARC files, four a text: https://iipc.github.io/warc-specifications/."""
    for data in read_bytes(archive, pattern):
        found = []
        for record in re.split(rb"^WARC/1\.[01]\r?\n", data, flags=re.MULTILINE):
            message = re.split(rb"\r?\n\r?\n", record, maxsplit=1)[-1]
            if re.match(rb"HTTP/\d|[A-Z]+ \S+ HTTP/\d", message):
                head, _, body = message.decode("latin-1").replace("\r\n", "\n").partition("\n\n")
                is_text = any(f"content-type: {kind}" in head.lower() for kind in _TEXTUAL)
                found.append(f"{head}\n\n{body.strip()[:BODY] if is_text else ''}".rstrip())
        for i in range(0, len(found), 4):
            yield "\n\n".join(found[i : i + 4])


def hebrew(archive: Path) -> Iterator[str]:
    """Bible, Mishnah and Talmud, a chapter or page each. Half of the Bible's books and of the Talmud's tractates keep their vowel
    points and accents, the others lose them: modern Hebrew is written without."""
    for name in ("bible", "mishnah", "bavli", "yerushalmi"):
        for number, book in enumerate(json.loads(next(read(archive, f"*/json/{name}.json")))):
            for chapter in book:
                text = (
                    "\n".join(chapter) if isinstance(chapter[0], str) else "\n".join(map("\n".join, chapter))
                )
                yield text if number % 2 else _POINTS.sub("", text.replace("\u05be", " "))


def quran(archive: Path) -> Iterator[str]:
    """A chapter each, every second one with its vowel signs."""
    for name, odd in (("simple", 0), ("simple-clean", 1)):
        chapters: dict[int, list[str]] = {}
        for line in io.StringIO(next(read(archive, f"*/resources/{name}.txt"))):
            if re.match(r"\d+\|", line):  # after the text stands its licence
                chapter, _, verse = line.rstrip("\n").split("|")
                chapters.setdefault(int(chapter), []).append(verse)
        yield from ("\n".join(verses) for chapter, verses in chapters.items() if chapter % 2 == odd)


def licences(archive: Path, pattern: str) -> Iterator[str]:
    """Texts of licences, without the description (YAML between two `---`) that ScanCode keeps above them."""
    for text in read(archive, pattern):
        yield re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL).strip()
