"""What is read out of archives, on small ones made here."""

import gzip
import io
import json
import struct
import tarfile
import zlib

import pytest

from saefast.study.text import contexts, readers
from saefast.study.text.archives import messages, plain, read
from saefast.study.text.sources import of_script
from tests.helpers.archives import sdist, wheel


def test_reading_a_hostile_archive_touches_nothing_outside(tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    (tmp_path / "secret.txt").write_text("secret")
    with tarfile.open(inside / "evil.tar.gz", "w:gz") as tar:
        for name in ("good.txt", "../evil.txt", str(tmp_path / "absolute.txt")):
            member = tarfile.TarInfo(name)
            member.size = 4
            tar.addfile(member, io.BytesIO(b"text"))
        link = tarfile.TarInfo("link.txt")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "secret.txt")
        tar.addfile(link)
    evil = wheel(inside, {"../evil.txt": "text"})
    before = sorted(tmp_path.rglob("*"))
    assert list(read(inside / "evil.tar.gz", "*.txt")) == ["text"] * 3  # the link is not followed
    assert list(read(evil, "*.txt")) == ["text"]
    assert sorted(tmp_path.rglob("*")) == before


def test_what_is_compressed_inside_of_an_archive_is_decompressed(tmp_path):
    packed = gzip.compress("añb".encode())
    assert (
        list(read(sdist(tmp_path, {"a/x.dict.dz": packed, "a/y.txt.gz": packed}), "*.[dt]*")) == ["añb"] * 2
    )


def test_nutrition_renders_labels(tmp_path):
    nutrients = "nutrientName,unit_name\nEnergy,KCAL\nEnergy,kJ\nFiber,G\nVitamin A,UG\nVitamin E,MG_ATE\n"
    header = "foodName,food_category,portion_unit_name,portion_gram_weight,Energy,Fiber,Vitamin A,Vitamin E\n"
    foods = header + '"Oats, rolled",Cereal,1 cup,81.0,379.0,10.1,0.0,0.42\n' + ",Nameless,,,1,1,1,1\n" * 10
    members = {"food/data/nutrients.csv": nutrients, "food/data/fooddata.csv": foods + "Water,,,,,,,\n" * 10}
    archive = wheel(tmp_path, members)
    [text] = readers.nutrition(archive)
    oats, water = text.split("\n\n")
    assert oats.splitlines() == [
        "Nutrition facts: Oats, rolled (Cereal)",
        "Serving: 1 cup (81 g)",
        "Amounts per 100 g:",
        "Energy 379 kcal",
        "Fiber 10.1 g",
        "Vitamin A 0 µg",
        "Vitamin E 0.42 mg",
    ]
    assert water.startswith("Nutrition facts: Water (food)\nServing: 1 portion (100 g)")
    assert "Vitamin A" not in next(readers.nutrition(archive, zeros=False))
    assert len(list(readers.nutrition(archive, every=1, together=4))) == 3  # 11 foods have a name


def test_messages_of_a_catalogue():
    catalogue = (
        'msgid ""\nmsgstr ""\n"Language: he\\n"\n\n#: line 3\nmsgid "Home"\nmsgstr "בית"\n\n'
        'msgid "one"\nmsgid_plural "%d"\nmsgstr[0] "אחד"\nmsgstr[1] "כמה \\"%d\\""\nmsgstr[2] "אחד"\n\n'
        'msgid "long"\nmsgstr ""\n"שורה "\n"אחת"\n\nmsgid "none"\nmsgstr ""\n\n#~ msgid "old"\n#~ msgstr "ישן"\n'
    )
    assert messages(catalogue) == 'בית\nאחד\nכמה "%d"\nשורה אחת'
    assert of_script(messages(catalogue), "hebrew") and not of_script(catalogue, "arabic")


def test_compiled_catalogues(tmp_path):
    originals, translations = [b"", b"a\0%d as", b"b"], ["Language: he\n", "אחד\0שניים", "ב"]
    strings = [*originals, *(text.encode() for text in translations)]
    at, table, blob = 28 + 8 * len(strings), b"", b""
    for string in strings:
        table += struct.pack("<2I", len(string), at + len(blob))
        blob += string + b"\0"
    header = struct.pack("<7I", 0x950412DE, 0, 3, 28, 28 + 8 * 3, 0, 0)
    archive = wheel(tmp_path, {"he/LC_MESSAGES/a.mo": header + table + blob})
    assert list(readers.compiled_catalogues(archive, "*.mo")) == ["אחד\nשניים\nב"]


def test_plain_text_of_a_page():
    page = "<head><title>t</title></head><nav>menu</nav><header>site</header><p>One &amp;\n two<br>three</p><script>x()</script><li>four"
    assert plain(page) == "One &\ntwo\nthree\nfour"


def test_logs_lose_the_notes_of_the_tests(tmp_path):
    text = "# failJSON: { }\nApr  2 sshd[1]: # no note\n#x\nMay  3\n"
    assert list(readers.logs(wheel(tmp_path, {"f/tests/files/logs/sshd": text}))) == [
        "Apr  2 sshd[1]: # no note\nMay  3\n"
    ]


def test_minified_code_is_left_out(tmp_path):
    members = {"p/a.js": "let a = 1;\n" * 20, "p/b.js": "a=1;" * 1000}
    assert list(readers.files(wheel(tmp_path, members), "*.js")) == ["let a = 1;\n" * 20]


def test_novels_are_read_from_the_data_of_an_r_package(tmp_path):
    def saved(lines):
        strings = b"".join(b"\0\4\0\x09" + len(line).to_bytes(4, "big") + line for line in lines)
        return len(strings).to_bytes(4, "big") + zlib.compress(b"RDX" + strings)

    data = saved([b"EMMA", b"", b"Chapter 1", b"It was a day"]) + saved([b"PERSUASION"])
    archive = sdist(tmp_path, {"./lib/janeaustenr/data/Rdata.rdb": data})
    assert list(readers.novels(archive)) == ["EMMA\n", "Chapter 1\nIt was a day", "PERSUASION"]


def test_dna_becomes_fasta_without_annotation_and_proteins_are_left_out(tmp_path):
    sequence = "gatcctccat" * 30
    rows = "".join(
        f"{i + 1:9} {sequence[i : i + 10]} {sequence[i + 10 : i + 60]}\n" for i in range(0, 300, 60)
    )
    genbank = f"LOCUS       AB1 300 bp\nDEFINITION  a gene.\nFEATURES  CDS\nORIGIN\n{rows}//\n"
    embl = f"ID   X1; SV 1;\nDE   another\nSQ   Sequence 300 BP;\n{rows}//\n"
    fasta = ">one\n" + sequence.upper() + "\n>short\nACGT\n>protein\n" + "MKVLAAGIVAL" * 30 + "\n"
    members = {name: text.encode() for name, text in {"a.gb": genbank, "b.embl": embl, "c.fa": fasta}.items()}
    found = list(contexts.dna(sdist(tmp_path, members), "*.gb", "*.embl", "*.fa"))
    assert [text.splitlines()[0] for text in found] == [">AB1 a gene.", ">X1 another", ">one"]
    assert {"".join(text.splitlines()[1:]) for text in found} == {sequence.upper()}
    assert {len(line) for text in found for line in text.splitlines()[1:]} == {60}


def test_base64_of_certificates_and_mails(tmp_path):
    line = "MIIFjTCCA3WgAwIBAgIQQAE0jMIAAAAAAAAAATzyxjANBgkqhkiG9w0BAQwFADBQ\n"
    block = f"# Issuer: me\n-----BEGIN CERTIFICATE-----\n{line * 9}-----END CERTIFICATE-----\n"
    mail = f"Hello\n\n--b\nContent-Transfer-Encoding: base64\n\n{line * 8}AAA=\n--b--\nwords\n"
    archive = sdist(tmp_path, {"x/cacert.pem": (block * 4).encode(), "x/mails/1": mail.encode()})
    pem = list(contexts.certificates(archive, "*/cacert.pem"))
    assert [text.count("# Issuer") for text in pem] == [3, 1] and pem[1] == block.rstrip()
    [attachment] = contexts.attachments(archive, "*/mails/*")
    assert attachment.endswith(f"base64\n\n{line * 8}AAA=") and "words" not in attachment


EXCHANGE = (
    "POST /a?b=1 HTTP/1.1\nHost: h.org\nAccept: */*\n\nbody\n\nHTTP/1.1 200 OK\nVary: a\nVary: b\n\n"
    + "x" * 300
)


def test_recorded_http_is_written_as_it_went_over_the_wire(tmp_path):
    one = {
        "request": {
            "method": "post",
            "uri": "https://h.org/a?b=1",
            "headers": {"Accept": ["*/*"]},
            "body": "body",
        },
        "response": {
            "status": {"code": 200, "message": "OK"},
            "headers": {"Vary": ["a", "b"]},
            "body": {"string": "x" * 900},
        },
    }
    members = {"t/cassettes/a.json": json.dumps({"http_interactions": [one] * 9}), "t/cassettes/b.json": "{"}
    members["t/cassettes/c.json"] = json.dumps({"interactions": [{"request": {}, "response": {}}]})
    assert list(contexts.cassettes(wheel(tmp_path, members), "*/cassettes/*.json", most=2)) == [EXCHANGE] * 2
    recorded = {
        "scope": "https://h.org:443",
        "method": "get",
        "path": "/x",
        "body": "",
        "status": 404,
        "response": {"a": 1},
        "rawHeaders": ["Server", "s"],
        "reqheaders": {"accept": "json"},
    }
    [text] = contexts.nock(wheel(tmp_path, {"raw-fixture.json": json.dumps([recorded])}), "raw-fixture.json")
    assert text == 'GET /x HTTP/1.1\nHost: h.org:443\naccept: json\n\nHTTP/1.1 404\nServer: s\n\n{"a": 1}'


def test_http_of_web_archives(tmp_path):
    def record(kind, message):
        return f"WARC/1.0\r\nWARC-Type: {kind}\r\n\r\n{message}\r\n\r\n"

    get, page = (
        "GET / HTTP/1.1\r\nHost: h\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<p>" + "y" * 999,
    )
    image = "HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n\r\nPNGDATA"
    text = (
        record("warcinfo", "software: x")
        + record("request", get)
        + record("response", page)
        + record("r", image)
    )
    [found] = contexts.web_archive(
        sdist(tmp_path, {"w/a.warc.gz": gzip.compress(text.encode())}), "*.warc.gz"
    )
    assert found.split("\n\n") == [
        "GET / HTTP/1.1\nHost: h",
        "HTTP/1.1 200 OK\nContent-Type: text/html",
        "<p>" + "y" * 297,
        "HTTP/1.1 200 OK\nContent-Type: image/png",
    ]


def test_every_second_book_of_hebrew_has_its_points(tmp_path):
    book = [["בְּרֵאשִׁ֖ית בָּרָ֣א", "אֵ֥ת־הַשָּׁמַ֖יִם"]]
    members = {f"s/json/{name}.json": json.dumps([book, book]) for name in ("bible", "mishnah", "yerushalmi")}
    members["s/json/bavli.json"] = json.dumps([[[["רַבִּי"]]]])  # pages, then paragraphs
    found = list(contexts.hebrew(wheel(tmp_path, members)))
    assert found[0] == "בראשית ברא\nאת השמים" and found[1] == "\n".join(book[0]) and "רבי" in found
    assert len(found) == 7


def test_every_second_chapter_of_the_quran_has_its_signs(tmp_path):
    members = {
        "q/resources/simple.txt": "1|1|أَ\n1|2|بَ\n2|1|تَ\n\n# licence\n",
        "q/resources/simple-clean.txt": "1|1|ا\n1|2|ب\n2|1|ت\n",
    }
    assert list(contexts.quran(wheel(tmp_path, members))) == ["تَ", "ا\nب"]


@pytest.mark.parametrize("head", ["", "---\nkey: mit\nname: MIT\n---\n"])
def test_licences_lose_their_description(tmp_path, head):
    archive = wheel(tmp_path, {"d/a.LICENSE": head + "\nPermission is granted\n---\nto you\n"})
    assert list(contexts.licences(archive, "*.LICENSE")) == ["Permission is granted\n---\nto you"]
