"""What is kept between two steps, and that rounding keeps the mean."""

import pytest
import torch

from saefast import storage
from saefast.storage import Vector, Weights, allocate


def matrix(param_dtype, state_dtype, compute_dtype=torch.bfloat16, shape=(64, 96)):
    weight = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    return weight, allocate(weight.clone(), param_dtype, state_dtype, compute_dtype)


def bits(shape, step=1):
    return storage.random_bits(torch.arange(shape[0]), shape[1], step, 0)


def test_split_keeps_every_bit():
    value = torch.randint(-(2**31), 2**31, (100_000,), generator=torch.Generator().manual_seed(0)).to(
        torch.int32
    )
    value = torch.cat([value, (value & -0x10000) | 0x8000])  # halves between two bf16
    value = value.view(torch.float32)
    value = value[value.abs() < 3e38]  # the largest bf16; NaN and Inf are no weights
    high, low = storage.split_fp32(value)
    assert torch.equal(storage.join_fp32(high, low).view(torch.int32), value.view(torch.int32))
    assert ((high.float() - value).abs() <= (value.to(torch.bfloat16).float() - value).abs()).all()


BELOW = (0, 1, 0x7F, 0x80, 0xFF, 0x100, 0x7EFF, 0x7F00, 0x7FFF, 0x8000, 0x8001, 0x80FF, 0xFF00, 0xFFFF)


@pytest.mark.parametrize("random", [0, 1, 0x7F, 0x80, 0xFF])
def test_24_bits_of_every_bf16_and_of_what_lies_at_the_borders_above_it(random):
    """All signs and exponents, so also denormals, powers of two, the largest finite ones, Inf and NaN; and carries into the
    high half, the exponent and Inf. The neighbours are those of the number as an integer, whose last 8 bits go."""
    patterns = torch.arange(2**16)[:, None] * 2**16 + torch.tensor(BELOW)
    patterns = torch.where(patterns >= 2**31, patterns - 2**32, patterns).to(torch.int32)
    value = patterns.view(torch.float32)
    high, low = storage.split_24(value, torch.tensor(random << 8))
    kept, nan = storage.join_fp32(high, low), value.isnan()
    assert low.dtype == torch.int8 and torch.equal(kept.isnan(), nan) and torch.equal(high.isnan(), nan)
    assert torch.equal(kept[value.isinf()], value[value.isinf()])
    magnitude = patterns[~nan].long() & 0x7FFFFFFF
    want = (magnitude + random) // 256 * 256
    assert torch.equal(kept.view(torch.int32)[~nan].long() & 0x7FFFFFFF, want)
    assert torch.equal(kept[~nan].signbit(), value[~nan].signbit())
    nearest = (want + 0x8000) // 0x10000  # halves away from zero
    assert torch.equal(high.view(torch.int16)[~nan].long() & 0x7FFF, nearest)
    whole = magnitude % 256 == 0
    assert torch.equal(kept[~nan][whole], value[~nan][whole])


ROUNDED = {
    "bf16": storage.to_bf16_stochastic,
    "split24": lambda value, random: storage.join_fp32(*storage.split_24(value, random)),
}


@pytest.mark.parametrize("param_dtype", ROUNDED)
@pytest.mark.parametrize("value", [1.001, -3.0004e-5, 7e8 + 64 * 10, 5e-43])
def test_stochastic_rounding_keeps_the_mean(value, param_dtype):
    many = torch.full((400, 250), value)
    rounded = ROUNDED[param_dtype](many, bits(many.shape)).double()
    assert len(rounded.unique()) == 2
    spacing = float(rounded.max() - rounded.min())
    assert abs(float(rounded.mean()) - float(many[0, 0])) < 5 * spacing / 2 / 100_000**0.5


def test_stochastic_rounding_leaves_a_bf16_alone():
    exact = torch.randn(30, 40).to(torch.bfloat16)
    assert torch.equal(storage.to_bf16_stochastic(exact.float(), bits(exact.shape)), exact)


def test_random_bits_depend_on_row_column_step_and_salt_alone():
    rows = torch.arange(50)
    base = storage.random_bits(rows, 20, 3, 0)
    assert torch.equal(base[7:9], storage.random_bits(rows[7:9], 20, 3, 0))
    for other in (storage.random_bits(rows, 20, 4, 0), storage.random_bits(rows, 20, 3, 1)):
        assert (other == base).float().mean() < 0.01
    assert base.min() >= 0 and base.max() < 2**32 and len(base.unique()) > 990
    share = torch.stack([((base >> b) & 1).float().mean() for b in range(32)])
    assert (share - 0.5).abs().max() < 0.09


def test_codes_keep_the_mean_and_have_small_steps_near_zero():
    magnitude = torch.tensor([[1e-4, 0.003, 0.2, 1.0]]).repeat(20_000, 1)
    uniform = torch.rand(magnitude.shape, generator=torch.Generator().manual_seed(0))
    codes = storage.to_codes(magnitude, torch.full((20_000,), 2.0), 127, uniform)
    values = 2 * (codes / 127).square()
    torch.testing.assert_close(values.mean(dim=0), magnitude[0], rtol=0.03, atol=0)
    assert codes.min() >= 0 and codes.max() <= 127


def test_the_bits_that_round_a_weight_to_24_are_none_of_those_that_round_its_moments():
    """Neither the same bits nor, by correlation, anything that depends on them."""
    random = bits((500, 400))
    of_weight, of_square, of_mean = random >> 8 & 0xFF, random >> 16, storage.mix(random) >> 16
    weight = torch.full((500, 400), 1 + 2.0**-17)
    _, one = storage.split_24(weight, random)
    assert torch.equal(one, storage.split_24(weight, random & 0xFF00)[1]) and len(one.unique()) == 2
    for other in (of_square, of_mean):
        both = torch.corrcoef(torch.stack([of_weight.flatten(), other.flatten()]).double())[0, 1]
        assert both.abs() < 5 / (500 * 400) ** 0.5
    assert not storage.split_24(weight, random & ~0xFF00)[1].any()  # no other bit takes part


FORMATS = ["fp32", "split", "split24", "bf16"]


@pytest.mark.parametrize("param_dtype", FORMATS)
@pytest.mark.parametrize("state_dtype", ["fp32", "bf16", "int8"])
def test_what_is_stored_is_loaded_and_takes_the_stated_bytes(param_dtype, state_dtype):
    weight, kept = matrix(param_dtype, state_dtype)
    value = weight + 0.001
    m, v = torch.randn_like(value) * 1e-3, torch.randn_like(value).square() * 1e-6
    storage.store_weight_(kept, value, bits(value.shape))
    storage.store_moments_(kept, m, v, bits(value.shape))
    loaded, (got_m, got_v) = storage.load_weight(kept), storage.load_moments(kept)
    within = {"fp32": 0, "split": 0, "split24": 2**-15, "bf16": 2**-7}[param_dtype]
    torch.testing.assert_close(loaded, value, rtol=within, atol=0)
    torch.testing.assert_close(kept.shadow.float(), value, rtol=2**-7, atol=0)
    tolerance = {"fp32": 0, "bf16": 2**-7, "int8": 0.02}[state_dtype]
    scale = m.abs().amax(dim=1, keepdim=True)
    assert ((got_m - m).abs() <= tolerance * (m.abs() if state_dtype != "int8" else scale)).all()
    assert (got_v > 0).all() or state_dtype == "bf16"
    torch.testing.assert_close(got_v.mean(), v.mean(), rtol=0.02, atol=0)

    parts = {id(t): t for t in kept if t is not None and t is not kept.scales}
    per_parameter = sum(t.nbytes for t in parts.values()) / value.numel()
    copy = 2 if param_dtype == "fp32" else 0
    want = {"fp32": 4, "split": 4, "split24": 3, "bf16": 2}[param_dtype] + copy
    assert per_parameter == want + {"fp32": 8, "bf16": 4, "int8": 2}[state_dtype]


@pytest.mark.parametrize("steps", [500, pytest.param(2000, marks=pytest.mark.slow)])
def test_a_decaying_average_reaches_zero_in_every_format(steps):
    """With rounding to nearest, 0.999 of a bf16 is that bf16 again and old gradients would count for ever."""
    for state_dtype in ("fp32", "bf16", "int8"):
        _, kept = matrix("fp32", state_dtype)
        start = torch.full(kept.weight.shape, 1e-6)
        storage.store_moments_(kept, start, start, bits(start.shape))
        for step in range(steps):
            m, v = storage.load_moments(kept)
            storage.store_moments_(kept, m * 0.9, v * 0.999, bits(start.shape, step))
        _, v = storage.load_moments(kept)
        torch.testing.assert_close(float(v.mean()), 1e-6 * 0.999**steps, rtol=0.15, atol=0)


def test_two_million_latents_of_width_4096_fit_into_141_gb():
    """By the bytes of the tensors themselves, which live on the meta device."""
    F, D = 2**21, 4096

    def total(param_dtype, state_dtype):
        weight = torch.empty(F, D, device="meta")
        matrices = [allocate(weight, param_dtype, state_dtype, torch.bfloat16) for _ in range(2)]
        vectors = [Vector(*torch.empty(3, n, device="meta")) for n in (F, D)]
        parts = [t for part in Weights(*matrices, *vectors) for t in part if t is not None]
        return sum(t.nbytes for t in {id(t): t for t in parts}.values()) / 1e9

    batch = 8192 * D * 20 / 1e9 + 8.6  # x, centred, error, and 8 GiB of pre-activations at a time
    assert total("bf16", "int8") + batch < 80
    assert total("bf16", "bf16") + batch < 115
    assert total("split", "int8") + batch < 115
    assert total("split24", "int8") + batch < 98
    assert total("fp32", "fp32") > 141


@pytest.mark.parametrize("param_dtype", FORMATS)
def test_a_weight_is_narrowed_block_by_block_as_at_once_and_from_bf16_in_place(param_dtype):
    value = torch.randn(64, 96, generator=torch.Generator().manual_seed(1))
    parts, whole = storage.narrowed(value, param_dtype, 10), storage.narrowed(value, param_dtype)
    assert all(a is b if b is None else torch.equal(a, b) for a, b in zip(parts, whole))
    assert (whole[0] is value) == (param_dtype == "fp32") and (whole[1] is not None) == (
        param_dtype in storage.LOW
    )
    if param_dtype in storage.LOW:  # to nearest
        error = (storage.join_fp32(*whole) - value).abs()
        assert (error <= value.abs() * (2**-16 if param_dtype == "split24" else 0)).all()
    if param_dtype != "fp32":
        weight, low = storage.narrowed(half := value.bfloat16(), param_dtype)
        assert weight is half and (low is None or not low.any())


def test_updates_far_below_a_bf16_move_24_bits_on_the_mean_as_they_move_fp32():
    """2000 updates of 2^-16 of a bf16's unit in the last place, 2^-8 of that of 24 bits: rounded to the nearest, each would be
    lost."""
    shape, steps, update = (32, 64), 2000, 2.0**-23
    means = {}
    for param_dtype in ("fp32", "split", "split24"):
        kept = allocate(torch.full(shape, 1.5), param_dtype, "fp32", torch.bfloat16)
        for step in range(steps):
            storage.store_weight_(kept, storage.load_weight(kept) + update, bits(shape, step))
        means[param_dtype] = float(storage.load_weight(kept).double().mean()) - 1.5
    nearest = torch.tensor(storage.NEAREST)
    assert storage.join_fp32(*storage.split_24(torch.tensor([1.5 + update]), nearest)).item() == 1.5
    moved = steps * update
    assert means["fp32"] == means["split"] == moved
    unit = 2.0**-15  # of 24 bits at 1.5; each of the 2048 weights moves by binomial(2000, 2^-8) of them
    error = 5 * unit * (steps * 2**-8) ** 0.5 / 2048**0.5
    assert abs(means["split24"] - moved) < error < 0.1 * moved


@pytest.mark.parametrize("param_dtype", FORMATS)
def test_rows_are_scaled_block_by_block_as_at_once(param_dtype):
    weight, kept = matrix(param_dtype, "fp32")
    storage.scale_rows_(kept, 0.3, rows_at_once=10)
    _, whole = matrix(param_dtype, "fp32")
    storage.scale_rows_(whole, 0.3)
    assert torch.equal(storage.load_weight(kept), storage.load_weight(whole))
    torch.testing.assert_close(storage.load_weight(kept), weight * 0.3, rtol=2**-6, atol=0)
    assert torch.equal(kept.shadow, kept.weight.to(torch.bfloat16))
