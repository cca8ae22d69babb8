"""The pass from rows to files: every architecture, blocks, going on, other backends, bad input."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from saefast import SAE, SAEConfig, reference
from saefast.activations.lm import ModelSource
from saefast.errors import InputError
from saefast.interp.neurons import neurons
from saefast.interp.records import Records, RecordsConfig, codes, record
from saefast.interp.records.plan import plan
from tests.helpers import tiny_lm
from tests.helpers.kernels import DEVICE, ON_GPU
from tests.helpers.small_records import CONFIG, shards

M, L, D, F = 12, 16, 8, 24
ARCHITECTURES = {
    "topk": {"k": 3},
    "batch_topk": {"k": 3},
    "relu": {},
    "jumprelu": {},
}


def contexts():
    return torch.randint(4, 60, (M, L), generator=torch.Generator().manual_seed(1), dtype=torch.int32)


def source(folder, n_left_out=2):
    x = torch.randn(M * L, D, generator=torch.Generator().manual_seed(2))
    return shards(folder, x, contexts(), n_left_out)


def an_sae(activation="topk", seed=0, **options):
    options = {**({"k": 3} if "topk" in activation else {}), **options}
    sae = SAE(SAEConfig(d_in=D, d_sae=F, activation=activation, **options), seed)
    with torch.no_grad():
        sae.b_enc[:3] = -100  # never active
        if activation in ("batch_topk", "jumprelu"):
            sae.threshold.fill_(0.7)
    return sae


def files(folder):
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


@pytest.mark.parametrize("activation", ARCHITECTURES)
def test_the_code_is_that_of_the_encoder(tmp_path, activation):
    sae, rows = an_sae(activation), source(tmp_path / "acts")
    records = record(sae, rows, tmp_path / "records", CONFIG)
    acts, indices = sae.encode(torch.cat(list(rows)))
    dense = torch.zeros(len(acts), F).scatter_add_(1, indices.long(), acts.detach()).numpy()
    places = np.flatnonzero(records.text.encoded)
    counts = records.table(["count"])["count"].to_pylist()
    for latent in range(F):
        slots, found = records.entries(latent)
        active = np.flatnonzero(dense[:, latent])
        assert slots.tolist() == places[active].tolist()
        np.testing.assert_allclose(found, dense[active, latent], rtol=1e-6)
        assert counts[latent] == len(active) and (latent >= 3 or not len(active))
    assert records.text.contexts.tolist() == contexts().tolist() and records.n_rows == len(acts)


def test_neurons_are_the_positive_coordinates(tmp_path):
    rows = source(tmp_path / "acts")
    records = record(neurons(D), rows, tmp_path / "records", CONFIG)
    x = torch.cat(list(rows))
    for neuron in range(D):
        assert records.entries(neuron)[1].tolist() == x[:, neuron][x[:, neuron] > 0].tolist()


def test_small_blocks_change_nothing_that_is_selected(tmp_path, monkeypatch):
    sae, rows = an_sae("relu"), source(tmp_path / "acts")
    monkeypatch.setattr("saefast.interp.records.batches.ROWS", 20)
    whole = record(sae, rows, tmp_path / "whole", CONFIG)
    monkeypatch.setattr(codes, "block_entries", lambda d_sae: 50)
    parts = record(sae, rows, tmp_path / "parts", CONFIG)
    assert len(whole.index["blocks"]) == 1 and len(parts.index["blocks"]) > 3
    assert whole.examples_table().equals(parts.examples_table())
    for name in whole.table().column_names:
        a, b = (records.table([name])[name].to_pylist() for records in (whole, parts))
        assert (
            a == b
            if name in ("count", "max", "histogram")
            else np.testing.assert_allclose(a, b, 1e-12) is None
        ), name


@pytest.mark.parametrize("n_before", [0, 1, 3, 99])
def test_it_goes_on_to_the_same_bytes(tmp_path, monkeypatch, n_before):
    """Stopped at the n-th file that it writes, or while the tables are written."""
    sae, rows = an_sae(), source(tmp_path / "acts")
    monkeypatch.setattr("saefast.interp.records.batches.ROWS", 20)
    monkeypatch.setattr(codes, "block_entries", lambda d_sae: 100)
    record(sae, rows, tmp_path / "whole", CONFIG)
    left = [n_before]

    def stopped(save):
        def write(path, *rest):
            left[0] -= 1
            if left[0] < 0:
                path.with_name(f".{path.name}.tmp").mkdir()
                raise OSError(28, "No space left on device", str(path))
            return save(path, *rest)

        return write

    with monkeypatch.context() as patch:
        patch.setattr(codes, "save_tensors", stopped(codes.save_tensors))
        if n_before == 99:
            patch.setattr(codes, "save_tensors", codes.save_tensors)
            patch.setattr("saefast.interp.records.tables.write_atomic", stopped(lambda *rest: None))
            left[0] = 0
        with pytest.raises(OSError, match="No space left"):
            record(sae, rows, tmp_path / "parts", CONFIG)
    with pytest.raises(InputError, match=r"these records are incomplete; .* goes on where it stopped"):
        Records(tmp_path / "parts")
    record(sae, rows, tmp_path / "parts", CONFIG)
    assert files(tmp_path / "whole") == {
        name: data for name, data in files(tmp_path / "parts").items() if not name.endswith(".tmp")
    }


def test_a_finished_folder_is_read_and_others_are_refused(tmp_path):
    sae, rows = an_sae(), source(tmp_path / "acts")
    record(sae, rows, tmp_path / "records", CONFIG)
    before = files(tmp_path / "records")
    assert record(sae, rows, tmp_path / "records", CONFIG).n_rows == len(rows)
    assert files(tmp_path / "records") == before
    others = {"sae": (an_sae(seed=1), CONFIG), "config": (sae, RecordsConfig(n_top=1))}
    for key, (other, config) in others.items():
        with pytest.raises(InputError, match=f"holds records with {key} = .*--records"):
            record(other, rows, tmp_path / "records", config)
    with pytest.raises(InputError, match="holds records with separators"):
        record(sae, rows, tmp_path / "records", CONFIG, separators=[5])


def test_a_model_as_source_gives_what_its_rows_give(tmp_path):
    ids = contexts().long()
    live = ModelSource(tiny_lm.model(), "model.layers.1", ids.split(4), [5], None)
    sae = SAE(SAEConfig(d_in=32, d_sae=F, activation="topk", k=3))
    records = record(sae, live, tmp_path / "live", CONFIG)
    batches = list(live.model_batches())
    acts, indices = sae.encode(torch.cat([batch.activations for batch in batches]))
    assert int(records.text.encoded.sum()) == len(acts) and not records.text.encoded[ids.numpy() == 5].any()
    for latent in range(F):
        want = acts.detach()[(indices == latent) & (acts > 0)]
        np.testing.assert_allclose(records.entries(latent)[1], want.numpy(), rtol=1e-5)
    some = record(sae, live, tmp_path / "some", CONFIG, tokens=70)
    assert some.n_rows == sum(len(batch.activations) for batch in batches[:2])


@pytest.mark.skipif(ON_GPU, reason="in the interpreter")
def test_the_code_is_sorted_alike_by_every_backend():
    from saefast import triton_kernels

    generator = torch.Generator().manual_seed(3)
    counts = torch.randint(0, 5, (40,), generator=generator)
    row_offsets = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]).int()
    n = int(row_offsets[-1])
    acts, indices = torch.rand(n, generator=generator) + 0.1, torch.randint(0, 9, (n,), generator=generator)
    given = acts, indices.int(), row_offsets, torch.randperm(40, generator=generator).sort().values.int() * 3
    want = codes.sorted_code(reference, *given, 9)
    on_device = [tensor.to(DEVICE) for tensor in given]
    for got in (codes.sorted_code(triton_kernels, *on_device, 9), *of_the_extension(given)):
        assert all(torch.equal(a.cpu(), b) and a.dtype == b.dtype for a, b in zip(got, want))


def of_the_extension(given):
    try:
        from saefast import native
    except ImportError:
        return
    for threads in (1, 3):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        yield codes.sorted_code(native, *given, 9)
        torch.set_num_threads(before)


def test_bad_sources_are_named(tmp_path):
    sae, rows = an_sae(), source(tmp_path / "acts")
    with pytest.raises(InputError, match="source: expected activations with their text"):
        record(sae, reference_source(), tmp_path / "a")
    with pytest.raises(InputError, match="source: expected width d_in = 9 of the SAE, got 8"):
        record(SAE(SAEConfig(d_in=9, d_sae=F, k=3)), rows, tmp_path / "b")
    x = torch.randn(M * L, D)
    x[37, 2] = float("inf")
    with pytest.raises(InputError, match="NaN or Inf in row 37"):
        record(sae, shards(tmp_path / "inf", x, contexts()), tmp_path / "c")
    other = an_sae()
    other.metadata = {"model_name": "m", "hook_name": "model.layers.3"}
    rows.index |= {"model": "m", "hook": "model.layers.4"}
    rows.hooks = ["model.layers.4"]
    with pytest.raises(InputError, match=r"expected activations at 'model.layers.3', .*got 'model.layers.4'"):
        record(other, rows, tmp_path / "d")
    assert not any((tmp_path / name).exists() for name in "abd")
    x[37, 2] = 0
    record(sae, shards(tmp_path / "mended", x, contexts()), tmp_path / "e")


def reference_source():
    from saefast.activations.sources import TensorSource

    return TensorSource(torch.randn(4, D))


def test_damaged_files_are_named(tmp_path):
    record(an_sae(), source(tmp_path / "acts"), tmp_path / "records", CONFIG)
    folder = tmp_path / "records"
    text, examples, index = (
        folder / name for name in ("text-00000.safetensors", "examples.parquet", "index.json")
    )
    for path, read in (
        (text, lambda r: r.text),
        (examples, lambda r: r.latent(5)),
        (index, lambda r: r.config),
    ):
        whole = path.read_bytes()
        data = bytearray(whole)
        data[len(data) // 3] ^= 4
        path.write_bytes(data)
        with pytest.raises(InputError, match=path.name):
            read(Records(folder))
        path.write_bytes(whole)
    code = folder / "codes-00000.safetensors"
    code.write_bytes(code.read_bytes()[:-8])
    with pytest.raises(InputError, match=r"codes-00000.safetensors: expected \d+ bytes"):
        Records(folder).entries(5)
    with pytest.raises(InputError, match=r"no records|found none at .*`saefast look"):
        Records(tmp_path / "nothing")


def test_the_plan_is_more_than_what_is_written_and_a_small_disk_is_refused(tmp_path, monkeypatch):
    sae, rows = an_sae("relu"), source(tmp_path / "acts")
    planned = plan(sae, rows, CONFIG)
    record(sae, rows, tmp_path / "records", CONFIG)
    names = {"code": "codes-*", "text": "text-*"}
    for field, pattern in names.items():
        written = sum(path.stat().st_size for path in (tmp_path / "records").glob(pattern))
        assert getattr(planned, field) * 0.8 - 500 < written < getattr(planned, field) * 1.3 + 500
    assert json.loads((tmp_path / "records/index.json").read_text())["complete"]
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": planned.disk - 1}))
    with pytest.raises(InputError, match=r"records: .* GB of disk, .* are free"):
        record(sae, rows, tmp_path / "other", CONFIG)
