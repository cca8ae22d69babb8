"""Kind: precision. What was read in a dtype is written in it, tensor by tensor; nothing is rounded without a word."""

import itertools
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from saefast import SAE, InputError, SAEConfig, TrainConfig, Trainer, formats
from tests.helpers.format_cases import EXACT, JUMP, label, make, rows
from tests.helpers.published import raw

DTYPES = [torch.bfloat16, torch.float32, torch.float16, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2]
NAMES = {"dictionary_learning": "ae.pt", "openai": "autoencoder.pt"}


def rewrite(path, tensors):
    if path.suffix == ".npz":
        np.savez(path, **{name: tensor.numpy() for name, tensor in tensors.items()})
    elif path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path)


def mixed(folder, first):
    """Bring the tensors of the weights in a folder to other dtypes, one after the other, beginning with number `first`."""
    path, tensors = raw(folder)
    possible = DTYPES[1:4] if path.suffix == ".npz" else DTYPES
    turn = itertools.cycle(possible[first % len(possible) :] + possible[: first % len(possible)])
    for name, value in tensors.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point() and "average" not in name:
            # fp64 gets digits that fp32 has not
            tensors[name] = (value.double() * (1 + 2**-40)).to(next(turn)).contiguous()
    rewrite(path, tensors)
    return tensors


def same(a, b):
    assert a.keys() == b.keys()
    for name, value in a.items():
        if isinstance(value, torch.Tensor):
            assert value.dtype == b[name].dtype, name
            bits = [t.contiguous().reshape(-1).view(torch.uint8) for t in (value, b[name])]
            assert torch.equal(*bits), name


@pytest.mark.parametrize("first", range(6))
@pytest.mark.parametrize("case", EXACT, ids=label)
def test_a_file_is_written_in_the_dtypes_in_which_it_was_read_tensor_by_tensor(case, first, tmp_path):
    format, options = case
    formats.save(make(options), tmp_path / "a", format)
    held = mixed(tmp_path / "a", first)
    sae = SAE.from_pretrained(tmp_path / "a")
    assert formats.save(sae, tmp_path / "b", format) == []
    same(held, raw(tmp_path / "b")[1])
    sae.save_pretrained(tmp_path / "ours")  # and through a folder of ours
    assert formats.save(SAE.from_pretrained(tmp_path / "ours"), tmp_path / "c", format) == []
    same(held, raw(tmp_path / "c")[1])


def bf16_with_fp32_thresholds(tmp_path):
    sae = make(JUMP | {"pre_bias": False})
    formats.save(sae, tmp_path / "lens", "sae_lens")
    path, tensors = raw(tmp_path / "lens")
    held = {n: t.bfloat16() if n != "threshold" else t for n, t in tensors.items()}
    save_file(held, path)
    config = json.loads((tmp_path / "lens" / "cfg.json").read_text())
    (tmp_path / "lens" / "cfg.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    return held


def test_a_mixed_file_stays_mixed_in_another_format(tmp_path):
    held = bf16_with_fp32_thresholds(tmp_path)
    sae = SAE.from_pretrained(tmp_path / "lens")
    formats.save(sae, tmp_path / "dl", "dictionary_learning")
    same(raw(tmp_path / "dl")[1], held)
    # numpy has no bf16: fp32 holds the same numbers
    formats.save(sae, tmp_path / "gemma", "gemma_scope")
    same(raw(tmp_path / "gemma")[1], {name: tensor.float() for name, tensor in held.items()})
    # their loader brings every tensor to the dtype of the config: the widest one where the file is not theirs
    formats.save(SAE.from_pretrained(tmp_path / "dl"), tmp_path / "new", "sae_lens")
    assert json.loads((tmp_path / "new" / "cfg.json").read_text())["dtype"] == "float32"
    formats.save(sae, tmp_path / "old", "sae_lens")
    assert json.loads((tmp_path / "old" / "cfg.json").read_text())["dtype"] == "bfloat16"


def test_what_is_folded_is_not_rounded_to_the_narrow_dtype(tmp_path):
    sae = make({"k": 3, "scale_by_norm": True})
    formats.save(sae, tmp_path / "lens", "sae_lens")
    path, tensors = raw(tmp_path / "lens")
    save_file({name: tensor.bfloat16() for name, tensor in tensors.items()}, path)
    sae = SAE.from_pretrained(tmp_path / "lens")
    notes = formats.save(sae, tmp_path / "dl", "dictionary_learning")
    assert notes[1].startswith(
        "W_enc, b_enc, W_dec in float32: bfloat16, in which they were read, would round"
    )
    found = raw(tmp_path / "dl")[1]
    assert found["encoder.weight"].dtype == torch.float32 and found["b_dec"].dtype == torch.bfloat16
    x = rows()
    torch.testing.assert_close(SAE.from_pretrained(tmp_path / "dl")(x).x_hat, sae(x).x_hat)


def test_training_goes_on_in_fp32_and_is_written_in_fp32(tmp_path):
    """Parameters are fp32 whatever the file has; a tensor that training has not changed keeps its dtype in a file."""
    bf16_with_fp32_thresholds(tmp_path)
    for lr, wanted in ((1e-30, torch.bfloat16), (1e-2, torch.float32)):
        sae = SAE.from_pretrained(tmp_path / "lens")
        assert {param.dtype for param in sae.parameters()} == {torch.float32}
        options = {"total_tokens": 64, "batch_size": 64, "unit_norm": False, "normalize_input": False}
        trainer = Trainer(sae, TrainConfig(lr=lr, **options))
        trainer.step(rows())
        sae.save_pretrained(tmp_path / f"ours-{lr}")
        held = load_file(tmp_path / f"ours-{lr}" / "sae.safetensors")
        assert {tensor.dtype for tensor in held.values()} == {torch.float32}
        formats.save(SAE.from_pretrained(tmp_path / f"ours-{lr}"), tmp_path / f"lens-{lr}", "sae_lens")
        found = raw(tmp_path / f"lens-{lr}")[1]
        assert found["W_enc"].dtype == wanted and torch.equal(found["W_enc"].float().T, sae.W_enc)
        config = json.loads((tmp_path / f"lens-{lr}" / "cfg.json").read_text())
        assert config["dtype"] == str(wanted).removeprefix("torch.")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_folder_of_ours_keeps_its_dtypes(dtype, tmp_path):
    sae = make(JUMP)
    sae.W_enc.data, sae.W_dec.data = sae.W_enc.data.to(dtype), sae.W_dec.data.to(dtype)
    sae.save_pretrained(tmp_path / "a")
    back = SAE.from_pretrained(tmp_path / "a")
    assert back.W_enc.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    back.save_pretrained(tmp_path / "b")
    held = [load_file(tmp_path / name / "sae.safetensors") for name in "ab"]
    assert held[0]["W_enc"].dtype == dtype and held[0]["b_enc"].dtype == torch.float32
    same(*held)
    assert not (tmp_path / "b" / "origin.safetensors").exists()


def test_fp64_is_not_rounded_between_formats(tmp_path):
    sae = make({"k": 3}).double()
    sae.W_enc.data += 1e-12
    formats.save(sae, tmp_path / "dl", "dictionary_learning")
    back = SAE.from_pretrained(tmp_path / "dl")
    assert back.W_enc.dtype == torch.float64 and torch.equal(back.W_enc, sae.W_enc)
    formats.save(back, tmp_path / "sparsify", "sparsify")
    assert torch.equal(raw(tmp_path / "sparsify")[1]["encoder.weight"], sae.W_enc)


@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.complex64, torch.bool, torch.float8_e8m0fnu, torch.float8_e4m3fnuz], ids=str
)
def test_dtypes_that_hold_no_weights_are_named(dtype, tmp_path):
    formats.save(make({"k": 3}), tmp_path / "dl", "dictionary_learning")
    path, tensors = raw(tmp_path / "dl")
    torch.save(tensors | {"encoder.weight": torch.ones(20, 6).to(dtype)}, path)
    with pytest.raises(InputError, match=rf"encoder.weight: expected floating-point numbers, got {dtype}"):
        SAE.from_pretrained(tmp_path / "dl")


def test_a_trainer_says_what_it_does_with_fp64():
    sae = SAE(SAEConfig(d_in=6, d_sae=20, k=3)).double()
    with pytest.raises(InputError, match="dtype"):
        Trainer(sae, TrainConfig(total_tokens=64, batch_size=64)).step(rows())
