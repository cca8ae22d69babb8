"""The cost model against the design's table, arithmetic by hand, and the bytes that storage really takes."""

import json
from itertools import product

import pytest

from benchmarks import roofline
from benchmarks.roofline import CASES, DEVICES, Device, floor_ms, stages

A, B, C = CASES.values()
H200 = DEVICES["H200"]
FORMATS = list(product(roofline.WEIGHT_BYTES, roofline.MOMENT_BYTES))


def stage(name, shape, **options):
    return {s.name: s for s in stages(*shape, **options)}[name]


def step_ms(shape, **options):
    return floor_ms(stages(*shape, **options), H200)[1]


@pytest.mark.parametrize("shape, design", [(A, 0.75), (B, 6.7), (C, 38)], ids="ABC")
def test_floor_is_the_designs(shape, design):
    assert step_ms(shape) == pytest.approx(design, rel=0.03)


@pytest.mark.parametrize("shape, design", [(B, 5.5), (C, 29)], ids="BC")
def test_floor_with_the_smallest_storage_is_the_designs(shape, design):
    """Not A: its 0.67 ms save 0.08 of 0.75, where 36 of 52 bytes a weight make 0.16."""
    assert step_ms(shape, param_dtype="bf16", state_dtype="int8") == pytest.approx(design, rel=0.03)


@pytest.mark.parametrize("shape, clip, dead", [(A, 0.07, 0.33), (B, 0.56, 0.98), (C, 2.5, 1.7)], ids="ABC")
def test_extras_cost_what_the_design_says(shape, clip, dead):
    """But for C's clip: 4Nd + 2P bytes, the design's formula, take 2.5 ms; its table leaves out 2P and says 2.0."""
    assert step_ms(shape, clip=True) - step_ms(shape) == pytest.approx(clip, rel=0.05)
    assert step_ms(shape, n_dead=4096) - step_ms(shape) == pytest.approx(dead, rel=0.05)


def test_encoder_by_hand():
    """B is bound by its 2 * 8192 * 65536 * 2304 FLOPs; one token by reading W_enc, 65536 rows of 4608 bytes."""
    assert stage("encode", B).flops == 2473901162496
    assert floor_ms([stage("encode", B)], H200)[1] == pytest.approx(2473.901162496 / 790)
    one_token = stage("encode", (1, *B[1:]))
    assert one_token.bytes == 301989888 + 4608 + 131072
    assert floor_ms([one_token], H200)[1] == pytest.approx(302.125568e6 / 4.3e9)


@pytest.mark.parametrize(
    "weights, moments, per_weight",
    [
        ("fp32", "fp32", 52),
        ("split", "fp32", 48),
        ("split", "int8", 24),
        ("split24", "int8", 20),
        ("fp32", "bf16", 36),
        ("fp32", "int8", 28),
        ("bf16", "bf16", 24),
        ("bf16", "int8", 16),
    ],
)
def test_update_by_hand(weights, moments, per_weight):
    """In C each of the 8192 * 64 active entries reads a row of 8192 bytes of the error and one of the centred input,
    and 12 bytes that say where; int8 moments have four scales of 4 bytes a latent, read and written."""
    gathers = 524288 * (2 * 8192 + 12)
    scales = 262144 * 32 if moments == "int8" else 0
    want = 1073741824 * per_weight + gathers + scales
    assert stage("update", C, param_dtype=weights, state_dtype=moments).bytes == want


def test_rows_that_stay_in_l2_are_read_once():
    """A's error and centred input are 2 * 12582912 bytes, less than half of 60 MiB; without L2 each use is a read."""
    per_entry, rest = 262144 * 12, 18874368 * 52
    assert stage("update", A).bytes == 2 * 12582912 + per_entry + rest
    assert stage("update", A, l2=0).bytes == 262144 * 2 * 1536 + per_entry + rest


def test_products_in_fp32_need_no_copy():
    assert stage("update", C, compute_bytes=4).bytes == 1073741824 * 48 + 524288 * (2 * 16384 + 12)


@pytest.mark.parametrize("letter", range(4), ids=["tokens", "d_in", "d_sae", "k"])
@pytest.mark.parametrize(
    "options", [{}, {"clip": True, "n_dead": 500, "route": "cublas"}], ids=["plain", "all"]
)
def test_more_of_anything_never_costs_less(letter, options):
    shape = [512, 96, 2048, 8]
    last = stages(*shape, **options)
    for _ in range(8):
        shape[letter] *= 2
        now = stages(*shape, **options)
        assert all(new.flops >= old.flops and new.bytes >= old.bytes for new, old in zip(now, last))
        assert floor_ms(now, H200)[1] > floor_ms(last, H200)[1]
        last = now


def test_options_cost_what_they_should():
    assert step_ms(A, route="cublas") > step_ms(A)
    assert step_ms(A, input_bytes=2) < step_ms(A)
    assert step_ms(B, l2=1e9) < step_ms(B)
    times = [step_ms(B, n_dead=n) for n in (0, 1, 100, 10000)]
    assert times == sorted(set(times))
    by_format = {pair: step_ms(C, param_dtype=pair[0], state_dtype=pair[1]) for pair in FORMATS}
    assert min(by_format, key=by_format.get) == ("bf16", "int8")
    assert max(by_format, key=by_format.get) == ("fp32", "fp32")


def test_slower_device_takes_longer():
    half = Device("half", H200.bandwidth / 2, H200.flops / 2, H200.l2, H200.memory)
    assert floor_ms(stages(*B), half)[1] == pytest.approx(2 * step_ms(B))
    assert floor_ms(stages(*B), DEVICES["H100"])[1] > step_ms(B)


def test_command_line(capsys, monkeypatch, tmp_path):
    def output(arguments):
        roofline.main(arguments.split())
        return capsys.readouterr().out

    step = {
        "float32_matmul_precision": "highest",
        "A triton": {"shape": list(A), "triton": {"median_ms": 1.5}},
    }
    (tmp_path / "nvidia-h200").mkdir()
    (tmp_path / "nvidia-h200" / "gpu.json").write_text(
        json.dumps({"device": "NVIDIA H200", "parts": {"step": step}})
    )
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "recipe.json").write_text(json.dumps({"recipe": 1}))
    monkeypatch.setattr(roofline, "RESULTS", tmp_path)
    text = output("")
    assert "measured 1.5000 ms on NVIDIA H200: 50% of its floor's speed" in text
    assert text.count("measured") == 1 and text.count("tokens/s") == 3
    large = "--d-in 4096 --d-sae 2097152"
    assert "DOES NOT FIT" in output(large)
    assert "GB of 141.00 GB: fits" in output(f"{large} --param-dtype bf16 --state-dtype int8")
    text = output("--d-in 4096 --d-sae 3000000 --param-dtype split24 --state-dtype int8")
    assert "weights 73.74 GB, moments 49.22 GB" in text and "in all 132.93 GB of 141.00 GB: fits" in text
    assert "DOES NOT FIT" in output("--d-in 4096 --d-sae 3000000 --param-dtype split --state-dtype int8")
    assert "on mine" in output("--d-in 8 --d-sae 64 --k 2 --device mine --bandwidth 1e10 --flops 1e11")


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("--device mine", "give --bandwidth and --flops"),
        ("--d-in 8", "go together"),
        ("--param-dtype bf16 --compute-bytes 4", "needs --compute-bytes 2"),
    ],
)
def test_command_line_errors(arguments, message, capsys):
    with pytest.raises(SystemExit):
        roofline.main(arguments.split())
    assert message in capsys.readouterr().err
