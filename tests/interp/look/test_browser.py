"""The site in a real browser: every view, from the file system and from a server; hostile text; keys; phone; speed."""

import functools
import http.server
import json
import shutil
import threading

import numpy as np
import pytest
import torch

from saefast.interp.effects import Neighbours
from saefast.interp.look import Compared, write_site
from tests.helpers import chromium, look_records
from tests.helpers.look_hostile import INJECTIONS, accessibility

pytestmark = pytest.mark.skipif(
    chromium.installed() is None, reason="needs Chromium (apt-get install chromium)"
)
RAW = [
    b" the",
    b"a",
    b"\xe2\x80",
    b"\x9c",
    b"\n",
    b"\t",
    b"\x00",
    b"    ",
    "é".encode(),
    "\u202e".encode(),
    "שלום".encode(),
]
RAW += [b"x" * 1_000_000, "\u0301".encode(), b"\xff", b" ", "\u200b".encode()]
RAW += [one.encode() for one in INJECTIONS]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("look")
    vocabulary = look_records.Tokens(RAW, special=(8,))
    records = look_records.make(folder / "records", vocabulary)
    other = look_records.make(folder / "other", vocabulary, d_sae=30, seed=1)
    lines = [
        {"latent": i, "explanation": text, "method": text, "model": text, "scores": {text: 0.5}}
        for i, text in enumerate(INJECTIONS)
    ]
    (records.folder / "explanations.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    near = Neighbours(torch.arange(40, dtype=torch.int32)[:, None] % 30, torch.rand(40, 1))
    places = np.random.default_rng(0).standard_normal((40, 2))
    options = {
        "compare": Compared(other, near, near, INJECTIONS[0]),
        "coordinates": places,
        "clusters": np.arange(40) % 3,
    }
    return write_site(records, folder / "site", vocabulary, title=INJECTIONS[0], **options)


@pytest.fixture(scope="module")
def browser():
    with chromium.Browser() as browser:
        browser.before_pages("window.ran = []; window.alert = (text) => ran.push(text);")
        yield browser


@pytest.fixture
def page(browser, site):
    browser.size(1280, 800)
    browser.media()
    browser.problems.clear()
    browser.open(site.as_uri())
    yield browser
    assert browser.problems == [] and browser.run("ran") == []


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


VIEWS = [
    "#list",
    "#list?q=a&regex=1",
    "#latent/3",
    "#latent/39",
    "#text/2/5?latent=3",
    "#map",
    "#latent/999",
    "#text/99",
]


@pytest.mark.parametrize(
    "served", [pytest.param(False, id="file"), pytest.param(True, id="http", marks=pytest.mark.slow)]
)
def test_every_view_opens_and_nothing_hostile_runs(page, site, served):
    url = site.as_uri()
    if served:
        server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), functools.partial(Quiet, directory=str(site.parent))
        )
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/index.html"
    page.open(url)
    for view in VIEWS:
        page.open(url + view)
        page.run("new Promise((done) => setTimeout(done, 120))")
        name = view[1:].split("/")[0].split("?")[0]
        assert page.run(
            "[...document.querySelectorAll('main > section')].filter((s) => !s.hidden).map((s) => s.id)"
        ) == [name]
        assert (
            page.run(
                "document.querySelectorAll('main b b, main img, main svg[onload], main iframe, main style, main script').length"
            )
            == 0
        )
        assert page.run("ran") == [] and page.problems == []
    if served:
        server.shutdown()
        server.server_close()


def test_the_page_shows_what_the_records_say(page):
    page.go("#latent/3")
    wanted = page.run(
        "saefast.data.latent(3).then((l) => l.examples.filter((e) => e.group === 'top').map((e) => saefast.number(e.act)))"
    )
    shown = page.run(
        "[...document.querySelector('.group').querySelectorAll('.act')].map((e) => e.textContent)"
    )
    assert shown == wanted and len(shown) > 0
    assert page.run("document.querySelector('#latent .said bdi').textContent") == INJECTIONS[3]
    assert page.run("document.querySelector('header .title').textContent") == INJECTIONS[0]
    page.run("document.querySelector('.example .act').click()")
    assert page.run("document.querySelector('.example.open .act').getAttribute('aria-expanded')") == "true"
    n = page.run("saefast.data.latent(3).then((l) => l.examples[0].tokens.length)")
    page.until(f"document.querySelectorAll('.example.open .whole .token').length === {n}")
    page.until("document.querySelectorAll('#latent .compared .example').length")


def test_tokens_are_shown_as_what_they_are_and_copied_as_text(page):
    shown = page.run("""(async () => { const { ids } = await saefast.load("vocabulary");
        return Object.fromEntries(Array.from(ids, (id, i) => [id, saefast.tokens.token(i).textContent])); })()""")
    got = {int(i): text for i, text in shown.items()}
    want = {
        0: " the",
        2: "⟨e2 80⟩",
        3: "⟨9c⟩",
        4: "↵",
        5: "→",
        6: "⟨00⟩",
        7: "····",
        9: "⟨U+202E⟩",
        10: "שלום",
        13: "⟨ff⟩",
    }
    want |= {12: "◌\u0301", 14: "·", 15: "⟨U+200B⟩", 16: INJECTIONS[0]}
    assert {i: got[i] for i in want} == want
    assert got[11].endswith("… ⟨1,000,000 characters⟩") and len(got[11]) < 200
    assert page.run("saefast.tokens.token(10).tagName") == "BDI"
    page.go("#text/0")
    copied = page.run("""(() => { const text = document.querySelector(".running"); getSelection().selectAllChildren(text);
        const data = new DataTransfer(); text.dispatchEvent(new ClipboardEvent("copy", { clipboardData: data, bubbles: true, cancelable: true }));
        getSelection().removeAllRanges(); return data.getData("text/plain").length; })()""")
    assert copied == page.run("saefast.load('text-0').then((t) => saefast.tokens.text(t.tokens).length)") > 24


@pytest.mark.slow
def test_the_whole_app_by_keyboard(page):
    page.press("j", "j", "j", "Enter")
    page.until("location.hash === '#latent/2' && !document.querySelector('#latent').hidden")
    page.press("j")
    page.until("document.querySelector('#latent h1').textContent === 'Latent 3'")
    page.press("k", "e")
    page.until("document.querySelector('#latent h1').textContent === 'Latent 2'")
    page.run("history.back()")
    page.until("document.querySelector('#latent h1').textContent === 'Latent 3'")
    page.press("e")
    assert page.run("document.querySelectorAll('#latent .example:not(.open)').length") == 0
    page.press("n")
    assert page.run("document.body.classList.contains('numbers')")
    page.press("x")
    page.until("!document.querySelector('#text').hidden")
    page.run("document.querySelector('.running').focus()")
    page.press("ArrowRight", "ArrowRight")
    page.until("location.hash === '#text/0/1' && document.querySelectorAll('#t1[aria-selected=true]').length")
    assert page.run("document.querySelector('.running').getAttribute('aria-activedescendant')") == "t1"
    token, x, y = page.run(  # one that the pointer can be on: not every token has a width, or is in view
        "[...document.querySelectorAll('.running [id^=t]')].map(e => [e, e.getBoundingClientRect()])"
        ".filter(([e, { x, y }]) => e.id !== 't1' && document.elementFromPoint(x + 3, y + 3) === e)"
        ".map(([e, { x, y }]) => [e.id.slice(1), x + 3, y + 3])[0]"
    )
    page.move(x, y)
    page.until(f"document.querySelector('.texts .side h2').textContent.startsWith('Token {token}')")
    page.move(2, 2)
    page.until("document.querySelector('.texts .side h2').textContent.startsWith('Token 1')")
    page.press("m")
    page.until("document.querySelector('canvas')")
    page.run("document.querySelector('canvas').focus()")
    page.press("n", "Enter")
    page.until("location.hash.startsWith('#latent/')")
    page.press("?")
    page.until("document.querySelector('dialog[open]')")
    page.press("Escape")
    page.until("!document.querySelector('dialog')")
    page.press("/")
    page.until("document.activeElement.id === 'query'")
    page.press("3", "9", "Enter")
    page.until("location.hash === '#latent/39'")
    page.press("l")
    page.until("!document.querySelector('#list').hidden")


def listed(page):
    return page.run("Array.from(saefast.list.order)")


@pytest.mark.slow
def test_search_sort_and_filter(page):
    page.open(page.run("location.href.split('#')[0]") + "#list?q=%D7%A9%D7%9C%D7%95%D7%9D")
    page.until("document.querySelector('.summary').textContent.includes('searched all')")
    want = page.run("""(async () => { const found = []; for (let row = 0; row < 40; row++) { const latent = await saefast.data.latent(row);
        if (latent.examples.some((e) => e.group === "top" && saefast.tokens.text(e.tokens).includes("שלום"))) found.push(row); } return found; })()""")
    assert set(listed(page)) <= set(want) and len(listed(page)) > 5
    page.go("#list?q=the%5B%5E%20%5Da&regex=1&all=1")
    page.until("document.querySelector('.summary').textContent.includes('searched all')")
    page.go("#list?q=(&regex=1")
    page.until("document.querySelector('.summary').textContent.includes('not a regular expression')")
    page.go("#list?sort=count&down=1")
    counts = page.run("Array.from(saefast.data.head.count)")
    assert [counts[i] for i in listed(page)] == sorted(counts, reverse=True)
    page.go("#list?sort=random&seed=3")
    once = listed(page)
    assert sorted(once) == list(range(40)) != once
    page.go("#list?sort=random&seed=4")
    assert listed(page) != once
    page.go("#list?dead=dead")
    assert listed(page) == [38, 39]
    page.go("#list?least=10&explained=1")
    assert listed(page) == [i for i in range(len(INJECTIONS)) if counts[i] >= 10]


@pytest.mark.slow
def test_phone_width_has_no_sideways_scroll(page, site):
    page.size(360, 740, phone=True)
    for view in VIEWS:
        page.open(site.as_uri() + view)
        page.run("new Promise((done) => setTimeout(done, 80))")
        assert page.run("document.documentElement.scrollWidth") <= 360, view
    page.open(site.as_uri() + "#latent/3")
    page.press("e")
    assert page.run("document.documentElement.scrollWidth") <= 360


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_names_roles_and_contrast(page, site, scheme):
    page.media(scheme, "reduce")
    for view in ["#list", "#latent/3", "#text/2/5?latent=3", "#map"]:
        page.open(site.as_uri() + view)
        page.run("new Promise((done) => setTimeout(done, 120))")
        assert page.run(accessibility) == [], view
    dark = page.run("getComputedStyle(document.documentElement).colorScheme") == "dark"
    assert dark == (scheme == "dark")
    page.press("t")
    assert (
        page.run("getComputedStyle(document.documentElement).colorScheme")
        == {"light": "dark", "dark": "light"}[scheme]
    )
    page.press("t")
    page.run("localStorage.clear()")


@pytest.mark.slow
def test_half_written_data_is_said_to_be(browser, site, tmp_path):
    broken = tmp_path / "site"
    shutil.copytree(site.parent, broken)
    first = broken / "data/latents-0.js"
    whole = first.read_bytes()
    cases = {
        "is damaged": whole[: len(whole) // 2],
        "another build": whole.replace(whole[24:60].split(b'"')[1], b"0123456789abcdef01234567"),
        "is missing": None,
    }
    for message, content in cases.items():
        first.unlink(missing_ok=True)
        if content is not None:
            first.write_bytes(content)
        browser.open((broken / "index.html").as_uri() + "#latent/3")
        assert message in browser.run("document.querySelector('#latent .problem').textContent"), message
    (broken / "data/head.js").unlink()
    browser.open((broken / "index.html").as_uri(), until="document.querySelector('.problem')")
    assert "is damaged" in browser.run("document.querySelector('.problem').textContent")
    browser.problems.clear()
