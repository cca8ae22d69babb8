"""The `SAE` module against the dense formula; its files; the centre it starts from."""

import json
import sys

import pytest
import torch

from saefast import SAE, InputError, SAEConfig
from saefast.files import load_tensors, save_tensors
from saefast.sae import geometric_median
from tests.helpers import dense


def make(d_in=6, d_sae=20, k=3, dtype=torch.float64):
    """An SAE whose parameters are all random, biases too."""
    sae = SAE(SAEConfig(d_in=d_in, d_sae=d_sae, k=k), seed=1).to(dtype)
    generator = torch.Generator().manual_seed(2)
    for param in sae.params:
        param += 0.3 * torch.randn(param.shape, generator=generator, dtype=dtype)
    return sae


def rows(n=9, d_in=6, dtype=torch.float64):
    return torch.randn(n, d_in, generator=torch.Generator().manual_seed(3), dtype=dtype) + 1


def dense_params(sae):
    return [sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec]


@pytest.mark.parametrize("d_sae,k", [(20, 3), (20, 20), (20, 1), (1, 1)])
def test_forward_is_the_dense_formula(d_sae, k):
    sae, x = make(d_sae=d_sae, k=k), rows()
    out = sae(x)
    want = dense.forward(x, *dense_params(sae), k)
    torch.testing.assert_close(out.x_hat, want, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(out.fvu, dense.fvu(want, x), rtol=1e-12, atol=1e-12)
    assert out.fvu.shape == () and out.top_acts.shape == out.top_indices.shape == (9, k)


def test_encode_gives_the_largest_in_descending_order_and_decode_sums_them():
    sae, x = make(), rows()
    acts, indices = sae.encode(x)
    pre_acts = (x - sae.b_dec) @ sae.W_enc.T + sae.b_enc
    want = pre_acts.sort(dim=1, descending=True)
    assert indices.dtype == torch.int32 and torch.equal(indices.long(), want.indices[:, :3])
    torch.testing.assert_close(acts, want.values[:, :3].relu())
    total = torch.stack([acts[i] @ sae.W_dec[indices[i].long()] for i in range(9)]) + sae.b_dec
    torch.testing.assert_close(sae.decode(acts, indices), total)
    torch.testing.assert_close(
        sae.decode(acts[:, :1], indices[:, :1].long())[0], acts[0, 0] * sae.W_dec[indices[0, 0]] + sae.b_dec
    )


def test_a_fresh_sae_has_unit_decoder_rows_tied_weights_and_depends_on_the_seed():
    sae = SAE(SAEConfig(d_in=6, d_sae=20, k=3), seed=1)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(20))
    assert torch.equal(sae.W_enc, sae.W_dec) and sae.W_enc.data_ptr() != sae.W_dec.data_ptr()
    assert not sae.b_enc.any() and not sae.b_dec.any()
    assert torch.equal(sae.W_dec, SAE(sae.config, seed=1).W_dec) and not torch.equal(
        sae.W_dec, SAE(sae.config).W_dec
    )


def test_autograd_through_the_module_equals_the_dense_formula():
    sae, x = make(), rows().requires_grad_()
    weights = torch.randn(9, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    ((sae(x).x_hat * weights).sum() + sae(x).fvu).backward()
    leaves = [p.detach().clone().requires_grad_() for p in dense_params(sae)]
    want_x = x.detach().clone().requires_grad_()
    x_hat = dense.forward(want_x, *leaves, 3)
    ((x_hat * weights).sum() + dense.fvu(x_hat, want_x)).backward()
    torch.testing.assert_close(x.grad, want_x.grad, rtol=1e-10, atol=1e-12)
    for param, leaf in zip(dense_params(sae), leaves):
        assert leaf.grad.any()
        torch.testing.assert_close(param.grad, leaf.grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "x,message",
    [
        (torch.ones(2, 5), r"x: expected a tensor \[B, 6\], got \[2, 5\]"),
        (torch.ones(6), r"x: expected a tensor \[B, 6\], got \[6\]"),
        (torch.ones(2, 3, 6), r"x: expected a tensor \[B, 6\], got \[2, 3, 6\]"),
        ([[1.0] * 6], r"x: expected a tensor \[B, 6\], got list"),
        (torch.ones(2, 6).half(), r"x: expected dtype torch.float32, got torch.float16"),
        (torch.ones(2, 6, dtype=torch.int64), r"x: expected dtype torch.float32, got torch.int64"),
        (torch.ones(2, 6, device="meta"), r"x: expected device cpu, got meta"),
    ],
    ids=["width", "one dimension", "three dimensions", "list", "half", "integers", "device"],
)
def test_input_that_does_not_fit_is_refused(x, message):
    sae = make(dtype=torch.float32)
    for call in (sae, sae.encode):
        with pytest.raises(InputError, match=f"^{message}$"):
            call(x)


def test_decode_refuses_indices_of_another_shape():
    with pytest.raises(
        InputError, match=r"^top_indices: expected the shape of top_acts \[2, 3\], got \[2, 4\]$"
    ):
        make().decode(torch.ones(2, 3).double(), torch.zeros(2, 4).int())


def test_an_empty_batch_passes():
    out = make()(rows(0))
    assert out.x_hat.shape == (0, 6) and out.top_acts.shape == (0, 3)


def test_save_and_load_are_bit_exact(tmp_path):
    sae = make(dtype=torch.float32)
    sae.save_pretrained(tmp_path / "new" / "folder")
    loaded = SAE.from_pretrained(str(tmp_path / "new" / "folder"))
    assert loaded.config == sae.config
    for got, want in zip(loaded.params, sae.params):
        assert torch.equal(got, want) and got.dtype == want.dtype
    x = rows(dtype=torch.float32)
    assert torch.equal(loaded(x).x_hat, sae(x).x_hat)
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == [
        "config.json",
        "sae.safetensors",
    ]


def saved(tmp_path):
    make(dtype=torch.float32).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["config.json", "sae.safetensors"])
def test_a_missing_file_is_named(tmp_path, name):
    (saved(tmp_path) / name).unlink()
    with pytest.raises(InputError, match=rf"{name}: expected a (JSON )?file, found none"):
        SAE.from_pretrained(tmp_path)
    with pytest.raises(
        InputError, match="path: expected a folder, a file or .* on the Hub, found nothing at .*nowhere"
    ):
        SAE.from_pretrained(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "change,message",
    [
        ({"colour": "red"}, r"config\.json: expected the fields of SAEConfig, got .*colour"),
        ({"k": 21}, "k: expected at most d_sae = 20, got 21"),
        ({"d_sae": -4}, "d_sae: expected a positive integer, got -4"),
        ({"d_sae": 21}, r"sae\.safetensors: W_enc: expected shape \[21, 6\], got \[20, 6\]"),
        ({"d_in": 5}, r"sae\.safetensors: W_enc: expected shape \[20, 5\], got \[20, 6\]"),
        ({"k": 4}, r"config\.json: corrupt, or of another sae\.safetensors than the one beside it"),
    ],
    ids=str,
)
def test_a_config_that_is_wrong_or_of_other_weights_is_refused(tmp_path, change, message):
    config = json.loads((saved(tmp_path) / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(InputError, match=r"config\.json: corrupt: expected checksum 'blake2b-"):
        SAE.from_pretrained(tmp_path)
    del config["checksum"]  # an older folder
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert SAE.from_pretrained(tmp_path).config.d_sae == 20
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(InputError, match=message):
        SAE.from_pretrained(tmp_path)


@pytest.mark.parametrize("text", ["[]", "[1, 2]", '"text"', "{}", "null"])
def test_a_config_that_is_no_object_of_fields_is_refused(tmp_path, text):
    (saved(tmp_path) / "config.json").write_text(text)
    with pytest.raises(InputError, match=r"config\.json: expected (the fields of SAEConfig|a JSON object)"):
        SAE.from_pretrained(tmp_path)


def test_missing_and_unknown_tensors_are_named(tmp_path):
    path = saved(tmp_path) / "sae.safetensors"
    tensors, meta, _ = load_tensors(path)
    save_tensors(path, {name: tensor for name, tensor in tensors.items() if name != "b_enc"}, meta)
    with pytest.raises(InputError, match=r"sae\.safetensors: b_enc: expected shape \[20\], got None"):
        SAE.from_pretrained(tmp_path)
    save_tensors(path, tensors | {"threshold": torch.ones(20)}, meta)
    with pytest.raises(
        InputError, match=r"sae\.safetensors: expected the tensors of an SAE only, got also threshold"
    ):
        SAE.from_pretrained(tmp_path)


@pytest.mark.parametrize("cut", [0, 5, 100, -1])
def test_corrupt_weights_are_named(tmp_path, cut):
    path = saved(tmp_path) / "sae.safetensors"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(InputError, match=r"sae\.safetensors: corrupt"):
        SAE.from_pretrained(tmp_path)


def test_a_flipped_bit_is_noticed(tmp_path):
    path = saved(tmp_path) / "sae.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"sae\.safetensors: corrupt: expected SHA-256"):
        SAE.from_pretrained(tmp_path)


def sum_of_distances(x, point):
    return float((x - point).norm(dim=1).sum())


def test_geometric_median_has_the_least_sum_of_distances():
    x = rows(200, 5) ** 3
    median = geometric_median(x)
    best = torch.zeros(
        5, dtype=torch.float64, requires_grad=True
    )  # the oracle: gradient descent with Newton steps
    optimizer = torch.optim.LBFGS([best], max_iter=500, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        value = (x - best).norm(dim=1).sum()
        value.backward()
        return value

    optimizer.step(loss)
    assert sum_of_distances(x, median) <= sum_of_distances(x, best.detach()) * (1 + 1e-9)
    torch.testing.assert_close(median, best.detach(), rtol=0, atol=1e-3)


def test_geometric_median_hardly_moves_for_outliers():
    x = rows(200, 5)
    with_outliers = x.clone()
    with_outliers[:4] *= 1e6
    assert (geometric_median(with_outliers) - geometric_median(x)).norm() < 0.15
    assert (with_outliers.mean(dim=0) - x.mean(dim=0)).norm() > 1e3


def test_geometric_median_of_one_row_or_equal_rows_is_that_row():
    for n in (1, 4):
        x = rows(1, 5).expand(n, 5)
        torch.testing.assert_close(geometric_median(x), x[0])


def test_weights_are_made_in_the_dtype_asked_for_and_do_not_depend_on_the_block(monkeypatch):
    config = SAEConfig(d_in=12, d_sae=100, k=3)
    whole = SAE(config, seed=7)
    monkeypatch.setattr(sys.modules["saefast.sae"], "ROWS_AT_ONCE", 32)
    assert torch.equal(SAE(config, seed=7).W_enc, whole.W_enc)
    small = SAE(config, seed=7, weight_dtype=torch.bfloat16)
    assert small.W_enc.dtype == torch.bfloat16 and small.b_enc.dtype == torch.float32
    assert torch.equal(small.W_dec.data, whole.W_dec.data.to(torch.bfloat16))
    out = small(torch.randn(5, 12))
    assert out.x_hat.dtype == torch.float32 and out.fvu.isfinite()
