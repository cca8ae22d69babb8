"""llamascopium: where its weights are, what its config leaves out, and numbers that have to survive their arithmetic."""

import json
import math

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from saefast import SAE, InputError, formats
from tests.helpers.format_cases import D_IN, D_SAE, JUMP, make, rows
from tests.helpers.published import parts

NORM, LOG = "dataset_average_activation_norm.", "activation_function.log_jumprelu_threshold"
HOOKS = {"hook_point_in": "a", "hook_point_out": "a"}


def written(folder, place="sae_weights.safetensors", config=None, **tensors):
    """A folder of theirs, TopK without norms unless told otherwise."""
    W_enc, b_enc, W_dec, b_dec = parts()
    held = {"W_E": W_enc.T.contiguous(), "b_E": b_enc, "W_D": W_dec, "b_D": b_dec} | tensors
    held = {name: tensor for name, tensor in held.items() if tensor is not None}
    (folder / place).parent.mkdir(parents=True, exist_ok=True)
    torch.save(held, folder / place) if place.endswith(".pt") else save_file(held, folder / place)
    said = {"d_model": D_IN, "act_fn": "topk", "top_k": 3, "norm_activation": "inference"} | HOOKS
    said = {k: v for k, v in (said | (config or {})).items() if v != "removed"}
    (folder / "config.json").write_text(json.dumps(said))
    return folder


PLACES = [
    f"{stem}.{end}"
    for stem in ("sae_weights", "checkpoints/pruned", "checkpoints/final")
    for end in ("safetensors", "pt")
]


@pytest.mark.parametrize("place", PLACES)
def test_the_first_of_its_places_is_read(place, tmp_path):
    assert formats.detect(written(tmp_path / "a", place)) == "llamascopium"
    assert torch.equal(SAE.from_pretrained(tmp_path / "a").W_enc, parts()[0])
    for later in PLACES[PLACES.index(place) + 1 :]:
        written(tmp_path / "a", later, b_E=torch.full((D_SAE,), 9.0))
    assert torch.equal(SAE.from_pretrained(tmp_path / "a").b_enc, parts()[1])
    if place.endswith(".pt"):  # of a training run, the SAE is one of several things
        torch.save({"sae": torch.load(tmp_path / "a" / place)}, tmp_path / "a" / place)
        assert torch.equal(SAE.from_pretrained(tmp_path / "a").b_enc, parts()[1])
    (tmp_path / "a" / "config.json").unlink()
    assert not formats.llamascopium.find(tmp_path / "a")
    assert not formats.llamascopium.find(tmp_path)


def test_what_its_config_leaves_out(tmp_path):
    folder = written(
        tmp_path, config={"top_k": "removed", "norm_activation": "removed"}, **{f"{NORM}a": torch.tensor(2.0)}
    )
    with pytest.raises(InputError, match="k: expected at most d_sae = 20, got 50"):
        SAE.from_pretrained(folder)
    W_enc, b_enc, W_dec, b_dec = parts(64)
    held = {
        "W_E": W_enc.T.contiguous(),
        "b_E": b_enc,
        "W_D": W_dec,
        "b_D": b_dec,
        f"{NORM}a": torch.tensor(2.0),
    }
    save_file(held, folder / "sae_weights.safetensors")
    config = SAE.from_pretrained(folder).config
    assert (config.k, config.scale_by_norm, config.pre_bias, config.d_out) == (50, True, False, None)
    assert config.input_norm == "scale" and config.scales == (math.sqrt(D_IN) / 2,) * 2
    assert (
        SAE.from_pretrained(
            written(tmp_path / "b", config={"sparsity_include_decoder_norm": False})
        ).config.scale_by_norm
        is False
    )


def test_a_decoder_without_a_bias_stays_without(tmp_path):
    sae = SAE.from_pretrained(written(tmp_path / "a", config={"use_decoder_bias": False}, b_D=None))
    assert torch.equal(sae.b_dec, torch.zeros(D_IN))
    formats.save(sae, tmp_path / "b", "llamascopium")
    assert "b_D" not in load_file(tmp_path / "b" / "sae_weights.safetensors")
    assert json.loads((tmp_path / "b" / "config.json").read_text())["use_decoder_bias"] is False
    sae.b_dec.data[2] = 1
    formats.save(sae, tmp_path / "c", "llamascopium")
    assert torch.equal(load_file(tmp_path / "c" / "sae_weights.safetensors")["b_D"], sae.b_dec)
    assert json.loads((tmp_path / "c" / "config.json").read_text())["use_decoder_bias"] is True
    zero = SAE.from_pretrained(written(tmp_path / "d", b_D=torch.zeros(D_IN)))
    formats.save(zero, tmp_path / "e", "llamascopium")
    assert "b_D" in load_file(tmp_path / "e" / "sae_weights.safetensors")
    with pytest.raises(InputError, match="b_D: expected shape .6., found no such tensor"):
        SAE.from_pretrained(written(tmp_path / "f", b_D=None))


def test_each_side_has_its_norm(tmp_path):
    norms = {f"{NORM}a": torch.tensor(4.0), f"{NORM}b": torch.tensor(0.5)}
    config = {
        "norm_activation": "dataset-wise",
        "hook_point_out": "b",
        "sparsity_include_decoder_norm": False,
    }
    sae, x = SAE.from_pretrained(written(tmp_path / "a", config=config, **norms)), rows()
    into, out = math.sqrt(D_IN) / 4, math.sqrt(D_IN) / 0.5
    assert sae.config.d_out == D_IN and sae.config.scales == (into, out)
    W_enc, b_enc, W_dec, b_dec = parts()
    values, indices = (into * x @ W_enc.T + b_enc).topk(3)
    acts = torch.zeros(len(x), D_SAE).scatter(1, indices, values.relu())
    torch.testing.assert_close(sae(x).x_hat, (acts @ W_dec + b_dec) / out)
    formats.save(sae, tmp_path / "again", "llamascopium")  # the norms stay beside the weights
    assert json.loads((tmp_path / "again" / "config.json").read_text())["norm_activation"] == "dataset-wise"
    found = load_file(tmp_path / "again" / "sae_weights.safetensors")
    assert (
        torch.equal(found["W_E"], W_enc.T)
        and float(found[f"{NORM}a"]) == 4
        and float(found[f"{NORM}b"]) == 0.5
    )


@pytest.mark.parametrize(
    "norm",
    [
        None,
        torch.ones(2),
        torch.tensor(0.0),
        torch.tensor(-1.0),
        torch.tensor(math.inf),
        torch.tensor(math.nan),
    ],
    ids=str,
)
def test_a_norm_that_is_no_positive_number_is_refused(norm, tmp_path):
    folder = written(tmp_path, config={"norm_activation": "dataset-wise"}, **{f"{NORM}a": norm})
    with pytest.raises(InputError, match=r"dataset_average_activation_norm\.a: expected a positive number"):
        SAE.from_pretrained(folder)


def test_a_norm_below_1_is_a_norm(tmp_path):
    folder = written(tmp_path, config={"norm_activation": "dataset-wise"}, **{f"{NORM}a": torch.tensor(0.25)})
    assert SAE.from_pretrained(folder).config.scales == (math.sqrt(D_IN) * 4,) * 2


@pytest.mark.parametrize("d_in,d_sae", [(6, 20), (6, 24), (49, 98), *((49, n) for n in range(50, 90))])
def test_their_width_is_ours_after_their_arithmetic(d_in, d_sae, tmp_path):
    """They compute int(d_model * expansion_factor)."""
    sae = make({"k": 3, "pre_bias": False}, d_in, d_sae)
    formats.save(sae, tmp_path / "a", "llamascopium")
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert int(d_in * config["expansion_factor"]) == d_sae
    ratio = d_sae / d_in
    assert config["expansion_factor"] == (
        ratio if int(d_in * ratio) == d_sae else math.nextafter(ratio, math.inf)
    )
    config["expansion_factor"] = kept = math.nextafter(
        config["expansion_factor"], math.inf
    )  # as good as the other
    (tmp_path / "a" / "config.json").write_text(json.dumps(config))
    formats.save(SAE.from_pretrained(tmp_path / "a"), tmp_path / "b", "llamascopium")
    assert json.loads((tmp_path / "b" / "config.json").read_text())["expansion_factor"] == kept


def test_thresholds_are_logarithms_and_one_of_0_is_nearly_0(tmp_path):
    sae = make(JUMP | {"pre_bias": False})
    sae.threshold.data[:2] = torch.tensor([0.0, 1e-39])
    notes = formats.save(sae, tmp_path / "a", "llamascopium")
    assert notes == ["the threshold as its logarithm: rounded, and a threshold of 0 as 1e-38"]
    found = load_file(tmp_path / "a" / "sae_weights.safetensors")[LOG]
    torch.testing.assert_close(found[2:], sae.threshold[2:].log())
    assert found[:2].tolist() == pytest.approx([math.log(1e-38)] * 2)
    back = SAE.from_pretrained(tmp_path / "a")
    assert formats.save(back, tmp_path / "b", "llamascopium") == []
    assert torch.equal(load_file(tmp_path / "b" / "sae_weights.safetensors")[LOG], found)
    back.threshold.data[5] = 0.75
    assert formats.save(back, tmp_path / "c", "llamascopium") == notes
    assert float(load_file(tmp_path / "c" / "sae_weights.safetensors")[LOG][5]) == pytest.approx(
        math.log(0.75)
    )


def test_without_a_hook_point_it_is_unknown(tmp_path):
    sae = make({"k": 3, "pre_bias": False})
    sae.metadata = {}
    formats.save(sae, tmp_path / "a", "llamascopium")
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert config["hook_point_in"] == config["hook_point_out"] == "unknown"
    with safe_open(tmp_path / "a" / "sae_weights.safetensors", framework="pt") as file:
        assert file.metadata() == {"version": "2.0.0b34"}


def test_norms_in_an_older_config_are_used_where_the_file_has_none(tmp_path):
    W_enc, b_enc, W_dec, b_dec = parts()
    held = {
        "encoder.weight": W_enc,
        "encoder.bias": b_enc,
        "decoder.weight": W_dec.T.contiguous(),
        "decoder.bias": b_dec,
    }
    config = {"d_model": D_IN, "act_fn": "topk", "top_k": 3} | HOOKS
    for norms, own, want in (
        ({"in": 4.0, "out": 4.0, "other": 9.0}, {}, 4),
        ({"in": 4.0, "out": 4.0}, {f"{NORM}a": torch.tensor(2.0)}, 2),
    ):
        save_file(held | own, tmp_path / "sae_weights.safetensors")
        (tmp_path / "config.json").write_text(json.dumps(config | {"dataset_average_activation_norm": norms}))
        assert SAE.from_pretrained(tmp_path).config.scales == (math.sqrt(D_IN) / want,) * 2
    for norms in ({"in": "4.0", "out": 4}, [4.0], None):
        (tmp_path / "config.json").write_text(json.dumps(config | {"dataset_average_activation_norm": norms}))
        save_file(held, tmp_path / "sae_weights.safetensors")
        with pytest.raises(
            InputError, match=rf"{NORM}a: expected a positive number \(dataset-wise\), got None"
        ):
            SAE.from_pretrained(tmp_path)
