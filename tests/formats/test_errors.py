"""What files of other projects can do to us: nothing but an error that names the file."""

import json
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from saefast import SAE, InputError, formats
from tests.helpers.format_cases import GATED, JUMP, make


def written(tmp_path, format, options=None):
    options = options or {"k": 3}
    formats.save(make(options), tmp_path / format, format)
    return tmp_path / format


class Evil:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("format,name", [("dictionary_learning", "ae.pt"), ("openai", "autoencoder.pt")])
def test_a_pickle_that_would_run_code_is_refused_and_not_run(format, name, tmp_path):
    folder, mark = written(tmp_path, format, {"activation": "relu"}), tmp_path / "ran"
    for save in (torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))):
        save({"encoder.weight": Evil(mark)}, folder / name)
        with pytest.raises(InputError, match=rf"{name}: refused, expected tensors only in the pickle"):
            SAE.from_pretrained(folder)
    assert not mark.exists()


def test_an_array_of_objects_is_refused(tmp_path):
    folder = written(tmp_path, "gemma_scope", JUMP | {"pre_bias": False})
    np.savez(folder / "params.npz", W_enc=np.array([Evil(tmp_path / "ran")], dtype=object))
    with pytest.raises(InputError, match="params.npz: corrupt, or not numbers only"):
        SAE.from_pretrained(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "format,options,name",
    [
        ("sae_lens", {"k": 3}, "sae_weights.safetensors"),
        ("sae_lens", {"k": 3}, "cfg.json"),
        ("sparsify", {"k": 3}, "cfg.json"),
        ("dictionary_learning", {"k": 3}, "config.json"),
        ("openai", {"activation": "relu"}, "autoencoder.pt"),
        ("gemma_scope", JUMP | {"pre_bias": False}, "params.npz"),
        ("llamascopium", {"k": 3, "pre_bias": False}, "config.json"),
    ],
)
def test_half_a_checkpoint_and_half_a_file_are_named(format, options, name, tmp_path):
    folder = written(tmp_path, format, options)
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=rf"{name}: (corrupt|expected JSON)"):
        SAE.from_pretrained(folder, format=format)
    (folder / name).unlink()
    with pytest.raises(
        InputError,
        match=rf"{name}: expected a (JSON )?file, found none|path: expected an SAE, one of .* an empty folder",
    ):
        SAE.from_pretrained(folder, format=format if format not in ("openai", "gemma_scope") else None)


def broken(folder, name, value):
    """The safetensors file with another tensor `name`; None leaves it out."""
    (path,) = folder.glob("*.safetensors")
    tensors = load_file(path)
    del tensors[name]
    save_file(tensors | ({} if value is None else {name: value}), path)


@pytest.mark.parametrize(
    "value,message",
    [
        (None, r"W_dec: expected shape \[20, 6\], found no such tensor"),
        (torch.zeros(20, 5), r"W_dec: expected shape \[20, 6\], got \[20, 5\]"),
        (torch.zeros(20), r"W_dec: expected shape \[20, 6\], got \[20\]"),
        (torch.zeros(20, 6, dtype=torch.int32), "W_dec: expected floating-point numbers, got torch.int32"),
        (torch.full((20, 6), torch.nan), "W_dec: expected finite numbers, got NaN or Inf"),
        (torch.full((20, 6), torch.inf), "W_dec: expected finite numbers, got NaN or Inf"),
    ],
)
@pytest.mark.parametrize("format", ["sae_lens", "sparsify"])
def test_tensors_of_another_kind_are_refused(format, value, message, tmp_path):
    folder = written(tmp_path, format)
    broken(folder, "W_dec", value)
    with pytest.raises(InputError, match=message):
        SAE.from_pretrained(folder)


def test_tensors_that_nobody_knows_are_refused(tmp_path):
    folder = written(tmp_path, "sae_lens")
    path = folder / "sae_weights.safetensors"
    save_file(load_file(path) | {"W_more": torch.zeros(2)}, path)
    with pytest.raises(InputError, match="expected the tensors of an SAE only, got also W_more"):
        SAE.from_pretrained(folder)


@pytest.mark.parametrize(
    "format,change,message",
    [
        ("sae_lens", {"architecture": "temporal"}, "architecture: expected one of .* got 'temporal'"),
        ("sae_lens", {"d_sae": 10**15}, "d_sae: expected 20, the size of the tensors, got 1000000000000000"),
        ("sae_lens", {"k": 21}, "k: expected at most d_sae = 20, got 21"),
        ("sae_lens", {"k": "many"}, "k: expected a positive integer, got 'many'"),
        ("sae_lens", {"k": 2.5}, "k: expected a positive integer, got 2.5"),
        (
            "sae_lens",
            {"normalize_activations": "covariance_whitening"},
            "normalize_activations: expected one of",
        ),
        ("sparsify", {"activation": "softmax"}, "activation: expected one of .* got 'softmax'"),
        ("sparsify", {"num_latents": 10**15}, "num_latents: expected 20 or 0, got 1000000000000000"),
        ("sparsify", {"skip_connection": True}, "skip_connection: expected with transcode only"),
        ("llamascopium", {"act_fn": "batchtopk"}, "act_fn: expected one of .*batchtopk has no threshold"),
        ("llamascopium", {"use_glu_encoder": True}, "use_glu_encoder: expected false, got true"),
        ("llamascopium", {"norm_activation": "batch-wise"}, "norm_activation: expected one of"),
        (
            "llamascopium",
            {"norm_activation": "dataset-wise", "hook_point_in": "x", "hook_point_out": "x"},
            "dataset_average_activation_norm.x: expected a positive number",
        ),
        ("llamascopium", {"sae_type": "clt"}, "sae_type: expected one of \\['sae'\\], got 'clt'"),
    ],
)
def test_a_config_that_says_something_else_is_refused(format, change, message, tmp_path):
    folder = written(tmp_path, format, {"k": 3, "pre_bias": format != "llamascopium"})
    path = folder / ("config.json" if format == "llamascopium" else "cfg.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=message):
        SAE.from_pretrained(folder)


@pytest.mark.parametrize("text", ["[]", "1", '{"trainer": 3}', '{"trainer": {"dict_class": "IdentityDict"}}'])
def test_a_config_of_another_shape_is_refused(text, tmp_path):
    folder = written(tmp_path, "dictionary_learning")
    (folder / "config.json").write_text(text)
    with pytest.raises(InputError, match="config.json: "):
        SAE.from_pretrained(folder)


def test_sizes_that_are_only_declared_are_never_allocated(tmp_path):
    """A view of one number as 10^12, and an archive that unpacks to more than it can hold."""
    folder = written(tmp_path, "dictionary_learning")
    tensors = torch.load(folder / "ae.pt", weights_only=True)
    huge = torch.zeros(1).expand(10**6, 10**6)
    torch.save(tensors | {"encoder.weight": huge}, folder / "ae.pt")
    with pytest.raises(
        InputError, match=r"encoder.weight: refused, 1 numbers that declare \[1000000, 1000000\]"
    ):
        SAE.from_pretrained(folder)
    gemma = written(tmp_path, "gemma_scope", JUMP | {"pre_bias": False})
    with zipfile.ZipFile(gemma / "params.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("W_enc.npy", bytes(10**8))
    with pytest.raises(InputError, match=r"params.npz: refused, \d+ bytes that declare 100000000"):
        SAE.from_pretrained(gemma)


@pytest.mark.parametrize("folder", ["embedding", "embedding/width_4k"])
def test_no_format_writes_where_it_would_read_something_else(folder, tmp_path):
    with pytest.raises(InputError, match="path: expected no folder 'embedding'"):
        formats.save(make(JUMP | {"pre_bias": False}), tmp_path / folder, "gemma_scope")
    assert not (tmp_path / folder).exists()


def test_nothing_is_overwritten_and_a_failure_leaves_nothing(tmp_path, monkeypatch):
    folder = written(tmp_path, "sparsify")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(
        InputError, match="path: expected a new folder, .*sparsify exists and nothing is overwritten"
    ):
        formats.save(make(GATED), folder, "sae_lens")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    with pytest.raises(InputError, match="format: expected one of .* got 'pickle'"):
        formats.save(make({"k": 3}), tmp_path / "new", "pickle")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("saefast.formats.sae_lens.write_json", full)
    with pytest.raises(OSError, match="No space left"):
        formats.save(make({"k": 3}), tmp_path / "new", "sae_lens")
    assert [path.name for path in tmp_path.iterdir()] == ["sparsify"]


def test_two_formats_in_one_folder_have_to_be_named(tmp_path):
    folder = written(tmp_path, "sparsify")
    gemma = written(tmp_path, "gemma_scope", JUMP | {"pre_bias": False})
    (gemma / "params.npz").rename(folder / "params.npz")
    with pytest.raises(InputError, match=r"may be any of \['sparsify', 'gemma_scope'\]: name the format"):
        SAE.from_pretrained(folder)
    assert SAE.from_pretrained(folder, format="gemma_scope").config.activation == "jumprelu"
