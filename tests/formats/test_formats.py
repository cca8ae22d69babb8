"""Files of other projects, written and read by us. Beside their own code: tests/peers/test_formats.py."""

import json
from dataclasses import replace

import pytest
import torch

from saefast import SAE, InputError, TrainConfig, Trainer, evaluate, formats
from tests.helpers.format_cases import D_IN, EXACT, GATED, JUMP, NESTED, TRANSCODER, label, make, rows

REFUSED = [
    ("sae_lens", {"activation": "group_max", "k": 4}, "no activation 'group_max'"),
    ("sae_lens", {"k": 3} | TRANSCODER, "no transcoder with activation 'topk'"),
    ("sparsify", JUMP, "no activation 'jumprelu'"),
    ("sparsify", {"k": 3, "input_norm": "layer_norm"}, "no normalisation of rows"),
    ("sparsify", {"k": 3, "d_out": 4, "pre_bias": False}, "no output of another width"),
    ("dictionary_learning", {"activation": "group_max", "k": 4}, "no activation 'group_max'"),
    ("dictionary_learning", {"k": 3, "skip": True} | TRANSCODER, "no skip connection"),
    ("openai", {"k": 3}, "no 'topk' with other rows than 'layer_norm'"),
    ("openai", JUMP, "no activation 'jumprelu'"),
    ("openai", {"activation": "relu"} | TRANSCODER, "no transcoders"),
    ("gemma_scope", {"k": 3}, "no activation 'topk'"),
    ("llamascopium", GATED, "no activation 'gated'"),
    ("llamascopium", {"k": 3, "input_norm": "layer_norm"}, "no layer norm"),
    ("sae_lens", {"k": 3, "layers": 2}, "no crosscoders"),
    ("sae_lens", GATED | TRANSCODER, "no transcoder with activation 'gated'"),
    ("dictionary_learning", JUMP | {"d_out": 4, "pre_bias": False}, "no output of another width"),
    ("dictionary_learning", {"k": 3, "input_norm": "layer_norm"}, "no normalisation of rows"),
    ("sparsify", {"k": 3, "input_norm": "constant_norm"}, "no normalisation of rows"),
    ("openai", {"activation": "relu", "input_norm": "layer_norm"}, "no 'relu' with other rows than 'none'"),
    ("gemma_scope", JUMP | {"input_norm": "layer_norm"}, "no normalisation of rows"),
    ("openai", {"activation": "relu", "d_out": 4, "pre_bias": False}, "no transcoders"),
    ("llamascopium", {"activation": "group_max", "k": 4}, "no activation 'group_max'"),
    ("llamascopium", {"k": 3, "d_out": 4, "pre_bias": False}, "no such transcoder"),
    ("llamascopium", {"k": 3, "skip": True} | TRANSCODER, "no such transcoder"),
]


@pytest.mark.parametrize("case", EXACT, ids=label)
def test_a_round_trip_gives_the_same_bits(case, tmp_path):
    format, options = case
    sae = make(options)
    assert formats.save(sae, tmp_path / "theirs", format) == []
    assert formats.detect(tmp_path / "theirs") == format
    back = SAE.from_pretrained(tmp_path / "theirs")
    assert replace(back.config, init_threshold=sae.config.init_threshold) == sae.config
    for name, param in sae.named_parameters():
        assert torch.equal(param, back.get_parameter(name)), name
    # and the other way, through our own folder: the same files again
    back.save_pretrained(tmp_path / "ours")
    again = SAE.from_pretrained(tmp_path / "ours")
    assert again.metadata == back.metadata and again.origin.config == back.origin.config
    formats.save(again, tmp_path / "again", format)
    names = {p.name for p in (tmp_path / "theirs").iterdir()}
    assert names == {p.name for p in (tmp_path / "again").iterdir()}
    for name in names - {"params.npz", "autoencoder.pt", "ae.pt"}:  # archives with the time in them
        assert (tmp_path / "theirs" / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


@pytest.mark.parametrize("case", REFUSED, ids=label)
def test_what_a_format_cannot_hold_is_refused_with_the_reason(case, tmp_path):
    format, options, reason = case
    with pytest.raises(InputError, match=f"sae: the format {format} has {reason}"):
        formats.save(make(options), tmp_path / "theirs", format)
    assert list(tmp_path.iterdir()) == []  # not even a part


def test_normalised_rows_are_undone_everywhere():
    x = rows()
    for options in (
        {"input_norm": "layer_norm"},
        {"input_norm": "constant_norm"},
        {"input_norm": "scale", "scales": (2.0, 2.0)},
    ):
        sae = make({"k": 3} | options)
        inner = SAE.of(replace(sae.config, input_norm="none", scales=None), dict(sae.named_parameters()))
        if options["input_norm"] == "layer_norm":
            mean, std = x.mean(1, keepdim=True), x.std(1, keepdim=True)
            want = inner((x - mean) / (std + 1e-5)).x_hat * std + mean
        elif options["input_norm"] == "constant_norm":
            factor = D_IN**0.5 / x.norm(dim=1, keepdim=True)
            want = inner(x * factor).x_hat / factor
        else:
            want = inner(2 * x).x_hat / 2
        torch.testing.assert_close(sae(x).x_hat, want)
        acts, indices = sae.encode(x)
        torch.testing.assert_close(sae.decode(acts, indices, x), want)
        fvu = float((want - x).square().sum() / (x - x.mean(0)).square().sum())
        for backend in ("reference", "native"):
            assert evaluate(sae, x, backend).fvu == pytest.approx(fvu, rel=1e-5)
        assert sae(torch.zeros(1, D_IN)).x_hat.isfinite().all()
        if options["input_norm"] != "scale":
            with pytest.raises(InputError, match="input_norm: expected 'none' or 'scale' to train"):
                Trainer(sae, TrainConfig(total_tokens=1))
    with pytest.raises(InputError, match=r"x: expected the input \(a skip transcoder, or rows"):
        make({"k": 3, "input_norm": "layer_norm"}).decode(acts, indices)


def test_training_forgets_what_was_measured_before(tmp_path):
    """A threshold in the file of a TopK SAE is of the weights that were there."""
    formats.save(make({"k": 3}), tmp_path / "a", "dictionary_learning")
    state = torch.load(tmp_path / "a" / "ae.pt", weights_only=True)
    torch.save(state | {"threshold": torch.tensor(0.7)}, tmp_path / "a" / "ae.pt")
    sae = SAE.from_pretrained(tmp_path / "a")
    for folder, want in (("b", 0.7), ("c", -1.0)):
        formats.save(sae, tmp_path / folder, "dictionary_learning")
        kept = torch.load(tmp_path / folder / "ae.pt", weights_only=True)["threshold"]
        assert float(kept) == pytest.approx(want)
        Trainer(sae, TrainConfig(total_tokens=64, batch_size=64, unit_norm=False)).step(rows())


@pytest.mark.parametrize("options", [{"k": 3}, NESTED, JUMP, GATED | {"pre_bias": False}])
def test_what_a_config_of_ours_says_of_another_format_is_not_needed(options, tmp_path):
    """A run folder of ours has no origin; it converts all the same."""
    sae = make(options)
    sae.save_pretrained(tmp_path / "run")
    assert not (tmp_path / "run" / "origin.safetensors").exists()
    notes = formats.save(SAE.from_pretrained(tmp_path / "run"), tmp_path / "dl", "dictionary_learning")
    assert bool(notes) == (options not in ({"k": 3}, NESTED))
    trainer = json.loads((tmp_path / "dl" / "config.json").read_text())["trainer"]
    assert trainer["lm_name"] == "some-model" and trainer["activation_dim"] == D_IN
