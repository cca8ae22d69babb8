"""What is written for an SAE of ours is what the other project writes: every entry of its config, name, shape and dtype of
every tensor. And what its own configs may say besides, entry by entry."""

import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import saefast
from saefast import SAE, InputError, formats
from tests.helpers.format_cases import D_IN, GATED, JUMP, NESTED, TRANSCODER, make, rows
from tests.helpers.published import llama_scope, parts, raw

CONFIGS = {"sae_lens": "cfg.json", "sparsify": "cfg.json"}
LENS = {"device": "cpu", "reshape_activations": "none", "d_in": 6, "d_sae": 20, "dtype": "float32"}
LENS |= {"apply_b_dec_to_input": True, "normalize_activations": "none"}
LENS["metadata"] = {"sae_lens_version": "6.54.12", "sae_lens_training_version": None, "hook_head_index": None}
LENS["metadata"] |= {
    "saefast_version": saefast.__version__,
    "model_name": "some-model",
    "hook_name": "layers.3",
}
LENS["metadata"] |= {"model_class_name": "AutoModelForCausalLM"}
SPARSIFY = {
    "expansion_factor": 32,
    "normalize_decoder": True,
    "multi_topk": False,
    "num_latents": 20,
    "d_in": 6,
}
DL = {"lm_name": "some-model", "layer": None, "submodule_name": "layers.3", "device": "cpu"}
DL |= {"activation_dim": 6, "dict_size": 20}
SCOPIUM = {"hook_point_in": "layers.3", "hook_point_out": "layers.3", "sae_type": "sae", "d_model": 6}
SCOPIUM |= {"use_decoder_bias": True, "use_glu_encoder": False, "expansion_factor": 20 / 6}
GEMMA = {"model_name": "some-model", "hf_hook_point_in": "layers.3", "hf_hook_point_out": None, "width": 20}
GEMMA |= {"architecture": "jump_relu"}


def trainer(name, kind, **more):
    named = {"trainer_class": name, "wandb_name": name, "dict_class": kind}
    return {"buffer": {}, "trainer": DL | named | more}


WRITTEN = [
    ("sae_lens", {"k": 3}, LENS | {"architecture": "topk", "k": 3, "rescale_acts_by_decoder_norm": False}),
    (
        "sae_lens",
        JUMP | {"d_out": 4, "pre_bias": False, "skip": True},
        LENS | {"architecture": "jumprelu_skip_transcoder", "apply_b_dec_to_input": False, "d_out": 4},
    ),
    (
        "sae_lens",
        {"activation": "relu", "input_norm": "constant_norm"},
        LENS | {"architecture": "standard", "normalize_activations": "constant_norm_rescale"},
    ),
    ("sae_lens", GATED, LENS | {"architecture": "gated"}),
    (
        "sparsify",
        {"k": 3},
        SPARSIFY | {"activation": "topk", "k": 3, "transcode": False, "skip_connection": False},
    ),
    (
        "sparsify",
        {"k": 4, "activation": "group_max"},
        SPARSIFY | {"activation": "groupmax", "k": 4, "transcode": False, "skip_connection": False},
    ),
    (
        "sparsify",
        {"k": 3, "skip": True} | TRANSCODER,
        SPARSIFY | {"activation": "topk", "k": 3, "transcode": True, "skip_connection": True},
    ),
    ("dictionary_learning", {"k": 3}, trainer("TopKTrainer", "AutoEncoderTopK", k=3)),
    ("dictionary_learning", NESTED, trainer("MatryoshkaBatchTopKTrainer", "MatryoshkaBatchTopKSAE", k=3)),
    ("dictionary_learning", {"activation": "relu"}, trainer("StandardTrainer", "AutoEncoder")),
    (
        "dictionary_learning",
        {"activation": "relu", "pre_bias": False},
        trainer("StandardTrainerAprilUpdate", "AutoEncoderNew"),
    ),
    (
        "gemma_scope",
        JUMP | {"d_out": 4, "pre_bias": False, "skip": True},
        GEMMA | {"affine_connection": True},
    ),
    ("gemma_scope", JUMP | TRANSCODER, GEMMA | {"affine_connection": False}),
    (
        "llamascopium",
        {"k": 3, "pre_bias": False, "input_norm": "constant_norm"},
        SCOPIUM
        | {
            "act_fn": "topk",
            "norm_activation": "token-wise",
            "top_k": 3,
            "sparsity_include_decoder_norm": False,
        },
    ),
    (
        "llamascopium",
        {"activation": "relu", "pre_bias": False},
        SCOPIUM | {"act_fn": "relu", "norm_activation": "inference"},
    ),
    (
        "llamascopium",
        {"k": 3, "scale_by_norm": True} | TRANSCODER,
        SCOPIUM
        | {"hook_point_out": "layers.3.out", "act_fn": "topk", "norm_activation": "inference", "top_k": 3}
        | {"sparsity_include_decoder_norm": True},
    ),
]


def config_of(folder, format):
    return json.loads((folder / CONFIGS.get(format, "config.json")).read_text())


@pytest.mark.parametrize("format,options,want", WRITTEN)
def test_every_entry_of_a_config_is_what_the_other_project_writes(format, options, want, tmp_path):
    formats.save(make(options), tmp_path / "a", format)
    assert config_of(tmp_path / "a", format) == want


STATS = {"stats_last_nonzero": 0, "latents_activation_frequency": 1, "latents_mean_square": 0}


@pytest.mark.parametrize("kind", ["topk", "relu"])
def test_the_state_of_openai_has_its_statistics_of_before_training(kind, tmp_path):
    topk = {"k": 3, "input_norm": "layer_norm"}
    formats.save(make(topk if kind == "topk" else {"activation": "relu"}), tmp_path / "a", "openai")
    found = torch.load(tmp_path / "a" / "autoencoder.pt", weights_only=True)
    for name, value in STATS.items():
        dtype = torch.int64 if "nonzero" in name else torch.float32
        assert torch.equal(found.pop(name), torch.full((20,), value, dtype=dtype)), name
    assert found.pop("activation") == {"topk": "TopK", "relu": "ReLU"}[kind]
    assert found.pop("activation_state_dict") == ({"k": 3, "postact_fn": "ReLU"} if kind == "topk" else {})
    shapes = {name: list(tensor.shape) for name, tensor in found.items()}
    assert shapes == {
        "pre_bias": [6],
        "latent_bias": [20],
        "encoder.weight": [20, 6],
        "decoder.weight": [6, 20],
    }


def test_numbers_of_dictionary_learning_are_tensors(tmp_path):
    formats.save(make(NESTED), tmp_path / "a", "dictionary_learning")
    found = torch.load(tmp_path / "a" / "ae.pt", weights_only=True)
    assert found["group_sizes"].tolist() == [5, 15] and found["group_sizes"].dtype == torch.int64
    assert int(found["k"]) == 3 and found["k"].dtype == torch.int32
    formats.save(make({"k": 3}), tmp_path / "b", "dictionary_learning")
    assert float(torch.load(tmp_path / "b" / "ae.pt", weights_only=True)["threshold"]) == -1


# -- what their configs may say


def rewritten(folder, format, **changes):
    path = folder / CONFIGS.get(format, "config.json")
    config = {k: v for k, v in (config_of(folder, format) | changes).items() if v != "removed"}
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    "latents,factor,kept", [(0, 32, 20), (20, 32, 20), ("removed", 32, 20), (0, 20 / 6, 0), (20, 1, 20)]
)
def test_the_latents_of_sparsify_are_those_of_the_tensors(latents, factor, kept, tmp_path):
    formats.save(make({"k": 3}), tmp_path / "a", "sparsify")
    rewritten(tmp_path / "a", "sparsify", num_latents=latents, expansion_factor=factor)
    sae = SAE.from_pretrained(tmp_path / "a")
    assert sae.config.d_sae == 20
    formats.save(sae, tmp_path / "b", "sparsify")
    assert config_of(tmp_path / "b", "sparsify")["num_latents"] == kept


def test_what_the_config_of_sparsify_leaves_out(tmp_path):
    formats.save(make({"k": 3}, d_sae=40), tmp_path / "a", "sparsify")
    rewritten(
        tmp_path / "a", "sparsify", k="removed", activation="removed", transcode="removed", d_in="removed"
    )
    config = SAE.from_pretrained(tmp_path / "a").config
    assert (config.k, config.activation, config.d_out, config.pre_bias) == (32, "topk", None, True)
    for change, said in (
        ({"d_in": 7}, "d_in: expected 6, the size"),
        ({"num_latents": 19}, "num_latents: expected 40 or 0"),
    ):
        formats.save(make({"k": 3}, d_sae=40), tmp_path / said[:4], "sparsify")
        rewritten(tmp_path / said[:4], "sparsify", **change)
        with pytest.raises(InputError, match=said):
            SAE.from_pretrained(tmp_path / said[:4])


def test_llama_scope_of_a_transcoder_has_a_scale_for_each_side(tmp_path):
    change = {
        "hook_point_out": "blocks.3.hook_mlp_out",
        "dataset_average_activation_norm": {"in": 4.0, "out": 2.0},
    }
    W_enc, b_enc, W_dec, b_dec = llama_scope(tmp_path / "a", change)
    sae, x, root = SAE.from_pretrained(tmp_path / "a"), rows(), math.sqrt(D_IN)
    pre = root / 4 * x @ W_enc.T + b_enc
    acts = pre * (pre > 0.5 * root / 4)
    torch.testing.assert_close(sae(x).x_hat, (acts @ W_dec + b_dec) / (root / 2))
    assert sae.config.d_out == D_IN and sae.config.pre_bias is False
    llama_scope(tmp_path / "b", {"dataset_average_activation_norm": {"in": 4.0, "out": 2.0}})
    both = SAE.from_pretrained(tmp_path / "b").config
    assert both.d_out is None and both.scales == (root / 4, root / 4)  # one hook point has one norm


def test_llama_scope_is_no_llamascopium(tmp_path):
    llama_scope(tmp_path / "a")
    assert formats.detect(tmp_path / "a") == "llama_scope"
    (tmp_path / "a" / "config.json").write_text("{}")
    assert formats.llama_scope.find(tmp_path / "a") is False
    with pytest.raises(InputError, match="apply_decoder_bias_to_pre_encoder: expected false, got True"):
        llama_scope(tmp_path / "b", {"apply_decoder_bias_to_pre_encoder": True})
        SAE.from_pretrained(tmp_path / "b")


@pytest.mark.parametrize("place", ["embedding", "width_4k"])
def test_gemma_scope_of_an_embedding_is_scaled(place, tmp_path):
    W_enc, b_enc, W_dec, b_dec = parts()
    (tmp_path / place).mkdir()
    held = {
        "W_enc": W_enc.T,
        "b_enc": b_enc,
        "W_dec": W_dec,
        "b_dec": b_dec,
        "threshold": torch.full((20,), 0.5),
    }
    np.savez(tmp_path / place / "params.npz", **{name: tensor.numpy() for name, tensor in held.items()})
    sae, x = SAE.from_pretrained(tmp_path / place), rows()
    root = math.sqrt(D_IN) if place == "embedding" else 1
    pre = x @ W_enc.T / root + b_enc
    want = (pre * (pre > 0.5)) @ (W_dec * root) + b_dec
    torch.testing.assert_close(sae(x).x_hat, want)


@pytest.mark.parametrize(
    "config", [None, {}, {"hf_hook_point_in": "a", "hf_hook_point_out": "a"}, {"hf_hook_point_in": "a"}]
)
def test_gemma_scope_2_with_and_without_its_config(config, tmp_path):
    formats.save(make(JUMP | TRANSCODER), tmp_path / "a", "gemma_scope")
    (tmp_path / "a" / "config.json").unlink()
    if config is not None:
        (tmp_path / "a" / "config.json").write_text(json.dumps(config))
    sae = SAE.from_pretrained(tmp_path / "a")
    one_hook = config is None or config.get("hf_hook_point_in") == config.get("hf_hook_point_out")
    assert sae.config.d_out == (None if one_hook else D_IN)
    assert sae.metadata.get("hook_name") == (config or {}).get("hf_hook_point_in")
    formats.save(sae, tmp_path / "b", "gemma_scope")  # what comes from version 2 stays so
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["config.json", "params.safetensors"]


def test_gemma_scope_with_factors_is_refused_and_with_ones_is_not(tmp_path):
    formats.save(make(JUMP | {"d_out": 4, "pre_bias": False}), tmp_path / "a", "gemma_scope")
    path, tensors = raw(tmp_path / "a")
    save_file(tensors | {"scaling_factor": torch.ones(3)}, path)
    assert SAE.from_pretrained(path).config.d_out == 4
    save_file(tensors | {"scaling_factor": torch.tensor([1.0, 2.0])}, path)
    with pytest.raises(InputError, match="params.safetensors: scaling_factor: expected ones"):
        SAE.from_pretrained(path)
