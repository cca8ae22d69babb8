"""What is no batch, no code or no target is refused by the module in one line that says what came."""

import numpy as np
import pytest
import torch

from saefast import SAE, InputError, SAEConfig

D, F = 16, 48


def make(**config):
    return SAE(SAEConfig(d_in=D, d_sae=F, k=4, **config))


REFUSED = {
    "array": (np.ones((2, D), np.float32), r"x: expected a tensor \[B, 16\], got ndarray \[2, 16\]"),
    "list": ([[1.0] * D], r"x: expected a tensor \[B, 16\], got list"),
    "nothing": (None, r"x: expected a tensor \[B, 16\], got NoneType"),
    "sparse": (
        torch.ones(2, D).to_sparse(),
        r"x: expected a tensor \[B, 16\], got torch.sparse_coo \[2, 16\]",
    ),
    "bool": (torch.ones(2, D) > 0, "x: expected dtype torch.float32, got torch.bool"),
    "complex": (torch.ones(2, D) + 0j, "x: expected dtype torch.float32, got torch.complex64"),
    "fp64": (torch.ones(2, D).double(), "x: expected dtype torch.float32, got torch.float64"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_batch_is_refused(kind):
    x, message = REFUSED[kind]
    with pytest.raises(InputError, match=f"^{message}$"):
        make()(x)


CODES = {
    "an array": (
        lambda: (np.ones((2, 3)), torch.zeros(2, 3).int()),
        r"top_acts: expected a tensor \[B, L\], got ndarray \[2, 3\]",
    ),
    "one row": (
        lambda: (torch.ones(3), torch.zeros(3).int()),
        r"top_acts: expected a tensor \[B, L\], got \[3\]",
    ),
    "floats": (
        lambda: (torch.ones(2, 3), torch.zeros(2, 3)),
        "top_indices: expected dtype torch.int32 or torch.int64, got torch.float32",
    ),
    "too large": (
        lambda: (torch.ones(2, 3), torch.full((2, 3), F)),
        "top_indices: expected 0 to d_sae - 1 = 47, got 48 to 48",
    ),
    "negative": (
        lambda: (torch.ones(2, 3), -torch.arange(6).view(2, 3)),
        "top_indices: expected 0 to d_sae - 1 = 47, got -5 to 0",
    ),
}


@pytest.mark.parametrize("kind", CODES)
def test_what_is_no_code_is_refused(kind):
    code, message = CODES[kind]
    with pytest.raises(InputError, match=f"^{message}$"):
        make().decode(*code())


def test_a_target_that_does_not_fit_is_refused():
    sae, transcoder, x = make(), make(d_out=12, pre_bias=False, skip=True), torch.ones(5, D)
    for call, message in (
        (
            lambda: sae(x, x),
            r"target: expected None, the SAE reconstructs its input \(d_out is None\), got one",
        ),
        (lambda: transcoder(x, x), r"target: expected a tensor \[B, 12\], got \[5, 16\]"),
        (lambda: transcoder(x, x[:3, :12]), "target: expected 5 rows as x, got 3"),
        (
            lambda: transcoder.decode(torch.ones(2, 1), torch.zeros(2, 1).int(), x),
            "x: expected 2 rows as top_acts, got 5",
        ),
    ):
        with pytest.raises(InputError, match=f"^{message}$"):
            call()
