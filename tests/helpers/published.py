"""Files of other projects as they were published, built by hand from their layouts."""

import json

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from saefast import formats
from tests.helpers.format_cases import D_IN, D_SAE, make

QWEN = "models--Qwen--SAE-Res-Qwen3-1.7B-Base-W1K-L0_3"


def parts(d_sae=D_SAE, d_out=D_IN, seed=0):
    """W_enc [d_sae, d_in], b_enc, W_dec [d_sae, d_out], b_dec."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((d_sae, D_IN), (d_sae,), (d_sae, d_out), (d_out,))
    return [torch.randn(shape, generator=generator) for shape in shapes]


def llama_scope(tmp_path, change=None):
    W_enc, b_enc, W_dec, b_dec = parts()
    (tmp_path / "checkpoints").mkdir(parents=True)
    held = {
        "encoder.weight": W_enc,
        "encoder.bias": b_enc,
        "decoder.weight": W_dec.T.contiguous(),
        "decoder.bias": b_dec,
    }
    save_file(held, tmp_path / "checkpoints" / "final.safetensors")
    config = {"act_fn": "jumprelu", "jump_relu_threshold": 0.5, "d_model": D_IN, "d_sae": D_SAE}
    config |= {"dataset_average_activation_norm": {"in": 4.0, "out": 4.0}}
    config |= {"hook_point_in": "blocks.3.hook_resid_post", "hook_point_out": "blocks.3.hook_resid_post"}
    (tmp_path / "hyperparams.json").write_text(json.dumps(config | (change or {})))
    return W_enc, b_enc, W_dec, b_dec


def lens_checkpoint(folder, options, factor):
    """A checkpoint of SAELens: its SAE expects rows times `factor`."""
    sae = make(options)
    formats.save(sae, folder, "sae_lens")
    config = json.loads((folder / "cfg.json").read_text())
    config["normalize_activations"] = "expected_average_only_in"
    if options.get("activation") == "batch_topk":
        path = folder / "sae_weights.safetensors"
        tensors = load_file(path)
        tensors["topk_threshold"] = tensors.pop("threshold")[0].double()
        save_file(tensors, path)
        config |= {"architecture": "batchtopk", "k": 3}
    (folder / "cfg.json").write_text(json.dumps(config))
    (folder / "activation_scaler.json").write_text(
        json.dumps({"scaling_factor": factor, "has_whitening": False})
    )
    return sae


def raw(folder):
    """Path and tensors of the weights in a folder of any format."""
    (path,) = [path for path in folder.iterdir() if path.suffix != ".json"]
    if path.suffix == ".npz":
        with np.load(path) as file:
            return path, {name: torch.from_numpy(file[name]) for name in file.files}
    found = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
    return path, found
