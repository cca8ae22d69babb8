"""What a run needs, and what is said when there is not enough."""

import sys
from itertools import product

import pytest
import torch

import saefast
from saefast.storage import Matrix, allocate
from saefast.train import memory
from saefast.train.memory import MOMENT_BYTES, WEIGHT_BYTES, memory_bytes, out_of_memory_help, training_bytes

SAE = saefast.SAEConfig(d_in=4096, d_sae=2**21, k=64)


def config(**options):
    return saefast.TrainConfig(total_tokens=1, batch_size=8192, **options)


A = 8192, 768, 24576, 32
FORMATS = list(product(WEIGHT_BYTES, MOMENT_BYTES))


@pytest.mark.parametrize("weights, moments", FORMATS)
@pytest.mark.parametrize("products", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
def test_weights_and_moments_take_what_storage_allocates(weights, moments, products):
    if weights != "fp32" and products == torch.float32:
        with pytest.raises(ValueError, match="compute_bytes 2, got 4"):
            memory_bytes(3, 24, 10, 2, param_dtype=weights, state_dtype=moments, compute_bytes=4)
        return
    matrix = allocate(torch.randn(10, 24), weights, moments, products)
    tensors = {name: t for name, t in zip(Matrix._fields, matrix) if t is not None}
    if matrix.shadow is matrix.weight:
        del tensors["shadow"]
    biases = 3 * 4 * (10 + 24)
    got = memory_bytes(
        3, 24, 10, 2, param_dtype=weights, state_dtype=moments, compute_bytes=products.itemsize
    )
    kept = got["weights"] + got["copies"] + got["moments"]
    assert kept == 2 * sum(t.nbytes for t in tensors.values()) + biases


def test_two_million_latents_fit_one_gpu():
    shape = 8192, 4096, 2097152, 64
    used = memory_bytes(*shape, param_dtype="bf16", state_dtype="int8")
    assert used["weights"] + used["moments"] == pytest.approx(4 * 2 * 4096 * 2097152, rel=1e-2)
    assert used["pre-activations"] < 10 * 2**30 < 8192 * 2097152 * 2
    assert 68e9 < sum(used.values()) < 80e9
    assert sum(memory_bytes(*shape).values()) > 141e9  # 14 bytes a weight do not


def test_memory_of_clipping_and_auxk():
    assert memory_bytes(*A, clip=True)["gradients"] == 8 * 768 * 24576
    assert memory_bytes(*A, n_dead=100)["auxk"] < memory_bytes(*A, n_dead=200)["auxk"]


def test_a_config_is_turned_into_bytes():
    n_weights = 2 * 4096 * 2**21
    need = training_bytes(SAE, config())
    assert need["copies"] == 2 * n_weights and need["gradients"] == 0
    assert training_bytes(SAE, config(grad_clip=1.0))["gradients"] == 4 * n_weights
    small = training_bytes(SAE, config(param_dtype="bf16", state_dtype="int8"))
    assert sum(small.values()) < 141e9 < sum(need.values())
    toy = training_bytes(saefast.SAEConfig(d_in=16, d_sae=128, k=4), config())
    assert toy["pre-activations"] == 8192 * (128 + 2) * 2


def test_out_of_memory_says_how_much_and_what_helps():
    with (
        pytest.raises(saefast.InputError, match=r"d_sae: 2097152 latents .* need \d{3}\.\d\d GB") as caught,
        out_of_memory_help(SAE, config(grad_clip=1.0)),
    ):
        raise torch.OutOfMemoryError("tried to allocate")
    for part in (
        "weights 68.73 GB",
        "grad_clip = None",
        "state_dtype = 'int8'",
        "param_dtype = 'split'",
        "micro_batch_size",
    ):
        assert part in str(caught.value)
    with (
        pytest.raises(saefast.InputError, match="less with a smaller batch_size or d_sae"),
        out_of_memory_help(SAE, config(param_dtype="bf16", state_dtype="int8", micro_batch_size=1024)),
    ):
        raise torch.OutOfMemoryError("tried to allocate")


def test_the_kernels_keep_as_much_as_is_counted():
    """They import nothing of saefast, so the two numbers stand twice."""
    import saefast.triton_kernels  # noqa: F401

    encode, topk = (sys.modules[f"saefast.triton_kernels.{name}"] for name in ("encode", "topk"))
    assert (encode.MAX_PRE_ACTS_BYTES, topk.GROUP) == (memory.MAX_PRE_ACTS_BYTES, memory.GROUP)
