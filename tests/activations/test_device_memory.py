"""The memory of a buffer on a device, counted, and when it is too little. Over the fake of tests/helpers/fake_device.py."""

import shutil

import pytest
import torch

from saefast.activations import device_buffer
from saefast.activations.buffer import ShuffleBuffer
from saefast.activations.file_segments import segments_of
from saefast.activations.sources import TensorSource
from saefast.errors import InputError
from tests.helpers import fake_device
from tests.helpers.batches import numbered, same, take

if shutil.which("g++") is None:
    pytest.skip("needs g++", allow_module_level=True)
Buffer = fake_device.FakeDeviceBuffer


@pytest.fixture(autouse=True)
def module(monkeypatch):
    module, _ = fake_device.build()
    monkeypatch.setattr(device_buffer, "load_module", lambda: module)
    return module


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_rows_held_and_rows_on_their_way_are_counted(module, dtype):
    source, row = TensorSource(numbered(100, 6)), 6 * dtype.itemsize
    stage = module.stage_bytes(8, row)
    assert device_buffer.device_bytes(source, dtype, 8, 64) == (64 * row, 5 * stage)
    assert device_buffer.device_bytes(source, dtype, 8, 64, ahead=1) == (64 * row, 2 * stage)
    # never more than the source has, and what a batch may carry over
    assert device_buffer.device_bytes(source, dtype, 8, 1000) == (108 * row, 5 * stage)


def opened(monkeypatch, free, reserve=1000, rows=None, dtype=None, **options):
    source = TensorSource(numbered(100, 6) if rows is None else rows)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 2 * free))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(device_buffer, "DeviceBuffer", lambda *args, **given: (args, given))
    sizes = source, 8, 64, 3, "stop", dtype, segments_of(source)
    return device_buffer.open_on(torch.device("cuda"), reserve, *sizes, **options)


@pytest.mark.parametrize("ahead", [None, 1, 9])
def test_it_is_there_where_the_last_byte_fits(module, monkeypatch, ahead):
    options = {} if ahead is None else {"ahead": ahead}
    needed = 1000 + 64 * 24 + ((ahead or 4) + 1) * module.stage_bytes(8, 24)
    args, given = opened(monkeypatch, needed, **options)
    assert args[1:] == (8, 64, 3, "stop", None)
    assert given.keys() == {"device", "segments", *options} and given["device"] == torch.device("cuda")
    assert opened(monkeypatch, needed - 1, **options).startswith("its 64 rows need 0.00 GB of GPU memory")


def test_the_dtypes_of_rows_and_of_batches_are_both_looked_at(monkeypatch):
    rows = numbered(100, 6)
    assert opened(monkeypatch, 10**9, dtype=torch.bfloat16)[0][5] == torch.bfloat16
    takes = "its kernel takes fp16, bf16 and fp32, not torch."
    assert opened(monkeypatch, 10**9, dtype=torch.float64) == f"{takes}float32 to torch.float64"
    assert opened(monkeypatch, 10**9, rows=rows.double()) == f"{takes}float64 to torch.float64"
    assert opened(monkeypatch, 10**9, rows=rows.double(), dtype=torch.float32).startswith(f"{takes}float64")


def test_a_device_that_cannot_be_used_or_is_full_is_a_reason(module, monkeypatch):
    class Broken:
        stage_bytes = staticmethod(module.stage_bytes)
        unusable = staticmethod(lambda index: f"no kernel for device {index}")

    monkeypatch.setattr(device_buffer, "load_module", lambda: Broken)
    assert opened(monkeypatch, 10**9) == "no kernel for device 0"
    Broken.unusable = staticmethod(lambda index: "")
    assert not isinstance(opened(monkeypatch, 10**9), str)

    def full(*args, **options):
        raise torch.OutOfMemoryError("full")

    source = TensorSource(numbered(100, 6))
    monkeypatch.setattr(device_buffer, "DeviceBuffer", full)
    sizes = source, 8, 64, 3, "stop", None, segments_of(source)
    said = device_buffer.open_on(torch.device("cuda", 1), 2 * 10**8, *sizes)
    assert said.startswith(
        "its 64 rows need 0.00 GB of GPU memory beside 0.20 GB for training, 1.00 GB are free"
    )


@pytest.mark.parametrize("piece", [1, 7, 8, 64])
def test_a_state_is_read_piece_by_piece(monkeypatch, piece):
    monkeypatch.setattr(device_buffer, "PIECE", piece)
    sizes = TensorSource(numbered(300)), 8, 64
    first, second = ShuffleBuffer(*sizes), Buffer(*sizes)
    want = take(first, 12)
    second.load_state_dict(*first.state_dict())
    assert torch.equal(second.sample(99), first.sample(99))
    same(take(second, 20), take(first, 20))
    same(want, take(ShuffleBuffer(*sizes), 12))


def test_a_state_is_loaded_into_a_buffer_that_is_under_way():
    """What it has read ahead is forgotten."""
    sizes = TensorSource(numbered(300, 16)), 8, 64
    states, want, whole = [], [], ShuffleBuffer(*sizes)
    for _ in range(12):
        states.append(whole.state_dict())
        want += take(whole, 1)
    buffer = Buffer(*sizes)
    for n, at in ((3, 6), (1, 2), (4, 0), (2, 8)):
        take(buffer, n)
        buffer.load_state_dict(*states[at])
        same(take(buffer, 3), want[at : at + 3])


def test_a_state_of_more_rows_than_there_are_places_is_refused():
    small, large = TensorSource(numbered(300)), TensorSource(numbered(300))
    buffer, first = Buffer(small, 8, 64), ShuffleBuffer(large, 8, 65)
    take(first, 2)
    with pytest.raises(
        InputError, match="^row_of: expected the state of a buffer of at most 64 rows, got 65$"
    ):
        buffer.load_state_dict(*first.state_dict())
    first = ShuffleBuffer(large, 8, 64)
    take(first, 2)
    buffer.load_state_dict(*first.state_dict())
    same(take(buffer, 5), take(first, 5))


@pytest.mark.parametrize(
    "b_dec", [torch.zeros(3), torch.zeros(2).half(), torch.zeros(4)[::2], torch.zeros(1, 2)], ids=str
)
def test_what_is_subtracted_is_a_vector_of_fp32(b_dec):
    with pytest.raises(InputError, match=r"^b_dec: expected \[2\] in fp32, got "):
        Buffer(TensorSource(numbered(100)), 8, 64, b_dec=b_dec)


def test_a_state_that_cannot_be_read_closes_the_buffer(monkeypatch):
    source = TensorSource(numbered(300))
    buffer, first = Buffer(source, 8, 64), ShuffleBuffer(source, 8, 64)
    take(first, 2)

    def broken(index):
        raise InputError("shard: gone")

    monkeypatch.setattr(source, "take", broken)
    with pytest.raises(InputError, match="shard: gone"):
        buffer.load_state_dict(*first.state_dict())
    with pytest.raises(InputError, match="closed"):
        next(iter(buffer))
