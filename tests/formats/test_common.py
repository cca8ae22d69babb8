"""What all readers and writers share: numbers and tensors are checked, dtypes kept, one line says what does not fit."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from saefast import SAE, InputError, formats
from saefast.formats import circuit_tracer, common
from saefast.formats.contents import Contents, Origin, as_read, source_metadata
from tests.helpers.format_cases import JUMP, make, rows

AT = Path("here/config.json")


@pytest.mark.parametrize("value,want", [(1, 1), (32, 32), (32.0, 32), (2**63 - 1, 2**63 - 1)])
def test_a_positive_integer(value, want):
    got = common.integer({"k": value}, "k", AT)
    assert got == want and type(got) is int


@pytest.mark.parametrize("value", [0, -1, 0.5, 2.5, True, None, "3", [3], 2**63, math.nan, math.inf])
def test_no_positive_integer(value):
    with pytest.raises(InputError, match=r"^here/config\.json: k: expected a positive integer, got "):
        common.integer({"k": value}, "k", AT)


@pytest.mark.parametrize("value", [1e-30, 0.5, 1, 9e37])
def test_a_positive_number(value):
    got = common.positive_number({"f": value}, "f", AT)
    assert got == value and type(got) is float


@pytest.mark.parametrize("value", [0, -0.5, True, None, "3", [3.0], 1e38, math.nan, math.inf])
def test_no_positive_number(value):
    with pytest.raises(InputError, match=r"^here/config\.json: f: expected a positive number, got "):
        common.positive_number({"f": value}, "f", AT)


def test_a_choice_and_declared_sizes():
    assert common.choice({"a": "x"}, "a", ["x", "y"], "y", AT) == "x"
    assert common.choice({}, "a", ["x", "y"], "y", AT) == "y"
    for value in ("z", None, 3, ["x"]):
        with pytest.raises(InputError, match=r"a: expected one of \['x', 'y'\], got "):
            common.choice({"a": value}, "a", ["x", "y"], "y", AT)
    common.check_declared({"d_in": 6}, AT, d_in=6, d_sae=20)
    with pytest.raises(InputError, match="d_sae: expected 20, the size of the tensors, got 21"):
        common.check_declared({"d_in": 6, "d_sae": 21}, AT, d_in=6, d_sae=20)


def test_the_config_of_a_file_is_beside_it_or_above_its_checkpoints():
    assert common.config_beside(Path("a/b/ae.pt")) == Path("a/b/config.json")
    assert common.config_beside(Path("a/checkpoints/ae_1.pt")) == Path("a/config.json")


F8, G8 = torch.float8_e4m3fn, torch.float8_e5m2


@pytest.mark.parametrize(
    "dtypes,want",
    [
        ([F8], "float8_e4m3fn"),
        ([F8, G8], "bfloat16"),
        ([F8, torch.float16], "float32"),  # bf16 and fp16
        ([G8, torch.bfloat16], "bfloat16"),
        ([F8, torch.float64], "float64"),
        ([torch.bfloat16, torch.float16], "float32"),
        ([torch.float16], "float16"),
    ],
    ids=str,
)
def test_the_widest_dtype_holds_all_of_them(dtypes, want):
    assert common.widest({str(i): torch.zeros(1, dtype=dtype) for i, dtype in enumerate(dtypes)}) == want


def test_numbers_are_computed_with_in_fp32_or_fp64():
    assert common.wide(torch.ones(1).bfloat16()).dtype == torch.float32
    assert common.wide(torch.ones(1, dtype=torch.float64)).dtype == torch.float64


def taken(tensor, *shape):
    return common.Tensors(Path("w.pt"), {"x": tensor}).take("x", shape)


def test_a_tensor_is_taken_as_it_is_and_once():
    held = common.Tensors(Path("w.pt"), {"x": torch.ones(2, 3).half().T, "y": torch.ones(1)})
    got = held.take("x", (None, 2))
    assert got.dtype == torch.float16 and got.is_contiguous() and got.shape == (3, 2)
    assert "x" not in held and "y" in held
    assert taken(torch.tensor(3.0)).shape == ()


@pytest.mark.parametrize(
    "tensor,shape,message",
    [
        (torch.ones(0, 6), (None, 6), r"expected shape \[any, 6\], got \[0, 6\]"),
        (torch.ones(2, 6), (2, 7), r"expected shape \[2, 7\], got \[2, 6\]"),
        (torch.ones(2), (2, 1), r"expected shape \[2, 1\], got \[2\]"),
        ("text", (2,), r"expected shape \[2\], got str"),
        (
            torch.ones(2, 6).to_sparse(),
            (2, 6),
            "expected floating-point numbers, got torch.float32, torch.sparse",
        ),
        (torch.ones(2, device="meta"), (2,), "expected floating-point numbers, got torch.float32, .*, meta"),
        (torch.ones(20, 1).expand(20, 6), (20, 6), r"refused, 20 numbers that declare \[20, 6\]"),
        (torch.ones(1).half().expand(3), (3,), r"refused, 1 numbers that declare \[3\]"),
    ],
    ids=str,
)
def test_a_tensor_that_is_none_of_an_sae_is_refused(tensor, shape, message):
    with pytest.raises(InputError, match=rf"^w\.pt: x: {message}"):
        taken(tensor, *shape)


def test_what_is_left_has_a_known_name_or_begins_with_one():
    held = {"k": torch.ones(1), "norm.a": torch.ones(2), "size": 3}
    assert common.Tensors(AT, held).rest("k", "size", "norm.").keys() == {"k", "norm.a"}
    for known, other in (
        (("k", "size", "norm"), "norm.a"),
        (("norm.", "size"), "k"),
        ((), "k, norm.a, size"),
    ):
        with pytest.raises(InputError, match=f"expected the tensors of an SAE only, got also {other}$"):
            common.Tensors(AT, held).rest(*known)
    with pytest.raises(InputError, match="expected tensors by name, got list"):
        common.Tensors(AT, [torch.ones(1)])


def test_what_is_built_says_how_it_was_read():
    held = {"W_enc": torch.ones(3, 2).bfloat16(), "W_dec": torch.ones(3, 2).double() / 3}
    held |= {"b_enc": torch.zeros(3), "b_dec": torch.zeros(2).half()}
    made = common.build(
        {"k": 1}, dict(held), Origin("x", {}, dtypes={"b_dec": "other"}), AT, {"a": 1, "b": None}
    )
    assert {tensor.dtype for tensor in made.tensors.values()} == {torch.float32}
    dtypes = {"W_enc": "bfloat16", "W_dec": "float64", "b_enc": "float32", "b_dec": "other"}
    assert made.origin.dtypes == dtypes and made.metadata == {"a": 1}
    assert made.origin.exact.keys() == {"W_dec"} and made.origin.exact["W_dec"].dtype == torch.float64
    held["W_enc"] = held["W_dec"]  # tied
    made = common.build({"k": 1}, dict(held), Origin("x", {}), AT, {})
    assert {tensor.dtype for tensor in made.tensors.values()} == {torch.float64}
    assert made.origin.exact == {}
    assert made.tensors["W_dec"].data_ptr() != made.tensors["W_enc"].data_ptr()
    with pytest.raises(InputError, match=r"^here/config\.json: k: expected at most d_sae = 3, got 4$"):
        common.build({"k": 4}, dict(held), Origin("x", {}), AT, {})


def test_a_tensor_is_written_as_it_was_read_unless_it_has_changed():
    exact = torch.tensor([1 / 3], dtype=torch.float64)
    origin = Origin("x", {}, dtypes={"a": "bfloat16", "b": "float16", "c": "float64"}, exact={"c": exact})
    now = {"a": torch.tensor([0.1]), "b": torch.tensor([0.5]), "c": exact.float(), "d": torch.tensor([0.1])}
    out, widened = as_read(now, origin)
    assert widened == ["a"] and {n: t.dtype for n, t in out.items()} == {
        "a": torch.float32,
        "b": torch.float16,
        "c": torch.float64,
        "d": torch.float32,
    }
    assert torch.equal(out["c"], exact)
    out, widened = as_read({"c": exact.float() + 1}, origin)
    assert out["c"].dtype == torch.float64 and widened == [] and float(out["c"]) == float(exact.float() + 1)
    assert as_read(now, None)[1] == [] and as_read({"a": exact}, None)[0]["a"].dtype == torch.float64


def test_the_metadata_of_a_source():
    notes = {"context_length": 64, "text": "t", "bos": 1, "dropped_ids": [1, 2]}
    found = source_metadata({"hook": "h", "model": "m", "notes": notes})
    assert found == {"model_name": "m", "hook_name": "h", "context_size": 64, "dataset_path": "t"} | {
        "prepend_bos": True,
        "exclude_special_tokens": [1, 2],
    }
    found = source_metadata({"hook": "h", "notes": {"context_length": 64}})
    assert found == {"hook_name": "h", "context_size": 64, "prepend_bos": False}
    assert source_metadata({"hook": "h", "model": "m", "notes": {"text": "t"}}) == {
        "model_name": "m",
        "hook_name": "h",
    }
    assert source_metadata({"hook": "h", "notes": None}) == {"hook_name": "h"}
    assert source_metadata({"hook": ["a", "b"], "model": "m"}) == source_metadata({}) == {}


# -- which file is which


def test_which_files_are_of_circuit_tracer(tmp_path):
    held = {name: torch.zeros(2, 2) for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    for name in ("any", "sae", "params"):
        save_file(held, tmp_path / f"{name}.safetensors")
        assert circuit_tracer.find(tmp_path / f"{name}.safetensors") == (name == "any")
    save_file({"W_enc": torch.zeros(2, 2)}, tmp_path / "part.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"x")
    (tmp_path / "layer_2.bin").touch()
    (tmp_path / "layer_3.safetensors").touch()
    (tmp_path / "layer_4.safetensors").mkdir()
    for name in (
        "part.safetensors",
        "broken.safetensors",
        "layer_2.bin",
        "layer_4.safetensors",
        "none.safetensors",
    ):
        assert not circuit_tracer.find(tmp_path / name), name
    assert circuit_tracer.find(tmp_path / "layer_3.safetensors")


@pytest.mark.parametrize(
    "text,name,k,hook",
    [
        ("activation: jump_relu\nfeature_input_hook: a.b\n", "layer_7.safetensors", None, "blocks.7.a.b"),
        ("activation: topk\nk: 5\nfeature_input_hook: a.b\n", "other.safetensors", 5, None),
        ("activation: 'topk'\nk: 5 # five\n", "layer_7.safetensors", 5, None),
    ],
)
def test_what_the_config_of_circuit_tracer_says(text, name, k, hook, tmp_path):
    held = {"W_enc": torch.ones(20, 6), "b_enc": torch.ones(20), "W_dec": torch.ones(20, 4)}
    held |= {"b_dec": torch.ones(4)} | ({} if k else {"activation_function.threshold": torch.ones(20)})
    save_file(held, tmp_path / name)
    (tmp_path / "config.yaml").write_text(text)
    sae = SAE.from_pretrained(tmp_path / name)
    assert sae.config.k == k and sae.config.d_out == 4 and sae.config.pre_bias is False
    assert sae.config.activation == ("topk" if k else "jumprelu") and sae.metadata.get("hook_name") == hook


@pytest.mark.parametrize("k", ["0", "5.0", "five", "1" * 10, "٣"])
def test_a_k_of_circuit_tracer_that_is_no_count_is_refused(k, tmp_path):
    held = {
        "W_enc": torch.ones(20, 6),
        "b_enc": torch.ones(20),
        "W_dec": torch.ones(20, 6),
        "b_dec": torch.ones(6),
    }
    save_file(held, tmp_path / "layer_0.safetensors")
    (tmp_path / "config.yaml").write_text(f"activation: topk\nk: {k}\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"config\.yaml: k: expected a positive integer, got "):
        SAE.from_pretrained(tmp_path / "layer_0.safetensors")


# -- saving


def test_an_empty_folder_is_a_new_one_and_what_a_kill_left_is_removed(tmp_path):
    sae = make({"k": 3})
    (tmp_path / ".a.tmp" / "a").mkdir(parents=True)
    (tmp_path / ".a.tmp" / "a" / "half").touch()
    (tmp_path / "a").mkdir()
    formats.save(sae, tmp_path / "a", "sparsify")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["cfg.json", "sae.safetensors"]
    formats.save(sae, tmp_path / "deep" / "er" / "b", "sparsify")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "deep"]
    (tmp_path / "file").touch()
    for taken_already in ("a", "file"):
        with pytest.raises(
            InputError, match="path: expected a new folder, .* exists and nothing is overwritten"
        ):
            formats.save(sae, tmp_path / taken_already, "sparsify")


def test_a_format_may_be_named_and_must_be_known(tmp_path):
    formats.save(make(JUMP | {"pre_bias": False}), tmp_path / "a", "gemma_scope")
    assert formats.load(tmp_path / "a", "gemma_scope").config.activation == "jumprelu"
    with pytest.raises(InputError, match="cfg.json: expected a JSON file, found none"):
        formats.load(tmp_path / "a", "sparsify")
    with pytest.raises(InputError, match=r"^format: expected one of \['saefast', .*, got 'gemma'$"):
        formats.load(tmp_path / "a", "gemma")


def test_a_folded_sae_has_no_norms_where_they_would_be_trained():
    for options, norms in ((JUMP, False), ({"k": 3}, True)):
        sae, x = make(options | {"scale_by_norm": True}), rows()
        plain = formats.folded(sae)
        assert plain.config.scale_by_norm is norms and plain.metadata == sae.metadata
        torch.testing.assert_close(plain(x).x_hat, sae(x).x_hat)


def test_a_decoder_row_of_zeros_is_folded_too():
    sae = make({"k": 3, "scale_by_norm": True})
    sae.W_dec.data[4] = 0
    fold = formats.folding.Folding(sae, "test")
    fold.unit_rows()
    assert all(tensor.isfinite().all() for tensor in fold.tensors.values())
    assert not fold.tensors["W_dec"][4].any()
    norms = np.linalg.norm(np.delete(fold.tensors["W_dec"].numpy(), 4, axis=0), axis=1)
    np.testing.assert_allclose(norms, 1, rtol=1e-6)
    assert isinstance(formats.folded(Contents(sae.config, sae.tensors)), Contents)
