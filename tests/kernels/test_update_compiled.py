"""What the interpreter cannot show of the Triton update: the pipeline of its loads, its registers, hints for the cache."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from saefast.triton_kernels.occupancy import blocks_per_multiprocessor
from saefast.triton_kernels.update import pipeline_bytes, update_config


@pytest.mark.slow
def test_compiled_at_A() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.helpers.compiled_update"]
    root = Path(__file__).parents[2]
    run = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=True)
    found = json.loads(run.stdout)

    assert found["kernels"] == ["chunk_kernel", "_update_kernel", "_b_dec_kernel"]
    assert found["torch"] == ["sum"]  # of the squares: four launches in all

    # error rows of b_dec; entries: tokens, pairs, acts and six pieces of error and of centred; sums of windows
    default, waits, others = found["default"], found["waits"], found["others"]
    assert [loop["copies"] for loop in default["loops"]] == [6, 15, 13]
    for loop, waiting in zip(default["loops"], waits["loops"]):
        assert loop["loads"] == 0 and loop["in flight"] == [2 * loop["copies"]]  # of two iterations to come
        assert waiting == {"copies": 0, "loads": loop["copies"], "in flight": []}
    assert default["copies"] > 0 == waits["copies"]

    config = update_config(768, 2, torch.device("cpu"))
    size = config.num_warps, default["registers"], default["shared_bytes"]
    assert default["spilled_bytes"] == 0 and default["registers"] <= config.maxnreg
    assert default["shared_bytes"] <= pipeline_bytes(768, 2, config.num_warps, config.R, config.stages)
    assert config.programs == 132 * blocks_per_multiprocessor(*size)

    # weight, bf16 copy and two moments of two matrices, in six pieces; not the rows for b_dec, which are read again
    assert (others["stores that leave first"], default["stores that leave first"]) == (48, 0)
    assert waits["kept"] > 0 == others["kept"]
