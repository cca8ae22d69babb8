"""delphi's latent cache, written from records, against the dense code."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from saefast.errors import InputError
from saefast.interp.exchange.delphi import delphi_hookpoint, export_delphi, split_bounds
from saefast.interp.records import codes
from saefast.interp.records.select import Block
from tests.helpers.delphi_cache import (
    BOUNDS,
    HOOK,
    F,
    L,
    M,
    a_code,
    contexts,
    raw,
    recorded,
    splits_of,
    write_cache,
)


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(codes, "block_entries", lambda d_sae: 60)
    monkeypatch.setattr("saefast.interp.records.batches.ROWS", 32)


def exported(records, out, **options):
    return export_delphi(records, out, hookpoint=HOOK, **options)


@pytest.mark.parametrize("n_splits", [1, 5, F])
def test_export_is_byte_for_byte_what_the_dense_code_gives(tmp_path, small_blocks, n_splits):
    code = a_code()
    records = recorded(tmp_path, code)
    assert len(records.blocks) > 2
    written = exported(records, tmp_path / "out", n_splits=n_splits)
    assert written == (tmp_path / "out" / "latents" / HOOK, int((code > 0).sum()), 0, 0)
    want = splits_of(code, contexts(), split_bounds(F, n_splits))
    found = raw(written.folder)
    about = json.loads(found.pop("config.json"))
    assert found.keys() == {f"{name}.safetensors" for name in want}
    for name, arrays in want.items():
        save_file(arrays, tmp_path / "theirs")
        assert found[f"{name}.safetensors"] == (tmp_path / "theirs").read_bytes()
    assert (about["cache_ctx_len"], about["n_tokens"], about["n_splits"]) == (L, M * L, n_splits)
    counts = torch.load(tmp_path / "out" / "log" / "hookpoint_firing_counts.pt", weights_only=True)
    assert torch.equal(counts[HOOK], (code > 0).sum((0, 1)))


def test_tokens_without_a_row_have_no_entries(tmp_path):
    code = a_code()
    folder = exported(recorded(tmp_path, code, left_out=3), tmp_path / "out", n_splits=1).folder
    code[:, :3] = 0
    for name, array in splits_of(code, contexts(), [(0, F)])[f"0_{F - 1}"].items():
        assert np.array_equal(load_file(folder / f"0_{F - 1}.safetensors")[name], array)


def test_what_float16_loses_is_counted(tmp_path):
    code = torch.zeros(M, L, 4)
    small = np.float32(1e-5)
    given = [small, np.nextafter(small, np.float32(1)), 65519.0, 65520.0, 1e30, 1 / 3]
    code[0, : len(given), 1] = torch.tensor(given)
    written = exported(recorded(tmp_path, code), tmp_path / "out", n_splits=2)
    assert written[1:] == (5, 1, 2)
    found = load_file(written.folder / "0_1.safetensors")
    assert found["activations"].tolist() == [np.float16(given[1]), 65504, 65504, 65504, np.float16(1 / 3)]
    assert found["locations"].tolist() == [[0, i, 1] for i in range(1, 6)]
    assert len(load_file(written.folder / "2_3.safetensors")["activations"]) == 0


class Made:
    """Of records only what the export reads: an activation of latent `latent` on the token `slot`, with which a block begins."""

    def __init__(self, shape, d_sae, slot, latent):
        self.d_sae, self.text = d_sae, SimpleNamespace(contexts=np.zeros(shape, np.int32))
        offsets = (np.arange(d_sae + 1) > latent).astype(np.int64)
        first, slots, acts = np.zeros(d_sae + 1, np.int64), np.zeros(1, np.int32), np.ones(1, np.float32)
        self.blocks = [Block(0, first, slots[:0], acts[:0]), Block(slot, offsets, slots, acts)]
        self.index = {"sae": {}, "source": {}}

    def table(self, columns):
        assert columns == ["count"]
        return {"count": SimpleNamespace(to_numpy=lambda: np.diff(self.blocks[1].offsets))}


@pytest.mark.parametrize(
    "shape, d_sae, slot, latent, dtype",
    [
        ((65540, 1), 2, 65535, 1, np.uint16),
        ((65540, 1), 2, 65536, 1, np.uint32),
        ((1, 4), 65540, 3, 65535, np.uint16),
        ((1, 4), 65540, 3, 65536, np.uint32),
        ((1, 65540), 2, 65536, 0, np.uint32),
    ],
)
def test_locations_are_as_wide_as_they_must_be(tmp_path, shape, d_sae, slot, latent, dtype):
    folder = exported(Made(shape, d_sae, slot, latent), tmp_path, n_splits=1).folder
    found = load_file(folder / f"0_{d_sae - 1}.safetensors")
    assert found["locations"].dtype == dtype
    assert found["locations"].tolist() == [[slot // shape[1], slot % shape[1], latent]]
    save_file(found, tmp_path / "theirs")
    assert (folder / f"0_{d_sae - 1}.safetensors").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_an_earlier_export_is_replaced_and_other_hookpoints_are_kept(tmp_path):
    records = recorded(tmp_path, a_code())
    out = tmp_path / "out"
    other = export_delphi(records, out, hookpoint="layers.4", n_splits=4).folder
    before = raw(other)
    exported(records, out, n_splits=4)
    folder = exported(records, out, n_splits=2).folder
    assert (
        raw(folder).keys() == {"0_3.safetensors", "4_8.safetensors", "config.json"} and raw(other) == before
    )
    counts = torch.load(out / "log" / "hookpoint_firing_counts.pt", weights_only=True)
    assert list(counts) == ["layers.4", HOOK]
    write_cache(folder, a_code(), contexts(), BOUNDS)
    with pytest.raises(InputError, match="that saefast did not write"):
        exported(records, out)
    assert len(raw(folder)) == 6


def test_a_stopped_export_is_one_that_delphi_refuses_and_the_next_replaces(tmp_path, monkeypatch):
    records = recorded(tmp_path, a_code())
    folder = exported(records, tmp_path / "out", n_splits=4).folder
    monkeypatch.setattr("saefast.interp.exchange.delphi.write_atomic", stopped_after(1))
    with pytest.raises(KeyboardInterrupt):
        exported(records, tmp_path / "out", n_splits=3)
    assert raw(folder).keys() == {"0_2.safetensors"}
    monkeypatch.undo()
    assert len(raw(exported(records, tmp_path / "out", n_splits=2).folder)) == 3


def stopped_after(n):
    from saefast.files import write_atomic

    calls = []

    def write(path, written):
        if len(calls) == n:
            raise KeyboardInterrupt
        calls.append(path)
        write_atomic(path, written)

    return write


@pytest.mark.parametrize("n_splits", [0, F + 1])
def test_there_are_no_more_splits_than_latents(tmp_path, n_splits):
    with pytest.raises(InputError, match=f"n_splits: expected 1 to {F}"):
        exported(recorded(tmp_path, a_code()), tmp_path, n_splits=n_splits)


def test_hookpoints():
    assert delphi_hookpoint("model.layers.12") == delphi_hookpoint("gpt_neox.layers.12") == "layers.12"
    assert (
        delphi_hookpoint("transformer.h.3.mlp") == "h.3.mlp" and delphi_hookpoint("layers.12") == "layers.12"
    )
    assert delphi_hookpoint("model.layers.1", "layer_1/width_16k") == "layer_1/width_16k"
    for wrong in ("../x", "/x", "a//b", "", ".hidden", "a\nb"):
        with pytest.raises(InputError, match="hookpoint: expected"):
            delphi_hookpoint(None, wrong)
