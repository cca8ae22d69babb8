"""The dense op that `saefast.native` has of its own, against the specification."""

import pytest
import torch

from saefast import reference

native = pytest.importorskip("saefast.native", reason="the C++ extension saefast._C is not built")


@pytest.mark.parametrize("shape", [(1, 3, 5), (70, 33, 301), (0, 4, 7), (64, 128, 1)], ids=str)
@pytest.mark.parametrize("addend", [0.0, 0.3, "each"])
def test_dense_grad_acts(shape, addend):
    B, D, F = shape
    generator = torch.Generator().manual_seed(0)
    error, W_dec = (torch.randn(n, D, generator=generator) for n in (B, F))
    acts = torch.randn(B, F, generator=generator).relu()
    addend = torch.rand(F, generator=generator) if addend == "each" else torch.tensor(addend)
    kept = acts.clone()
    got = native.dense_grad_acts(error, W_dec, acts, addend)
    want = reference.dense_grad_acts(error, W_dec, acts, addend)
    assert torch.equal(acts, kept) and torch.equal(got == 0, acts == 0)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    wide = [t.double() for t in (error, W_dec, acts, addend)]  # not fp32: the specification's
    torch.testing.assert_close(native.dense_grad_acts(*wide), reference.dense_grad_acts(*wide))
