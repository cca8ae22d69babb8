"""What files of openai/sparse_autoencoder, dictionary_learning and Gemma Scope may hold besides what we write."""

import json

import numpy as np
import pytest
import torch

from saefast import SAE, InputError, formats
from tests.helpers.format_cases import D_IN, D_SAE, JUMP, NESTED, make
from tests.helpers.published import parts, raw


def openai(path, **changes):
    W_enc, b_enc, W_dec, b_dec = parts()
    held = {
        "encoder.weight": W_enc,
        "latent_bias": b_enc,
        "pre_bias": b_dec,
        "decoder.weight": W_dec.T.contiguous(),
    }
    held |= {"activation": "TopK", "activation_state_dict": {"k": 3, "postact_fn": "ReLU"}}
    torch.save({n: v for n, v in (held | changes).items() if v is not None}, path)


def test_which_files_are_of_openai(tmp_path):
    openai(tmp_path / "7.pt")
    openai(tmp_path / "8.pth")
    openai(tmp_path / "layer7.sae.pt")
    (tmp_path / "folder.pt").mkdir()
    find = formats.openai.find
    assert find(tmp_path / "7.pt") and find(tmp_path / "8.pth")
    assert not find(tmp_path / "layer7.sae.pt") and not find(tmp_path / "folder.pt") and not find(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert not find(tmp_path / "7.pt")


def test_a_tied_model_of_openai_stays_tied_while_it_is(tmp_path):
    W_enc = parts()[0]
    openai(tmp_path / "7.pt", **{"decoder.weight": None, "decoder.linear.weight": W_enc})
    sae = SAE.from_pretrained(tmp_path / "7.pt")
    assert torch.equal(sae.W_dec, W_enc) and sae.W_dec.data_ptr() != sae.W_enc.data_ptr()
    formats.save(sae, tmp_path / "a", "openai")
    assert torch.equal(raw(tmp_path / "a")[1]["decoder.linear.weight"], W_enc)
    sae.W_dec.data[0, 0] += 1
    formats.save(sae, tmp_path / "b", "openai")
    assert torch.equal(raw(tmp_path / "b")[1]["decoder.weight"], sae.W_dec.T)
    openai(tmp_path / "8.pt", **{"decoder.weight": W_enc.T.contiguous()})  # equal, and not tied
    formats.save(SAE.from_pretrained(tmp_path / "8.pt"), tmp_path / "c", "openai")
    assert (
        "decoder.weight" in raw(tmp_path / "c")[1] and "decoder.linear.weight" not in raw(tmp_path / "c")[1]
    )


def test_what_the_state_of_openai_has_twice_is_kept(tmp_path):
    more = {"activation.k": torch.tensor(3), "activation.postact_fn": "ReLU"}
    openai(tmp_path / "7.pt", stats_last_nonzero=torch.arange(D_SAE), **more)
    formats.save(SAE.from_pretrained(tmp_path / "7.pt"), tmp_path / "a", "openai")
    found = raw(tmp_path / "a")[1]
    assert int(found["activation.k"]) == 3 and found["activation.postact_fn"] == "ReLU"
    assert found["stats_last_nonzero"].tolist() == list(range(D_SAE))
    openai(tmp_path / "8.pt", activation=None, activation_state_dict=None)
    assert SAE.from_pretrained(tmp_path / "8.pt").config.activation == "relu"
    openai(tmp_path / "9.pt", activation_state_dict={"k": 3})
    assert SAE.from_pretrained(tmp_path / "9.pt").config.k == 3
    for state, said in (
        ({"k": 3, "postact_fn": "Identity"}, "postact_fn: expected one of .'ReLU'., got 'Identity'"),
        ([3], "postact_fn: expected one of .'ReLU'., got None"),
        ({"postact_fn": "ReLU"}, "k: expected a positive integer, got None"),
    ):
        openai(tmp_path / "9.pt", activation_state_dict=state)
        with pytest.raises(InputError, match=said):
            SAE.from_pretrained(tmp_path / "9.pt")


def learnt(folder, options, **changes):
    """A folder of dictionary_learning with other tensors; returns its path."""
    formats.save(make(options), folder, "dictionary_learning")
    held = raw(folder)[1] | changes
    torch.save({n: v for n, v in held.items() if v is not None}, folder / "ae.pt")
    return folder


def test_the_numbers_of_dictionary_learning_are_looked_at(tmp_path):
    for i, (options, changes, said) in enumerate(
        (
            ({"k": 3}, {"k": None}, r"ae\.pt: k: expected a tensor, found none"),
            ({"k": 3}, {"k": torch.tensor([3, 4])}, r"ae\.pt: k: expected a positive integer, got None"),
            (NESTED, {"group_sizes": None}, r"ae\.pt: group_sizes: expected a tensor of integers, got None"),
            (NESTED, {"group_sizes": torch.tensor([[5, 15]])}, "group_sizes: expected a tensor of integers"),
            (
                NESTED,
                {"group_sizes": torch.tensor([5.0, 15.0])},
                "group_sizes: expected a tensor of integers",
            ),
            ({"activation": "relu"}, {"threshold": torch.tensor(1.0)}, "got also threshold"),
        )
    ):
        with pytest.raises(InputError, match=said):
            SAE.from_pretrained(learnt(tmp_path / str(i), options, **changes))
    folder = learnt(
        tmp_path / "whole", NESTED, k=torch.tensor([3]), group_sizes=torch.tensor([5, 15], dtype=torch.int32)
    )
    config = SAE.from_pretrained(folder).config
    assert config.k == 3 and config.group_sizes == (5, 20)
    trainer = json.loads((folder / "config.json").read_text())
    trainer["trainer"]["dict_size"] = 21
    (folder / "config.json").write_text(json.dumps(trainer))
    with pytest.raises(
        InputError, match=r"config\.json: dict_size: expected 20, the size of the tensors, got 21"
    ):
        SAE.from_pretrained(folder)


def test_a_file_of_backup_steps_is_read_where_it_is(tmp_path):
    sae = make({"k": 3})
    formats.save(sae, tmp_path / "a", "dictionary_learning")
    (tmp_path / "a" / "checkpoints").mkdir()
    place = tmp_path / "a" / "checkpoints" / "ae_100.pt"
    torch.save({"ae": raw_of(tmp_path / "a" / "ae.pt"), "step": 100}, place)
    (tmp_path / "a" / "ae.pt").unlink()
    assert formats.dictionary_learning.find(place) and not formats.dictionary_learning.find(tmp_path / "a")
    back = SAE.from_pretrained(place)
    assert all(torch.equal(param, back.get_parameter(name)) for name, param in sae.named_parameters())
    torch.save([torch.ones(2)], place)
    with pytest.raises(InputError, match=r"ae_100\.pt: expected tensors by name, got list"):
        SAE.from_pretrained(place)


def raw_of(path):
    return torch.load(path, weights_only=True)


def test_gemma_scope_keeps_the_case_of_its_names(tmp_path):
    for lower in (False, True):
        formats.save(make(JUMP | {"pre_bias": False}), tmp_path / f"{lower}", "gemma_scope")
        path, held = raw(tmp_path / f"{lower}")
        np.savez(path, **{name.lower() if lower else name: tensor.numpy() for name, tensor in held.items()})
        sae = SAE.from_pretrained(path)
        assert torch.equal(sae.W_enc, held["W_enc"].T) and sae.config.d_in == D_IN
        formats.save(sae, tmp_path / f"again {lower}", "gemma_scope")
        assert ("w_enc" in raw(tmp_path / f"again {lower}")[1]) == lower
    (tmp_path / "True" / "config.json").write_text('{"model_name": "another"}')  # that of something else
    assert SAE.from_pretrained(tmp_path / "True").metadata == {}


def test_which_files_are_of_gemma_scope(tmp_path):
    find = formats.gemma_scope.find
    assert find(tmp_path / "params.npz") and find(tmp_path / "params.safetensors") and not find(tmp_path)
    for name in ("params.npz", "params.safetensors"):
        (tmp_path / name).touch()
        assert find(tmp_path)
        (tmp_path / name).unlink()


@pytest.mark.parametrize(
    "options", [{"d_out": 4}, {"d_out": 4, "skip": True}, {"d_out": 6, "skip": True}], ids=str
)
def test_a_transcoder_of_gemma_scope_is_one_without_its_config(options, tmp_path):
    sae = make(JUMP | {"pre_bias": False} | options)
    formats.save(sae, tmp_path / "a", "gemma_scope")
    (tmp_path / "a" / "config.json").unlink()
    config = SAE.from_pretrained(tmp_path / "a").config
    assert config.d_out == options["d_out"] and config.skip is options.get("skip", False)
