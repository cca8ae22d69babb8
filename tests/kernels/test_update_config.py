"""The launch configurations of the Triton update."""

import pytest
import torch

from saefast.triton_kernels import gemm
from saefast.triton_kernels.occupancy import blocks_per_multiprocessor
from saefast.triton_kernels.update import UpdateConfig, pipeline_bytes, update_config


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("D", [1, 64, 576, 768, 1024, 2304, 4096, 5120, 8192])
@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (9, 0), (10, 0)])
def test_programs_run_at_once(
    D: int, itemsize: int, packed: bool, capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all registers and shared memory that they ask for, and no more of them would."""
    monkeypatch.setattr(gemm, "OFFLINE_CAPABILITY", capability)
    config = update_config(D, itemsize, torch.device("cpu"), packed)
    size = config.num_warps, config.maxnreg
    shared = pipeline_bytes(D, itemsize, config.num_warps, config.R, config.stages)
    blocks = blocks_per_multiprocessor(*size, shared, capability)
    assert blocks and config.programs == gemm.N_SMS * blocks
    alone = blocks_per_multiprocessor(*size, 0, capability)
    assert 8 * blocks >= 7 * alone or config.stages == 1  # loads on their way cost next to none
    more_registers = config.maxnreg + 1
    assert more_registers > 255 or alone > blocks_per_multiprocessor(size[0], more_registers, 0, capability)
    assert (24 if config.num_warps <= 4 else 32 if packed and D > 4096 else 16) * 32 * config.num_warps >= D
    if config.stages < 4:
        shared = pipeline_bytes(D, itemsize, config.num_warps, config.R, config.stages + 1)
        assert 8 * blocks_per_multiprocessor(*size, shared, capability) < 7 * alone


def test_shipped_launches() -> None:
    """Warps, registers, programs on 132 multiprocessors, rows and stages at the shapes of benchmarks/shapes.py."""
    wanted = {
        576: (1, 168, 1584, 4),
        768: (1, 168, 1452, 4),
        1024: (2, 168, 792, 4),
        2304: (4, 168, 396, 4),
        4096: (8, 128, 264, 4),
        5120: (16, 128, 132, 4),
    }
    for D, (warps, registers, programs, stages) in wanted.items():
        want = UpdateConfig(warps, registers, programs, 1, 64, stages)
        assert update_config(D, 2, torch.device("cpu")) == want
    wide = UpdateConfig(8, 255, 132, 1, 64, 4)
    assert update_config(5120, 2, torch.device("cpu"), packed=True) == wide
