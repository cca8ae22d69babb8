"""The page in docs/ of a finished study: what is copied, and what becomes plain text."""

from benchmarks.report.study import study_page

REPORT = """# Title

## Look inside

[the features of A/1](look/index.html)

## Contexts

| context | feature |
| --- | --- |
| dna | [A/1 7](look/index.html#latent/7) |

![dna](pictures/context-dna.png)

![greek](pictures/context-greek.png)

![densities](pictures/densities.png)
"""


def test_text_pictures_and_registration_are_there_and_links_into_the_run_are_not(tmp_path):
    run, docs = tmp_path / "run", tmp_path / "docs"
    for name in ("pictures/context-dna.png", "pictures/context-greek.png", "pictures/densities.png"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_bytes(name.encode())
    (run / "trial").mkdir()
    (run / "trial" / "registration.json").write_text("{}")
    (run / "report.md").write_text(REPORT)
    (docs / "monosemanticity").mkdir(parents=True)
    (docs / "monosemanticity" / "of-an-earlier-run.png").write_bytes(b"")
    text = study_page(run, docs).read_text()
    assert text.startswith("# Title\n\nWhat `saefast study monosemanticity") and text.endswith(
        "densities.png)\n"
    )
    assert "| dna | A/1 7 |" in text and "look/" not in text and "the features of A/1" in text
    assert "![dna](monosemanticity/context-dna.png)" in text and "greek" not in text
    found = sorted(path.name for path in (docs / "monosemanticity").iterdir())
    assert found == ["context-dna.png", "densities.png", "registration.json"]
    assert (docs / "monosemanticity" / "densities.png").read_bytes() == b"pictures/densities.png"
