"""Synthetic text with things in it that a unit could stand for: where each of them is, is known.

Documents are prose from a small grammar, code, Hebrew, DNA, base64 and nutrition labels, in a vocabulary of some 500 tokens. DNA and base64 come in runs inside of prose, too.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from saefast.interp.vocabulary import Vocabulary

SEPARATOR = "<eos>"
DNA = [a + b + c for a in "ACGT" for b in "ACGT" for c in "ACGT"]
HEBREW = "\u05d0\u05d1\u05d2\u05d3\u05d4\u05d5\u05d6\u05d7\u05d8\u05d9\u05db\u05dc\u05de\u05e0\u05e1\u05e2"
BASE64 = "aZbYcXdWeVfUgThSiRjQkPlOmNnMoLpKqJrIsHtGuFvEwDxCyBzA0918273645"
WORDS = {  # of each class, those of prose with the space before them
    "colour": (
        " red| green| blue| yellow| black| white| grey| brown| pink| purple| orange| golden| pale| dark"
    ),
    "animal": (
        " dog| cat| horse| bird| fish| mouse| cow| fox| wolf| bear| goat| sheep| pig| hen| duck| owl|"
        " lion| frog| snake| crow| bee| ant"
    ),
    "thing": (
        " table| house| river| book| stone| door| ship| road| lamp| chair| cup| wall| tree| hill|"
        " boat| coat| hat| bell| rope| coin| clock| gate"
    ),
    "person": (
        " king| doctor| child| teacher| sailor| judge| mother| thief| baker| priest| nurse| miner|"
        " farmer| poet| cook| guard| queen| uncle| pilot| clerk| monk| tailor"
    ),
    "motion": (
        " ran| walked| swam| jumped| crawled| flew| marched| rode| fell| danced| climbed| slid|"
        " rolled| hurried| sailed| drove| stepped| rushed| sank| spun"
    ),
    "speech": (
        " said| asked| shouted| whispered| answered| told| replied| claimed| begged| lied| sang|"
        " swore| joked| argued| cried| muttered| boasted| prayed| warned| agreed"
    ),
    "place": " under| over| near| behind| inside| above| beside| around| across| past| beyond| below",
    "day": " Monday| Tuesday| Wednesday| Thursday| Friday| Saturday| Sunday",
    "month": " January| February| March| April| June| July| August| October",
    "determiner": " the| a| this| every",
    "joint": " and| but| because| while",
    "stop": ".|!|?",
    "number": "|".join(map(str, range(60))),
    "money": "$|\u20ac|\u00a3",
    "keyword": " def| return| if| else| for| import| class| while",
    "name": (
        "x|y|self|data|index|count|value|node|left|right|key|item|text|size|head|tail|name|path|flag|"
        "rate|step|mode|user|list|row|cell|loss|grad|bias|unit"
    ),
    "bracket": "(|)|[|]|{|}",
    "operator": " =| +| -| ==| <| >",
    "nutrient": "Protein|Fat|Sugar|Salt|Fibre|Sodium|Energy|Starch|Iron|Zinc|Calcium|Iodine",
    "amount": " g| mg|%| kcal",
}
CLASSES: dict[str, list[str]] = {name: words.split("|") for name, words in WORDS.items()} | {
    "dna": DNA,
    "base64": [BASE64[i : i + 4] for i in range(len(BASE64) - 3)],
    "hebrew": [a + b for a in HEBREW[:8] for b in HEBREW[8:]],
}
KINDS = ("prose", "code", "hebrew", "dna", "base64", "nutrition")
KIND_SHARES = (0.5, 0.14, 0.09, 0.09, 0.09, 0.09)
RUNS = ("dna", "base64", "hebrew")
REACH = 8  # tokens back, for what is around


class PlantedVocabulary(Vocabulary):
    """A `Vocabulary` without a tokenizer."""

    def __init__(self) -> None:
        words = [SEPARATOR, "\n", ",", ":", *(word for group in CLASSES.values() for word in group)]
        unique = list(dict.fromkeys(words))
        self.tokenizer = None
        self.raw = [word.encode() for word in unique]
        self.special = {0}
        self._is_taken_apart = False
        self.ids = {word: i for i, word in enumerate(unique)}


Holds = Callable[[np.ndarray], np.ndarray]
"""tokens [n, L] int, texts of their own; -1 is padding -> [n, L] bool, where it is; that depends on nothing after a token."""


class Thing(NamedTuple):
    """Something that a unit can stand for."""

    name: str
    kind: str  # "token class", "pair", "script", "run", "topic", "single token"
    holds: Holds


def planted_text(n_tokens: int, vocabulary: PlantedVocabulary, seed: int = 0) -> np.ndarray:
    """Tokens [n] int64, documents one after another, each ended by the separator."""
    rng = np.random.default_rng(seed)
    words: list[str] = []
    while len(words) < n_tokens:
        kind = KINDS[int(rng.choice(len(KINDS), p=KIND_SHARES))]
        words += [*_document(rng, kind, int(rng.integers(40, 160))), SEPARATOR]
    return np.asarray([vocabulary.ids[word] for word in words[:n_tokens]])


def _document(rng: np.random.Generator, kind: str, n: int) -> list[str]:
    found: list[str] = []
    while len(found) < n:
        if kind == "prose" and rng.random() < 0.03:
            kind_here = RUNS[int(rng.integers(2))]  # DNA or base64, quoted
            found += [":", *_run(rng, kind_here, int(rng.integers(4, 20))), "\n"]
        elif kind in RUNS:
            found += [*_run(rng, kind, int(rng.integers(5, 25))), "\n"]
        else:
            found += _sentence(rng, kind)
    return found[:n]


def _run(rng: np.random.Generator, kind: str, n: int) -> list[str]:
    return [_word(rng, kind) for _ in range(n)]


def _word(rng: np.random.Generator, *classes: str) -> str:
    """Of one of the classes, its first words more often than its last ones."""
    words = CLASSES[classes[int(rng.integers(len(classes)))]]
    return words[int(len(words) * rng.random() ** 1.3)]


def _sentence(rng: np.random.Generator, kind: str) -> list[str]:
    def some(*classes: str) -> str:
        return _word(rng, *classes)

    def maybe(share: float, *words: str) -> list[str]:
        return list(words) if rng.random() < share else []

    if kind == "code":
        call = [some("name"), "(", some("name"), ")"]
        return [
            *maybe(0.6, some("keyword")),
            *(call if rng.random() < 0.5 else [some("name"), "[", some("number"), "]"]),
            *maybe(0.7, some("operator"), some("name", "number")),
            *maybe(0.2, " =", "{", some("name"), ":", some("number"), "}"),
            "\n",
        ]
    if kind == "nutrition":
        return [some("nutrient"), ":", some("number"), *maybe(0.3, ".", some("number")), some("amount"), "\n"]

    def noun() -> list[str]:
        return [some("determiner"), *maybe(0.4, some("colour")), some("animal", "thing", "person")]

    when = [",", some("day", "month"), *maybe(0.5, some("number"))]
    price = [" for", some("money"), some("number")]
    return [
        *noun(),
        some("motion", "speech"),
        *maybe(0.7, some("place"), *noun()),
        *maybe(0.25, *when),
        *maybe(0.15, *price),
        *maybe(0.2, some("joint"), *noun(), some("motion", "speech")),
        some("stop"),
    ]


def things(vocabulary: PlantedVocabulary) -> list[Thing]:
    """All that is planted."""

    def of(*classes: str) -> Holds:
        ids = [vocabulary.ids[word] for name in classes for word in CLASSES[name]]
        return lambda tokens: np.isin(tokens, ids)

    def word(text: str) -> Holds:
        return lambda tokens: tokens == vocabulary.ids[text]

    def after(first: Holds, second: Holds) -> Holds:
        def holds(tokens: np.ndarray) -> np.ndarray:
            found = second(tokens)
            found[:, 1:] &= first(tokens)[:, :-1]
            found[:, :1] = False
            return found

        return holds

    def around(some: Holds, least: int) -> Holds:
        def holds(tokens: np.ndarray) -> np.ndarray:
            n = np.cumsum(np.pad(some(tokens), ((0, 0), (REACH, 0))), axis=1)
            return (n[:, REACH:] - n[:, :-REACH] >= least) & (tokens > 0)

        return holds

    classes = ("colour", "animal", "person", "motion", "speech", "place", "day", "month", "money", "joint")
    found = [Thing(f"{name} words", "token class", of(name)) for name in (*classes, "nutrient", "operator")]
    pairs = {
        "an animal after a colour": (of("colour"), of("animal")),
        "a person after a determiner": (of("determiner"), of("person")),
        "a number after money": (of("money"), of("number")),
        "a number after a day": (of("day"), of("number")),
        "a number after a colon": (word(":"), of("number")),
        "a name after a bracket": (of("bracket"), of("name")),
        "a determiner after a place": (of("place"), of("determiner")),
        "an amount after a number": (of("number"), of("amount")),
    }
    found += [Thing(name, "pair", after(*both)) for name, both in pairs.items()]
    found += [Thing("Hebrew", "script", of("hebrew"))]
    found += [Thing(f"a run of {name}", "run", after(of(name), of(name))) for name in ("dna", "base64")]
    found += [
        Thing("code around", "topic", around(of("bracket", "operator", "keyword"), 3)),
        Thing("a nutrition label around", "topic", around(of("nutrient", "amount"), 2)),
    ]
    singles = (" the", " and", "(", " said", "Protein")
    return found + [Thing(f"the token {text!r}", "single token", word(text)) for text in singles]
