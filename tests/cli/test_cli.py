"""The command line from end to end."""

import functools
import itertools
import json
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from saefast import SAE, SAEConfig, cli, formats, instructions, open_source
from saefast.activations import shards
from tests.helpers.tiny_world import CACHE, TRAIN, contents, run


def test_cache_writes_the_activations_of_the_text(world):
    source = open_source(world / "cache")
    assert len(source) == 1000 and source.d_in == 32 and source.index["hook"] == "model.layers.1"
    assert source.index["model"] == f"{world}/model" and source.index["notes"]["text"] == f"{world}/text"
    words = (world / "text" / "0.txt").read_text().split()
    tokens, place = source.context(5)
    assert [f"w{token - 2}" for token in tokens] == words[: len(tokens)] and 5 <= place <= 15
    assert all(source.context(row, 0, 0)[0] != [0] for row in range(1000))  # <eos> was dropped


def test_train_writes_a_run_that_evaluate_and_info_understand(world, capsys):
    names = {
        "run.json",
        "checkpoint.safetensors",
        "metrics.jsonl",
        "sae.safetensors",
        "config.json",
        "curves.png",
    }
    assert {path.name for path in (world / "run").iterdir()} == names
    assert SAE.from_pretrained(world / "run").config.d_sae == 64
    assert json.loads((world / "run" / "run.json").read_text())["train"]["seed"] == 1

    run(f"evaluate {world}/run {world}/cache --json")
    result = json.loads(capsys.readouterr().out)
    assert result["n_tokens"] == 1000 and 0 < result["fvu"] < 1 and 0 < result["l0"] <= 4
    run(f"evaluate {world}/run {world}/cache")
    assert f"{result['fvu']:.5g}" in capsys.readouterr().out

    run(f"info {world}/run --json")
    info = json.loads(capsys.readouterr().out)
    assert info["kind"] == "run"
    assert info["sae"].items() >= {"d_in": 32, "d_sae": 64, "k": 4, "activation": "topk"}.items()
    assert info["progress"] == {"step": 20, "of": 20} and info["last_metrics"]["step"] == 20
    assert info["parameters"] == 2 * 64 * 32 + 64 + 32 and {"auto", "why"} <= info["backend"].keys()


def test_convert_writes_the_files_of_another_project_and_everything_takes_them(world, tmp_path, capsys):
    run(f"convert {world}/run {tmp_path}/lens --to sae_lens")
    assert (
        capsys.readouterr().out == f"64 latents of width 32, k = 4: {tmp_path}/lens, in the format sae_lens\n"
    )
    metadata = json.loads((tmp_path / "lens" / "cfg.json").read_text())["metadata"]
    assert (metadata["model_name"], metadata["hook_name"]) == (f"{world}/model", "model.layers.1")
    results = []
    for folder in (world / "run", tmp_path / "lens"):
        run(f"evaluate {folder} {world}/cache --json")
        results.append(json.loads(capsys.readouterr().out))
    assert results[0] == results[1]
    run(f"info {tmp_path}/lens")
    assert "sae_lens" in capsys.readouterr().out
    run(f"convert {tmp_path}/lens {tmp_path}/ours --to saefast --format sae_lens")
    ours, was = SAE.from_pretrained(tmp_path / "ours"), SAE.from_pretrained(world / "run")
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), was.parameters()))


def test_convert_offers_every_format():
    assert set(get_args(cli.Format)) == set(formats.FORMATS)
    assert set(get_args(cli.Written)) == set(formats.WRITTEN)


def test_convert_says_what_it_folds(tmp_path, capsys):
    SAE(SAEConfig(d_in=4, d_sae=8, activation="relu")).save_pretrained(tmp_path / "ours")
    run(f"convert {tmp_path}/ours {tmp_path}/gemma --to gemma_scope")
    assert capsys.readouterr().out.splitlines()[1:] == [
        "folded: relu as JumpReLU with one threshold for all latents",
        "folded: W_enc b_dec into b_enc",
    ]


def test_evaluate_in_the_model(world, capsys):
    run(f"evaluate {world}/run {world}/cache --json --in-model --contexts 6")
    spliced = json.loads(capsys.readouterr().out)["in_model"]
    assert spliced["n_tokens"] == 6 * 15
    lost, hurt = spliced["ce_zero"] - spliced["ce_sae"], spliced["ce_zero"] - spliced["ce"]
    assert spliced["kl"] > 0 and spliced["loss_recovered"] == pytest.approx(lost / hurt)
    for name in ("ce", "ce_sae", "ce_zero", "ce_mean"):
        assert 0 < spliced[name] < 50


@pytest.mark.parametrize("what,kind", [("cache", "activations"), ("x.npy", "activations"), ("sae", "sae")])
def test_info_of_other_things(world, tmp_path, capsys, what, kind):
    SAE.from_pretrained(world / "run").save_pretrained(tmp_path / "sae")
    run(f"info {(tmp_path if what == 'sae' else world) / what} --json")
    assert json.loads(capsys.readouterr().out)["kind"] == kind


def test_info_of_a_killed_run_and_of_this_machine(world, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_bytes((world / "run" / "run.json").read_bytes())
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 5}\n{"step": 1')
    run(f"info {tmp_path}/run --json")
    info = json.loads(capsys.readouterr().out)
    assert info["progress"] == {"step": 0, "of": 20} and info["last_metrics"] == {"step": 5}
    run("info")
    said = capsys.readouterr().out
    assert "backend" in said and str(instructions.native_encoder()) in said


@pytest.mark.parametrize("more", ["", "--hook model.layers.0.mlp"])
def test_an_interrupted_cache_goes_on_to_the_same_files(world, tmp_path, monkeypatch, more):
    writer = functools.partial(shards.ShardWriter, shard_tokens=150)
    monkeypatch.setattr(shards, "ShardWriter", writer)
    command = f"cache {world}/model {world}/text {CACHE} {more} --tokens 1000 --out "
    run(f"{command}{tmp_path}/whole")

    def stopping(*args):
        made, calls = writer(*args), itertools.count()
        append = made.append

        def until_the_ninth(*parts):
            if next(calls) == 8:
                raise KeyboardInterrupt
            append(*parts)

        made.append = until_the_ninth
        return made

    monkeypatch.setattr(shards, "ShardWriter", stopping)
    with pytest.raises(SystemExit) as stop:
        run(f"{command}{tmp_path}/stopped")
    assert stop.value.code == 130
    index = json.loads((tmp_path / "stopped" / "index.json").read_text())
    assert not index["complete"] and 0 < index["n_tokens"] < 1000
    monkeypatch.setattr(shards, "ShardWriter", writer)
    run(f"{command}{tmp_path}/stopped")
    assert list(contents(tmp_path / "stopped").values()) == list(contents(tmp_path / "whole").values())


PAIR = ["model.layers.0", "model.layers.1.mlp.down_proj:in"]  # widths 32 and 48


def by_token(folder):
    """Row number of each (context of the text, position) that a cache holds."""
    found, n_contexts, n_rows = {}, 0, 0
    for i in range(len((source := open_source(folder)).index["shards"])):
        shard = source.shard(i)
        context, position = shard["context"] + n_contexts, shard["position"]
        for row, token in enumerate(zip(context.tolist(), position.tolist())):
            found[token] = n_rows + row
        n_contexts, n_rows = n_contexts + len(shard["contexts"]), n_rows + len(context)
    return source, found


def test_the_columns_of_a_cache_of_several_hook_points_are_those_of_a_cache_each(world, tmp_path, capsys):
    sizes = "--context-length 16 --contexts-per-batch 4 --sink-ratio 1.3"  # many rows are sinks by that
    for name, hooks in (("both", PAIR), ("first", PAIR[:1]), ("second", PAIR[1:])):
        flags = " ".join(f"--hook {hook}" for hook in hooks)
        run(f"cache {world}/model {world}/text {flags} {sizes} --out {tmp_path}/{name}")
    assert "activations of width 32 + 48 in" in capsys.readouterr().out
    both, rows = by_token(tmp_path / "both")
    assert (both.index["hook"], both.index["widths"], both.d_in) == (PAIR, [32, 48], 80)
    singles = [by_token(tmp_path / name) for name in ("first", "second")]
    kept = [set(tokens) for _, tokens in singles]
    assert set(rows) == kept[0] & kept[1] and len(rows) < min(map(len, kept)) and kept[0] != kept[1]
    columns = torch.cat(list(both)).split(both.widths, dim=1)
    for part, (single, tokens), hook in zip(columns, singles, PAIR):
        want = torch.cat(list(single))[[tokens[token] for token in rows]]
        assert torch.equal(part, want) and single.index["hook"] == hook and "widths" not in single.index
    limits = [single.index["notes"]["max_norm"] for single, _ in singles]
    assert both.index["notes"]["max_norm"] == limits


def test_resume_of_nothing_begins_and_of_a_finished_run_changes_nothing(world, tmp_path):
    for _ in range(2):
        run(f"train {world}/cache --out {tmp_path}/run {TRAIN} --resume")
        for name in ("sae.safetensors", "config.json"):
            assert (tmp_path / "run" / name).read_bytes() == (world / "run" / name).read_bytes()


def test_held_out_text_follows_the_text_that_was_skipped(world, tmp_path):
    run(
        f"cache {world}/model {world}/text {CACHE} --out {tmp_path}/rest --skip-tokens 320 --sink-ratio None --keep-special"
    )
    run(f"cache {world}/model {world}/text {CACHE} --out {tmp_path}/all --sink-ratio None --keep-special")
    rest, whole = (torch.cat(list(open_source(tmp_path / name))) for name in ("rest", "all"))
    assert len(whole) == 1204 // 64 * 64 and torch.equal(rest, whole[320:])


@pytest.mark.parametrize("command", ["", *cli.COMMANDS])
def test_help_describes_every_flag(capsys, command):
    with pytest.raises(SystemExit) as stop:
        run(f"{command} --help")
    text = capsys.readouterr().out
    assert stop.value.code == 0
    for word in cli.COMMANDS if not command else ["usage: saefast " + command]:
        assert word in text


def test_the_console_script_is_installed():
    (script,) = (entry for entry in entry_points(group="console_scripts") if entry.name == "saefast")
    assert script.load() is cli.main
    done = subprocess.run(
        [Path(sys.executable).parent / "saefast", "info", "--json"], capture_output=True, check=True
    )
    assert json.loads(done.stdout)["machine"]["torch"] == torch.__version__


def test_a_safetensors_matrix_trains_too(world, tmp_path):
    save_file({"x": torch.from_numpy(np.load(world / "x.npy")).bfloat16()}, tmp_path / "x.safetensors")
    run(f"train {tmp_path}/x.safetensors --out {tmp_path}/run {TRAIN}")
    assert SAE.from_pretrained(tmp_path / "run").config.d_in == 32
