"""Records of delphi's latent cache, against those of the SAE and the dense code; damaged caches."""

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from saefast.errors import InputError
from saefast.interp.effects.checks import check_same
from saefast.interp.exchange import delphi_reading
from saefast.interp.exchange.delphi import export_delphi
from saefast.interp.exchange.delphi_reading import read_delphi
from saefast.interp.neurons import neurons
from saefast.interp.records import Records, codes
from saefast.interp.records.tables import EXAMPLES
from tests.helpers.delphi_cache import (
    BOUNDS,
    DEAD,
    HOOK,
    F,
    L,
    M,
    a_code,
    contexts,
    raw,
    recorded,
    write_cache,
)
from tests.helpers.small_records import CONFIG

SPLIT = "3_5.safetensors"
MOMENTS = ("variance", "skewness", "kurtosis")


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(codes, "block_entries", lambda d_sae: 60)
    monkeypatch.setattr("saefast.interp.records.batches.ROWS", 32)
    monkeypatch.setattr(delphi_reading, "PIECE", 25)


def changed(folder, change):
    """The split in the middle with other arrays."""
    found = load_file(folder / SPLIT)
    save_file(change(dict(found)), folder / SPLIT)


def shuffled(arrays):
    order = np.random.default_rng(2).permutation(len(arrays["activations"]))
    return arrays | {name: arrays[name][order] for name in ("locations", "activations")}


CHANGES = {
    "as delphi writes it": lambda arrays: arrays,
    "in another order": shuffled,
    "in other dtypes": lambda arrays: (
        arrays
        | {
            "locations": arrays["locations"].astype(np.uint32),
            "activations": arrays["activations"].astype(np.float32),
        }
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_records_of_a_cache_are_those_of_the_sae(tmp_path, small_blocks, change):
    code = a_code()
    want = recorded(tmp_path, code)
    cache = write_cache(tmp_path / HOOK, code, contexts(), BOUNDS)
    changed(cache, CHANGES[change])
    done = []
    found = read_delphi(cache, tmp_path / "read", CONFIG, separators=[7], progress=done.append)
    assert len(found.blocks) > 2 and sum(done) == M
    for latent in range(F):
        for ours, theirs in zip(found.entries(latent), want.entries(latent), strict=True):
            assert np.array_equal(ours, theirs)
    assert (found.folder / EXAMPLES).read_bytes() == (want.folder / EXAMPLES).read_bytes()
    for name in want.table().column_names:  # other blocks, other sums of fp64
        ours, theirs = (np.stack(one.table()[name].to_numpy()) for one in (found, want))
        np.testing.assert_allclose(ours, theirs, rtol=1e-12 if name in MOMENTS else 0)
    assert np.array_equal(found.text.contexts, want.text.contexts) and found.text.encoded.all()
    assert found.index["sae"]["hook_name"] == HOOK and found.index["source"]["model"] == "a model"
    assert found.table(["count"])["count"].to_pylist()[DEAD] == 0
    before = raw(found.folder)
    assert raw(read_delphi(cache, found.folder, CONFIG, separators=[7]).folder) == before


def test_our_own_cache_comes_back(tmp_path):
    code = a_code()
    records = recorded(tmp_path, code, left_out=2)
    cache = export_delphi(records, tmp_path / "out", hookpoint=HOOK, n_splits=F).folder
    back = read_delphi(cache, tmp_path / "read", CONFIG)
    for latent in range(F):
        for ours, theirs in zip(back.entries(latent), records.entries(latent), strict=True):
            assert np.array_equal(ours, theirs)


def test_negative_activations_are_not_recorded(tmp_path):
    code = a_code() * torch.where(torch.arange(F, dtype=torch.int64, device="cpu") % 2 == 1, -1.0, 1.0)
    found = read_delphi(write_cache(tmp_path / HOOK, code, contexts(), BOUNDS), tmp_path / "read", CONFIG)
    assert found.table(["count"])["count"].to_pylist() == (code > 0).sum((0, 1)).tolist()


def test_reading_goes_on_where_it_stopped(tmp_path, small_blocks, monkeypatch):
    cache = write_cache(tmp_path / HOOK, a_code(), contexts(), BOUNDS)
    whole = raw(read_delphi(cache, tmp_path / "whole", CONFIG).folder)

    def stopped(*arguments):
        if len(arguments[1]["blocks"]) == 2:
            raise KeyboardInterrupt
        return write_block(*arguments)

    write_block = codes.write_block
    monkeypatch.setattr(codes, "write_block", stopped)
    with pytest.raises(KeyboardInterrupt):
        read_delphi(cache, tmp_path / "read", CONFIG)
    with pytest.raises(InputError, match="incomplete"):
        Records(tmp_path / "read")
    monkeypatch.setattr(codes, "write_block", write_block)
    done = []
    read_delphi(cache, tmp_path / "read", CONFIG, progress=done.append)
    assert raw(tmp_path / "read") == whole and 0 < sum(done) < M


def test_with_the_sae_the_records_are_of_it(tmp_path):
    cache, sae = write_cache(tmp_path / HOOK, a_code(), contexts(), BOUNDS), neurons(F)
    check_same(read_delphi(cache, tmp_path / "read", CONFIG, sae=sae), sae)
    with pytest.raises(InputError, match="holds records with sae"):
        read_delphi(cache, tmp_path / "read", CONFIG)
    with pytest.raises(InputError, match=f"expected d_sae = {F} as in"):
        read_delphi(cache, tmp_path / "other", CONFIG, sae=neurons(F + 1))


def put(name, place, value):
    """The array with another value there."""

    def change(arrays):
        array = np.array(arrays[name])
        array[place] = value
        return arrays | {name: array}

    return change


def without(name):
    return lambda arrays: {key: value for key, value in arrays.items() if key != name}


def of_dtype(name, dtype):
    return lambda arrays: arrays | {name: arrays[name].astype(dtype)}


DAMAGE = {
    "found no tokens; a cache without them": without("tokens"),
    "found no locations": without("locations"),
    "locations: expected U16 or U32 or I32 or I64, got F32": of_dtype("locations", np.float32),
    "activations: expected F16 or F32, got I64": of_dtype("activations", np.int64),
    "tokens: expected I64 or I32, got F32": of_dtype("tokens", np.float32),
    r"expected \[n, 3\] locations": lambda arrays: arrays | {"activations": arrays["activations"][1:]},
    r"tokens: expected contexts \[m, L\], got": lambda arrays: arrays | {"tokens": arrays["tokens"][0]},
    f"entry 30: expected a context from 0 to {M - 1}, got {M}": put("locations", (30, 0), M),
    f"entry 0: expected a position from 0 to {L - 1}, got 65535": put("locations", (0, 1), 65535),
    "entry 3: expected a latent from 0 to 2, got 3": put("locations", (3, 2), 3),
    "entry 31: expected a finite activation, got nan": put("activations", 31, np.nan),
    "entry 1: expected a finite activation, got inf": put("activations", 1, np.inf),
    "expected each location once, got one twice in context 0": lambda arrays: (
        arrays | {name: arrays[name][[0, *range(len(arrays[name]))]] for name in ("locations", "activations")}
    ),
    "expected the tokens of 0_2.safetensors, got others": put("tokens", (3, 3), 61),
}


@pytest.mark.parametrize("message", DAMAGE)
def test_a_damaged_split_is_named(tmp_path, monkeypatch, message):
    monkeypatch.setattr(delphi_reading, "PIECE", 25)
    cache = write_cache(tmp_path / HOOK, a_code(), contexts(), BOUNDS)
    changed(cache, DAMAGE[message])
    with pytest.raises(InputError, match=f"{SPLIT}.*{message}"):
        read_delphi(cache, tmp_path / "read", CONFIG)


def test_tokens_that_are_no_ids(tmp_path):
    for i, wrong in enumerate((-1, 2**31)):
        tokens = contexts().long()
        tokens[4, 4] = wrong
        cache = write_cache(tmp_path / str(i) / HOOK, a_code(), tokens, BOUNDS)
        with pytest.raises(InputError, match=r"0_2.safetensors: tokens: expected ids from 0"):
            read_delphi(cache, tmp_path / "read" / str(i), CONFIG)


def test_files_that_are_missing_or_cut(tmp_path):
    cache = write_cache(tmp_path / HOOK, a_code(), contexts(), BOUNDS)

    def refused(message):
        with pytest.raises(InputError, match=message):
            read_delphi(cache, tmp_path / "read", CONFIG)

    whole = (cache / SPLIT).read_bytes()
    for n in (0, 20, len(whole) // 2, len(whole) - 1):
        (cache / SPLIT).write_bytes(whole[:n])
        refused(f"{SPLIT}: expected a split of delphi's cache, got")
    (cache / SPLIT).unlink()
    refused("expected a split that begins with latent 3, the next is 6_8.safetensors")
    (cache / SPLIT).write_bytes(whole)
    (cache / "6_8.safetensors").unlink()
    refused("expected 3 splits as in config.json, found 2, of 6 latents")
    (cache / "config.json").write_text("{")
    refused("config.json: expected JSON")
    (cache / "config.json").unlink()
    assert read_delphi(cache, tmp_path / "read", CONFIG).d_sae == 6
    with pytest.raises(InputError, match="expected a latent cache of delphi"):
        read_delphi(tmp_path / "nowhere", tmp_path / "other", CONFIG)
