"""What bad input and misuse get from the buffer in C++: its batches stay, or an error says what is wrong."""

import numpy as np
import pytest
import torch

from saefast.activations.buffer import ShuffleBuffer
from saefast.activations.native_buffer import NativeBuffer
from saefast.activations.open import open_buffer
from saefast.activations.sources import TensorSource
from saefast.errors import InputError
from tests.helpers.batches import numbered, same, take, write

pytest.importorskip("saefast._C", reason="the C++ extension saefast._C is not built")


def test_no_memory_is_used_again_while_any_view_lives():
    """A view of numpy, of torch, of another library by DLPack, alone keeps its batch, with the buffer gone too."""
    buffer = NativeBuffer(TensorSource(numbered(4000, 16)), 8, 32)
    batches = iter(buffer)
    views, copies = [], []
    for i in range(60):
        batch = next(batches)
        view = (
            batch.numpy()[1:3],
            batch[2:4, 1],
            torch.utils.dlpack.from_dlpack(batch),
            np.from_dlpack(batch),
        )[i % 4]
        views.append(view)
        copies.append(np.asarray(view).copy())
        del batch
    for _ in range(300):
        next(batches)
    buffer.close()
    del buffer, batches
    others = NativeBuffer(
        TensorSource(-numbered(4000, 16)), 8, 32
    )  # whose memory may lie where the first one's was
    taken = take(others, 50)
    assert all(np.array_equal(np.asarray(view), copy) for view, copy in zip(views, copies)) and taken


def test_dropped_batches_are_used_again():
    """Else the test above could not fail: memory would never be used twice."""
    batches = iter(NativeBuffer(TensorSource(numbered(4000, 16)), 8, 32))
    assert len({next(batches).data_ptr() for _ in range(100)}) < 20


def test_more_threads_than_cores_and_a_buffer_of_one_batch(tmp_path):
    source = write(tmp_path / "acts", torch.randn(500, 12), contexts=True)
    for sizes in ((source, 16, 64, 3), (source, 48, 48, 3)):
        want = take(ShuffleBuffer(*sizes), 60)
        for threads in (1, 3, 64):
            buffer = NativeBuffer(
                *sizes, readers=threads, mixers=threads, ahead=5, ring_bytes=1, chunk_bytes=1
            )
            same(take(buffer, 60), want)
            buffer.close()


def test_a_batch_larger_than_the_source_spans_passes(tmp_path):
    """And one larger than the buffer is refused, by open_buffer too."""
    source = write(tmp_path / "acts", torch.randn(50, 12))
    same(take(NativeBuffer(source, 120, 130), 20), take(ShuffleBuffer(source, 120, 130), 20))
    for kind in (open_buffer, ShuffleBuffer):
        with pytest.raises(InputError, match="capacity: expected at least batch_size = 120, got 119"):
            kind(source, 120, 119)


@pytest.mark.parametrize("direct", [False, True])
def test_a_folder_deleted_while_it_is_read_and_put_back(tmp_path, direct):
    """All shards go at once, in the first pass and in a later one; the buffer goes on when they are there again."""
    source = write(tmp_path / "acts", torch.randn(4000, 64), shard_tokens=100)
    want = take(ShuffleBuffer(source, 8, 32), 1400)
    buffer = NativeBuffer(source, 8, 32, ring_bytes=1, direct=direct)
    got, batches = [], iter(buffer)
    for n in (20, 700):
        got += [next(batches).clone() for _ in range(n)]
        (tmp_path / "acts").rename(tmp_path / "gone")
        with pytest.raises(InputError, match=r"shard-\d+\.safetensors: expected a file, found none"):
            for batch in buffer:
                got.append(batch.clone())
        (tmp_path / "gone").rename(tmp_path / "acts")
        batches = iter(buffer)
    same(got + [next(batches) for _ in range(1400 - len(got))], want)


def test_a_tensor_modified_in_place_is_refused():
    rows = numbered(300)
    batches = iter(NativeBuffer(TensorSource(rows), 8, 64))
    next(batches)
    rows[5] = 7
    with pytest.raises(InputError, match="source: expected the tensor unchanged while the buffer reads it"):
        next(batches)
    with torch.inference_mode():
        frozen = numbered(300)
    same(
        take(NativeBuffer(TensorSource(frozen), 8, 64), 40),
        take(ShuffleBuffer(TensorSource(frozen), 8, 64), 40),
    )


def test_a_state_of_rows_that_are_not_there_is_refused(tmp_path):
    buffer = NativeBuffer(TensorSource(numbered(100)), 8, 32)
    for bad in (-1, 100):
        with pytest.raises(InputError, match="resume: expected rows 0 to 99, got -?1"):
            buffer.load_state_dict(
                {"row_of": torch.tensor([1, bad])}, {"batches": 0, "passes": 0, "next_row": 2, "skipped": 0}
            )
