"""Rules on texts of which a person knows what they are."""

import re
from itertools import pairwise

import numpy as np
import pytest

from saefast.errors import InputError
from saefast.interp.contexts import RULES, Rules, judge, standard_proxies
from tests.helpers.byte_text import cut

KNOWN = {
    "http": b"""GET /index.html?q=1 HTTP/1.1
Host: www.example.org
Accept-Encoding: gzip, deflate
Content-Type: text/html; charset=utf-8
X-Forwarded-For: 192.0.2.7

HTTP/1.1 200 OK
Server: nginx
Set-Cookie: id=a3fWa; Expires=Wed, 21 Oct 2015 07:28:00 GMT
""",
    "user agents": b"""Mozilla/5.0 (X11; Linux x86_64; rv:109.0) Gecko/20100101 Firefox/118.0
Mozilla/5.0 (Linux; Android 13; SM-A536B) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/118.0.0.0 Mobile Safari/537.36
Dalvik/2.1.0 (Linux; U; Android 9; Redmi Note 8 Build/PKQ1.190616.001)
AppleCoreMedia/1.0.0.15E148 (iPhone; U; CPU OS 11_3 like Mac OS X; en_us)
""",
    "log lines": b"""192.0.2.1 - - [10/Oct/2000:13:55:36 -0700] "GET /apache_pb.gif HTTP/1.0" 200 2326
Jan 12 06:03:11 host sshd[28322]: Failed password for root from 192.0.2.3 port 22 ssh2
2023-04-05 12:11:13,456 fail2ban.actions [1234]: NOTICE [sshd] Ban 192.0.2.9
[Mon Dec 11 22:01:09 2017] [error] client denied by server configuration
""",
    "legal": b"""Redistribution and use in source and binary forms, with or without modification, are permitted
provided that the following conditions are met:

THIS SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY AND FITNESS FOR A PARTICULAR PURPOSE. IN NO EVENT SHALL THE COPYRIGHT HOLDER BE LIABLE FOR ANY
DAMAGES. The licensee may sublicense the work under the terms of this agreement.
""",
    "nutrition": b"""Nutrition facts: MEDIUM RAW SHRIMP (Frozen Fish & Seafood)
Serving: 4 ONZ (113 g)
Amounts per 100 g:
Energy 62 kcal
Carbohydrate 0 g
Total Sugars 0 g
Fatty acids, total saturated 0 g
Vitamin C, total ascorbic acid: 1.5 mg
Sodium 566 mg
""",
    "code": b"""    def __init__(self, records):
        self.records = records
        for record in records:
            if record.size != 0:
                total += record.size(3)
        return total
import numpy as np
int main(void) { return 0; }
""",
    "capitals": b"THE LORD OF THE RINGS, THE TWO TOWERS AND THE RETURN OF THE KING",
    "prose": b"""And God said, Let there be light: and there was light. He was born in 1809 in a log cabin, and he shall not be
forgotten. The iron bridge of 1779 spans the river; its weight, 378 tons, and its width are known. If you find that he
returns, tell him; for he who seeks shall find. The server brought the wine at 12:30. Copies of the letter (in French) exist.
""",
}
CAN_OVERLAP = {("log lines", "http"), ("legal", "capitals"), ("nutrition", "capitals")}


@pytest.mark.parametrize("rules", RULES, ids=lambda rules: rules.name)
def test_known_texts(rules):
    text, vocabulary = cut(KNOWN.values(), 900)
    labels = rules.labels(text, vocabulary)
    shares = {kind: of[row].mean() for kind, of, row in zip(KNOWN, labels, text.encoded)}
    assert shares.pop(rules.name) > 0.9
    for kind, share in shares.items():
        assert share == 0 or (kind, rules.name) in CAN_OVERLAP, (kind, share)


def test_scores_are_the_sums_of_cues_and_of_neighbours():
    cues = (re.compile(rb"alpha"), 0.5), (re.compile(rb"beta"), 0.75)
    passages = [b"alpha beta\nbeta beta\n\nnone\nalpha\n", b"beta\nxyz\n"]
    text, vocabulary = cut(passages, 40, size=1)
    scores = Rules("x", "x", cues, neighbours=0.5).scores(text, vocabulary)

    def of_tokens(found, row, n):
        """Of each of n lines what its tokens have."""
        ends = [0, *np.cumsum([len(line) + 1 for line in passages[row].split(b"\n")[:n]])]
        return [set(found[row, a:b].tolist()) for a, b in pairwise(ends)]

    lines = [1.25, 0.75, 0, 0, 0.5]
    near = [sum(each / 2 ** abs(i - j) for j, each in enumerate(lines) if abs(i - j) < 4) for i in range(5)]
    assert of_tokens(scores, 0, 5) == [
        {near[0]},
        {near[1]},
        {0.0},
        {near[3]},
        {near[4]},
    ]  # a blank line has none
    assert of_tokens(scores, 1, 2) == [{0.75}, {0.375}]  # the lines of another passage are no neighbours
    for gap, lines in ((16, 5), (15, 1)):  # bytes between the first and the fifth line of the first passage
        labels = Rules("x", "x", ((re.compile(rb"alpha"), 1.0),), gap=gap).labels(text, vocabulary)
        assert of_tokens(labels, 0, 5) == [{True}, {lines == 5}, {False}, {lines == 5}, {True}]
    repeated = Rules("x", "x", cues, repeat=True, per=5).scores(text, vocabulary)
    assert repeated[0, 0] == np.float32(1.25 / (11 / 5)) and repeated[0, 12] == np.float32(1.5 / 2)
    matches = Rules("x", "x", cues, unit="match").scores(text, vocabulary)
    assert matches[0, :11].tolist() == [0.5] * 5 + [0] + [0.75] * 4 + [0]
    with pytest.raises(InputError, match="unit"):
        Rules("x", "x", cues, unit="page")


def test_nothing_goes_on_from_one_passage_to_the_next():
    text, vocabulary = cut([b"GET", b" /a HTTP/1.1\n", b"THE KING", b"OF LANDS"], 12, size=1)
    for rules in RULES:
        assert not rules.labels(text, vocabulary).any()


def test_what_the_text_has_too_little_of_is_skipped_with_its_count():
    text, vocabulary = cut([KNOWN["legal"], KNOWN["prose"], KNOWN["prose"] + "ש".encode()], 900)
    proxies = standard_proxies()
    judged = judge(text, vocabulary, proxies, least=0.01)
    assert judged.names == ["legal", "capitals"] and judged.labels.shape == (2, *text.contexts.shape)
    assert 1 <= judged.skipped["hebrew"] <= 2 and judged.skipped["dna"] == 0
    assert len(judged.skipped) + 2 == len(proxies)
    assert judged.scores.min() == 0 and (judged.scores[judged.labels] > 0).all()
    assert not (judged.labels & ~text.encoded).any()
    np.testing.assert_array_equal(judged.labels_of("legal"), judged.labels[0])
    with pytest.raises(InputError, match="context"):
        judged.labels_of("hebrew")
    with pytest.raises(InputError, match="proxies"):
        judge(text, vocabulary, [proxies[0], proxies[0]])
