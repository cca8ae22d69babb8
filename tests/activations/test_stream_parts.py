"""The pieces of the streaming buffer: the checksum, the conversion of rows, the draw."""

import hashlib
import importlib
import itertools
import logging
import sys

import numpy as np
import pytest
import torch

from saefast.activations import open as opening
from saefast.activations.buffer import ShuffleBuffer, draw
from saefast.activations.shards import ShardSource, ShardWriter
from saefast.activations.sources import TensorSource

pytest.importorskip("saefast._C", reason="the C++ extension saefast._C is not built")
stream = importlib.import_module("saefast._C").stream


@pytest.mark.parametrize("size", [0, 1, 55, 56, 63, 64, 65, 119, 120, 1000, 70_001])
@pytest.mark.parametrize("plain", [False, True])
def test_sha256(size, plain):
    data = np.random.default_rng(size).bytes(size)
    assert stream.sha256(data, plain) == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("plain", [False, True])
def test_every_half_and_bfloat16_widens_exactly(plain):
    bits = torch.arange(2**16).to(torch.int32).to(torch.int16)
    for dtype in (torch.float16, torch.bfloat16):
        x = bits.view(dtype)
        x = x[x.isfinite()]
        got, finite = stream.widen(x.view(torch.uint8).numpy(), str(dtype)[6:], plain)
        assert finite and torch.equal(torch.from_numpy(got).view(torch.int32), x.float().view(torch.int32))
        for bad in ("nan", "inf", "-inf"):
            y = torch.ones(39, dtype=dtype)
            y[38] = float(bad)
            assert not stream.widen(y.view(torch.uint8).numpy(), str(dtype)[6:], plain)[1]


@pytest.mark.parametrize("trials", [2_000, pytest.param(8_000, marks=pytest.mark.slow)])
def test_draw_is_uniform(trials):
    for held, n in ((9, 3), (40, 10), (1000, 17)):
        draws = torch.stack([draw(5, i, held, n) for i in range(trials)])
        assert draws.max() < held and all(len(set(row)) == n for row in draws[:200].tolist())
        for column in (0, n - 1):
            counts = torch.bincount(draws[:, column], minlength=held).double()
            z = ((counts - trials / held) ** 2 / (trials / held)).sum()
            assert abs(z - (held - 1)) < 5 * (2 * held) ** 0.5
        if held < 100:  # ordered pairs
            pair = (
                torch.bincount(draws[:, 0] * held + draws[:, 1], minlength=held**2).double().view(held, held)
            )
            expected = trials / (held * (held - 1))
            off = ~torch.eye(held, dtype=torch.bool)
            z = ((pair[off] - expected) ** 2 / expected).sum()
            assert abs(z - held * (held - 1)) < 5 * (2 * held * held) ** 0.5


@pytest.mark.parametrize("held", [1, 2, 3, 5, 16, 17, 99, 4096])
def test_draw_is_a_permutation(held):
    assert sorted(draw(2**62, 3, held, held).tolist()) == list(range(held))


def test_without_the_extension_the_buffer_in_pytorch_does_it_and_says_so_once(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "saefast._C", None)
    monkeypatch.setattr(opening, "_said", set())
    with caplog.at_level(logging.WARNING, "saefast"):
        for _ in range(3):
            buffer = opening.open_buffer(TensorSource(torch.randn(50, 4)), 8, 16)
            assert type(buffer) is ShuffleBuffer
    assert len(caplog.records) == 1 and "buffer in PyTorch" in caplog.text


@pytest.mark.parametrize("held", [1, 2, 3, 17, 64, 65, 4096, 131_072, 10**12])
@pytest.mark.parametrize("plain", [False, True])
def test_draw_in_c_gives_the_same_places(held, plain):
    for n in {1, min(held, 63), min(held, 1000)}:
        assert torch.equal(torch.from_numpy(stream.draw(7, 3, held, n, plain)), draw(7, 3, held, n))


@pytest.mark.parametrize("d_in", [1, 7, 32, 576])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_gather(d_in, threads, dtype):
    rows, index = torch.randn(1000, d_in).to(dtype), torch.randint(1000, (600,))
    size = d_in * dtype.itemsize
    for offset in (0, 1):  # memory that no instruction wants aligned
        for widen in (False, True):
            bytes_out = 4 * d_in if widen else size
            memory = np.zeros(600 * bytes_out + 64, np.uint8)
            out = memory[offset : offset + 600 * bytes_out].reshape(600, bytes_out)
            stream.gather(
                rows.view(torch.uint8).numpy(),
                index.numpy(),
                out,
                d_in=d_in,
                dtype=str(dtype)[6:],
                widen=widen,
                threads=threads,
            )
            want = rows[index].float() if widen else rows[index]
            assert out.tobytes() == want.view(torch.uint8).numpy().tobytes()
            assert not memory[:offset].any() and not memory[offset + 600 * bytes_out :].any()
    with pytest.raises(ValueError, match="index: expected rows below 1000, got 1000"):
        stream.gather(
            rows.view(torch.uint8).numpy(),
            np.array([1000]),
            np.zeros((1, size), np.uint8),
            d_in=d_in,
            dtype=str(dtype)[6:],
        )


def test_reading_alone_reads_and_verifies_a_pass(tmp_path):
    writer = ShardWriter(tmp_path / "acts", 8, torch.float32, shard_tokens=50)
    writer.append(torch.randn(320, 8))
    writer.close()
    buffer = opening.NativeBuffer(ShardSource(tmp_path / "acts"), 8, 32)
    assert buffer._native.read_through() == 320 == buffer._native.read_through()
    path = tmp_path / "acts" / "shard-00000.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    buffer = opening.NativeBuffer(ShardSource(tmp_path / "acts"), 8, 32)
    with pytest.raises(ValueError, match="shard-00000.*corrupt: expected SHA-256"):
        buffer._native.read_through()


def test_reading_alone_finds_no_rows_where_there_are_none():
    sizes = {
        "d_in": 4,
        "dtype": "float32",
        "batch": 2,
        "capacity": 4,
        "seed": 0,
        "widen": False,
        "skip": False,
    }
    threads = {"readers": 2, "mixers": 1, "ahead": 1, "ring_bytes": 0, "chunk_bytes": 64, "direct": False}
    for segments in ([], [np.zeros((0, 16), np.uint8)]):
        buffer = stream.ShuffleBuffer(segments, **sizes, **threads)
        assert buffer.read_through() == 0
        assert buffer.sample(2, 5.0) is None and buffer.next(5.0) is None


@pytest.mark.parametrize("ask", ["sample", "next"])
def test_reading_alone_is_refused_once_other_readers_have_begun(tmp_path, ask):
    rows = torch.randn(320, 8)
    writer = ShardWriter(tmp_path / "acts", 8, torch.float32, shard_tokens=50)
    writer.append(rows)
    writer.close()
    source = ShardSource(tmp_path / "acts")
    want = list(itertools.islice(opening.NativeBuffer(source, 8, 32), 3))
    buffer = opening.NativeBuffer(source, 8, 32)
    first = buffer._native.sample(4, 5.0) if ask == "sample" else buffer._native.next(5.0)
    assert first is not None
    with pytest.raises(
        ValueError, match="read_through: expected that no batch and no sample was asked for yet"
    ):
        buffer._native.read_through()
    if ask == "sample":  # its readers wrote over rows that were held
        assert all(torch.equal(one, two) for one, two in zip(want, itertools.islice(buffer, 3)))
    buffer.close()
    with pytest.raises(ValueError, match="expected an open buffer"):
        buffer._native.read_through()


def test_the_module_that_was_built_says_why_it_cannot_run():
    """Where nvcc is: it loads without a GPU."""
    module = pytest.importorskip("saefast._cuda", reason="saefast._cuda is not built: no nvcc")
    if not torch.cuda.is_available():
        assert importlib.import_module("saefast._cuda").unusable(0) != ""
    assert module.stage_bytes(4096, 1152) >= 4096 * (1152 + 8)
