"""`saefast sweep` on a tiny language model's activations."""

import json

import pytest

from saefast import cli, evaluate, open_source
from saefast.sae import SAE
from tests.helpers.tiny_world import CACHE, run

pytestmark = pytest.mark.usefixtures("no_curves")

SIZES = "--tokens 640 --batch-size 64 --buffer-tokens 256 --log-every 5 --lr 3e-3"


def table(out):
    return json.loads((out / "table.json").read_text())["rows"]


def test_the_product_of_the_lists(world, tmp_path, capsys):
    lists = "--d-sae 32 64 --k 2 4 --activation topk relu --seed 0 1"
    run(f"sweep {world}/cache --out {tmp_path}/s {lists} {SIZES} --held-out {world}/cache --contexts 4")
    rows = table(tmp_path / "s")
    assert len(rows) == 2 * (2 + 1) * 2  # relu has no k
    assert len({row["name"] for row in rows}) == len(rows)
    assert {row["seed"] for row in rows} == {0, 1}
    printed = capsys.readouterr().out
    assert all(row["name"] in printed for row in rows) and "loss_recovered" in printed
    capsys.readouterr()
    folder = tmp_path / "s" / rows[0]["name"]
    want = cli.Evaluate(folder, world / "cache", in_model=True, contexts=4).result()
    assert rows[0]["fvu"] == pytest.approx(want["fvu"], rel=1e-6)
    for key in ("ce", "ce_sae", "ce_zero", "ce_mean", "loss_recovered", "kl"):
        assert rows[0][key] == pytest.approx(want["in_model"][key], rel=1e-4, abs=1e-6), key
    run(f"sweep {world}/cache --out {tmp_path}/s {lists} {SIZES} --resume")


def test_hook_points_side_by_side(world, tmp_path):
    hooks = "--hook model.layers.0 " + CACHE
    run(f"cache {world}/model {world}/text {hooks} --out {tmp_path}/two --tokens 700")
    run(
        f"sweep {tmp_path}/two --out {tmp_path}/s --d-sae 32 --k 4 {SIZES} --held-out {tmp_path}/two --contexts 4"
    )
    rows = table(tmp_path / "s")
    assert [row["columns"] for row in rows] == [[0, 32], [32, 64]]
    source = open_source(tmp_path / "two")
    for row, columns in zip(rows, (slice(0, 32), slice(32, 64)), strict=True):
        own = [chunk[:, columns] for chunk in source]
        want = evaluate(SAE.from_pretrained(tmp_path / "s" / row["name"]), own)
        assert row["fvu"] == pytest.approx(want.fvu, rel=1e-6)
    assert rows[0]["ce"] == pytest.approx(rows[1]["ce"]) and rows[0]["ce_sae"] != rows[1]["ce_sae"]


def test_a_file_of_configs(world, tmp_path):
    entries = [
        {"name": "mine", "sae": {"d_sae": 32, "k": 3}},
        {"recipe": "gemma-scope-jumprelu", "sae": {"d_sae": 64}, "train": {"batch_size": 64}},
    ]
    (tmp_path / "c.json").write_text(json.dumps(entries))
    run(f"sweep {world}/cache --out {tmp_path}/s --configs {tmp_path}/c.json {SIZES}")
    rows = table(tmp_path / "s")
    assert (rows[0]["name"], rows[0]["k"], rows[1]["activation"]) == ("mine", 3, "jumprelu")
    train = json.loads((tmp_path / "s" / rows[1]["name"] / "run.json").read_text())["train"]
    assert train["penalty"] == "l0"


@pytest.mark.parametrize(
    "content,message",
    [
        ("{", "configs: .*expected JSON"),
        ('{"a": 1}', "configs: .*expected a list of objects"),
        ('[{"mine": 1}]', "configs: .*expected a list of objects with keys from"),
        ('[{"sae": {"d_sae": 32, "mine": 1}}]', "configs: .*mine"),
        ('[{"hook": "x", "sae": {"d_sae": 32}}]', "hook: expected one of those of the source"),
    ],
)
def test_a_bad_file_is_one_line(world, tmp_path, capsys, content, message):
    (tmp_path / "c.json").write_text(content)
    with pytest.raises(SystemExit) as exit:
        run(f"sweep {world}/cache --out {tmp_path}/s --configs {tmp_path}/c.json {SIZES}")
    error = capsys.readouterr().err
    assert exit.value.code == 2 and error.count("\n") == 1
    import re

    assert re.search(message, error)


def test_no_width_is_refused(world, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(f"sweep {world}/cache --out {tmp_path}/s {SIZES}")
    assert "d_sae: expected at least one number" in capsys.readouterr().err
