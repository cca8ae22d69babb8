"""`saefast evaluate --in-model` and `saefast sweep --contexts`, for caches of one hook point and of several."""

import json

import pytest
import torch

from saefast import SAE, SAEConfig, open_source
from saefast.activations.shards import ShardWriter
from saefast.interp.splice import evaluate_in_model
from tests.helpers import tiny_lm
from tests.helpers.spliced import perfect, random
from tests.helpers.tiny_world import TRAIN, run

pytestmark = pytest.mark.usefixtures("no_curves")
SIZES = "--context-length 16 --contexts-per-batch 4 --tokens 700"
PAIR = ["model.layers.1.mlp:in", "model.layers.1.mlp"]
LAYERS = ["model.layers.0", "model.layers.1", "model.layers.2"]


def cached(world, out, hooks, more=""):
    flags = " ".join(f"--hook {hook}" for hook in hooks)
    run(f"cache {world}/model {world}/text {flags} {SIZES} {more} --out {out}")
    return open_source(out)


def in_model(capsys, sae, source, contexts=40):
    capsys.readouterr()
    run(f"evaluate {sae} {source} --json --in-model --contexts {contexts}")
    return json.loads(capsys.readouterr().out)["in_model"]


def test_a_transcoder_is_put_at_the_second_hook_point_of_its_cache(world, tmp_path, capsys):
    source = cached(world, tmp_path / "pair", PAIR, "--sink-ratio 1.5")
    run(f"train {tmp_path}/pair --out {tmp_path}/run --d-out 32 --no-pre-bias {TRAIN}")
    got = in_model(capsys, tmp_path / "run", tmp_path / "pair")
    notes, ids = source.index["notes"], source.shard(0)["contexts"][:40].long()
    assert len(notes["max_norm"]) == 2 and 0 in notes["dropped_ids"] and (ids == 0).any()
    sae, model = SAE.from_pretrained(tmp_path / "run"), tiny_lm.model()
    want = evaluate_in_model(
        sae, model, PAIR[0], [ids], notes["max_norm"], output_hook=PAIR[1], drop_ids=notes["dropped_ids"]
    )
    assert got == pytest.approx(want._asdict(), rel=1e-4, abs=1e-6) and got["n_tokens"] == 40 * 15
    assert abs(got["ce_sae"] - got["ce"]) > 1e-3


def test_a_crosscoder_is_put_at_every_hook_point_of_its_cache(world, tmp_path, capsys):
    cached(world, tmp_path / "layers", LAYERS)
    perfect(96, layers=3).save_pretrained(tmp_path / "perfect")
    got = in_model(capsys, tmp_path / "perfect", tmp_path / "layers")
    assert got["ce_sae"] == pytest.approx(got["ce"], rel=1e-5)
    assert got["loss_recovered"] == pytest.approx(1, abs=1e-4) and abs(got["ce_zero"] - got["ce"]) > 1e-2


@pytest.mark.parametrize("more", ["", "--keep-special"], ids=["dropped", "kept"])
def test_special_tokens_that_the_cache_dropped_stay_as_they_are(world, tmp_path, capsys, more):
    source = cached(world, tmp_path / "one", LAYERS[1:2], more)
    sae = random(SAEConfig(d_in=32, d_sae=64, k=4))
    sae.save_pretrained(tmp_path / "sae")
    got = in_model(capsys, tmp_path / "sae", tmp_path / "one")
    ids, limit = source.shard(0)["contexts"][:40].long(), source.index["notes"]["max_norm"]
    drop = () if more else tiny_lm.tokenizer().all_special_ids
    want, other = (
        evaluate_in_model(sae, tiny_lm.model(), LAYERS[1], [ids], limit, drop_ids=ids_of)
        for ids_of in (drop, () if drop else (0,))
    )
    assert got["ce_sae"] == pytest.approx(want.ce_sae, rel=1e-5)
    assert abs(want.ce_sae - other.ce_sae) > 1e-4


def test_a_sweep_evaluates_transcoders_and_crosscoders_as_the_command_does(world, tmp_path, capsys):
    for name, hooks, sae in (
        ("pair", PAIR, {"d_in": 32, "d_out": 32, "pre_bias": False}),
        ("layers", LAYERS, {"layers": 3}),
    ):
        cached(world, tmp_path / name, hooks)
        entries = [{"name": f"of_{k}", "sae": sae | {"d_sae": 64, "k": k}} for k in (2, 8)]
        (tmp_path / "configs.json").write_text(json.dumps(entries))
        sizes = "--tokens 640 --batch-size 64 --buffer-tokens 256 --log-every 5 --lr 3e-3"
        out = tmp_path / f"{name}_sweep"
        run(
            f"sweep {tmp_path}/{name} --out {out} --configs {tmp_path}/configs.json {sizes} "
            f"--held-out {tmp_path}/{name} --contexts 40"
        )
        for row in json.loads((out / "table.json").read_text())["rows"]:
            want = in_model(capsys, out / row["name"], tmp_path / name)
            for key in ("ce", "ce_sae", "ce_zero", "ce_mean", "loss_recovered", "kl"):
                assert row[key] == pytest.approx(want[key], rel=1e-3, abs=1e-5), (name, key)


def test_what_does_not_fit_a_cache_is_one_line(world, tmp_path, capsys):
    def fails(command):
        with pytest.raises(SystemExit) as stop:
            run(command)
        error = capsys.readouterr().err
        assert stop.value.code == 2 and error.count("\n") == 1
        return error.removeprefix("saefast: error: ").rstrip()

    cached(world, tmp_path / "pair", PAIR)
    capsys.readouterr()  # bars of progress
    transcoder = SAE(SAEConfig(d_in=16, d_out=48, d_sae=64, k=4, pre_bias=False))
    transcoder.save_pretrained(tmp_path / "odd")
    assert fails(f"evaluate {tmp_path}/odd {tmp_path}/pair --in-model") == (
        "hook: expected activations of width d_in = 16 and, behind them, d_out = 48, got 32 at "
        "'model.layers.1.mlp:in', 32 at 'model.layers.1.mlp'"
    )
    writer = ShardWriter(tmp_path / "no_text", 32, model=f"{world}/model", hook="model.layers.1")
    writer.append(torch.randn(100, 32))
    writer.close()
    message = "in_model: expected a shard folder of `saefast cache`, with the model, the hook points and the text, these"
    assert fails(f"evaluate {world}/run {tmp_path}/no_text --in-model").startswith(message)
