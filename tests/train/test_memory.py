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


def test_three_million_latents_of_width_4096_fit_one_gpu_with_24_bit_weights():
    """No power of two. 5 bytes for each of 2 * 4096 * 3,000,000 parameters; an H200 has 141 GB and more."""
    shape = 8192, 4096, 3_000_000, 64
    used = memory_bytes(*shape, param_dtype="split24", state_dtype="int8")
    kept = used["weights"] + used["copies"] + used["moments"]
    assert kept == 5 * 2 * 4096 * 3_000_000 + 3 * 4 * (3_000_000 + 4096) + 2 * 8 * 3_000_000
    assert kept / 1e9 == pytest.approx(122.9, abs=0.1)
    assert 132e9 < sum(used.values()) < 134e9
    larger = memory_bytes(*shape, param_dtype="split", state_dtype="int8")  # 6 bytes do not
    assert sum(larger.values()) > 139 * 2**30


@pytest.mark.parametrize("param_dtype, first", [("fp32", 4), ("split", 4), ("split24", 2), ("bf16", 2)])
def test_a_run_begins_with_what_it_keeps_of_the_weights_or_less(param_dtype, first):
    assert memory.first_dtype(config(param_dtype=param_dtype)).itemsize == first <= WEIGHT_BYTES[param_dtype]


def test_memory_of_clipping_and_auxk():
    assert memory_bytes(*A, clip=True)["gradients"] == 8 * 768 * 24576
    assert memory_bytes(*A, n_dead=100)["auxk"] < memory_bytes(*A, n_dead=200)["auxk"]


SMALL = 10, 6, 128, 3  # rows, d_in, d_sae, k
WEIGHTS = 2 * 6 * 128


def test_what_a_small_step_takes_counted_by_hand():
    got = memory_bytes(*SMALL, n_dead=5, micro_batch_size=4)
    assert got == {
        "weights": 4 * WEIGHTS + 4 * (128 + 6),
        "copies": 2 * WEIGHTS,  # bf16
        "moments": 2 * 4 * WEIGHTS + 2 * 4 * (128 + 6),
        "gradients": 0,
        "counters": 8 * 128 + 8 * 128,  # two of int64
        "batch": 10 * 6 * (4 + 2 + 2)
        + 10 * 4,  # x, and in bf16 what is centred and the error; a loss per row
        "pre-activations": 2 * 10 * 128 + 2 * 10 * 128 // 64,  # and the largest of each 64
        "code and groups": 10 * 3 * (4 + 4 + 8) + 4 * 128,
        "sums of hot latents": 4 * (6 + 6 + 1),  # 30 entries: one window
        # 5 rows of both matrices and their gradients, 4 rows of pre-activations and of their gradients; slots
        "auxk": 5 * (2 * 6 * 2 + 2 * 6 * 4 + 4 * 2 + 4 * 2) + 4 * 128,
    }


def test_what_each_setting_of_a_small_step_changes():
    plain = memory_bytes(*SMALL)

    def changed(**options):
        now = memory_bytes(*SMALL, **options)
        return {name: now.get(name, 0) - size for name, size in plain.items() if now[name] != size} | {
            name: now[name] for name in now.keys() - plain.keys()
        }

    assert changed(compute_bytes=2, input_bytes=4, chunk_bytes=8 * 2**30, clip=False, n_dead=0) == {}
    assert changed(input_bytes=8) == {"batch": 4 * 10 * 6}
    assert changed(chunk_bytes=1000) == {"pre-activations": 1000 - 2 * 10 * 128}
    assert changed(clip=True) == {"gradients": 4 * WEIGHTS}
    rounds = {"copies": -2 * WEIGHTS, "weights": -2 * WEIGHTS}
    assert changed(param_dtype="bf16") == rounds
    assert changed(param_dtype="split24") == {"copies": -2 * WEIGHTS, "weights": -WEIGHTS}
    # two moments of both matrices in one byte each, with a scale for every row
    assert changed(state_dtype="int8") == {"moments": -2 * 3 * WEIGHTS + 2 * 2 * 128 * 4}
    assert changed(n_dead=5) == {"auxk": 5 * (2 * 6 * 6 + 2 * 10 * 2) + 4 * 128}
    assert changed(n_dead=5, micro_batch_size=99) == changed(n_dead=5)
    assert changed(compute_bytes=4) == {
        "copies": -2 * WEIGHTS,
        "batch": 10 * 6 * 4,
        "pre-activations": 2 * 10 * 128 + 2 * 10 * 128 // 64,
    }


@pytest.mark.parametrize("compute_bytes", [2, 4])
def test_a_step_needs_room_beside_what_is_held_already(compute_bytes):
    sae = saefast.SAEConfig(d_in=6, d_sae=139, k=3)  # 13 of them may be dead

    def free(**options):
        options = {"batch_size": 10, "micro_batch_size": 4} | options
        return memory.free_for_steps(sae, saefast.TrainConfig(total_tokens=1, **options), compute_bytes)

    batch, code = 10 * 6 * (4 + 2 * compute_bytes) + 40, 10 * 3 * 16 + 4 * 139 + 4 * 13  # one window of sums
    pre_acts = compute_bytes * 10 * 139 + compute_bytes * 10 * 139 // 64
    auxk = 13 * (2 * 6 * (compute_bytes + 4) + 2 * 4 * compute_bytes) + 4 * 139
    assert free() == batch + code + pre_acts + auxk
    assert free(auxk_alpha=0.0) == batch + code + pre_acts
    assert free(grad_clip=1.0) - free() == 2 * 6 * 139 * 4
    assert free() == free(param_dtype="fp32", state_dtype="bf16")  # moments are held


@pytest.mark.parametrize(
    "options,helps",
    [
        (
            {"grad_clip": 1.0},
            "grad_clip = None, state_dtype = 'int8', param_dtype = 'split', a micro_batch_size below ",
        ),
        ({"state_dtype": "int8", "auxk_alpha": 0.0}, "param_dtype = 'split', a smaller batch_size"),
        (
            {"param_dtype": "split", "micro_batch_size": 8},
            "state_dtype = 'int8', param_dtype = 'split24', a smaller batch",
        ),
        (
            {"param_dtype": "split24", "state_dtype": "int8", "micro_batch_size": 8},
            "param_dtype = 'bf16', a smaller batch",
        ),
        (
            {"param_dtype": "bf16", "state_dtype": "int8"},
            "a micro_batch_size below batch_size, a smaller batch_size",
        ),
    ],
)
def test_what_helps_is_what_is_not_set_yet(options, helps):
    with pytest.raises(saefast.InputError) as caught, out_of_memory_help(SAE, config(**options)):
        raise torch.OutOfMemoryError("tried to allocate")
    message, listed = str(caught.value), training_bytes(SAE, config(**options))
    assert f"; less with {helps}" in message
    assert f"need {sum(listed.values()) / 1e9:.2f} GB" in message
    assert ("gradients 68.72 GB" in message) == ("grad_clip" in options) and " 0.00 GB" not in message


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
