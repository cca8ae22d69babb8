"""Folders of SAELens: those of training runs, with the factor of their rows, and those of before version 6."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from saefast import SAE, InputError, formats
from saefast.formats.contents import Origin
from tests.helpers.format_cases import make, rows
from tests.helpers.published import parts


def config_of(folder):
    return json.loads((folder / "cfg.json").read_text())


@pytest.mark.parametrize("training", ["batchtopk", "matryoshka_batchtopk"])
@pytest.mark.parametrize("by_norm", [False, True])
def test_the_scaler_of_a_threshold_that_is_compared_with_norms(training, by_norm, tmp_path):
    kind = {"batchtopk": "batch_topk", "matryoshka_batchtopk": "matryoshka"}[training]
    sizes = {"group_sizes": (5, 20)} if kind == "matryoshka" else {}
    sae, x, factor = make({"activation": kind, "k": 3, "scale_by_norm": by_norm} | sizes), 4 * rows(), 0.25
    sae.origin = Origin("sae_lens", {"architecture": training})
    formats.save(sae, tmp_path / "a", "sae_lens")
    assert config_of(tmp_path / "a")["architecture"] == training
    (tmp_path / "a" / "activation_scaler.json").write_text(json.dumps({"scaling_factor": factor}))
    read = SAE.from_pretrained(tmp_path / "a")
    assert read.config.scale_by_norm is by_norm
    torch.testing.assert_close(read(x).x_hat, sae(x * factor).x_hat / factor)
    # what by_norm compares is divided by the factor as the rows of the decoder are
    assert float(read.threshold) == pytest.approx(float(sae.threshold) / (factor if by_norm else 1))


OLD = {"d_in": 6, "d_sae": 20, "hook_point": "blocks.1.hook", "model_name": "gpt2", "context_size": 64}


@pytest.mark.parametrize(
    "change,want",
    [
        ({}, ("relu", None, "none")),
        ({"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 5}}, ("topk", 5, "none")),
        (
            {"activation_fn": "topk", "activation_fn_kwargs": {"k": 5}, "sae_lens_version": "5.1"},
            ("topk", 5, "none"),
        ),
        ({"activation_fn_str": None, "normalize_activations": None}, ("relu", None, "none")),
        ({"normalize_activations": True}, ("relu", None, "none")),
        ({"normalize_activations": "layer_norm"}, ("relu", None, "layer_norm")),
        ({"metadata": {"sae_lens_version": "3.0.0"}}, ("relu", None, "none")),
    ],
)
def test_a_folder_of_sae_lens_of_before_version_6(change, want, tmp_path):
    W_enc, b_enc, W_dec, b_dec = parts()
    held = {"W_enc": W_enc.T.contiguous(), "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec}
    save_file(held, tmp_path / "sae_weights.safetensors")
    (tmp_path / "cfg.json").write_text(json.dumps(OLD | change))
    sae = SAE.from_pretrained(tmp_path)
    assert (sae.config.activation, sae.config.k, sae.config.input_norm) == want
    assert sae.config.pre_bias and torch.equal(sae.W_enc, W_enc)
    assert sae.metadata["hook_name"] == "blocks.1.hook" and sae.metadata["model_name"] == "gpt2"
    formats.save(sae, tmp_path / "new", "sae_lens")
    again = SAE.from_pretrained(tmp_path / "new")
    assert again.config == sae.config and again.metadata == sae.metadata
    assert config_of(tmp_path / "new")["metadata"]["context_size"] == 64


@pytest.mark.parametrize(
    "change,said",
    [
        ({"finetuning_scaling_factor": True}, "finetuning_scaling_factor: expected false"),
        ({"activation_fn_kwargs": [5]}, r"activation_fn_kwargs: expected an object, got \[5\]"),
        ({"metadata": [5]}, r"metadata: expected an object, got \[5\]"),
        ({"activation_fn_str": "tanh-relu"}, "activation_fn: expected one of"),
        ({"activation_fn_str": "topk"}, "k: expected a positive integer, got None"),
    ],
)
def test_what_an_older_folder_of_sae_lens_may_not_say(change, said, tmp_path):
    W_enc, b_enc, W_dec, b_dec = parts()
    held = {"W_enc": W_enc.T.contiguous(), "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec}
    save_file(held, tmp_path / "sae_weights.safetensors")
    (tmp_path / "cfg.json").write_text(json.dumps(OLD | change))
    with pytest.raises(InputError, match=rf"cfg\.json: {said}"):
        SAE.from_pretrained(tmp_path)


def test_a_module_of_transformer_lens_is_told_from_one_of_transformers(tmp_path):
    sae = make({"k": 3})
    for name, theirs in (("layers.3", True), ("blocks.3.hook_resid_post", False)):
        sae.metadata = {"hook_name": name}
        formats.save(sae, tmp_path / name, "sae_lens")
        assert ("model_class_name" in config_of(tmp_path / name)["metadata"]) == theirs
    sae.metadata = {}
    formats.save(sae, tmp_path / "none", "sae_lens")
    assert "model_class_name" not in config_of(tmp_path / "none")["metadata"]
    assert load_file(tmp_path / "none" / "sae_weights.safetensors")["W_enc"].shape == (6, 20)


def edited(folder, config=None, tensors=None, drop=()):
    held = {n: t for n, t in load_file(folder / "sae_weights.safetensors").items() if n not in drop}
    save_file(held | (tensors or {}), folder / "sae_weights.safetensors")
    said = {n: v for n, v in (config_of(folder) | (config or {})).items() if v != "removed"}
    (folder / "cfg.json").write_text(json.dumps(said))


@pytest.mark.parametrize(
    "widths,want",
    [(None, (20,)), ([], (20,)), ([5], (5, 20)), ([5, 12, 20], (5, 12, 20)), ("removed", (20,))],
)
def test_the_widths_of_a_matryoshka_end_with_all_latents(widths, want, tmp_path):
    sae = make({"activation": "matryoshka", "k": 3, "group_sizes": (5, 20)})
    sae.origin = Origin("sae_lens", {"architecture": "matryoshka_batchtopk"})
    formats.save(sae, tmp_path / "a", "sae_lens")
    edited(tmp_path / "a", {"matryoshka_widths": widths})
    assert SAE.from_pretrained(tmp_path / "a").config.group_sizes == want
    for wrong in (5, "5", [True], ["5"], [5.0]):
        edited(tmp_path / "a", {"matryoshka_widths": wrong})
        with pytest.raises(InputError, match=r"cfg\.json: matryoshka_widths: expected integers, got "):
            SAE.from_pretrained(tmp_path / "a")


def test_a_threshold_may_be_a_logarithm(tmp_path):
    sae = make({"activation": "jumprelu"})
    formats.save(sae, tmp_path / "a", "sae_lens")
    edited(tmp_path / "a", tensors={"log_threshold": sae.threshold.detach().log()}, drop=["threshold"])
    torch.testing.assert_close(SAE.from_pretrained(tmp_path / "a").threshold, sae.threshold)


def test_factors_of_ones_do_nothing_and_others_are_refused(tmp_path):
    formats.save(make({"k": 3}), tmp_path / "a", "sae_lens")
    edited(tmp_path / "a", tensors={"scaling_factor": torch.ones(20)})
    assert SAE.from_pretrained(tmp_path / "a").config.k == 3
    edited(tmp_path / "a", tensors={"scaling_factor": torch.full((20,), 2.0)})
    with pytest.raises(InputError, match="scaling_factor: expected none, or ones, got finetuned scales"):
        SAE.from_pretrained(tmp_path / "a")


def test_what_a_config_leaves_out_and_what_stays_as_it_was(tmp_path):
    formats.save(make({"k": 3}), tmp_path / "a", "sae_lens")
    out = ("rescale_acts_by_decoder_norm", "apply_b_dec_to_input", "normalize_activations")
    edited(tmp_path / "a", dict.fromkeys(out, "removed") | {"k": 3.0})
    sae = SAE.from_pretrained(tmp_path / "a")
    found = sae.config.scale_by_norm, sae.config.pre_bias, sae.config.input_norm, sae.config.k
    assert found == (False, True, "none", 3)
    formats.save(sae, tmp_path / "b", "sae_lens")
    assert type(config_of(tmp_path / "b")["k"]) is float  # as it was there
    edited(tmp_path / "a", {"normalize_activations": "expected_average_only_in", "metadata": "removed"})
    sae = SAE.from_pretrained(tmp_path / "a")
    assert sae.config.input_norm == "none" and sae.metadata == {}
    formats.save(sae, tmp_path / "c", "sae_lens")
    assert config_of(tmp_path / "c")["normalize_activations"] == "expected_average_only_in"
    (tmp_path / "a" / "sae.safetensors").touch()
    assert not formats.sae_lens.find(tmp_path / "a")
    (tmp_path / "b" / "cfg.json").unlink()
    assert not formats.sae_lens.find(tmp_path / "b")
