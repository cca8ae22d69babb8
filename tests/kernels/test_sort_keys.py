"""The keys of `saefast.triton_kernels.sort_keys`: integers in the order of the numbers, and back."""

import torch
import triton
import triton.language as tl

from saefast.triton_kernels.sort_keys import from_key, to_key
from tests.helpers.kernels import DEVICE, INF, dtypes


@triton.jit
def _round_trip_kernel(x_ptr, key_ptr, back_ptr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    key = to_key(tl.load(x_ptr + i))
    tl.store(key_ptr + i, key.to(tl.int64))
    tl.store(back_ptr + i, from_key(key, x_ptr.dtype.element_ty))


@dtypes
def test_keys_order_every_number(dtype: torch.dtype) -> None:
    """All patterns of 16 bits; of fp32 those that bf16 leaves zeros behind, and their neighbours."""
    patterns = torch.arange(-(2**15), 2**15)
    if dtype == torch.float32:
        x = torch.cat([patterns * 2**16, patterns * 2**16 + 1]).to(torch.int32).view(dtype)
    else:
        x = patterns.to(torch.int16).view(dtype)
    keys, back = torch.empty(len(x), dtype=torch.int64, device=DEVICE), torch.empty_like(x, device=DEVICE)
    _round_trip_kernel[(1,)](x.to(DEVICE), keys, back, BLOCK=len(x))
    number = torch.where(x.isnan(), INF, x.double())
    assert torch.equal(back.double().cpu(), number)
    assert torch.equal(keys.cpu().unique(return_inverse=True)[1], number.unique(return_inverse=True)[1])
    assert keys.min() > 0
