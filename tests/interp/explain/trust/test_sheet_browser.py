"""The sheet in a real browser: hostile text does nothing, answers are kept, and what is saved is what is read."""

import pytest

from saefast.interp.blind import read_page
from saefast.interp.explain.trust.sheet import read_sheet
from tests.helpers import chromium
from tests.helpers.explanation_sheets import METHODS, dealt, records_of
from tests.helpers.look_hostile import INJECTIONS, accessibility

# A process that writes localStorage and one that reads it are two: on a loaded machine the next page may be too early.
pytestmark = [
    pytest.mark.flaky(reruns=3),
    pytest.mark.skipif(chromium.installed() is None, reason="needs Chromium (apt-get install chromium)"),
]
RAW = [b" the", b"a", b"\xe2\x80", b"\n", b"\x00", "שלום".encode(), "\u202e".encode(), "\u2069".encode()]
RAW += [one.encode() for one in INJECTIONS]
SENTENCES = [*INJECTIONS, "one \u202e two \u2069 three\nfour \x00", "x" * 10_000, ""]


@pytest.fixture(scope="module")
def sheet(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sheet")
    made = records_of(folder / "records", RAW, special=(4,))
    some = [
        {"latent": i, "explanation": text, "method": METHODS[0], "model": None, "scores": {}}
        for i, text in enumerate(SENTENCES)
    ]
    return dealt(*made, folder / "sheet.html", some, n=len(some))


@pytest.fixture(scope="module")
def browser():
    with chromium.Browser() as browser:
        browser.before_pages("window.ran = []; window.alert = (text) => ran.push(text);")
        yield browser


@pytest.fixture
def page(browser, sheet):
    browser.size(1280, 800)
    browser.media()
    browser.problems.clear()
    browser.open(sheet.page.as_uri())
    browser.run("localStorage.clear()")
    browser.open(sheet.page.as_uri())
    yield browser
    assert browser.problems == [] and browser.run("ran") == []


def progress(page):
    return page.run("document.getElementById('count').textContent")


def test_hostile_text_is_text(page, sheet):
    shown = page.run("[...document.querySelectorAll('.sentence')].map((e) => e.textContent)")
    assert len(shown) == len(SENTENCES) and set(INJECTIONS) - {INJECTIONS[9]} <= set(shown)
    assert "⟨U+2028⟩" not in shown and "(no words)" in shown
    assert "one ⟨U+202E⟩ two ⟨U+2069⟩ three four ⟨U+0000⟩" in shown and "x" * 10_000 in shown
    hostile = "main b, main img, main svg, main iframe, main style, main script, main base, main a"
    assert page.run(f"document.querySelectorAll('{hostile}').length") == 0
    assert page.run("/[\\u202a-\\u202e\\u2066-\\u2069\\u0000]/.test(document.body.textContent)") is False
    cards = read_page(sheet.page).cards
    on = page.run(
        "[...document.querySelectorAll('.card')].map((c) => [...c.querySelectorAll('.example')].map((e) =>"
        " [...e.children].map((t) => t.classList.contains('on'))))"
    )
    assert on == [[[shade > 0 for shade in row] for row in card["shades"]] for card in cards]
    assert "is none" in page.run("document.getElementById('cards').textContent") or all(
        all(card["groups"]) for card in cards
    )


def test_answers_are_kept_saved_and_read(page, sheet, tmp_path):
    n = len(SENTENCES)
    page._call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    assert progress(page) == f"0 of {n}"
    page.press("s")  # without initials nothing is saved
    page.until("document.activeElement.id === 'rater'")
    page._call("Input.insertText", text="A/B")
    page.run("document.querySelector('#card-1 input[value=wrong]').click()")
    page.run("document.querySelector('#card-1 .note').focus()")
    page._call("Input.insertText", text="<b> 3 n s")
    page.run("document.activeElement.blur(), document.getElementById('next').click()")
    page.until("document.activeElement.name === 'choice-2'")
    page.press("2", "n", "1")
    assert progress(page) == f"3 of {n}"

    page.open(sheet.page.as_uri())  # again, as after a day
    assert progress(page) == f"3 of {n}" and page.run("document.getElementById('rater').value") == "A/B"
    assert page.run("document.querySelector('#card-1 .note').value") == "<b> 3 n s"
    assert page.run("[...document.querySelectorAll(':checked')].map((e) => e.name + e.value)") == [
        "choice-1wrong",
        "choice-2part",
        "choice-3holds",
    ]
    for _ in range(n - 3):
        page.press("n", "3")
    assert progress(page) == f"{n} of {n}" and page.run("document.getElementById('next').disabled")
    page.press("s")
    name = f"sheet-A-B-{n}-of-{n}.json"
    page.until(f"document.getElementById('status').textContent === 'saved as {name}'")
    for _ in range(400):
        if (tmp_path / name).exists():
            break
        page.run("new Promise((done) => setTimeout(done, 25))")
    found = read_sheet(tmp_path / name, sheet.page)
    assert (found.rater, found.wrong.hits, found.part.hits, found.wrong.n) == ("A/B", n - 2, 1, n)
    assert found.answers[0]["note"] == "<b> 3 n s"


def test_what_another_page_left_in_the_storage_does_no_harm(page, sheet):
    key = f"saefast-sheet-{sheet.commitment[:16]}"
    kept = '{"rater": 5, "answers": {"1": {"choice": "x", "note": 7}, "99": {"choice": "holds"}, "__proto__": {}}}'
    for text, rater in (("not json", ""), ("null", ""), (kept, "5")):
        page.run(f"localStorage.setItem({key!r}, {text!r})")
        page.open(sheet.page.as_uri())
        assert progress(page) == f"0 of {len(SENTENCES)}" and page.problems == []
        assert page.run("document.getElementById('rater').value") == rater


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_names_contrast_and_phone(page, sheet, scheme):
    page.media(scheme, "reduce")
    page.open(sheet.page.as_uri())
    assert page.run(accessibility) == []
    page.size(360, 740, phone=True)
    page.open(sheet.page.as_uri())
    assert page.run("document.documentElement.scrollWidth") <= 360
