"""Published files as SAELens' own loaders read them: Qwen Scope, Goodfire, Llama Scope, transcoders for circuit-tracer."""

import json
import math

import pytest
import torch
from safetensors.torch import save_file

from saefast import SAE
from tests.helpers.format_cases import D_IN, D_SAE, rows
from tests.helpers.published import QWEN, llama_scope, parts


@pytest.fixture
def loaders(tmp_path, monkeypatch):
    """SAELens' loaders, for which a repository is the folder tmp_path."""
    loaders = pytest.importorskip("sae_lens.loading.pretrained_sae_loaders")

    def local(repo_id, filename, subfolder="", **_):
        return str(tmp_path / subfolder / filename)

    monkeypatch.setattr(loaders, "hf_hub_download", local)
    return loaders


def theirs(kind, state, **options):
    import sae_lens

    width = {"d_in": D_IN, "d_sae": len(state["b_enc"]), "apply_b_dec_to_input": False}
    model = getattr(sae_lens, kind)(getattr(sae_lens, f"{kind}Config")(**width, **options))
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    return model


def test_qwen_scope(loaders, tmp_path):
    W_enc, b_enc, W_dec, b_dec = parts(1024)
    (tmp_path / QWEN).mkdir()
    held = {"W_enc": W_enc, "W_dec": W_dec.T.contiguous(), "b_enc": b_enc, "b_dec": b_dec}
    torch.save(held, tmp_path / QWEN / "layer7.sae.pt")
    torch.save(held, tmp_path / "layer7.sae.pt")
    repository = QWEN.removeprefix("models--").replace("--", "/")
    config, state, _ = loaders.qwen_scope_sae_huggingface_loader(repository, "layer7.sae.pt")
    model, x = theirs("TopKSAE", state, **config["activation_fn_kwargs"]), rows()
    ours = SAE.from_pretrained(tmp_path / QWEN / "layer7.sae.pt")
    torch.testing.assert_close(ours(x).x_hat, model(x))
    assert ours.metadata == {"model_name": config["model_name"], "hook_name": config["hf_hook_name"]}


def test_goodfire(loaders, tmp_path):
    W_enc, b_enc, W_dec, b_dec = parts()
    name = "Llama-3.1-8B-Instruct-SAE-l19.pth"
    held = {"encoder_linear.weight": W_enc, "encoder_linear.bias": b_enc, "decoder_linear.bias": b_dec}
    torch.save(held | {"decoder_linear.weight": W_dec.T.contiguous()}, tmp_path / name)
    _, state, _ = loaders.get_goodfire_huggingface_loader("Goodfire/Llama-3.1-8B-Instruct-SAE-l19", name)
    x = rows()
    torch.testing.assert_close(SAE.from_pretrained(tmp_path / name)(x).x_hat, theirs("StandardSAE", state)(x))


def test_llama_scope(loaders, tmp_path):
    """With the factor folded in, as their users do it; and the same latents are active."""
    llama_scope(tmp_path / "L3R-8x")
    _, state, _ = loaders.llama_scope_sae_huggingface_loader(
        "fnlp/x", "L3R-8x", cfg_overrides={"dtype": "float32"}
    )
    model, ours, x = theirs("JumpReLUSAE", state), SAE.from_pretrained(tmp_path / "L3R-8x"), rows()
    model.fold_activation_norm_scaling_factor(math.sqrt(D_IN) / 4.0)
    torch.testing.assert_close(ours(x).x_hat, model(x))
    assert float((ours.encode(x)[0] > 0).sum()) == float((model.encode(x) > 0).sum()) > 0


def test_a_transcoder_for_circuit_tracer(loaders, tmp_path):
    W_enc, b_enc, W_dec, b_dec = parts()
    save_file(
        {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec}, tmp_path / "layer_3.safetensors"
    )
    (tmp_path / "config.yaml").write_text("model_name: Qwen/Qwen3-4B\nmodel_kind: transcoder_set\n")
    wandb = {"d_model": {"value": D_IN}, "d_feature": {"value": D_SAE}, "batch_size": {"value": 8}}
    (tmp_path / "wandb-config.yaml").write_text(json.dumps(wandb))
    _, state, _ = loaders.mwhanna_transcoder_huggingface_loader("mwhanna/x", "layer_3.safetensors")
    x = rows()
    ours = SAE.from_pretrained(tmp_path / "layer_3.safetensors")
    torch.testing.assert_close(ours(x).x_hat, theirs("Transcoder", state, d_out=D_IN)(x))
