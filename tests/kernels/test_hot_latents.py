"""The chunks of hot latents. The update with hot latents: test_update.py."""

import pytest
import torch

from saefast.triton_kernels.hot_latents import chunk_offsets, most_chunks
from tests.helpers.update_cases import (
    random,
)


@pytest.mark.parametrize("chunk", [1, 4, 7])
def test_chunks(chunk: int) -> None:
    """Of every latent with more entries than fit one chunk, and never more than there is memory for."""
    for seed in range(20):
        counts = (random(11, seed=seed).abs() * 3 * chunk).int()
        counts[seed % 11] = chunk + 1
        offsets = torch.nn.functional.pad(counts.cumsum(0), (1, 0)).int()
        got = chunk_offsets(offsets, chunk)
        assert got.diff().tolist() == [-(-n // chunk) if n > chunk else 0 for n in counts.tolist()]
        assert got[-1] <= most_chunks(int(offsets[-1]), 11, chunk)
