"""`split` is fp32 kept in another way: the same bits of weights and moments, and when the copies for the products differ."""

import pytest
import torch

import saefast
from saefast.storage import load_moments, load_weight, split_fp32

D, F, K, B = 24, 50, 4, 64  # 50: no power of two


def trainer(param_dtype, rows, **options):
    sae = saefast.SAE(saefast.SAEConfig(d_in=D, d_sae=F, k=K), seed=3)
    options = {"total_tokens": 30 * B, "batch_size": B, "lr": 3e-3, "dead_feature_threshold": 2 * B} | options
    options |= {"backend": "reference", "compute_dtype": "bf16", "param_dtype": param_dtype}
    made = saefast.Trainer(sae, saefast.TrainConfig(**options))
    made.initialize(rows)
    return made


@pytest.fixture(scope="module")
def rows():
    generator = torch.Generator().manual_seed(7)
    return torch.randn(30 * B, D, generator=generator) @ torch.randn(D, D, generator=generator) + 1


def same_bits(one, other):
    return torch.equal(one.view(torch.int32), other.view(torch.int32))


@pytest.mark.parametrize("state_dtype", ["fp32", "bf16", "int8"])
def test_the_same_bits_as_fp32_where_the_products_see_the_same(rows, state_dtype):
    """The copy of fp32 is rounded to even where it is just between two bf16, the high half of split away from zero. With
    the latter in both, all is the same to the last bit over 30 steps."""
    fp32, split = (trainer(kind, rows, state_dtype=state_dtype) for kind in ("fp32", "split"))
    first = split.state.exported().W_dec.clone()
    for x in rows.split(B):
        for matrix in fp32.state.weights[:2]:
            matrix.shadow.copy_(split_fp32(matrix.weight)[0])
        losses = [float(one.step(x).loss) for one in (fp32, split)]
        assert losses[0] == losses[1]
        for one, other in zip(fp32.state.weights[:2], split.state.weights[:2], strict=True):
            assert same_bits(load_weight(one), load_weight(other))
            assert all(map(torch.equal, load_moments(one), load_moments(other)))
    for one, other in zip(fp32.state.exported(), split.state.exported(), strict=True):
        assert same_bits(one, other)
    assert not torch.equal(first, split.state.exported().W_dec)


def test_their_copies_differ_only_halfway_between_two_bf16_above_an_even_one():
    """In one of 2^17 weights, by a unit in the last place of a bf16."""
    below = torch.cat([torch.arange(2**17), torch.arange(2**17) - 2**31]).to(torch.int32)
    for exponent in (0, 0x3F800000, 0x40000000, 0x7E000000):
        patterns = below + exponent
        even, away = patterns.view(torch.float32).bfloat16(), split_fp32(patterns.view(torch.float32))[0]
        differs = even.view(torch.int16) != away.view(torch.int16)
        assert torch.equal(differs, patterns & 0x1FFFF == 0x8000) and differs.sum() == 2
        assert ((away.view(torch.int16) - even.view(torch.int16))[differs] == 1).all()  # in magnitude


def test_without_that_they_train_alike(rows):
    fvu = {}
    for kind in ("fp32", "split", "split24"):
        made = trainer(kind, rows)
        fvu[kind] = [float(made.step(x).fvu) for x in rows.split(B)]
    assert fvu["split"] == pytest.approx(fvu["fp32"], rel=1e-3)
    assert fvu["split24"] == pytest.approx(fvu["fp32"], rel=1e-2)
    assert fvu["fp32"][-1] < 0.8 * fvu["fp32"][0]


@pytest.mark.parametrize("param_dtype", ["split", "split24"])
def test_the_fp32_weights_go_before_the_moments_come(rows, param_dtype, monkeypatch):
    """So that a run needs no more to begin than to go on."""
    sae = saefast.SAE(saefast.SAEConfig(d_in=D, d_sae=F, k=K), seed=3)
    before, seen = sae.W_dec.data.clone(), []
    fresh = saefast.train.prepared.State.fresh
    monkeypatch.setattr(
        saefast.train.prepared.State,
        "fresh",
        lambda params, *args: seen.append((params.W_enc.dtype, sae.W_dec.dtype)) or fresh(params, *args),
    )
    config = saefast.TrainConfig(total_tokens=B, batch_size=B, backend="reference", param_dtype=param_dtype)
    made = saefast.Trainer(sae, config)
    assert seen == [(torch.bfloat16, torch.bfloat16)]
    assert made.state.weights.dec.weight.data_ptr() == sae.W_dec.data_ptr()
    error = (made.state.exported().W_dec - before).abs()
    assert (error <= before.abs() * (2**-16 if param_dtype == "split24" else 0)).all()
