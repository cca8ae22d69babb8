"""What a run needs, and what is said when there is not enough."""

import pytest
import torch

import saefast
from saefast.memory import out_of_memory_help, training_bytes

SAE = saefast.SAEConfig(d_in=4096, d_sae=2**21, k=64)


def config(**options):
    return saefast.TrainConfig(total_tokens=1, batch_size=8192, **options)


def test_bytes_add_up():
    n_weights = 2 * 4096 * 2**21
    need = training_bytes(SAE, config())
    assert need["weights"] == 6 * n_weights and need["moments"] == 8 * n_weights and need["gradients"] == 0
    assert training_bytes(SAE, config(), compute_bytes=4)["weights"] == 4 * n_weights
    assert training_bytes(SAE, config(grad_clip=1.0))["gradients"] == 4 * n_weights
    small = training_bytes(SAE, config(param_dtype="bf16", state_dtype="int8"))
    assert small["weights"] + small["moments"] == 4 * n_weights
    assert sum(small.values()) < 141e9 < sum(need.values())
    assert need["pre-activations"] == 8 * 2**30
    toy = saefast.SAEConfig(d_in=16, d_sae=100, k=4)
    assert training_bytes(toy, config())["pre-activations"] == 8192 * 100 * 2


def test_the_weights_are_what_a_state_really_takes():
    sae = saefast.SAE(saefast.SAEConfig(d_in=32, d_sae=512, k=4))
    for param_dtype in ("fp32", "split", "bf16"):
        for state_dtype in ("fp32", "bf16", "int8"):
            from saefast.state import State

            state = State.fresh(sae.params, param_dtype, state_dtype, torch.bfloat16)
            kept = {id(t): t for m in (state.weights.enc, state.weights.dec) for t in m if t is not None}
            scales = sum(
                m.scales.nbytes for m in (state.weights.enc, state.weights.dec) if m.scales is not None
            )
            need = training_bytes(sae.config, config(param_dtype=param_dtype, state_dtype=state_dtype))
            assert sum(t.nbytes for t in kept.values()) - scales == need["weights"] + need["moments"]


def test_out_of_memory_says_how_much_and_what_helps():
    with (
        pytest.raises(saefast.InputError, match=r"d_sae: 2097152 latents .* need \d{3}\.\d\d GB") as caught,
        out_of_memory_help(SAE, config(grad_clip=1.0)),
    ):
        raise torch.OutOfMemoryError("tried to allocate")
    for part in ("weights 103.08 GB", "grad_clip = None", "state_dtype = 'int8'", "param_dtype = 'split'"):
        assert part in str(caught.value)
    with (
        pytest.raises(saefast.InputError, match="less with a smaller batch_size or d_sae"),
        out_of_memory_help(SAE, config(param_dtype="bf16", state_dtype="int8")),
    ):
        raise torch.OutOfMemoryError("tried to allocate")
