"""Our own folder, file by file: which of them make an SAE, what an older one lacks, and what is left of one before."""

import json

import pytest
import torch

from saefast import SAE, InputError, formats
from saefast.files import load_tensors, save_tensors, write_json
from saefast.formats import saefast as own
from tests.helpers.format_cases import D_IN, D_SAE, NESTED, make

OURS = '{"d_sae": 20}'


@pytest.mark.parametrize(
    "files,found,half",
    [
        ({}, False, False),
        ({"run.json": "{}"}, True, False),
        ({"config.json": OURS, "sae.safetensors": ""}, True, True),
        ({"config.json": OURS}, False, True),
        ({"config.json": "{"}, False, True),  # damaged: its reader says so
        ({"config.json": '{"d_model": 20}'}, False, False),
        ({"config.json": '["d_sae"]'}, False, False),
        ({"config.json": "20"}, False, False),
        ({"sae.safetensors": ""}, False, True),
    ],
    ids=str,
)
def test_which_files_make_an_sae_of_ours_or_half_of_one(files, found, half, tmp_path):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert own.find(tmp_path) == found and own.half(tmp_path) == half


def test_half_of_an_sae_says_which_file_is_missing(tmp_path):
    make({"k": 3}).save_pretrained(tmp_path)
    (tmp_path / "sae.safetensors").rename(tmp_path / "kept")
    with pytest.raises(
        InputError, match=r"sae\.safetensors: expected a file, found none \(a run that is not"
    ):
        SAE.from_pretrained(tmp_path)
    (tmp_path / "kept").rename(tmp_path / "sae.safetensors")
    (tmp_path / "config.json").unlink()
    with pytest.raises(InputError, match=r"config\.json: expected a JSON file, found none$"):
        SAE.from_pretrained(tmp_path)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(
        InputError, match=r"config\.json: expected a file, found none \(a run that is not finished"
    ):
        SAE.from_pretrained(tmp_path)


def older(folder, sae, **origin):
    """What was written before config.json had a checksum and sae.safetensors knew of metadata and of an origin."""
    sae.save_pretrained(folder)
    tensors, meta, _ = load_tensors(folder / "sae.safetensors")
    metadata = meta.pop("metadata")
    del meta["origin"]
    save_tensors(folder / "sae.safetensors", tensors, meta)
    write_json(folder / "config.json", meta | {"metadata": metadata})
    if origin:
        save_tensors(folder / "origin.safetensors", {"more": torch.ones(2)}, origin)


def test_an_older_folder_is_read(tmp_path):
    sae = make(NESTED)
    older(tmp_path / "a", sae)
    back = SAE.from_pretrained(tmp_path / "a")
    assert back.config == sae.config and back.metadata == sae.metadata and back.origin is None
    assert all(torch.equal(param, back.get_parameter(name)) for name, param in sae.named_parameters())
    older(tmp_path / "b", sae, format="sae_lens", config={"x": 1}, dtype="bfloat16")  # one dtype for all
    back = SAE.from_pretrained(tmp_path / "b")
    assert back.origin.format == "sae_lens" and back.origin.config == {"x": 1}
    assert back.origin.dtypes == dict.fromkeys(dict(sae.named_parameters()), "bfloat16")
    assert back.origin.tensors.keys() == {"more"} and back.origin.exact == {}
    older(tmp_path / "c", sae, format="sae_lens", config={})
    with pytest.raises(InputError, match=r"origin\.safetensors: expected what `SAE\.save_pretrained` writes"):
        SAE.from_pretrained(tmp_path / "c")
    write_json(
        tmp_path / "a" / "config.json", json.loads((tmp_path / "a" / "config.json").read_text()) | {"k": 4}
    )
    with pytest.raises(InputError, match=r"config\.json: corrupt, or of another sae\.safetensors than"):
        SAE.from_pretrained(tmp_path / "a")


def test_what_came_from_another_project_is_beside_it_and_goes_with_it(tmp_path):
    formats.save(make({"k": 3}), tmp_path / "theirs", "sae_lens")
    theirs, ours = SAE.from_pretrained(tmp_path / "theirs"), make({"k": 3})
    theirs.save_pretrained(tmp_path / "deep" / "er")
    theirs.save_pretrained(tmp_path / "deep" / "er")  # over itself
    place = tmp_path / "deep" / "er" / "origin.safetensors"
    back = SAE.from_pretrained(tmp_path / "deep" / "er")
    assert place.exists() and back.origin.config == theirs.origin.config
    kept = place.read_bytes()
    place.unlink()
    with pytest.raises(InputError, match=r"origin\.safetensors: expected a file beside this .*, found none"):
        SAE.from_pretrained(tmp_path / "deep" / "er")
    place.write_bytes(kept)
    ours.save_pretrained(tmp_path / "deep" / "er")
    assert not place.exists() and SAE.from_pretrained(tmp_path / "deep" / "er").origin is None
    place.write_bytes(kept)
    with pytest.raises(
        InputError, match=r"origin\.safetensors: expected no such file beside this .*, found one"
    ):
        SAE.from_pretrained(tmp_path / "deep" / "er")
    back.origin = back.origin._replace(config={"another": 1})
    back.save_pretrained(tmp_path / "deep" / "er")
    place.write_bytes(kept)
    with pytest.raises(InputError, match=r"origin\.safetensors: of another SAE than the sae\.safetensors"):
        SAE.from_pretrained(tmp_path / "deep" / "er")


@pytest.mark.parametrize(
    "name,value,said",
    [
        ("W_dec", torch.zeros(D_SAE, D_IN + 1), r"W_dec: expected shape \[20, 6\], got \[20, 7\]"),
        ("W_dec", None, r"W_dec: expected shape \[20, 6\], got None"),
        ("more", torch.zeros(1), "expected the tensors of an SAE only, got also more"),
    ],
)
def test_tensors_of_another_sae_are_named(name, value, said, tmp_path):
    make({"k": 3}).save_pretrained(tmp_path)
    tensors, meta, _ = load_tensors(tmp_path / "sae.safetensors")
    tensors = {n: t for n, t in (tensors | {name: value}).items() if t is not None}
    save_tensors(tmp_path / "sae.safetensors", tensors, meta)
    with pytest.raises(InputError, match=rf"sae\.safetensors: {said}$"):
        SAE.from_pretrained(tmp_path)


def test_metadata_is_an_object_and_what_json_makes_of_it(tmp_path):
    sae = make({"k": 3})
    sae.metadata = {"pair": (1, 2)}
    sae.save_pretrained(tmp_path / "a")
    assert SAE.from_pretrained(tmp_path / "a").metadata == {"pair": [1, 2]}
    sae.metadata = {}
    sae.save_pretrained(tmp_path / "b")
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    assert "metadata" not in config and SAE.from_pretrained(tmp_path / "b").metadata == {}
    del config["checksum"]
    write_json(tmp_path / "b" / "config.json", config | {"metadata": [1]})
    with pytest.raises(InputError, match=r"config\.json: metadata: expected an object, got \[1\]"):
        SAE.from_pretrained(tmp_path / "b")
