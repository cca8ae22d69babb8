"""Kind: files of others. What is no SAE is named in one line, with what can be done."""

import json
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from saefast import SAE, InputError, formats
from saefast.formats.places import inside, listing, places, what_is
from tests.helpers.format_cases import JUMP, make

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def lm(path):
    (path / "config.json").write_text(
        json.dumps({"architectures": ["LlamaForCausalLM"], "model_type": "llama"})
    )
    save_file({"model.embed_tokens.weight": torch.zeros(3, 2)}, path / "model.safetensors")


def lm_in_pieces(path):
    lm(path)
    (path / "model.safetensors").rename(path / "model-00001-of-00002.safetensors")
    (path / "model.safetensors.index.json").write_text("{}")


def pieces(path):
    save_file({"W_enc": torch.zeros(3, 2)}, path / "sae-00001-of-00002.safetensors")


def adapter(path):
    (path / "adapter_config.json").write_text("{}")
    (path / "adapter_model.safetensors").touch()


def activations(path):
    (path / "index.json").write_text(json.dumps({"format": "saefast-activations", "version": 1}))


def clt(path):
    (path / "config.yaml").write_text("model_kind: cross_layer_transcoder\n")
    (path / "W_enc_0.safetensors").touch()


def delphi(path):
    (path / "run_config.json").write_text("{}")
    (path / "latents").mkdir()


def folders(path):
    for i in (2, 10, 1):
        formats.save(make({"k": 3}), path / f"layers.{i}", "sparsify")


def nested(path):
    for l0 in (82, 9):
        (path / "layer_3" / "width_16k").mkdir(parents=True, exist_ok=True)
        formats.save(
            make(JUMP | {"pre_bias": False}), path / f"layer_3/width_16k/average_l0_{l0}", "gemma_scope"
        )


def qwen(path):
    for i in (0, 1, 10):
        torch.save({}, path / f"layer{i}.sae.pt")


def transcoders(path):
    (path / "config.yaml").write_text("model_kind: transcoder_set\n")
    for i in (0, 1):
        (path / f"layer_{i}.safetensors").touch()


KINDS = [
    (lambda path: None, "is an empty folder"),
    (lm, r"is a language model \(llama\): it can be MODEL of `saefast cache`, it holds no SAE"),
    (lm_in_pieces, r"is a language model \(llama\)"),
    (pieces, r"is weights in 1 pieces \(sae-00001-of-00002.safetensors, ...\): put them into one file first"),
    (adapter, r"is an adapter of a language model \(LoRA, of peft\)"),
    (activations, "is activations, a shard folder of `saefast cache`"),
    (clt, "is a cross-layer transcoder, which saefast does not compute"),
    (delphi, "is results of delphi"),
    (folders, r"is a folder of 3 SAEs: name one of layers.1, layers.2, layers.10$"),
    (
        nested,
        "is a folder of 2 SAEs: name one of layer_3/width_16k/average_l0_9, layer_3/width_16k/average_l0_82$",
    ),
    (qwen, "is a folder of 3 SAEs: name one of layer0.sae.pt, layer1.sae.pt, layer10.sae.pt$"),
    (transcoders, "is a folder of 2 SAEs: name one of layer_0.safetensors, layer_1.safetensors$"),
    (
        lambda path: np.save(path / "x.npy", np.zeros(2)),
        r"is a folder of arrays \(x.npy\) without the config of an SAE",
    ),
    (lambda path: (path / "notes.txt").touch(), r"is a folder of other files \(notes.txt\)"),
]


@pytest.mark.parametrize(
    "make_it,said", KINDS, ids=lambda v: v.split("(")[0][:40] if isinstance(v, str) else ""
)
def test_a_folder_that_is_no_sae_is_named(make_it, said, tmp_path):
    make_it(tmp_path)
    with pytest.raises(InputError, match=rf"path: expected an SAE, one of .*, {tmp_path} {said}") as error:
        SAE.from_pretrained(tmp_path)
    assert "\n" not in str(error.value)


def zipped(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", "b")


def tarred(path):
    with tarfile.open(path, "w") as archive:
        archive.add(__file__, "x")


FILES = [
    ("sae.zip", zipped, r"an archive \(zip\): unpack it first"),
    ("sae.tar", tarred, r"an archive \(tar\): unpack it first"),
    ("sae.tar.gz", b"\x1f\x8b\x08", r"an archive \(gzip\)"),
    ("sae.gguf", b"GGUF1234", "a language model in GGUF"),
    ("acts.npy", b"\x93NUMPY", "an array of numpy, such as activations"),
    ("sae.html", b"<!DOCTYPE html>", "a web page, not the file that was to be downloaded"),
    ("pytorch_model.bin", b"PK\x03\x04", "weights in a .bin file, as language models have them"),
    ("sae", b"", "an empty file"),
    ("notes.txt", b"hello", "a .txt file of another kind"),
    ("model-00001-of-00002.safetensors", b"x" * 20, "one of several pieces: put them into one file first"),
]


@pytest.mark.parametrize("name,content,said", FILES, ids=[name for name, _, _ in FILES])
def test_a_file_that_is_no_sae_is_named(name, content, said, tmp_path):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content(path)
    with pytest.raises(InputError, match=rf"path: expected an SAE, one of .*, {path} is {said}"):
        SAE.from_pretrained(path)


@pytest.mark.parametrize(
    "format,name",
    [
        ("saefast", "sae.safetensors"),
        ("saefast", "config.json"),
        ("sae_lens", "sae_weights.safetensors"),
        ("sae_lens", "cfg.json"),
        ("dictionary_learning", "ae.pt"),
        ("gemma_scope", "params.npz"),
    ],
)
def test_a_pointer_of_git_lfs_is_named(format, name, tmp_path):
    options = JUMP | {"pre_bias": False} if format == "gemma_scope" else {"k": 3}
    formats.save(make(options), tmp_path / "a", format)
    (tmp_path / "a" / name).write_text(LFS)
    with pytest.raises(
        InputError, match=rf"{name}: a pointer of Git LFS, not the file itself: fetch it with `git lfs"
    ):
        SAE.from_pretrained(tmp_path / "a")
    (tmp_path / "layer7.sae.pt").write_text(LFS)
    with pytest.raises(InputError, match=r"layer7.sae.pt: a pointer of Git LFS"):
        SAE.from_pretrained(tmp_path / "layer7.sae.pt")


@pytest.mark.parametrize(
    "format,name",
    [
        ("sae_lens", "cfg.json"),
        ("sae_lens", "sae_weights.safetensors"),
        ("saefast", "sae.safetensors"),
        ("dictionary_learning", "ae.pt"),
    ],
)
def test_a_file_of_a_folder_stands_for_it(format, name, tmp_path):
    formats.save(make({"k": 3}), tmp_path / "a", format)
    assert SAE.from_pretrained(tmp_path / "a" / name).config.k == 3


def test_a_run_that_is_not_finished_says_what_makes_an_sae_of_it(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(
        InputError, match=r"a run that is not finished has none: .* `saefast export-checkpoint .*`"
    ):
        SAE.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "files,found",
    [
        (["cfg.json", "x/cfg.json", "trainer_state.pt"], ["", "x"]),
        (["a/ae.pt", "a/checkpoints/ae_100.pt", "a/config.json"], ["a"]),
        (["run/trainer_state.pt", "run/optimizer.pt"], []),
        (["b/1.pt", "b/0.pt", "README.md"], ["b/0.pt", "b/1.pt"]),
        ([], []),
    ],
)
def test_places(files, found):
    assert places(files) == found


@pytest.mark.parametrize(
    "files,found",
    [
        (["ae.pt", "x/1.pt", "x/y/2.pt"], [""]),  # what is below a folder's SAE is a part of it
        (["a/ae.pt", "a/b/c/1.pt", "d/1.pt"], ["a", "d/1.pt"]),
        (
            ["a/b/layer_10.safetensors", "a/b/layer_9.safetensors"],
            [f"a/b/layer_{i}.safetensors" for i in (9, 10)],
        ),
        (["layer_x.safetensors", "a.pth", "scheduler.pt"], ["a.pth"]),
    ],
)
def test_files_count_where_no_folder_does(files, found):
    assert places(files) == found


def test_a_list_has_at_most_20_names():
    names = [f"n{i}" for i in range(22)]
    assert listing(names[:20]) == ", ".join(names[:20])
    assert listing(names[:21]) == ", ".join(names[:20]) + " and 1 more"
    assert listing(names) == ", ".join(names[:20]) + " and 2 more"


def test_a_folder_is_searched_five_levels_deep_and_no_further_than_it_is_large(tmp_path, monkeypatch):
    for folder in ("1/2/3/4/5", "a/2/3/4/5/6", ".hidden/x"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "cfg.json").touch()
    assert inside(tmp_path) == ["1/2/3/4/5"]
    for name in ("m/x", "m/y", "m/x/z"):
        (tmp_path / "many" / name).mkdir(parents=True, exist_ok=True)
    for i in range(3):
        (tmp_path / "many" / f"{i}.txt").touch()
    (tmp_path / "many" / "m" / "x" / "ae.pt").touch()
    for most, found in ((3, ["m/x"]), (2, [])):  # of more than that, the folders below are left out
        monkeypatch.setattr("saefast.formats.places.MOST", most)
        assert inside(tmp_path / "many") == found


def write(**files):
    """What makes a folder with these files."""

    def into(path):
        for name, text in files.items():
            (path / name.replace("__", ".")).write_text(text)

    return into


ALONE = [  # one sign of a kind without the other
    (write(W_enc_0__safetensors=""), "a cross-layer transcoder, which saefast does not compute"),
    (write(config__yaml="model_kind: cross_layer_transcoder"), "a cross-layer transcoder, which saefast"),
    (lambda path: (path / "latents").mkdir(), r"a folder of other files \(latents\)$"),
    (write(run_config__json="{}"), r"a folder of other files \(run_config.json\)$"),
    (write(index__json='{"format": "other"}'), r"a folder of other files \(index.json\)$"),
    (write(other__json='{"format": "saefast-activations"}'), r"a folder of other files \(other.json\)$"),
    (write(config__json='{"architectures": ["A"]}'), r"a language model \(\['A'\]\)"),
    (write(config__json=json.dumps({"model_type": "m" * 50})), rf"a language model \({'m' * 40}\)"),
    (write(config__json='{"x": 1}'), r"a folder of other files \(config.json\)$"),
    (write(config__json="[1]"), r"a folder of other files \(config.json\)$"),
    (write(a__txt="", x__safetensors=""), r"a folder of arrays \(a.txt, x.safetensors\) without the config"),
]


@pytest.mark.parametrize("make_it,said", ALONE)
def test_half_of_a_sign_says_what_is_there(make_it, said, tmp_path):
    make_it(tmp_path)
    with pytest.raises(InputError, match=rf", {tmp_path} is {said}"):
        SAE.from_pretrained(tmp_path)


MORE_FILES = [
    ("x.zst", b"(\xb5/\xfd", r"an archive \(zstd\): unpack it first"),
    ("x.7z", b"7z\xbc\xaf", r"an archive \(7z\): unpack it first"),
    ("x.h5", b"\x89HDF", "an HDF5 file"),
    ("x", b"<html>", "a web page, not the file that was to be downloaded"),
    ("x.zip", b"hello", "a .zip file of another kind"),
    ("x.data", b"PK\x03\x04", "a .data file of another kind"),
    ("nothing", b"hello", "a nameless file of another kind"),
    ("x.tar", bytes(257) + b"ustar", r"an archive \(tar\): unpack it first"),
    ("x.tar", bytes(256) + b"ustar" + bytes(9), "a .tar file of another kind"),
    *((f"x.{kind}", b"x", f"weights in a .{kind} file") for kind in ("bin", "ckpt", "msgpack", "onnx", "h5")),
]


@pytest.mark.parametrize("name,content,said", MORE_FILES)
def test_a_file_is_named_by_how_it_begins_or_ends(name, content, said, tmp_path):
    (tmp_path / name).write_bytes(content)
    assert what_is(tmp_path / name).startswith(said.replace("\\", ""))
    assert what_is(tmp_path / "gone.txt") == "an empty file"
