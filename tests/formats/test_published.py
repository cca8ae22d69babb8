"""Kind: files of others. Layouts that were published, built by hand, with the values of their formula."""

import json
import math

import pytest
import torch
from safetensors.torch import save_file

from saefast import SAE, InputError, formats
from tests.helpers.format_cases import D_IN, D_SAE, JUMP, rows
from tests.helpers.published import QWEN, lens_checkpoint, llama_scope, parts


def topk(pre, k):
    values, indices = pre.topk(k)
    return torch.zeros_like(pre).scatter(1, indices, values.relu())


def test_qwen_scope(tmp_path):
    folder = tmp_path / QWEN / "snapshots" / "abc"
    folder.mkdir(parents=True)
    W_enc, b_enc, W_dec, b_dec = parts(1024)
    held = {"W_enc": W_enc, "W_dec": W_dec.T.contiguous(), "b_enc": b_enc, "b_dec": b_dec}
    torch.save(held, folder / "layer7.sae.pt")
    sae = SAE.from_pretrained(folder / "layer7.sae.pt")
    x = rows()
    torch.testing.assert_close(sae(x).x_hat, topk(x @ W_enc.T + b_enc, 3) @ W_dec + b_dec)
    assert sae.metadata == {"model_name": "Qwen/Qwen3-1.7B-Base", "hook_name": "model.layers.7"}
    (tmp_path / "moved").mkdir()
    torch.save(held, tmp_path / "moved" / "layer7.sae.pt")
    with pytest.raises(InputError, match=r"k: expected the file of Qwen Scope in a folder SAE-Res-\{model\}"):
        SAE.from_pretrained(tmp_path / "moved" / "layer7.sae.pt")
    with pytest.raises(InputError, match=r"format: expected one of .* got 'released'"):
        formats.save(sae, tmp_path / "new", "released")


@pytest.mark.parametrize(
    "name,described",
    [
        (
            "Llama-3.1-8B-Instruct-SAE-l19.pth",
            {"model_name": "Llama-3.1-8B-Instruct", "hook_name": "model.layers.19"},
        ),
        (
            "Llama-3.3-70B-Instruct-SAE-l50.pt",
            {"model_name": "Llama-3.3-70B-Instruct", "hook_name": "model.layers.50"},
        ),
        ("renamed.pth", {}),
    ],
)
@pytest.mark.parametrize("end", ["_linear", ""])
def test_goodfire(name, described, end, tmp_path):
    W_enc, b_enc, W_dec, b_dec = parts()
    held = {f"encoder{end}.weight": W_enc.bfloat16(), f"encoder{end}.bias": b_enc}
    held |= {f"decoder{end}.weight": W_dec.T.contiguous(), f"decoder{end}.bias": b_dec}
    torch.save(held, tmp_path / name)
    sae = SAE.from_pretrained(tmp_path / name)
    x = rows()
    want = (x @ W_enc.bfloat16().float().T + b_enc).relu() @ W_dec + b_dec
    torch.testing.assert_close(sae(x).x_hat, want)
    assert sae.metadata == described
    assert sae.origin.dtypes["W_enc"] == "bfloat16" and sae.origin.dtypes["b_enc"] == "float32"


def test_llama_scope(tmp_path):
    W_enc, b_enc, W_dec, b_dec = llama_scope(tmp_path / "a")
    sae, x, factor = SAE.from_pretrained(tmp_path / "a"), rows(), math.sqrt(D_IN) / 4
    pre = factor * x @ W_enc.T + b_enc
    acts = pre * (pre > 0.5 * factor)
    torch.testing.assert_close(sae(x).x_hat, (acts @ W_dec + b_dec) / factor)
    assert 0 < float((acts > 0).float().mean()) < 0.6
    assert sae.metadata == {"hook_name": "blocks.3.hook_resid_post"}


@pytest.mark.parametrize(
    "change,message",
    [
        ({"act_fn": "topk"}, "act_fn: expected one of \\['jumprelu'\\], got 'topk'"),
        ({"jump_relu_threshold": -1}, "jump_relu_threshold: expected a positive number, got -1"),
        (
            {"dataset_average_activation_norm": 3},
            "dataset_average_activation_norm: expected in and out, got 3",
        ),
        ({"dataset_average_activation_norm": {"in": 3}}, "out: expected a positive number, got None"),
        ({"use_glu_encoder": True}, "use_glu_encoder: expected false, got True"),
        ({"d_sae": 21}, "d_sae: expected 20, the size of the tensors, got 21"),
    ],
)
def test_llama_scope_that_says_something_else_is_refused(change, message, tmp_path):
    llama_scope(tmp_path / "a", change)
    with pytest.raises(InputError, match=message):
        SAE.from_pretrained(tmp_path / "a")


@pytest.mark.parametrize("in_config", [True, False])
def test_llama_scope_r1_distill(in_config, tmp_path):
    W_enc, b_enc, W_dec, b_dec = parts()
    threshold = 0.5 + torch.rand(D_SAE, generator=torch.Generator().manual_seed(1))
    held = {"encoder.weight": W_enc, "encoder.bias": b_enc, "log_jumprelu_threshold": threshold.log()}
    held |= {"decoder.weight": W_dec.T.contiguous(), "decoder.bias": b_dec}
    hook = "blocks.3.hook_resid_post"
    config = {"d_model": D_IN, "act_fn": "jumprelu", "norm_activation": "dataset-wise", "expansion_factor": 4}
    config |= {"hook_point_in": hook, "hook_point_out": hook, "sparsity_include_decoder_norm": False}
    if in_config:
        config["dataset_average_activation_norm"] = {"in": 4.0, "out": 4.0}
    else:
        held[f"dataset_average_activation_norm.{hook}"] = torch.tensor(4.0)
    save_file(held, tmp_path / "sae_weights.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    sae, x, factor = SAE.from_pretrained(tmp_path), rows(), math.sqrt(D_IN) / 4
    pre = factor * x @ W_enc.T + b_enc
    acts = pre * (pre > threshold)
    torch.testing.assert_close(sae(x).x_hat, (acts @ W_dec + b_dec) / factor)


@pytest.mark.parametrize("kind", ["relu", "topk", "jumprelu"])
@pytest.mark.parametrize("skip", [False, True])
def test_circuit_tracer(kind, skip, tmp_path):
    W_enc, b_enc, W_dec, b_dec = parts(d_out=4)
    held = {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec}
    W_skip = torch.randn(4, D_IN, generator=torch.Generator().manual_seed(9))
    threshold = torch.linspace(-0.5, 1, D_SAE)
    held |= {"W_skip": W_skip} if skip else {}
    held |= {"activation_function.threshold": threshold} if kind == "jumprelu" else {}
    save_file(held, tmp_path / "layer_12.safetensors")
    config = "model_name: google/gemma\nmodel_kind: transcoder_set\nfeature_input_hook: mlp.hook_in  # x\ntranscoders:\n- a\n"
    (tmp_path / "config.yaml").write_text(config + ("activation: topk\nk: 5\n" if kind == "topk" else ""))
    sae, x = SAE.from_pretrained(tmp_path / "layer_12.safetensors"), rows()
    pre = x @ W_enc.T + b_enc
    acts = {"relu": pre.relu(), "topk": topk(pre, 5), "jumprelu": pre.relu() * (pre > threshold)}[kind]
    torch.testing.assert_close(sae(x).x_hat, acts @ W_dec + b_dec + (x @ W_skip.T if skip else 0))
    assert sae.metadata == {"model_name": "google/gemma", "hook_name": "blocks.12.mlp.hook_in"}


def test_circuit_tracer_with_k_that_is_missing_is_refused(tmp_path):
    W_enc, b_enc, W_dec, b_dec = parts()
    save_file(
        {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec}, tmp_path / "layer_0.safetensors"
    )
    (tmp_path / "config.yaml").write_text("activation: topk\n")
    with pytest.raises(InputError, match="k: expected a positive integer, got ''"):
        SAE.from_pretrained(tmp_path / "layer_0.safetensors")


@pytest.mark.parametrize(
    "options",
    [
        {"k": 3},
        {"k": 3, "scale_by_norm": True},
        {"activation": "relu"},
        JUMP,
        {"activation": "batch_topk", "k": 3},
    ],
    ids=str,
)
def test_the_scaler_of_a_sae_lens_checkpoint_is_folded_in(options, tmp_path):
    sae, factor = lens_checkpoint(tmp_path / "a", options, 0.25), 0.25
    read, x = SAE.from_pretrained(tmp_path / "a"), 4 * rows()
    torch.testing.assert_close(read(x).x_hat, sae(x * factor).x_hat / factor)
    active = [(made.encode(rows)[0] > 0).sum() for made, rows in ((read, x), (sae, x * factor))]
    assert active[0] == active[1] > 0
    assert torch.equal(read.W_enc, sae.W_enc * factor) and torch.equal(read.W_dec, sae.W_dec / factor)
    formats.save(read, tmp_path / "b", "sae_lens")  # as the final SAE of that run
    assert json.loads((tmp_path / "b" / "cfg.json").read_text())["normalize_activations"] == "none"
    assert torch.equal(SAE.from_pretrained(tmp_path / "b").W_enc, read.W_enc)
    (tmp_path / "a" / "activation_scaler.json").write_text('{"scaling_factor": null, "has_whitening": false}')
    assert torch.equal(SAE.from_pretrained(tmp_path / "a").W_enc, sae.W_enc)


@pytest.mark.parametrize("value", [-1, 0, "2", [1], True, math.nan, math.inf])
def test_a_scaler_that_is_no_positive_number_is_refused(value, tmp_path):
    lens_checkpoint(tmp_path / "a", {"k": 3}, value)
    with pytest.raises(
        InputError, match=r"activation_scaler.json: scaling_factor: expected a positive number"
    ):
        SAE.from_pretrained(tmp_path / "a")


def test_a_whitened_sae_lens_checkpoint_is_named(tmp_path):
    lens_checkpoint(tmp_path / "a", {"k": 3}, 1.0)
    (tmp_path / "a" / "activation_scaler.json").write_text('{"scaling_factor": null, "has_whitening": true}')
    with pytest.raises(InputError, match=r"activation_scaler.json: has_whitening: expected false"):
        SAE.from_pretrained(tmp_path / "a")
