"""The page in a real browser: by keys, by mouse, on a phone, with hostile tokens; what it saves is what unsealing reads."""

import json

import pytest

from saefast.interp.blind import planted, read_page, read_ratings, unseal
from saefast.interp.blind.planted import PlantedTokens
from saefast.interp.blind.ratings import checksum
from tests.helpers import chromium
from tests.helpers.blind_deals import dealt
from tests.helpers.look_hostile import INJECTIONS, accessibility

# A process that writes localStorage and one that reads it are two: on a loaded machine the next page may be too early.
pytestmark = [
    pytest.mark.flaky(reruns=3),
    pytest.mark.skipif(chromium.installed() is None, reason="needs Chromium (apt-get install chromium)"),
]
STRANGE = [one.encode() for one in INJECTIONS]
STRANGE += [b"\xe2\x80", b"\n", b"\x00", "שלום".encode(), "\u202e".encode(), b"", b"x" * 100_000]
WORDS = 'a "word" \u2028 \x7f é 😀 <b>'


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A deal in which half of the tokens are strange ones."""
    made = planted(tmp_path_factory.mktemp("planted"), 4)
    raw = [STRANGE[i % len(STRANGE)] if i % 2 else one for i, one in enumerate(made.vocabulary.raw)]
    folder = tmp_path_factory.mktemp("deal") / "deal"
    dealt(made._replace(vocabulary=PlantedTokens(raw, {8})), folder)
    return folder


@pytest.fixture(scope="module")
def browser():
    with chromium.Browser() as browser:
        browser.before_pages("window.ran = []; window.alert = (text) => ran.push(text);")
        yield browser


@pytest.fixture
def page(browser, folder):
    browser.size(1280, 800)
    browser.media()
    browser.problems.clear()
    browser.open((folder / "cards.html").as_uri())
    browser.run("localStorage.clear()")
    browser.open((folder / "cards.html").as_uri())
    yield browser
    assert browser.problems == [] and browser.run("ran") == []


def begin(page, name="AB"):
    page.run(f"document.getElementById('rater').value = {json.dumps(name)}")
    page.run("document.querySelector('.begin button').click()")
    page.until("!document.getElementById('card').hidden")


def write(page, words):
    page.press("i")
    page._call("Input.insertText", text=words)
    page.press("Escape")


def title(page):
    return page.run("document.querySelector('#card h1').textContent")


def rated(page):
    return page.run("document.getElementById('rated').textContent")


def saved(page, folder, tmp_path, number):
    """The file that `s` saves."""
    page._call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    page.press("s")
    name = f"ratings-AB-{number}-of-8.json"
    page.until(f"document.getElementById('status').textContent === 'saved as {name}'")
    for _ in range(400):
        if (tmp_path / name).exists():
            return tmp_path / name
        page.run("new Promise((done) => setTimeout(done, 25))")
    raise AssertionError(f"{name} was not saved")


def load(page, text):
    page.run(f"""(() => {{
      const some = new DataTransfer();
      some.items.add(new File([{json.dumps(text)}], "ratings.json"));
      const input = document.getElementById("file");
      input.files = some.files;
      input.dispatchEvent(new Event("change"));
    }})()""")


def test_cards_are_rated_by_keys_saved_reloaded_and_finished(page, folder, tmp_path):
    begin(page)
    cards = [card["id"] for card in read_page(folder / "cards.html").cards]
    assert title(page) == f"Card 1 of 8 · {cards[0]}" and rated(page) == "0 of 8 rated"
    page.press("3")  # nothing is written yet
    assert page.run("document.querySelectorAll('#card :checked').length") == 0
    write(page, WORDS)
    page.press("3", "4", "2", "1", "2")
    assert page.run("[...document.querySelectorAll('.set')].every((set) => set.checkVisibility())")
    page.press("5", "0")
    assert rated(page) == "1 of 8 rated"
    page.press("Enter", "x", "Enter")  # of the second nothing can be said
    assert title(page).startswith("Card 3") and rated(page) == "2 of 8 rated"

    page.open((folder / "cards.html").as_uri())  # as if the browser had been closed
    assert page.run("document.getElementById('rater').value") == "AB"
    page.press("Enter")
    page.until("!document.getElementById('card').hidden")
    assert title(page).startswith("Card 3") and rated(page) == "2 of 8 rated"
    partial = saved(page, folder, tmp_path, 2)
    found = read_ratings(partial)
    first = {"confidence": 3, "tokens": 4, "logits": 2, "separated": 1, "specificity": 2, "sets": [5, 0]}
    assert found.ratings[cards[0]] == {"interpretation": WORDS, "none": False, **first}
    assert found.ratings[cards[1]]["none"] and found.ratings.keys() == {*cards[:2]}

    page.run("localStorage.clear()")  # another computer
    page.open((folder / "cards.html").as_uri())
    load(page, partial.read_text().replace('"tokens": 4', '"tokens": 5'))
    page.until("document.getElementById('problem').textContent.includes('edited or damaged')")
    load(page, partial.read_text())
    page.until("!document.getElementById('card').hidden")
    assert title(page).startswith("Card 3") and rated(page) == "2 of 8 rated"
    for _ in range(6):
        write(page, "words")
        page.press("1", "1", "3", "1", "1", "1", "Enter")  # all logits fit: the next question is left out
    page.until("document.querySelector('dialog[open]')")
    assert rated(page) == "8 of 8 rated"
    page.press("Escape")
    results = unseal(folder, [saved(page, folder, tmp_path, 8)])
    points = {row["card"]: row["points"] for row in results["ratings"]}
    assert points == {cards[0]: 12, cards[1]: 0, **dict.fromkeys(cards[2:], 6)}


def test_answers_by_mouse_and_a_changed_mind(page):
    begin(page)
    page.run("document.getElementById('interpretation').focus()")
    page._call("Input.insertText", text="words")
    for name, number in (
        ("confidence", 2),
        ("tokens", 5),
        ("logits", 1),
        ("separated", 1),
        ("specificity", 0),
    ):
        page.run(f"document.querySelector('label[for={name}-{number}]').click()")
    assert page.run("document.querySelector('.side .main').textContent") == "Sets to rate"
    page.run("document.querySelector('.side .main').click()")
    page.run("document.querySelector('label[for=set-0-4]').click()")
    page.run("document.querySelector('label[for=set-1-3]').click()")
    assert rated(page) == "1 of 8 rated"
    page.run("document.querySelector('label[for=logits-3]').click()")
    assert (
        page.run("document.querySelector('[data-name=separated]').disabled") and rated(page) == "1 of 8 rated"
    )
    page.run("document.querySelector('label[for=logits-2]').click()")  # now it is asked again
    assert rated(page) == "0 of 8 rated"
    page.run("document.getElementById('none').click()")
    assert rated(page) == "1 of 8 rated"


def test_each_rater_has_ratings_of_their_own(page, folder):
    begin(page)
    page.press("x")
    page.open((folder / "cards.html").as_uri())
    begin(page, "CD")
    assert rated(page) == "0 of 8 rated"
    page.open((folder / "cards.html").as_uri())
    begin(page, "AB")
    assert rated(page) == "1 of 8 rated"


def test_ratings_of_another_page_are_refused(page):
    load(
        page, json.dumps({"format": "saefast-blind-ratings", "rater": "AB", "commitment": "0", "ratings": {}})
    )
    page.until("document.getElementById('problem').textContent.includes('belong to another page')")
    load(page, "{")
    page.until("document.getElementById('problem').textContent.includes('no file of ratings')")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_has_a_name_and_can_be_read(page, scheme):
    page.media(scheme, "reduce")  # colours that are there at once
    assert page.run(accessibility) == []
    begin(page)
    write(page, "words")
    assert page.run(accessibility) == []
    page.press("1", "1", "1", "1", "1", "?")
    assert page.run(accessibility) == []


def test_nothing_is_wider_than_a_phone(page):
    page.size(360, 740, phone=True, ratio=2)
    begin(page)
    for _ in range(3):
        assert page.run("document.documentElement.scrollWidth") <= 360
        page.press("v"), page.press("n")


def test_checksums_are_those_of_python(page):
    """Of every length around a block of SHA-256, and of strings that JSON may write in several ways."""
    values = [{"b": [1, None, True], "a": WORDS * n, "é": "\ud800"} for n in range(8)]
    values += [{"a": "x" * n} for n in range(40, 70)]
    found = page.run(
        f"{json.dumps(values)}.map((one) => 'sha256-' + saefast.blind.store.sha256(saefast.blind.store.canonical(one)))"
    )
    assert found == [checksum(one) for one in values]
