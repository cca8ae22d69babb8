"""The moving average against its sum written out in fp64, in every format of the weights."""

import pytest
import torch

from saefast import storage
from saefast.errors import InputError
from saefast.files import load_tensors, save_tensors
from saefast.train import ema
from saefast.train.ema import Ema, held_at

F, D, DECAY = 23, 9, 0.9


def params_at(step, dtype=torch.float32):
    generator = torch.Generator().manual_seed(step)
    rand = lambda *shape: torch.randn(*shape, generator=generator)
    W_dec = torch.nn.functional.normalize(rand(F, D))
    params = {"W_enc": rand(F, D), "b_enc": rand(F), "W_dec": W_dec, "b_dec": rand(D), "threshold": rand(F)}
    return {name: param.to(dtype) for name, param in params.items()}


def expected(steps, kept=lambda name, value: value.double()):
    """sum of decay^(steps - i) * p_i over its weights"""
    shares = [DECAY ** (steps - i) for i in range(1, steps + 1)]
    found = {}
    for name in params_at(0):
        terms = [s * kept(name, params_at(i)[name]) for i, s in enumerate(shares, 1)]
        found[name] = sum(terms) / sum(shares)
    return found


def assert_close(got, want, atol=1e-6):
    assert got.keys() == want.keys()
    for name, value in got.items():
        torch.testing.assert_close(
            value.double(), want[name], rtol=0, atol=atol, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("steps", [1, 2, 30])
def test_the_average_is_the_weighted_mean_of_all_steps(steps):
    average = Ema(params_at(0), DECAY)
    for step in range(1, steps + 1):
        average.update(params_at(step))
        assert average.steps == step
    assert_close(average.averaged(unit_norm=False), expected(steps))


def test_fp64_is_averaged_in_fp64():
    average = Ema(params_at(0, torch.float64), DECAY)
    for step in range(1, 8):
        average.update(params_at(step, torch.float64))
    assert_close(average.averaged(unit_norm=False), expected(7), atol=1e-15)


@pytest.mark.parametrize("param_dtype", ["fp32", "split", "split24", "bf16"])
def test_matrices_are_averaged_as_precisely_as_they_are_kept(param_dtype, monkeypatch):
    monkeypatch.setattr(ema, "ROWS_AT_ONCE", 10)

    def kept(params):
        matrices = {
            n: storage.allocate(params[n], param_dtype, "int8", torch.bfloat16) for n in ("W_enc", "W_dec")
        }
        return params | matrices

    average = Ema(kept(params_at(0)), DECAY)
    for step in range(1, 8):
        average.update(kept(params_at(step)))
    assert all(tensor.dtype == torch.float32 for tensor in average.averaged(False).values())

    def as_kept(name, value):
        matrix = storage.Matrix(*storage.narrowed(value, param_dtype), *[None] * 4)
        return (storage.load_weight(matrix) if name.startswith("W_") else value).double()

    assert_close(average.averaged(unit_norm=False), expected(7, as_kept))


def test_rows_of_w_dec_are_of_unit_norm_where_asked_and_nothing_else_changes():
    average = Ema(params_at(0), DECAY)
    for step in range(1, 8):
        average.update(params_at(step))
    free, unit = average.averaged(unit_norm=False), average.averaged(unit_norm=True)
    assert (free["W_dec"].norm(dim=1) < 0.9).all()
    torch.testing.assert_close(unit["W_dec"], torch.nn.functional.normalize(free["W_dec"]))
    assert all(torch.equal(unit[name], free[name]) for name in free if name != "W_dec")
    assert_close(average.averaged(unit_norm=False), expected(7))  # nor does looking at it


def test_a_resumed_average_has_the_same_bits(tmp_path):
    whole, first, second = (Ema(params_at(0), DECAY) for _ in range(3))
    for step in range(1, 9):
        whole.update(params_at(step))
    for step in range(1, 5):
        first.update(params_at(step))
    save_tensors(tmp_path / "file.safetensors", first.tensors(), {})
    second.load(load_tensors(tmp_path / "file.safetensors")[0])
    for step in range(5, 9):
        second.update(params_at(step))
    assert second.steps == 8
    for name, value in whole.averaged(True).items():
        assert torch.equal(second.averaged(True)[name], value), name


def test_held_at_gives_the_own_bits_back_even_after_an_error():
    params, before, values = params_at(1), params_at(1), params_at(2)
    with pytest.raises(ZeroDivisionError), held_at(params, values):
        assert all(torch.equal(params[name], values[name]) for name in params)
        raise ZeroDivisionError
    assert all(torch.equal(params[name], before[name]) for name in params)


def test_bad_input_is_named():
    for decay in (1.0, -0.1, float("nan")):
        with pytest.raises(InputError, match="ema_decay: expected a number from 0 to below 1, got"):
            Ema(params_at(0), decay)
    average = Ema(params_at(0), DECAY)
    with pytest.raises(InputError, match="ema: expected at least one step, got none"):
        average.averaged(unit_norm=True)
    average.update(params_at(1))
    tensors = average.tensors()
    for bad in (
        {k: v for k, v in tensors.items() if k != "ema.b_enc"},
        tensors | {"ema.b_enc": torch.zeros(3)},
    ):
        with pytest.raises(InputError, match=r"ema.b_enc: expected shape \[23\], got"):
            Ema(params_at(0), DECAY).load(bad)
