"""The rounded copy of W_enc that the screened encoder keeps: never stale, whoever wrote the weights, and byte for byte
that of an encoder that has never seen others."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from saefast import SAE, SAEConfig, TrainConfig, Trainer, native
from saefast.native import encode as native_encode
from tests.helpers.screened import top_k

_C = pytest.importorskip("saefast._C", reason="the C++ extension saefast._C is not built")
D, F, K = 33, 330, 5  # a last vector and a last panel that are not full
PANELS = 6


def call(encoder: Any, W: Tensor, threads: int = 2) -> int:
    """Panels that it had to round."""
    x = torch.ones(7, W.shape[1])
    top_k(encoder, x, W, torch.zeros(len(W)), 2, threads)
    return encoder.rounded


def assert_as_anew(encoder: Any, W: Tensor, isa: str) -> None:
    anew = _C.ScreenedEncoder(isa)
    assert call(anew, W) == -(-len(W) // 64)
    for kept, want in zip(encoder.rounded_weights, anew.rounded_weights, strict=True):
        assert np.array_equal(kept.view(np.uint8), want.view(np.uint8))


def swap(W: Tensor, *pair: tuple[int, int]) -> None:
    (r, c), (s, d) = pair
    W[r, c], W[s, d] = W[s, d].clone(), W[r, c].clone()


def next_up(W: Tensor) -> None:
    W[70, 32] = torch.nextafter(W[70, 32], torch.tensor(9.0))


def set_to(value: float) -> Callable[[Tensor], None]:
    def change(W: Tensor) -> None:
        W[70, 3] = value

    return change


# What a user may do behind the back of torch's version counters: the panels that change, and how.
CHANGES: dict[str, tuple[int, Callable[[Tensor], object]]] = {
    "nothing": (0, lambda W: W.mul_(1)),
    "all signs": (PANELS, lambda W: W.neg_()),
    "signs of a row": (1, lambda W: W[100].neg_()),
    "signs of two numbers of a lane": (1, lambda W: W[100, 3::16].neg_()),
    "two rows of a panel": (1, lambda W: W[64:66].copy_(W[64:66].flip(0))),
    "two rows of two panels": (2, lambda W: W.__setitem__([3, 200], W[[200, 3]])),
    "two numbers of a row": (1, lambda W: swap(W, (70, 1), (70, 2))),
    "two numbers of a lane": (1, lambda W: swap(W, (70, 1), (70, 17))),
    "two numbers of a column": (1, lambda W: swap(W, (70, 1), (71, 1))),
    "one unit in the last place": (1, next_up),
    "-0 for 0": (1, set_to(-0.0)),
    "the last number": (1, lambda W: W[-1, -1].add_(1)),
    "all numbers doubled": (PANELS, lambda W: W.mul_(2)),
}


@pytest.mark.parametrize("isa", _C.isas())
@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_noticed(isa: str, change: str) -> None:
    torch.manual_seed(0)
    W, encoder = torch.randn(F, D), _C.ScreenedEncoder(isa)
    W[70, 3] = 0
    panels, make = CHANGES[change]
    assert call(encoder, W) == PANELS
    assert call(encoder, W) == 0
    make(W)
    assert call(encoder, W, threads=3) == panels
    assert_as_anew(encoder, W, isa)


def test_numbers_that_are_not_finite_come_and_go() -> None:
    torch.manual_seed(0)
    W, encoder = torch.randn(F, D), _C.ScreenedEncoder()
    x, b = torch.randn(9, D), torch.zeros(F)
    outputs = [torch.empty(9, K).numpy(), torch.empty(9, K, dtype=torch.int32).numpy()]

    def status(bias: Tensor) -> int:
        return encoder.top_k(x.numpy(), W.numpy(), bias.numpy(), K, *outputs, 1)

    fine = status(b)
    for value in (torch.nan, torch.inf, 1e20):
        kept = float(W[70, 3])
        W[70, 3] = value
        assert [status(b), status(b)] == [encoder.BAD_WEIGHTS] * 2
        W[70, 3] = kept
        assert status(b) == fine != encoder.BAD_WEIGHTS
    bias = b.clone()
    bias[300] = torch.nan
    assert [status(bias), encoder.rounded, status(b)] == [encoder.BAD_WEIGHTS, 0, fine]


def test_several_shapes_in_turn() -> None:
    """Of equal and of other widths; memory is used again."""
    torch.manual_seed(0)
    encoder = _C.ScreenedEncoder()
    for shape in [(F, D), (F, D), (F, D + 8), (F + 64, D), (64, 200), (F, D)]:
        W = torch.randn(shape)
        call(encoder, W)
        assert_as_anew(encoder, W, "auto")


def trained(config: SAEConfig, threads: int, monkeypatch: pytest.MonkeyPatch, **train: Any) -> Trainer:
    """A trainer after two steps, all of whose calls of the encoder were screened."""
    monkeypatch.setattr(native_encode, "SCREENED_ROWS", 1)
    monkeypatch.setattr(native_encode._arena, "encoder", _C.ScreenedEncoder(), raising=False)
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    sae = SAE(config)
    trainer = Trainer(sae, TrainConfig(total_tokens=10**6, batch_size=40, backend="native", lr=1e-3, **train))
    for _ in range(2):
        trainer.step(torch.randn(40, config.row_width))
    return trainer


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("train", [{}, {"grad_clip": 1.0}, {"auxk_alpha": 0.0}], ids=str)
def test_the_update_rounds_what_it_writes(
    threads: int, train: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.get_num_threads()
    try:
        trainer = trained(SAEConfig(d_in=D, d_sae=F, k=K), threads, monkeypatch, **train)
        encoder, W = native_encode._arena.encoder, trainer.sae.W_enc.data
        assert encoder.rounded == 0  # in the second step: the update of the first has done it
        assert_as_anew(encoder, W, "auto")
        assert call(encoder, W) == 0
        W[7].neg_()
        assert call(encoder, W) == 1
    finally:
        torch.set_num_threads(before)


def test_another_sae_in_between_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """One is evaluated while another trains, in the same thread and with the same encoder."""
    one = trained(SAEConfig(d_in=D, d_sae=F, k=K), 2, monkeypatch)
    alone, x = one.sae.W_enc.detach().clone(), torch.randn(40, D)
    other = SAE(SAEConfig(d_in=D, d_sae=F, k=K))
    monkeypatch.setattr(native_encode._arena, "encoder", _C.ScreenedEncoder())
    torch.manual_seed(0)
    again = Trainer(SAE(SAEConfig(d_in=D, d_sae=F, k=K)), one.config)
    for _ in range(2):
        batch = torch.randn(40, D)
        state = torch.get_rng_state()
        got = native.encode_topk(x, other.W_enc.data, other.b_enc.data, K)
        again.step(batch)
        want = native.encode_topk(x, other.W_enc.data, other.b_enc.data, K)
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
        torch.set_rng_state(state)
    assert torch.equal(again.sae.W_enc, alone)


def test_a_scaled_copy_is_not_taken_for_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_encode, "SCREENED_ROWS", 1)
    torch.manual_seed(0)
    x, W, b, scale = torch.randn(9, D), torch.randn(F, D), torch.randn(F), torch.rand(F) + 0.5
    for s in (scale, None, scale * 2, scale):
        got = native.encode_topk(x, W, b, K, s)
        monkeypatch.delattr(native_encode._arena, "encoder")
        want = native.encode_topk(x, W, b, K, s)
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
