"""SAELens' files beside its own code, and Gemma Scope's as it reads them, on real activations."""

import json

import pytest
import torch
from safetensors.torch import load_file

from saefast import SAE, SAEConfig, formats, open_source
from tests.peers.format_checks import D_SAE, K, dense, same, same_code, scramble, there_and_back


def sae_lens_model(kind, options):
    import sae_lens

    cls = getattr(sae_lens, kind)
    model = cls(getattr(sae_lens, f"{kind}Config")(d_in=576, d_sae=D_SAE, **options))
    scramble(model)
    if hasattr(model, "topk_threshold"):
        model.topk_threshold.fill_(1.234567890123)  # fp64
    model.cfg.metadata.hook_name, model.cfg.metadata.model_name = "blocks.12.hook_resid_post", "smollm2"
    return model


NORMS = ({}, {"normalize_activations": "layer_norm"}, {"normalize_activations": "constant_norm_rescale"})
INFERENCE = [
    *[("StandardSAE", norm) for norm in NORMS],
    *[("TopKSAE", {"k": K} | norm) for norm in NORMS],
    ("TopKSAE", {"k": K, "rescale_acts_by_decoder_norm": True}),
    ("TopKSAE", {"k": K, "apply_b_dec_to_input": False}),
    ("JumpReLUSAE", {}),
    ("JumpReLUSAE", {"apply_b_dec_to_input": False}),
    ("GatedSAE", {}),
    ("Transcoder", {"d_out": 48}),
    ("SkipTranscoder", {"d_out": 48}),
    ("JumpReLUTranscoder", {"d_out": 48}),
    ("JumpReLUSkipTranscoder", {"d_out": 48}),
]


@pytest.mark.parametrize("kind,options", INFERENCE, ids=lambda v: v if isinstance(v, str) else "-".join(v))
def test_sae_lens_inference(kind, options, x, tmp_path):
    import sae_lens

    options = options | ({"apply_b_dec_to_input": False} if "Transcoder" in kind else {})
    model = sae_lens_model(kind, options)
    model.save_model(tmp_path / "theirs")
    sae = there_and_back(tmp_path / "theirs", tmp_path, "sae_lens")
    model = sae_lens.SAE.load_from_disk(tmp_path / "theirs", device="cpu")
    same(sae(x).x_hat, model(x))
    norm = sae.W_dec.norm(dim=1) if sae.config.scale_by_norm else 1
    same_code(dense(sae, x) * norm, model.encode(x))
    assert sae.metadata == {"model_name": "smollm2", "hook_name": "blocks.12.hook_resid_post"}
    again = sae_lens.SAE.load_from_disk(tmp_path / "again", device="cpu")
    assert torch.equal(again(x), model(x)) and again.cfg == model.cfg


TRAINING = [
    ("StandardTrainingSAE", {}),
    ("TopKTrainingSAE", {"k": K}),
    ("TopKTrainingSAE", {"k": K, "rescale_acts_by_decoder_norm": False}),
    ("BatchTopKTrainingSAE", {"k": float(K)}),
    ("BatchTopKTrainingSAE", {"k": K, "rescale_acts_by_decoder_norm": False}),
    ("MatryoshkaBatchTopKTrainingSAE", {"k": K, "matryoshka_widths": [24, 96]}),
    ("MatryoshkaBatchTopKTrainingSAE", {"k": K, "matryoshka_widths": [24, 48]}),
    ("JumpReLUTrainingSAE", {}),
    ("GatedTrainingSAE", {}),
]


@pytest.mark.parametrize("kind,options", TRAINING, ids=lambda v: v if isinstance(v, str) else "-".join(v))
def test_sae_lens_training(kind, options, x, tmp_path):
    """What a training run saves, and what it exports: the same SAE."""
    import sae_lens

    model = sae_lens_model(kind, options)
    model.save_model(tmp_path / "theirs")
    model.save_inference_model(tmp_path / "exported")
    sae = there_and_back(tmp_path / "theirs", tmp_path, "sae_lens")
    exported = SAE.from_pretrained(tmp_path / "exported")
    model = sae_lens.SAE.load_from_disk(tmp_path / "exported", device="cpu")
    want = model(x)
    same(exported(x).x_hat, want)
    same_code(dense(exported, x), model.encode(x))
    same(sae(x).x_hat, want)
    again = sae_lens.TrainingSAE.load_from_disk(tmp_path / "again", device="cpu")
    assert again.cfg.architecture() == sae.origin.config["architecture"]
    formats.save(SAE.of(sae.config, dict(sae.named_parameters())), tmp_path / "new", "sae_lens")
    same(sae_lens.SAE.load_from_disk(tmp_path / "new", device="cpu")(x), want)


@pytest.mark.parametrize("kind,options", TRAINING, ids=lambda v: v if isinstance(v, str) else "-".join(v))
def test_a_checkpoint_with_the_scaler_of_its_run(kind, options, x, tmp_path):
    """What a trainer of SAELens leaves in the middle of a run, and what it makes of it at the end: the same SAE."""
    from sae_lens.training.activation_scaler import ActivationScaler

    model = sae_lens_model(kind, options | {"normalize_activations": "expected_average_only_in"})
    model.save_model(tmp_path / "theirs")
    ActivationScaler(0.37).save(str(tmp_path / "theirs" / "activation_scaler.json"))
    model.fold_activation_norm_scaling_factor(0.37)
    model.save_model(tmp_path / "final")
    sae, final = SAE.from_pretrained(tmp_path / "theirs"), SAE.from_pretrained(tmp_path / "final")
    assert sae.config == final.config
    for name, param in final.named_parameters():
        assert torch.equal(param, sae.get_parameter(name)), name
    again = formats.save(sae, tmp_path / "again", "sae_lens")
    assert (
        again == []
        and load_file(tmp_path / "again" / "sae_weights.safetensors").keys() == model.state_dict().keys()
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
@pytest.mark.parametrize("kind", ["JumpReLUSAE", "StandardSAE", "BatchTopKTrainingSAE"])
def test_a_file_in_another_dtype_comes_back_with_the_same_dtypes_and_bits(kind, dtype, x, tmp_path):
    import sae_lens

    model = sae_lens_model(kind, {"dtype": dtype} | ({"k": K} if "TopK" in kind else {}))
    model.save_model(tmp_path / "theirs")
    assert formats.save(SAE.from_pretrained(tmp_path / "theirs"), tmp_path / "again", "sae_lens") == []
    was, now = (load_file(tmp_path / name / "sae_weights.safetensors") for name in ("theirs", "again"))
    assert {n: t.dtype for n, t in was.items()} == {n: t.dtype for n, t in now.items()}
    assert was["W_enc"].dtype == getattr(torch, dtype) and all(torch.equal(t, now[n]) for n, t in was.items())
    loader = sae_lens.TrainingSAE if "Training" in kind else sae_lens.SAE
    first, second = (loader.load_from_disk(tmp_path / name, device="cpu") for name in ("theirs", "again"))
    rows = x.to(getattr(torch, dtype))
    assert first.cfg.dtype == second.cfg.dtype == dtype and torch.equal(first(rows), second(rows))


def test_sae_lens_before_version_6(x, tmp_path):
    """A folder of 2024: flat names, the activation function beside the architecture."""
    import sae_lens

    model = sae_lens_model("TopKSAE", {"k": K})
    model.save_model(tmp_path / "old")
    config = {
        "d_in": 576,
        "d_sae": D_SAE,
        "dtype": "torch.float32",
        "device": "cpu",
        "model_name": "gpt2",
        "hook_point": "blocks.8",
        "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": K},
        "normalize_activations": None,
        "context_size": 128,
    }
    (tmp_path / "old" / "cfg.json").write_text(json.dumps(config))
    sae = SAE.from_pretrained(tmp_path / "old")
    assert sae.config.k == K and sae.metadata == {"model_name": "gpt2", "hook_name": "blocks.8"}
    config["dtype"] = "float32"
    (tmp_path / "old" / "cfg.json").write_text(json.dumps(config))
    same(sae(x).x_hat, sae_lens.SAE.load_from_disk(tmp_path / "old", device="cpu")(x))
    formats.save(sae, tmp_path / "new", "sae_lens")
    same(sae(x).x_hat, sae_lens.SAE.load_from_disk(tmp_path / "new", device="cpu")(x))


def test_sae_lens_in_bf16_round_trips(tmp_path):
    model = sae_lens_model("TopKSAE", {"k": K, "dtype": "bfloat16"})
    model.save_model(tmp_path / "theirs")
    sae = there_and_back(tmp_path / "theirs", tmp_path, "sae_lens")
    assert sae.W_enc.dtype == torch.float32


# Gemma Scope: as SAELens reads it, the Hub replaced by a folder


@pytest.fixture
def from_folder(monkeypatch, tmp_path):
    from sae_lens.loading import pretrained_sae_loaders as loaders

    def local(repo_id, filename, subfolder=None, **_):
        return str(tmp_path.joinpath(*([subfolder] if subfolder else []), filename))

    monkeypatch.setattr(loaders, "hf_hub_download", local)
    shapes = lambda _, name: {n: list(t.shape) for n, t in load_file(tmp_path / name).items()}
    monkeypatch.setattr(loaders, "get_safetensors_tensor_shapes", shapes)
    return loaders


def through_sae_lens(loaded):
    import sae_lens
    from sae_lens.loading.pretrained_sae_loaders import handle_config_defaulting

    config, state, _ = loaded
    config = handle_config_defaulting(config | {"device": "cpu"})
    cls = sae_lens.SAE.get_sae_class_for_architecture(config["architecture"])
    model = cls(sae_lens.SAE.get_sae_config_class_for_architecture(config["architecture"]).from_dict(config))
    model.load_state_dict(state)
    return model


def jumprelu(**options):
    sae = SAE(SAEConfig(576, D_SAE, activation="jumprelu", pre_bias=False, **options))
    scramble(sae)
    return sae


@pytest.mark.parametrize("folder", ["layer_12/width_16k/average_l0_71", "embedding/width_4k/average_l0_6"])
def test_gemma_scope_1(folder, from_folder, x, tmp_path, monkeypatch):
    sae = jumprelu()
    formats.save(sae, tmp_path / "new", "gemma_scope")
    (tmp_path / folder).parent.mkdir(parents=True)
    (tmp_path / "new").rename(tmp_path / folder)
    read = from_folder.get_gemma_2_config_from_hf
    monkeypatch.setattr(
        from_folder,
        "get_gemma_2_config_from_hf",
        lambda *a, **o: read(*a, **o) | {"d_in": 576, "d_sae": D_SAE},
    )
    loaded = from_folder.gemma_2_sae_huggingface_loader("google/gemma-scope-2b-pt-res", folder)
    model, back = through_sae_lens(loaded), SAE.from_pretrained(tmp_path / folder)
    same(back(x).x_hat, model(x))
    same_code(dense(back, x), model.encode(x))
    assert torch.equal(back.W_enc, sae.W_enc) == ("embedding" not in folder)


@pytest.mark.parametrize(
    "options", [{}, {"d_out": 48}, {"d_out": 48, "skip": True}], ids=["sae", "transcoder", "skip"]
)
def test_gemma_scope_2(options, from_folder, x, tmp_path):
    sae = jumprelu(**options)
    sae.metadata = {"model_name": "gemma-v3-1b", "hook_name": "model.layers.12.mlp"}
    from saefast.formats import Origin

    sae.origin = Origin("gemma_scope", {"version": 2})
    folder = f"{'transcoder' if options else 'resid_post'}/layer_12_width_16k"
    formats.save(sae, tmp_path / folder, "gemma_scope")
    model = through_sae_lens(from_folder.gemma_3_sae_huggingface_loader("google/gemma-scope-2-1b-pt", folder))
    back = there_and_back(tmp_path / folder, tmp_path, "gemma_scope")
    same(back(x).x_hat, model(x))
    same_code(dense(back, x), model.encode(x))
    assert back.config.skip == options.get("skip", False) and back.config.d_out == options.get("d_out")


def test_an_activations_store_of_sae_lens_is_made_from_an_sae_of_a_run(tmp_path):
    """SAELens makes its store from the metadata alone: model, hook point, context length, bos; and reads its rows."""
    from datasets import Dataset
    from sae_lens import SAE as TheirSAE
    from sae_lens import ActivationsStore
    from sae_lens.load_model import load_model

    from saefast import TrainConfig, Trainer, cli
    from tests.helpers import tiny_lm

    model = str(tiny_lm.save(tmp_path / "model"))
    (tmp_path / "text.txt").write_text(tiny_lm.text(2000))
    cli.main(["cache", model, str(tmp_path / "text.txt"), "--out", str(tmp_path / "acts"), "--hook", "model.layers.1",
              "--context-length", "16"])  # fmt: skip
    sae = SAE(SAEConfig(d_in=32, d_sae=64, k=4))
    config = TrainConfig(total_tokens=256, batch_size=64, checkpoint_every=10)
    Trainer(sae, config).fit(open_source(tmp_path / "acts"), tmp_path / "run")
    formats.save(SAE.from_pretrained(tmp_path / "run"), tmp_path / "lens", "sae_lens")
    theirs = TheirSAE.load_from_disk(tmp_path / "lens", device="cpu")
    metadata = theirs.cfg.metadata
    assert (metadata.context_size, metadata.prepend_bos, metadata.hook_head_index) == (16, False, None)
    assert metadata.dataset_path == str(tmp_path / "text.txt") and metadata.exclude_special_tokens == [0, 1]
    lm = load_model(
        metadata.model_class_name, metadata.model_name, device="cpu", hook_names=[metadata.hook_name]
    )
    tokens = torch.randint(2, 64, (64, 16)).tolist()
    options = {"streaming": False, "store_batch_size_prompts": 2, "train_batch_size_tokens": 32}
    store = ActivationsStore.from_sae(lm, theirs, Dataset.from_dict({"tokens": tokens}), **options)
    rows = next(iter(store))
    assert rows.shape[-1] == 32 and torch.isfinite(theirs(rows.reshape(-1, 32))).all()
