"""Activation sources: what they yield, from any row on, and what they refuse."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from saefast import InputError, open_source
from saefast.activations.sources import (
    CHUNK,
    IterableSource,
    Source,
    SyntheticSource,
    TensorSource,
    as_source,
)

N, D = CHUNK + 100, 3


def matrix(n=N, d_in=D):
    return torch.randn(n, d_in, generator=torch.Generator().manual_seed(n))


def npy_source(folder, tensor):
    np.save(folder / "x.npy", tensor.numpy())
    return open_source(folder / "x.npy")


def safetensors_source(folder, tensor):
    save_file({"anything": tensor}, folder / "x.safetensors")
    return open_source(folder / "x.safetensors")


SOURCES = {
    "tensor": lambda folder: TensorSource(matrix()),
    "npy": lambda folder: npy_source(folder, matrix()),
    "safetensors": lambda folder: safetensors_source(folder, matrix()),
    "iterable": lambda folder: IterableSource(list(matrix().split(999)), D),
    "synthetic": lambda folder: SyntheticSource(D, 7, 2, N, noise=0.1, seed=3),
}


@pytest.fixture(params=SOURCES)
def source(request, tmp_path):
    return SOURCES[request.param](tmp_path)


def all_rows(source, start=0):
    return torch.cat([torch.empty(0, source.d_in), *source.rows(start)])


def test_rows_from_any_start_are_the_rest_of_the_pass(source):
    whole = torch.cat(list(source))
    assert whole.shape == (N, D)
    for start in (0, 1, 998, 999, CHUNK - 1, CHUNK, CHUNK + 1, N - 1, N):
        assert torch.equal(all_rows(source, start), whole[start:]), start


def test_every_pass_is_the_same(source):
    assert torch.equal(torch.cat(list(source)), torch.cat(list(source)))


def test_take_gives_the_rows_asked_for_in_that_order(source):
    if not source.random_access:
        with pytest.raises(NotImplementedError):
            source.take(torch.tensor([0]))
        return
    index = torch.tensor([N - 1, 0, CHUNK, 5, CHUNK - 1, 5])
    assert torch.equal(source.take(index), torch.cat(list(source))[index])
    assert source.take(torch.tensor([], dtype=torch.int64)).shape == (0, D)
    assert len(source) == N


@pytest.mark.parametrize("open_it", [npy_source, safetensors_source])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_files_keep_values_and_dtype(tmp_path, open_it, dtype):
    x = matrix(20).to(dtype)
    source = open_it(tmp_path, x)
    (rows,) = source
    assert rows.dtype == dtype and torch.equal(rows, x)
    assert source.describe() == {"type": "tensor", "path": str(source.path), "n_tokens": 20}


def test_a_fortran_ordered_npy_gives_the_same_rows(tmp_path):
    np.save(tmp_path / "x.npy", np.asfortranarray(matrix(20).numpy()))
    assert torch.equal(next(iter(open_source(tmp_path / "x.npy"))), matrix(20))


def test_writing_to_rows_does_not_write_to_the_file(tmp_path):
    source = npy_source(tmp_path, matrix(20))
    next(iter(source)).zero_()
    assert torch.equal(next(iter(open_source(tmp_path / "x.npy"))), matrix(20))


def test_bfloat16_safetensors_and_the_tensor_named_activations(tmp_path):
    x = matrix(20).bfloat16()
    save_file({"activations": x, "position": torch.arange(20)}, tmp_path / "x.safetensors")
    assert torch.equal(next(iter(open_source(tmp_path / "x.safetensors"))), x)
    save_file({"a": x, "b": x.clone()}, tmp_path / "two.safetensors")
    with pytest.raises(InputError, match="two.safetensors: expected one tensor, or one named 'activations'"):
        open_source(tmp_path / "two.safetensors")


BAD_TENSORS = {
    "one dimension": (torch.ones(5), r"expected shape \[n, d_in\], got \[5\]"),
    "three dimensions": (torch.ones(2, 3, 4), r"expected shape \[n, d_in\], got \[2, 3, 4\]"),
    "integers": (
        torch.ones(2, 3, dtype=torch.int32),
        "expected a floating-point dtype.*, got (torch.int32|<i4)",
    ),
    "booleans": (
        torch.ones(2, 3, dtype=torch.bool),
        "expected a floating-point dtype.*, got (torch.bool|.b1)",
    ),
    "no rows": (torch.ones(0, 3), r"expected at least one row, got an empty tensor \[0, 3\]"),
    "no columns": (torch.ones(3, 0), r"expected at least one row, got an empty tensor \[3, 0\]"),
}


@pytest.mark.parametrize("open_it", [npy_source, safetensors_source, lambda _, x: TensorSource(x)])
@pytest.mark.parametrize("tensor,message", BAD_TENSORS.values(), ids=BAD_TENSORS)
def test_tensors_that_are_no_float_matrix_are_refused(tmp_path, open_it, tensor, message):
    with pytest.raises(InputError, match=f"^source: .*{message}|^source: {message}"):
        open_it(tmp_path, tensor)


def write_npz(path):
    with path.open("wb") as file:
        np.savez(file, x=np.ones((2, 3), np.float32))


BAD_NPY = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("1.0 2.0\n"),
    "pickled": lambda path: np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True),
    "truncated header": lambda path: path.write_bytes(b"\x93NUMPY\x01\x00"),
    "npz": write_npz,
}


@pytest.mark.parametrize("write", BAD_NPY.values(), ids=BAD_NPY)
def test_unreadable_npy_is_named(tmp_path, write):
    write(tmp_path / "x.npy")
    with pytest.raises(InputError, match=r"^source: .*x\.npy is not a readable \.npy file \("):
        open_source(tmp_path / "x.npy")


def test_truncated_npy_is_named(tmp_path):
    npy_source(tmp_path, matrix(2000))
    data = (tmp_path / "x.npy").read_bytes()
    (tmp_path / "x.npy").write_bytes(data[:-1])
    with pytest.raises(InputError, match=r"^source: .*x\.npy is not a readable \.npy file \("):
        open_source(tmp_path / "x.npy")


@pytest.mark.parametrize("dtype", [">f4", "f16"])
def test_npy_dtypes_that_torch_lacks_are_refused(tmp_path, dtype):
    np.save(tmp_path / "x.npy", np.ones((2, 3), dtype))
    with pytest.raises(
        InputError, match=r"^source: .*x\.npy: expected a floating-point dtype of torch, got (>f4|<f16)$"
    ):
        open_source(tmp_path / "x.npy")


@pytest.mark.parametrize("cut", [0, 4, 20, -1])
def test_corrupt_safetensors_is_named(tmp_path, cut):
    save_file({"x": matrix(20)}, tmp_path / "x.safetensors")
    data = (tmp_path / "x.safetensors").read_bytes()
    (tmp_path / "x.safetensors").write_bytes(data[:cut])
    with pytest.raises(InputError, match=r"^source: .*x\.safetensors is not a readable safetensors file \("):
        open_source(tmp_path / "x.safetensors")


def test_unknown_kinds_of_files_and_missing_ones_are_refused(tmp_path):
    (tmp_path / "x.csv").write_text("1,2\n")
    for path in (tmp_path / "x.csv", tmp_path / "none.npy"):
        with pytest.raises(
            InputError, match=f"^source: expected a shard folder, .npy or .safetensors file, .*{path}"
        ):
            open_source(path)


@pytest.mark.parametrize(
    "chunks,message",
    [
        ([torch.ones(2, 3), torch.ones(2, 4)], r"expected tensors \[n, 3\], got \[2, 4\]"),
        ([torch.ones(2, 3), torch.ones(3)], r"expected tensors \[n, 3\], got \[3\]"),
        ([torch.ones(2, 3), np.ones((2, 3))], r"expected tensors \[n, 3\], got ndarray"),
        ([torch.ones(2, 3), torch.ones(2, 3).long()], "expected a floating-point dtype, got torch.int64"),
    ],
    ids=["width", "dimensions", "no tensor", "dtype"],
)
def test_iterables_are_checked_tensor_by_tensor(chunks, message):
    stream = IterableSource(chunks, 3).rows()
    assert torch.equal(next(stream), chunks[0])
    with pytest.raises(InputError, match=f"^source: {message}$"):
        next(stream)


def test_as_source_wraps_what_is_no_source_and_checks_the_width():
    tensor, iterable, source = (
        as_source(matrix(5), D),
        as_source([matrix(5)], D),
        SyntheticSource(D, 7, 2, 10),
    )
    assert (
        isinstance(tensor, TensorSource)
        and isinstance(iterable, IterableSource)
        and as_source(source, D) is source
    )
    for wide in (torch.ones(2, 4), SyntheticSource(4, 7, 2, 10)):
        with pytest.raises(InputError, match="^source: expected activations of width d_in = 3, got 4$"):
            as_source(wide, D)
    with pytest.raises(InputError, match="^source: expected an iterable of tensors, got int$"):
        as_source(7, D)


def test_a_source_describes_itself_for_the_run_folder():
    class Mine(Source):
        d_in = 3

    assert Mine().describe() == {"type": "Mine"}
    assert TensorSource(matrix(5)).describe() == {"type": "tensor", "path": None, "n_tokens": 5}


def test_synthetic_rows_are_sparse_combinations_of_the_known_directions():
    source = SyntheticSource(d_in=40, n_features=60, n_active=3, n_tokens=50, seed=1)
    torch.testing.assert_close(source.directions.norm(dim=1), torch.ones(60))
    rows = torch.cat(list(source)) - source.offset
    for row in rows:  # three directions explain it exactly: greedy search, least squares on what it found
        chosen = []
        residual = row
        for _ in range(8):
            chosen.append(int((source.directions @ residual).abs().argmax()))
            basis = source.directions[chosen].T
            acts = torch.linalg.lstsq(basis, row[:, None]).solution[:, 0]
            residual = row - basis @ acts
            if residual.norm() < 1e-4:
                break
        assert residual.norm() < 1e-4
        active = acts[acts.abs() > 1e-3]
        assert len(active) == 3 and active.min() >= 0.499 and active.max() <= 1.501


def test_synthetic_seed_and_noise():
    rows = {seed: torch.cat(list(SyntheticSource(8, 20, 2, 100, seed=seed))) for seed in (0, 1)}
    assert not torch.equal(rows[0], rows[1])
    noisy = torch.cat(list(SyntheticSource(8, 20, 2, 5000, noise=0.3)))
    clean = torch.cat(list(SyntheticSource(8, 20, 2, 5000)))
    assert (noisy - clean).std() == pytest.approx(0.3, rel=0.02)
    with pytest.raises(InputError, match="^n_active: expected 1 to n_features = 20, got 21$"):
        SyntheticSource(8, 20, 21, 100)
