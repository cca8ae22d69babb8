"""The blocked encoder selects exactly what the specification selects from the same products, however it is cut."""

import os
import signal
import threading
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saefast import native, reference
from saefast.errors import InputError
from saefast.native import encode as native_encode
from tests.helpers.encoder_cases import KINDS, assert_equal, operands
from tests.helpers.native_isa import isa  # noqa: F401 (a fixture)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def torch_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """No screening (`test_screen.py`): what is cut here are products of torch."""
    monkeypatch.setattr(native_encode, "SCREENED_ROWS", 10**9)


@pytest.mark.each_value
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("B,D,F", [(7, 5, 9), (64, 24, 1024), (130, 33, 1025), (700, 16, 3000)])
def test_topk_is_that_of_the_reference(isa: str, kind: str, B: int, D: int, F: int) -> None:  # noqa: F811
    x = operands(B, D, F, F, kind)
    for k in {1, min(32, F), min(200, F), (F + 1) // 2, F} if F < 2000 else {1, 33, 150}:
        assert_equal(native.encode_topk(*x, k), reference.encode_topk(*x, k), f"k = {k}")


@pytest.mark.each_value
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("B,D,F", [(7, 5, 9), (130, 33, 1025), (700, 16, 1500)])
def test_batch_topk_is_that_of_the_reference(isa: str, kind: str, B: int, D: int, F: int) -> None:  # noqa: F811
    x = operands(B, D, F, F, kind)
    for k in {1, min(32, F), F}:
        assert_equal(native.encode_batch_topk(*x, k), reference.encode_batch_topk(*x, k), f"k = {k}")


@pytest.mark.each_value
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("B,D,F", [(7, 5, 9), (130, 33, 1025), (700, 16, 1500)])
def test_selection_by_scaled_pre_activations(isa: str, kind: str, B: int, D: int, F: int) -> None:  # noqa: F811
    x, scale = operands(B, D, F, F, kind), torch.rand(F, generator=torch.Generator().manual_seed(F)) + 0.1
    scale[: F // 2] = scale[: F // 2].round()  # zeros, and equal ones
    for k in {1, min(32, F), F}:
        for op in ("encode_topk", "encode_batch_topk"):
            got, want = (getattr(backend, op)(*x, k, scale=scale) for backend in (native, reference))
            assert_equal(got, want, f"{op}, k = {k}")
            plain = getattr(native, op)(*x, k)
            assert kind in ("zero", "negative") or not torch.equal(got[0], plain[0])


@pytest.mark.each_value
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("B,D,F", [(7, 5, 9), (130, 33, 1025), (700, 16, 1500)])
def test_threshold_is_that_of_the_reference(isa: str, kind: str, B: int, D: int, F: int) -> None:  # noqa: F811
    x = operands(B, D, F, F, kind)
    for threshold in (torch.tensor(0.0), torch.tensor(2.5), torch.linspace(-1, 5, F)):
        for capacity in (None, 0, 50, B * F):
            got = native.encode_threshold(*x, threshold, capacity)
            assert_equal(got, reference.encode_threshold(*x, threshold, capacity), f"{capacity}")


@pytest.mark.parametrize("B", [0, 1])
def test_few_rows(B: int) -> None:
    x = operands(B, 8, 50)
    assert_equal(native.encode_topk(*x, 4), reference.encode_topk(*x, 4))
    assert_equal(native.encode_batch_topk(*x, 4), reference.encode_batch_topk(*x, 4))
    zero = torch.tensor(0.0)
    assert_equal(native.encode_threshold(*x, zero), reference.encode_threshold(*x, zero))


@pytest.mark.parametrize("B", [64, 129, 1000, 1537])
def test_the_cut_into_blocks_does_not_show(threads, B: int) -> None:
    """Real widths, random numbers: every product is the one that torch computes for the whole batch."""
    x = operands(B, 576, 2304)
    want = torch.addmm(x[2], x[0], x[1].T).topk(32, dim=1)
    for n in (1, 2, 3, 5):
        threads(n)
        acts, indices = native.encode_topk(*x, 32)
        assert torch.equal(acts, want.values.relu()) and torch.equal(indices.long(), want.indices), n
        assert torch.get_num_threads() == n  # what the workers did to theirs is not seen here


@pytest.mark.parametrize("rows", [1, 63, 64, 65, 127, 128, 129, 511, 5000])
@pytest.mark.parametrize("n", [1, 2, 7])
@pytest.mark.parametrize("max_rows", [1, 100, 512])
def test_blocks_cover_every_row_once(threads, rows: int, n: int, max_rows: int) -> None:
    threads(n)
    spans: list[tuple[int, int]] = []
    native_encode.for_blocks(lambda start, end, scratch: spans.append((start, end)), rows, max_rows)
    spans.sort()
    assert spans[0][0] == 0 and spans[-1][1] == rows
    assert all(a[1] == b[0] for a, b in pairwise(spans))
    assert all(end - start <= max(max_rows, 1) + 64 for start, end in spans)


@pytest.mark.parametrize("row", [0, 417, 799])
def test_nan_names_the_row(threads, row: int) -> None:
    x = operands(800, 16, 1500)
    x[0][row, 3] = float("nan")
    zero = torch.tensor(0.0)
    for n in (1, 3):
        threads(n)
        for encode in (
            lambda: native.encode_topk(*x, 8),
            lambda: native.encode_batch_topk(*x, 8),
            lambda: native.encode_threshold(*x, zero),
        ):
            with pytest.raises(InputError, match=f"pre_acts: expected no NaN, got one in row {row} "):
                encode()
    assert native.encode_topk(*operands(800, 16, 1500), 8)[0].isfinite().all()  # the workers live on


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_fuzz(data: st.DataObject) -> None:
    """Pieces of any width, few distinct values: what was kept of the earlier columns must still be right."""
    B, F = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 400))
    k, width = data.draw(st.integers(1, F)), data.draw(st.integers(1, F))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    pre_acts = torch.randint(-3, data.draw(st.integers(-2, 60)), (B, F), generator=generator).float()
    block, batch = native_encode.saefast._C.TopkBlock(B, k), native_encode.saefast._C.BatchTopk(B * k, F)
    for first in range(0, F, width):
        piece = pre_acts[:, first : first + width].contiguous().numpy()
        assert block.feed(piece) == -1
        assert batch.feed(piece, 0, first) == -1
    acts, indices = torch.empty(B, k), torch.empty(B, k, dtype=torch.int32)
    block.finish(acts.numpy(), indices.numpy())
    assert_equal((acts, indices), reference.topk(pre_acts, k))
    code = torch.empty(B * k), torch.empty(B * k, dtype=torch.int32), torch.empty(B + 1, dtype=torch.int32)
    batch.finish(*(tensor.numpy() for tensor in code))
    assert_equal(code, reference.batch_topk(pre_acts, k))


def test_a_forked_process_encodes_on_one_thread(threads) -> None:
    """The threads of the engine are gone after a fork, as those of torch, which would itself wait for them for ever."""
    threads(2)
    x = operands(600, 16, 1500)
    want = native.encode_topk(*x, 8)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # pytest's own handler waits for Python
        signal.alarm(60)
        native.centre(x[0], x[0][0], torch.float32)  # without torch's products any number of threads will do
        torch.set_num_threads(1)
        torch.addmm(x[2], x[0], x[1].T)
        os.write(writer, b"torch multiplies")
        os._exit(not torch.equal(native.encode_topk(*x, 8)[0], want[0]))
    status = os.waitpid(child, 0)[1]
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        multiplied = pipe.read()
    if status and not multiplied:
        pytest.skip("torch's own product did not come back in a forked process")
    assert status == 0


@pytest.mark.parametrize("n", [1, 3])
def test_the_error_of_the_first_block_is_raised(threads, n: int) -> None:
    threads(n)

    def work(start: int, end: int, scratch: native_encode.Scratch) -> None:
        if start >= 256:
            raise RuntimeError(f"block at {start}")

    for _ in range(20):
        with pytest.raises(RuntimeError, match="block at 256"):
            native_encode.for_blocks(work, 1000, 64)


def test_blocks_run_on_the_threads_of_torch(threads) -> None:
    """Threads of our own would wait for a core on which those of torch, which have just run an op, still spin."""
    threads(2)
    seen: set[int] = set()
    for _ in range(10):
        native_encode.for_blocks(lambda *_: seen.add(threading.get_native_id()), 1000)
        torch.randn(10**6).exp_()
    assert native_encode.saefast._C.openmp() and len(seen) <= 2


def test_other_formats_go_to_the_reference() -> None:
    x = operands(20, 8, 60)
    for case in (
        tuple(t.double() for t in x),
        (x[0].T.contiguous().T, *x[1:]),
        (x[0], x[1].clone().requires_grad_(), x[2]),
    ):
        assert_equal(native.encode_topk(*case, 5), reference.encode_topk(*case, 5))
    scale = torch.rand(60)
    assert_equal(native.encode_topk(*x, 5, scale), reference.encode_topk(*x, 5, scale))
