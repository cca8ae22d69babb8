"""Which param_dtype a run from the command line has where no flag says it. No GPU is needed: the decision asks for a device."""

import json

import pytest
import torch

from saefast import backend, cli
from saefast.cli import param_dtype
from saefast.cli.flags import configs_of
from saefast.cli.param_dtype import kept_by, param_dtype_of
from saefast.config.recipes import RECIPES, recipe
from saefast.config.train import TrainConfig
from saefast.errors import InputError
from saefast.files import load_tensors
from tests.helpers.tiny_world import run

pytestmark = pytest.mark.usefixtures("no_curves")
TINY = "--d-sae 64 --k 4 --batch-size 64 --buffer-tokens 256 --log-every 5 --lr 3e-3 --checkpoint-every 5"
PLAIN = {"param_dtype": None, "backend": "auto", "compute_dtype": "auto", "optimizer": "adam"}


@pytest.fixture
def on_gpu(monkeypatch):
    """As if a GPU multiplied in bf16. The runs themselves are on the CPU."""
    monkeypatch.setattr(param_dtype, "_products_in_bf16", lambda train, device: True)


@pytest.mark.parametrize(
    "given, device, kernels, want",
    [
        ({}, "cuda", True, "split"),
        ({}, "cuda:1", True, "split"),
        ({"backend": "triton", "compute_dtype": "bf16"}, "cuda", False, "split"),
        ({}, "cpu", True, "fp32"),
        ({}, "cuda", False, "fp32"),  # a GPU that is too old for the kernels multiplies in fp32
        ({"backend": "reference"}, "cuda", True, "fp32"),
        ({"compute_dtype": "fp32"}, "cuda", True, "fp32"),
        ({"compute_dtype": "fp16"}, "cuda", True, "fp32"),  # its copy is no half of an fp32
        ({"optimizer": "muon"}, "cuda", True, "fp32"),
        ({"param_dtype": "fp32"}, "cuda", True, "fp32"),
        ({"param_dtype": "split24"}, "cpu", True, "split24"),
    ],
)
def test_split_where_a_gpu_multiplies_in_bf16_and_nothing_else_was_asked_for(
    given, device, kernels, want, monkeypatch
):
    monkeypatch.setattr(backend, "choose", lambda device: ("triton" if kernels else "reference", ""))
    train = PLAIN | given
    assert param_dtype_of(train, device) == want
    TrainConfig(total_tokens=1, **train | {"param_dtype": want})  # what is decided is accepted
    if given.get("param_dtype") is None and train["optimizer"] == "adam":
        assert param_dtype_of(train, device, "bf16") == "bf16"  # of the run that goes on


def test_the_api_keeps_fp32_and_no_recipe_decides():
    assert TrainConfig(total_tokens=1).param_dtype == "fp32"
    assert not [name for name in RECIPES if "param_dtype" in recipe(name)[1]]
    for flag, want in (("", None), ("--param-dtype fp32", "fp32"), ("--recipe batchtopk", None)):
        for command in ("train", "sweep"):
            asked = cli.parse(f"{command} x.npy --out out --d-sae 64 --tokens 100 {flag}".split())
            assert configs_of(asked)[1]["param_dtype"] == want


@pytest.mark.parametrize("command", ["train", "sweep"])
def test_the_help_says_it(command, capsys):
    with pytest.raises(SystemExit):
        run(f"{command} --help")
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "'split' on a GPU with products in bf16, which saves the same fp32 SAE; else 'fp32'" in said


def kept(folder):
    return json.loads((folder / "run.json").read_text())["train"]["param_dtype"]


def test_a_run_keeps_what_it_began_with_and_saves_fp32(world, tmp_path, on_gpu, monkeypatch):
    out = tmp_path / "run"
    run(f"train {world}/x.npy --out {out} --tokens 640 {TINY}")
    assert kept(out) == "split"
    tensors = load_tensors(out / "sae.safetensors")[0]
    assert all(tensor.dtype == torch.float32 for tensor in tensors.values())
    assert not torch.equal(tensors["W_dec"], tensors["W_dec"].bfloat16().float())
    monkeypatch.setattr(param_dtype, "_products_in_bf16", lambda train, device: False)
    run(f"train {world}/x.npy --out {out} --tokens 1280 {TINY} --resume")
    assert kept(out) == "split"
    with pytest.raises(SystemExit):
        run(f"train {world}/x.npy --out {out} --tokens 1280 {TINY} --resume --param-dtype fp32")
    run(f"train {world}/x.npy --out {tmp_path}/fp32 --tokens 640 {TINY} --param-dtype fp32")
    assert kept(tmp_path / "fp32") == "fp32"


def test_an_fp32_run_goes_on_as_one_on_a_gpu(world, tmp_path, monkeypatch):
    run(f"train {world}/x.npy --out {tmp_path}/run --tokens 640 {TINY}")
    assert kept(tmp_path / "run") == "fp32"
    monkeypatch.setattr(param_dtype, "_products_in_bf16", lambda train, device: True)
    run(f"train {world}/x.npy --out {tmp_path}/run --tokens 1280 {TINY} --resume")
    assert kept(tmp_path / "run") == "fp32"


def test_an_sae_that_is_gone_on_from_keeps_its_bits(world, tmp_path, on_gpu):
    run(f"train {world}/x.npy --out {tmp_path}/first --tokens 640 {TINY} --param-dtype fp32")
    lr = TINY.replace("--lr 3e-3", "--lr 0")
    run(f"train {world}/x.npy --out {tmp_path}/second --tokens 64 {lr} --start {tmp_path}/first")
    assert kept(tmp_path / "second") == "split"
    first, second = (load_tensors(tmp_path / name / "sae.safetensors")[0] for name in ("first", "second"))
    assert torch.equal(first["W_enc"], second["W_enc"])
    torch.testing.assert_close(
        first["W_dec"], second["W_dec"], rtol=1e-6, atol=0
    )  # brought to unit norm again


def test_a_sweep_decides_for_each_sae_and_keeps_it(world, tmp_path, on_gpu, monkeypatch):
    entries = [{"name": "adam"}, {"name": "muon", "train": {"optimizer": "muon", "lr": 2e-3}}]
    (tmp_path / "c.json").write_text(json.dumps(entries))
    line = f"sweep {world}/x.npy --out {tmp_path}/s --configs {tmp_path}/c.json --tokens 640 {TINY}"
    run(line)
    want = {"adam": "split", "muon": "fp32"}
    assert {name: kept(tmp_path / "s" / name) for name in want} == want
    monkeypatch.setattr(param_dtype, "_products_in_bf16", lambda train, device: False)
    run(f"{line} --resume")
    assert {name: kept(tmp_path / "s" / name) for name in want} == want


def test_runs_in_several_formats_are_asked_about(world, tmp_path):
    assert kept_by([tmp_path / "none"]) is None
    for name in ("fp32", "split"):
        run(f"train {world}/x.npy --out {tmp_path}/{name} --tokens 320 {TINY} --param-dtype {name}")
        assert kept_by([tmp_path / "none", tmp_path / name]) == name
    with pytest.raises(
        InputError, match=r"param_dtype: expected --param-dtype .*\['fp32', 'split'\], got none"
    ):
        kept_by([tmp_path / "fp32", tmp_path / "split"])
