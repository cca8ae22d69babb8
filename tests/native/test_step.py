"""The C++ ops after the selection follow the specification, and their bits do not depend on the number of threads."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import saefast
from saefast import native, reference
from saefast.engine.state import State
from saefast.engine.step import train_step
from tests.helpers import dense
from tests.helpers.native_cases import CODES, assert_follows, copies, near, rows_of, step_case
from tests.helpers.native_isa import isa  # noqa: F401 (a fixture)
from tests.helpers.plan_runs import K, oracle, run, start
from tests.helpers.sparse_codes import ragged_code
from tests.helpers.steps import numbers_at, plan_of

WIDTHS = [1, 15, 16, 33, 200, 577]


@pytest.mark.parametrize("B", [1, 2, 129, 700])
@pytest.mark.parametrize("D", WIDTHS)
def test_centre(isa: str, B: int, D: int) -> None:  # noqa: F811
    x, b_dec = torch.randn(B, D) + 5, torch.randn(D)
    centred, variance = native.centre(x, b_dec, torch.float32)
    want = reference.centre(x.double(), b_dec.double(), torch.float64)
    assert torch.equal(centred, x - b_dec)
    assert float(variance) == pytest.approx(float(want[1]), rel=1e-5)
    x[0, 0] = torch.inf
    assert not native.centre(x, b_dec, torch.float32)[1].isfinite()


def test_a_batch_without_variance() -> None:
    assert float(native.centre(torch.full((3, 4), 2.0), torch.zeros(4), torch.float32)[1]) == 12


@pytest.mark.parametrize("D", WIDTHS)
@pytest.mark.parametrize("kind", CODES)
def test_decode_error(isa: str, kind: str, D: int) -> None:  # noqa: F811
    acts, indices, row_offsets = code = CODES[kind](20)
    W_dec, b_dec, x = torch.randn(20, D), torch.randn(D), torch.randn(rows_of(code), D)
    error, squares = native.decode_error(acts, indices, W_dec, b_dec, x, torch.float32, row_offsets)
    want = reference.decode_error(
        acts.double(), indices, W_dec.double(), b_dec.double(), x.double(), torch.float64, row_offsets
    )
    near(error, want[0].float(), "error")
    near(squares, want[1].float(), "squares")


@pytest.mark.parametrize("kind", CODES)
def test_group_by_latent(kind: str) -> None:
    acts, indices, row_offsets = CODES[kind](20)
    acts = torch.where(torch.rand_like(acts) < 0.3, 0.0, acts)
    got = native.group_by_latent(acts, indices, 20, row_offsets)
    want = reference.group_by_latent(acts, indices, 20, row_offsets)
    assert torch.equal(got[0], want[0])
    used = int(want[0][-1])
    assert all(torch.equal(a[:used], b[:used]) for a, b in zip(got[1:], want[1:]))


def test_group_by_latent_in_parts() -> None:
    """Of so many entries that each thread takes some of the tokens."""
    B, K, F = 4100, 25, 50
    acts, indices = torch.rand(B, K) - 0.1, torch.randint(F, (B, K), dtype=torch.int32)
    want, before = reference.group_by_latent(acts, indices, F), torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            offsets, *got = native.group_by_latent(acts, indices, F)
            assert torch.equal(offsets, want[0])
            used = int(offsets[-1])
            assert all(torch.equal(a[:used], b[:used]) for a, b in zip(got, want[1:], strict=True))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("with_aux", [False, True], ids=["", "auxk"])
@pytest.mark.parametrize("D", [1, 16, 33, 200])
@pytest.mark.parametrize("kind", CODES)
def test_update(isa: str, kind: str, D: int, with_aux: bool) -> None:  # noqa: F811
    weights, args, numbers = step_case(kind, D, with_aux, l1=0.1)
    before = copies(weights)
    squared = native.update_(weights, *args, numbers, torch.tensor(3))
    assert float(squared) == pytest.approx(assert_follows(weights, before, args, numbers), rel=1e-5)


@pytest.mark.parametrize("kind", ["fixed", "ragged", "nothing active"])
def test_the_split_form_is_the_fused_one(isa: str, kind: str) -> None:  # noqa: F811
    weights, args, numbers = step_case(kind, 33, True)
    split, step = copies(weights), torch.tensor(3)
    grads, squared = native.row_grads(split, *args, numbers)
    want, want_squared = reference.row_grads(split, *args, numbers)
    for name, one, other in zip(("W_enc", "b_enc", "W_dec", "b_dec"), grads, want):
        near(one, other, name)
    assert float(squared) == pytest.approx(float(want_squared), rel=1e-5)
    native.adam_rows_(split, grads, torch.tensor(1.0), numbers, step)
    assert float(native.update_(weights, *args, numbers, step)) == float(squared)
    for one, other in zip(weights, split):
        assert all(torch.equal(a, b) for a, b in zip(one, other) if a is not None)  # to the bit


def test_a_nan_changes_nothing() -> None:
    weights, args, numbers = step_case("fixed", 33, False)
    before, nan = copies(weights), torch.tensor(torch.nan)
    assert native.update_(weights, *args[:6], nan, None, numbers, torch.tensor(3)).isnan()
    grads, _ = native.row_grads(weights, *args, numbers)
    native.adam_rows_(weights, grads, nan, numbers, torch.tensor(3))
    for one, other in zip(weights, before):
        assert all(torch.equal(a, b) for a, b in zip(one, other) if a is not None)


@pytest.mark.parametrize(
    "activation,options",
    [
        ("batch_topk", {}),
        ("batch_topk", {"grad_clip": 1e-2}),
        ("relu", {"l1": 1e-3}),
        ("relu", {"l1": 1e-3, "dense": True}),
    ],
)
def test_whole_steps_equal_autograd_in_fp64(isa: str, x64: Tensor, activation: str, options: dict) -> None:  # noqa: F811
    options = dict(options)
    batches = [x64 * (1 + 0.01 * i) for i in range(8)]
    params = reference.Params(*(p.float() for p in start()))
    _, metrics = run(params, [x.float() for x in batches], native, activation=activation, **options)
    options.pop("dense", None)
    _, losses = oracle(start(), batches, activation, **options)
    assert [float(m.loss) for m in metrics] == pytest.approx(losses, rel=2e-4)


@pytest.mark.parametrize("options", [{}, {"grad_clip": 1e-2}], ids=["", "clip"])
def test_topk_steps_equal_autograd_in_fp64(isa: str, x64: Tensor, options: dict) -> None:  # noqa: F811
    batches = [x64 * (1 + 0.01 * i) for i in range(8)]
    leaves = [p.clone().requires_grad_() for p in start()]
    optimizer = torch.optim.Adam(leaves, lr=3e-3, betas=(0.9, 0.999), eps=1e-8)
    losses = []
    for x in batches:
        W_enc, b_enc, W_dec, b_dec = leaves
        pre_acts = (x - b_dec) @ W_enc.T + b_enc
        acts = (pre_acts * dense.topk_mask(pre_acts.detach(), K)).relu()
        loss = dense.fvu(acts @ W_dec + b_dec, x)
        optimizer.zero_grad()
        loss.backward()
        with torch.no_grad():
            W_dec.grad -= (W_dec.grad * W_dec).sum(1, keepdim=True) * W_dec
            if options:
                torch.nn.utils.clip_grad_norm_(leaves, options["grad_clip"])
            optimizer.step()
            W_dec /= W_dec.norm(dim=1, keepdim=True)
        losses.append(float(loss.detach()))
    params = reference.Params(*(p.float() for p in start()))
    _, metrics = run(params, [x.float() for x in batches], native, **options)
    assert [float(m.loss) for m in metrics] == pytest.approx(losses, rel=2e-4)


@pytest.mark.parametrize("activation", ["topk", "batch_topk", "relu"])
def test_the_number_of_threads_does_not_change_a_bit(activation: str) -> None:
    B, D, n = 700, 48, 1500
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(B, D, generator=generator) for _ in range(4)]
    sae = saefast.SAE(saefast.SAEConfig(d_in=D, d_sae=n, k=9), seed=1)
    penalty = "l1" if activation == "relu" else "none"
    plan = plan_of(9, torch.float32, D, n, activation=activation, penalty=penalty)
    results, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 7):  # more than there are cores
            torch.set_num_threads(threads)
            state = State.fresh(reference.Params(*(p.clone() for p in sae.params)))
            for x in batches:
                state.step += 1
                numbers = numbers_at(plan, state.step, B, lr=3e-3, sparsity=1e-4)
                train_step(native, state, x, plan, numbers)
            results.append([tensor.clone() for tensor in state.tensors().values()])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_fuzz_the_update(data: st.DataObject) -> None:
    """Any lengths, widths and thread counts, latents without entries and with all of them."""
    n, D = data.draw(st.integers(1, 70)), data.draw(st.integers(1, 70))
    counts = data.draw(st.lists(st.integers(0, n), min_size=1, max_size=30))
    acts, indices, row_offsets = ragged_code(counts, n, unused=data.draw(st.integers(0, 3)))
    weights, _, numbers = step_case("nothing active", D, False, n=n)
    before, B = copies(weights), len(counts)
    groups = native.group_by_latent(acts, indices, n, row_offsets)
    args = torch.randn(B, D), torch.randn(B, D), acts, indices, row_offsets, groups, torch.tensor(0.5), None
    native.update_(weights, *args, numbers, torch.tensor(3))
    assert_follows(weights, before, args, numbers)
