"""Proxies by rules: cues in lines or sentences, for kinds of text that no alphabet tells apart.

    score of a unit of text = (sum of the weights of its cues) / (its length in units of `per` bytes, at least 1)
                              + sum over d = 1, 2, 3 of `neighbours`^d * (the scores of the units d before and d after it)

A token has the score of the unit in which its middle byte is, and is in the context if that is at least 1.
"""

import re
from dataclasses import dataclass

import numpy as np

from saefast.errors import check
from saefast.interp.contexts.written import written
from saefast.interp.records.text import Text
from saefast.interp.vocabulary import Vocabulary

ENDS = {
    "line": re.compile(rb"\n"),
    "sentence": re.compile(rb"[.!?;:][\"')]*\s+|\n[ \t]*(?=\n|[-*]|\(?\w{1,3}[.)] )"),
    "quoted": re.compile(rb"[\n\"]"),
    "match": None,
}
REACH = 3  # units before and after
MOST = 3.0  # of a unit's own score, so that it does not carry its neighbours far


@dataclass(frozen=True, eq=False)
class Rules:
    """A kind of text, by what is written in it.

    Attributes:
        cues: pattern of bytes and weight of each. A pattern counts once in a unit, unless `repeat`.
        unit: "line", "sentence", "quoted" (lines, and what is in quotation marks in them), or "match": what a pattern matches is a unit of its own, with the weight as its score.
        per: bytes of a unit for which the sum of weights is meant; 0: for units of all lengths.
        neighbours: what the units before and after add of their own scores, within a passage.
        gap: bytes up to which what lies between two units of the context, in a passage, is in it too: it has the score 1.
    """

    name: str
    description: str
    cues: tuple[tuple[re.Pattern[bytes], float], ...]
    unit: str = "line"
    per: int = 0
    neighbours: float = 0.0
    repeat: bool = False
    gap: int = 0

    def __post_init__(self) -> None:
        check(self.unit in ENDS, f"unit: expected one of {', '.join(ENDS)}, got {self.unit!r}")

    def scores(self, text: Text, vocabulary: Vocabulary) -> np.ndarray:
        """[m, L] float32, 0 where there is no cue."""
        made = written(text, vocabulary)
        page, place = made.page()
        if self.unit == "match":
            return made.of_tokens(self._of_matches(page)[place])
        passage = made.passage_of_byte
        begins = place[np.diff(passage, prepend=-1) > 0]
        return made.of_tokens(self._of_units(page, begins)[place])

    def labels(self, text: Text, vocabulary: Vocabulary) -> np.ndarray:
        """[m, L] bool."""
        return self.scores(text, vocabulary) >= 1

    def _of_matches(self, page: bytes) -> np.ndarray:
        found = np.zeros(len(page), np.float32)
        for cue, weight in self.cues:
            for match in cue.finditer(page):
                here = slice(*match.span())
                found[here] = np.maximum(found[here], weight)
        return found

    def _of_units(self, page: bytes, begins: np.ndarray) -> np.ndarray:
        """The score of each byte; begins: where in the page passages begin."""
        pattern = ENDS[self.unit]
        assert pattern is not None
        ends = np.array([match.end() for match in pattern.finditer(page)], np.int64)
        firsts = np.unique(np.concatenate([[0], begins, ends[ends < len(page)]]).astype(np.int64))
        sizes = np.diff(np.append(firsts, len(page)))
        own = np.zeros(len(firsts))
        for cue, weight in self.cues:
            starts = [match.start() for match in cue.finditer(page)]
            units = np.searchsorted(firsts, starts, side="right") - 1
            np.add.at(own, units if self.repeat else np.unique(units), weight)
        if self.per:
            own /= np.maximum(sizes / self.per, 1)
        own = np.minimum(own, MOST)
        passage = np.searchsorted(begins, firsts, side="right")
        total = own.copy()
        for d in range(1, min(REACH, len(own) - 1) + 1):
            share = np.where(passage[d:] == passage[:-d], self.neighbours**d, 0)
            total[d:] += share * own[:-d]
            total[:-d] += share * own[d:]
        inside = (total >= 1).nonzero()[0]
        between = firsts[inside[1:]] - (firsts + sizes)[inside[:-1]]
        near = (between <= self.gap) & (passage[inside[1:]] == passage[inside[:-1]])
        for i, j in zip(inside[:-1][near].tolist(), inside[1:][near].tolist(), strict=True):
            total[i + 1 : j] = 1
        blank = [not page[a : a + n].strip() for a, n in zip(firsts.tolist(), sizes.tolist(), strict=True)]
        return np.repeat(np.where(blank, 0, total), sizes).astype(np.float32)


def _cues(flags: int, *pairs: tuple[bytes, float]) -> tuple[tuple[re.Pattern[bytes], float], ...]:
    return tuple((re.compile(pattern, flags), weight) for pattern, weight in pairs)


METHODS = rb"(?:GET|POST|PUT|HEAD|DELETE|OPTIONS|PATCH|CONNECT|TRACE|PROPFIND)"
HEADERS = (
    rb"(?:Accept(?:-[A-Z]\w+)*|Age|Allow|Authorization|Cache-Control|Connection|Cookie|DNT|ETag|Expect|Expires|Forwarded|"
    rb"Host|If-[A-Z][\w-]+|Keep-Alive|Last-Modified|Location|Origin|Pragma|Proxy-[A-Z][\w-]+|Range|Referer|Retry-After|"
    rb"Sec-[A-Z][\w-]+|Server|Set-Cookie|Strict-Transport-Security|TE|Trailer|Transfer-Encoding|Upgrade(?:-[A-Z][\w-]+)?|"
    rb"User-Agent|Vary|Via|WWW-Authenticate|Access-Control-[A-Z][\w-]+|Content-[A-Z][\w-]+|X-[A-Z][\w-]+)"
)
PRODUCT = rb"[A-Za-z][\w.+!-]*/v?\d[\w.+-]*"

HTTP = Rules(
    "http",
    "a line of an HTTP message, or of a log that quotes its first line",
    _cues(
        re.MULTILINE,
        (METHODS + rb" \S+ HTTP/\d", 1.0),
        (rb"^HTTP/\d(?:\.\d)? \d{3}\b|^[Dd]ate: [A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:", 1.0),
        (rb"^[a-z]+(?:-[a-z]+)+: \S|^[A-Z][a-z]+-[A-Z][A-Za-z]+(?:-[A-Z]\w+)*: \S", 0.6),
        (rb"^[<> ]{0,2}(?i:" + HEADERS + rb"):[ \t]\S", 1.0),
        (rb"^" + METHODS + rb" (?:/|https?://)\S*\s*$", 1.0),
    ),
    neighbours=0.55,
)
USER_AGENTS = Rules(
    "user agents",
    "what a browser or another client says that it is",
    _cues(
        0,
        (
            rb"\b(?:Mozilla|Opera|Dalvik|AppleWebKit|Gecko|Chrome|Chromium|Safari|Firefox|okhttp|CFNetwork)/\d",
            1.0,
        ),
        (
            rb"\b(?:Darwin|curl|Wget|UCBrowser|SamsungBrowser|AppleCoreMedia|Trident|Presto|python-requests)/\d",
            1.0,
        ),
        (rb"KHTML, like Gecko|like Mac OS X|Linux; (?:U; )?Android \d|Windows NT \d|\bFB[A-Z]{2}/", 1.0),
        (rb"(?<![\w/])" + PRODUCT + rb" ?\([^()\n;]{1,60};", 1.0),
        (rb"(?<![\w/])" + PRODUCT + rb"[ ;,]+" + PRODUCT + rb"[ ;,]+" + PRODUCT, 1.0),
    ),
    unit="quoted",
)
LOG_LINES = Rules(
    "log lines",
    "a line of a server's log, with its time",
    _cues(
        re.MULTILINE,
        (rb"^\S+ \S+ \S+ \[\d{1,2}/\w{3}/\d{4}[: ]", 1.0),
        (rb"^(?:<\d+>)?[A-Z][a-z]{2} [ \d]\d (?:\d{4} )?\d\d:\d\d:\d\d\b", 1.0),
        (rb"^\W?(?:[A-Z][a-z]{2},? )?[A-Z][a-z]{2} [ \d]\d,? \d\d:\d\d:\d\d(?:\.\d+)?(?: \d{4})?\W", 1.0),
        (rb"^\W?\d{4}[-/.]\d\d[-/.]\d\d[T _:-]\d\d:?\d\d:?\d\d", 1.0),
        (rb"^\W?\d\d[-/.](?:\d\d|[A-Z][a-z]{2})[-/.]\d{2,4}[ :-]\d\d:\d\d:\d\d", 1.0),
        (rb"^\[?\d{10}(?:\.\d+)?\]?[ ,:]", 1.0),
        (rb"\d{4}[-/.]\d\d[-/.]\d\d[T _]\d\d:\d\d:\d\d|\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d", 1.0),
        (rb"^(?:\S+ ){0,3}\S+\[\d+\]: \S", 1.0),
    ),
    neighbours=0.4,
)
LEGAL = Rules(
    "legal",
    "a clause of a licence or a contract",
    _cues(
        re.IGNORECASE,
        (rb"\bwarrant(?:y|ies|s|ed)\b|merchantab|fitness\s+for\s+a\s+particular", 1.0),
        (
            rb"\bhereby\s+(?:grant|agree|disclaim|certif|authori|acknowledg|waive|assign)|all\s+rights\s+reserved",
            1.0,
        ),
        (rb"\bliab(?:le|ilit)|\bindemni|in\s+no\s+event\s+(?:shall|will)|consequential\s+damages", 1.0),
        (rb"\blicen[sc](?:e|es|ed|ee|ees|or|ors|ing)\b", 0.6),
        (rb"\bcopyright(?:s|ed)?\b", 0.6),
        (
            rb"\bcopyright(?:s|:)?\s+(?:(?:\(c\)|\xc2\xa9)\s+)?\d{4}|\bcopyright\s+(?:notice|holder|owner|law)",
            0.6,
        ),
        (rb"\bredistribut|\bsublicen[sc]|derivative\s+works?|\bpatents?\b|\btrademarks?\b|\broyalt", 0.7),
        (
            rb"permission\s+(?:is|to|notice)\b|\bpermitted\b|without\s+(?:limitation|restriction|modification)",
            0.7,
        ),
        (rb"\b(?:this|such|the|an?)\s+(?:agreement|licen[sc]e)\b|\bterms\s+(?:and|of)\b", 0.7),
        (
            rb"\bthis\s+(?:list\s+of\s+conditions|permission\s+notice|disclaimer)|following\s+(?:conditions|disclaimer)",
            1.0,
        ),
        (rb"\bnotwithstanding\b|\bpursuant\b|\bhere(?:of|in|under|to|inafter)\b|\bsubject\s+to\s+the\b", 0.5),
        (
            rb"\bcontributor|\bcovered\s+(?:code|work|software)|\b(?:source|object)\s+(?:code|forms?)\b|\bcopies\b",
            0.4,
        ),
        (rb"\b(?:you|licensee|contributor|party|parties|recipient|user)s?\s+(?:may|shall|must|agree)\b", 0.4),
        (
            rb"\bprovided\s+that\b|\"as\s+is\"|\bas-is\b|\bexpress(?:ly)?\s+or\s+implied\b|\bapplicable\s+law\b",
            0.7,
        ),
        (rb"\b(?:software|library|documentation|documents?|modified|modif(?:y|ications?)|convey)\b", 0.35),
        (rb"\bdistribut(?:e|es|ed|ion|ing|or)\b|\breproduc(?:e|tion)|\bpublicly\b", 0.35),
        (
            rb"\bshall\s+(?:not|be|have|mean|remain|terminate)\b|\bprohibited\b|\bobligations?\b|\bconsent\b",
            0.2,
        ),
    ),
    unit="sentence",
    per=250,
    neighbours=0.5,
    gap=600,
)
NUTRIENT = (
    rb"(?:energy|calories|kilojoules|carbohydrates?|carbs|protein|(?:(?:total|saturated|trans|poly\w+|mono\w+)[ -])?fat|"
    rb"fatty acids?[\w, -]*|cholesterol|sodium|salt|sugars?|(?:dietary )?fib(?:er|re)|starch|alcohol|caffeine|water|ash|"
    rb"vitamin [a-k][\w-]*(?: \([^)\n]*\))?|thiamin\w*|riboflavin|niacin|folate|folic acid|choline|calcium|iron|potassium|"
    rb"magnesium|phosphorus|zinc|copper|selenium|manganese)"
)
AMOUNT = rb"<?\d+(?:[.,]\d+)?\s?(?:kcal|cal|kj|g|mg|mcg|ug|\xc2\xb5g|\xce\xbcg|iu|%|re)\b"
NUTRITION = Rules(
    "nutrition",
    "a line of a nutrition label",
    _cues(
        re.IGNORECASE,
        (rb"\b" + NUTRIENT + rb"\b[^\w\n]{0,4}(?:,? ?\w+ ?\w*[ :,(]+)?" + AMOUNT, 1.0),
        (rb"\bnutrition(?:al)?[ _-](?:facts?|information|values?)\b", 1.0),
        (
            rb"\bserving(?:s|s? size| per container)?\b[^\n]{0,30}?\d|\bamounts? per\b|\bper 100 ?(?:g|ml)\b|\bdaily values?\b",
            1.0,
        ),
        (rb"^\s*ingredients\s*:", 1.0),
    ),
    per=90,
    neighbours=0.5,
    repeat=True,
)
CODE = Rules(
    "code",
    "a line of a program",
    _cues(
        re.MULTILINE,
        (rb"^\s*(?:def|class|async def)\s+\w+.*:|^\s*(?:import|from)\s+[\w.]+(?:\s+import\b.*)?$", 1.0),
        (rb"^\s*(?:if|elif|while|for|with|try|else|except|finally)\b.*:\s*(?:#.*)?$", 1.0),
        (rb"^\s*(?:return|raise|yield|assert|del|pass|break|continue)\b[^.?!]*$", 0.7),
        (rb"^\s*#\s*(?:include|define|ifdef|ifndef|endif|pragma)\b|[{}]\s*$", 1.0),
        (
            rb"^\s*(?:public|private|static|void|int|char|const|let|var|function|struct|unsigned)\b.*[({;=]",
            1.0,
        ),
        (rb"[\w\])]\s*(?:=|[-+*/|&]=|==|!=|<=|>=|->|=>|:=|&&|\|\|)\s*[\w\"'(\[{-]", 0.6),
        (rb"\b\w+(?:\.\w+)*\([^()\n]*\)?|\bself\.\w+", 0.4),
        (rb"^ {4,}\S|^\t+\S", 0.3),
        (rb"^\s*[(\[{'\"].*[,)\]}]\s*$|;\s*$", 0.3),
        (rb"\b[a-z]+(?:_[a-z]+)+\b|^\s*@\w+|^\s*(?:>>>|\.\.\.) ", 0.3),
        (rb"^\s*(?:#|//|/\*|\*) ", 0.3),
    ),
    per=160,
    neighbours=0.35,
)
CAPITALS = Rules(
    "capitals",
    "several words in capital letters",
    _cues(
        0,
        (
            rb"(?<!\w)(?=[A-Z '-]{0,12}[EIOU])[A-Z][A-Z'-]+(?:(?:[ ,.;:()\"&/-]{1,3}|\n)[A-Z'-]+(?!\w)){2,}",
            1.0,
        ),
    ),
    unit="match",
)
RULES = (HTTP, USER_AGENTS, LOG_LINES, LEGAL, NUTRITION, CODE, CAPITALS)
