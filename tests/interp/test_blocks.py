"""The report as a page and as Markdown: whatever a token holds, it stays text."""

from saefast.interp.blocks import Link, Picture, Section, Table, as_html, as_markdown

EVIL = "<script>alert(1)</script>|x\ny"


def section():
    table = Table(("what", "found"), [(EVIL, Link("17", "look/index.html#latent/17")), ("row", "failed")])
    return Section(EVIL, [EVIL, table, Picture("a map", EVIL), Link(EVIL, "blind/cards.html")])


def test_html_shows_text_as_text():
    page = as_html(EVIL, [section()])
    assert "<script>" not in page and page.count("&lt;script&gt;") == 8
    assert '<a href="look/index.html#latent/17">17</a>' in page and 'class="failed"' in page
    assert '<img src="pictures/a-map.png"' in page


def test_markdown_keeps_a_cell_in_its_cell():
    text = as_markdown("Report", [section()])
    (line,) = [line for line in text.splitlines() if line.startswith("| <script>")]
    assert line.count("|") - line.count("\\|") == 3 and "[17](look/index.html#latent/17)" in line
    assert "![" in text and "](pictures/a-map.png)" in text
