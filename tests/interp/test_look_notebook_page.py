"""The examples of docs/look/notebook.md, one after another, on a tiny model."""

import re
from pathlib import Path

import pytest

from tests.helpers import tiny_lm

PAGE = Path(__file__).parents[2] / "docs/look/notebook.md"


@pytest.mark.slow  # umap compiles itself, a model is loaded
def test_the_examples_run(tmp_path, monkeypatch):
    from saefast import SAE, SAEConfig

    tiny_lm.save(tmp_path / "data/smollm2-135m")
    (tmp_path / "data/text").mkdir()
    (tmp_path / "data/text/0.txt").write_text(tiny_lm.text(3000))
    SAE(SAEConfig(d_in=32, d_sae=64, k=4)).save_pretrained(tmp_path / "runs/demo")
    monkeypatch.chdir(tmp_path)
    code = "\n".join(re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL))
    code = code.replace("data/corpus.jsonl", "data/text").replace(
        "layers.12", "layers.1"
    )  # it has three blocks
    found: dict = {}
    exec(compile(code, str(PAGE), "exec"), found)  # noqa: S102
    assert found["records"].n_rows >= 2000
    assert (
        found["made"].coordinates.isfinite().all(dim=1).sum()
        == (found["table"]["count"].to_numpy() > 0).sum()
    )
    assert len(found["comparison"].pairs()) > 30
