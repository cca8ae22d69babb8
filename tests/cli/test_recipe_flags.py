"""Options that do nothing, on the command line: a recipe in every spelling, and flags that win over it wherever they stand."""

import json
import os
import re
import subprocess
import sys
from dataclasses import fields

import numpy as np
import pytest

from saefast import cli
from saefast.cli.flags import FIRST, GROUPS, LISTS, configs_of, documented
from saefast.cli.recipes import as_flag
from saefast.config.recipes import RECIPES, recipe
from saefast.config.train import SAEConfig, TrainConfig
from saefast.errors import InputError
from tests.helpers.tiny_world import run

pytestmark = pytest.mark.usefixtures("no_curves")

NEEDED = "x.npy --out out --d-sae 64 --tokens 100"


def fields_of(line):
    """The fields of both configs that this command line asks for."""
    of_sae, of_train = configs_of(cli.parse(line.split()))
    return of_sae | of_train


SPELLINGS = [
    f"train {NEEDED} --recipe batchtopk",
    f"train {NEEDED} --recipe=batchtopk",
    f"train --recipe batchtopk {NEEDED}",
    f"train --recipe=batchtopk {NEEDED}",
    f"train {NEEDED} --recipe=sparsify --recipe batchtopk",
    f"sweep {NEEDED} --recipe=batchtopk",
    f"sweep --recipe batchtopk {NEEDED}",
]


@pytest.mark.parametrize("line", SPELLINGS)
def test_a_recipe_is_read_in_every_spelling(line):
    found, (of_sae, of_train) = fields_of(line), recipe("batchtopk")
    for name, value in (of_sae | of_train).items():
        assert found[name] == ((value,) if line.startswith("sweep") and name in LISTS else value), name
    plain = fields_of(f"train {NEEDED}")
    assert (plain["activation"], plain["auxk_scale"]) == ("topk", "residual")


@pytest.mark.parametrize("command", ["train", "sweep"])
@pytest.mark.parametrize("flag", ["--recipe=nosuch", "--recipe nosuch"])
def test_an_unknown_recipe_ends_with_the_list(capsys, command, flag):
    with pytest.raises(SystemExit) as stop:
        run(f"{command} {NEEDED} {flag}")
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1
    assert error.startswith("saefast: error: recipe: expected one of ['monosemanticity-2023', ")
    assert all(name in error for name in RECIPES) and error.endswith("got 'nosuch'\n")


@pytest.mark.parametrize("flag", ["--recip=batchtopk", "--rec batchtopk"])
def test_a_shortened_flag_is_refused(capsys, flag):
    with pytest.raises(SystemExit) as stop:
        run(f"train {NEEDED} {flag}")
    assert stop.value.code == 2 and "--rec" in capsys.readouterr().err


OURS = {f.name: f.default for config in (SAEConfig, TrainConfig) for f in fields(config)}


@pytest.mark.parametrize("name", RECIPES)
def test_a_flag_wins_over_the_recipe_on_either_side_of_it_also_with_our_default(name):
    of_sae, of_train = recipe(name)
    flags = " ".join(as_flag(field, OURS[field]) for field in of_sae | of_train)
    for line in (f"train {NEEDED} {flags} --recipe {name}", f"train --recipe={name} {NEEDED} {flags}"):
        found = cli.parse(line.split())
        values = {field: value for config in configs_of(found) for field, value in config.items()}
        assert {field: values[field] for field in of_sae | of_train} == {
            field: OURS[field] for field in of_sae | of_train
        }
        assert found.of_recipe == ()
    value = fields_of(f"train {NEEDED} --recipe {name} --betas 0 0.999 --no-unit-norm --ema-decay None")
    assert (value["betas"], value["unit_norm"], value["ema_decay"]) == ((0.0, 0.999), False, None)


@pytest.fixture
def x(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.random.default_rng(0).standard_normal((512, 16)).astype("f4"))


SHORT = "x.npy --d-sae 64 --tokens 512 --batch-size 64 --buffer-tokens 256"


def configs(folder):
    found = json.loads((folder / "run.json").read_text())
    return found["sae"] | found["train"]


def test_a_recipe_is_shown_and_its_idle_fields_are_left_out(tmp_path, x, capsys):
    run(f"train {SHORT} --out a --recipe=openai-topk-2024 --k 4 --auxk-alpha 0")
    found, printed = configs(tmp_path / "a"), capsys.readouterr().out
    assert (found["auxk_alpha"], found["k_aux"], found["ema_decay"]) == (0, None, 0.999)
    assert RECIPES["openai-topk-2024"].source in printed and RECIPES["openai-topk-2024"].note in printed
    assert "left out: k_aux, which has no effect with auxk_alpha 0.0" in printed
    run(f"train {SHORT} --out b --recipe gemma-scope-jumprelu --activation topk --k 4")
    found = configs(tmp_path / "b")
    assert (found["activation"], found["penalty"], found["sparsity_coefficient"]) == ("topk", "none", 0.0)
    assert found["betas"] == [0.0, 0.999]
    run(f"train {SHORT} --out c --recipe batchtopk --activation relu")
    assert (configs(tmp_path / "c")["activation"], configs(tmp_path / "c")["k"]) == ("relu", None)


@pytest.mark.parametrize(
    "flags,message",
    [
        (
            "--recipe openai-topk-2024 --auxk-alpha 0 --k-aux 256",
            "k_aux: expected None with auxk_alpha 0.0, got 256",
        ),
        ("--bandwidth 0.5", "bandwidth: expected .* with activation 'topk', got 0.5"),
        ("--bandwidth=0.5", "bandwidth: expected .* with activation 'topk', got 0.5"),
        ("--activation relu --k 3", "k: expected None with activation 'relu', got 3"),
        (
            "--penalty l1 --activation relu",
            "penalty: expected 'none' with sparsity_coefficient 0.0, got 'l1'",
        ),
        ("--scale-by-norm", "scale_by_norm: expected False with unit_norm True .*, got True"),
        ("--rescore 8", "rescore: expected 0 without 16-bit products, got 8 with torch.float32"),
    ],
)
def test_a_flag_that_cannot_act_is_refused_and_makes_no_folder(tmp_path, x, capsys, flags, message):
    with pytest.raises(SystemExit) as stop:
        run(f"train {SHORT} --out a {flags}")
    assert stop.value.code == 2 and re.fullmatch(f"saefast: error: {message}\n", capsys.readouterr().err)
    assert not (tmp_path / "a").exists()


def test_sparsify_trains_at_its_own_rate(tmp_path, x):
    pytest.importorskip("schedulefree")
    run(f"train {SHORT} --out a --recipe sparsify --log-every 1")
    lines = (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()
    assert {json.loads(line)["lr"] for line in lines} == {5e-3 / (64 / 2**14) ** 0.5}


def test_a_sweep_takes_a_recipe_and_leaves_flags_out_where_they_have_no_effect(tmp_path, x, capsys):
    run(
        f"sweep {SHORT} --out s --recipe=gemma-scope-jumprelu --activation jumprelu topk --k 4 --lr 1e-3 2e-3"
    )
    rows = json.loads((tmp_path / "s" / "table.json").read_text())["rows"]
    found = [configs(tmp_path / "s" / row["name"]) for row in rows]
    kinds = [(c["activation"], c["k"], c["penalty"], c["lr"], c["betas"]) for c in found]
    assert kinds == [
        (kind, k, penalty, lr, [0.0, 0.999])
        for kind, k, penalty in (("jumprelu", None, "l0"), ("topk", 4, "none"))
        for lr in (1e-3, 2e-3)
    ]
    assert RECIPES["gemma-scope-jumprelu"].note in capsys.readouterr().out
    run(f"sweep {SHORT} --out t --activation topk relu --k 4 --penalty l1 --sparsity-coefficient 0.01 0.1")
    rows = json.loads((tmp_path / "t" / "table.json").read_text())["rows"]
    assert [row["activation"] for row in rows] == ["topk", "relu", "relu"]


@pytest.mark.parametrize(
    "flags,message",
    [
        ("--activation topk batch_topk --bandwidth 0.5", "bandwidth: expected .* got 0.5"),
        ("--activation relu gated --k 4", r"k: expected None with activation .* got \(4,\)"),
        ("--sparsity-coefficient 0 0.1", "sparsity_coefficient: expected 0.0 with penalty 'none', got .*"),
        ("--configs c.json --k 4 8", "k: expected one value with --configs, got .*"),
        ("--configs c.json --hook a", "hook: expected none with --configs, which names them, got .*"),
        ("--contexts 3", "contexts: expected 0 without held_out.*"),
    ],
)
def test_a_flag_of_a_sweep_that_acts_nowhere_is_refused(tmp_path, x, capsys, flags, message):
    (tmp_path / "c.json").write_text("[{}]")
    with pytest.raises(SystemExit) as stop:
        run(f"sweep {SHORT} --out s {flags}")
    assert stop.value.code == 2 and re.fullmatch(f"saefast: error: {message}\n", capsys.readouterr().err)
    assert not (tmp_path / "s").exists()


def test_contexts_without_the_model_are_refused(world, capsys):
    with pytest.raises(SystemExit):
        run(f"evaluate {world}/run {world}/cache --contexts 32")
    assert capsys.readouterr().err == "saefast: error: contexts: expected none without --in-model, got 32\n"


def test_recipes_are_listed_as_flags_that_train_takes(capsys):
    run("recipes")
    printed = capsys.readouterr().out
    for name, found in RECIPES.items():
        assert f"\n{name}\n" in f"\n{printed}" and found.source in printed
    run("recipes gemma-scope-jumprelu")
    text = " ".join(capsys.readouterr().out.split())
    flags = text.split(" flags ")[1].split(" differs ")[0]
    of_sae, of_train = recipe("gemma-scope-jumprelu")
    found = fields_of(f"train {NEEDED} {flags}")
    assert found.items() >= (of_sae | of_train).items()
    with pytest.raises(InputError, match="recipe: expected one of"):
        cli.Recipes("nosuch").run()


# -- help


def test_every_field_is_a_flag_of_one_group_with_its_text():
    listed = [*FIRST.split(), *(name for names in GROUPS.values() for name in names.split())]
    texts = documented(SAEConfig) | documented(TrainConfig)
    assert sorted(listed) == sorted(texts) and all(texts.values())


def test_help_begins_with_the_fifteen_options_that_people_use_first():
    text = subprocess.run(
        [sys.executable, "-P", "-m", "saefast", "train", "--help"],
        env=os.environ | {"COLUMNS": "100", "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
        check=True,
    ).stdout
    titles = re.findall(r"╭─ ([\w ]+?) ─", text)
    groups = ["model and text", *GROUPS]
    assert titles == ["positional arguments", "options", *(f"{title} options" for title in groups)]
    first = text.split("╭─ options")[1].split("╰")[0]
    flags = [flag for flag in re.findall(r"│ --([\w-]+)", first)]
    assert flags == [
        "out",
        "recipe",
        "start",
        "resume",
        "device",
        "d-sae",
        "k",
        "activation",
        "tokens",
        "batch-size",
        "lr",
        "penalty",
        "sparsity-coefficient",
        "backend",
        "seed",
    ]
    assert "SOURCE" in text.split("╭─ options")[0] and "of-recipe" not in text
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize("command", ["--help", "train --help", "sweep --help", "cache --help", "recipes"])
def test_help_does_not_wait_for_torch(command):
    code = f"""
import sys
from saefast import cli
try:
    cli.main({command.split()!r})
except SystemExit:
    pass
print([name for name in ("torch", "numpy", "transformers", "tqdm") if name in sys.modules], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr == "[]\n" and len(done.stdout) > 500


def test_what_the_package_exports_is_there_when_it_is_asked_for():
    code = """
import sys, saefast
print([name for name in ("torch", "saefast.sae") if name in sys.modules])
print([getattr(saefast, name).__name__ for name in saefast.__all__], saefast.backend.__name__, hasattr(saefast, "nope"))
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    names = "SAE InputError SAEConfig TrainConfig Trainer evaluate saefast.formats load_backend open_source recipe"
    assert done.stdout.splitlines() == ["[]", f"{names.split()} saefast.backend False"]
