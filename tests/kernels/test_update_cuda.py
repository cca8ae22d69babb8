"""The update in CUDA against `saefast.reference`: on a GPU where there is one, else the same source on the host.

On the host a bulk copy comes at the latest moment, or at once, by the dice of a seed, and until then there is NaN in its
place: waits that are missing are found, which the last test shows with faults that it plants.
"""

import math
import shutil
import sys

import pytest
import torch
from torch import Tensor

from saefast import reference, triton_kernels
from saefast.backend import load_backend
from saefast.errors import InputError
from saefast.storage import Weights
from saefast.triton_kernels import update_cuda
from saefast.triton_kernels.occupancy import LIMITS, RESERVED
from saefast.triton_kernels.update_cuda import Config, config_of, left_to_triton, shared_bytes, update_
from tests.helpers.emulated_update import FAULTS, Faulty, build
from tests.helpers.kernels import DEVICE, ON_GPU
from tests.helpers.update_cases import (
    SMALL,
    Case,
    assert_near,
    assert_same,
    case_of,
    clone,
    numbers_at,
    random,
    step_of,
    tensors,
    topk_case,
    weights_of,
)

BF16 = torch.bfloat16
FP32 = ("fp32", "fp32", BF16)
TINY = Config(blocks=3, stages=6, window=4)
FORMATS = {"fp32": FP32, "split": ("split", "fp32", BF16), "int8": ("fp32", "int8", BF16)}
FORMATS["split, int8"] = ("split", "int8", BF16)

pytestmark = pytest.mark.skipif(not ON_GPU and shutil.which("g++") is None, reason="needs g++")


def use(monkeypatch: pytest.MonkeyPatch, extension, seed: int = 1) -> None:
    monkeypatch.setattr(update_cuda, "extension", lambda: extension)
    monkeypatch.setattr(update_cuda, "stream_of", lambda device: seed)


@pytest.fixture(autouse=True)
def on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    if not ON_GPU:
        use(monkeypatch, build())
        return
    pytest.importorskip("saefast.triton_kernels._update_cuda")
    if torch.cuda.get_device_capability()[0] < 9:
        pytest.skip("needs a GPU of compute capability 9")


def check(case: Case, F: int, D: int, config: Config = TINY, steps: int = 2, format=FP32) -> Weights:
    """Steps on `case` by both -> the weights."""
    got = weights_of(F, D, format)
    want = clone(got)
    for step in range(3, 3 + steps):
        case = case._replace(numbers=torch.cat([numbers_at(step)[:10], case.numbers[10:]]))
        assert left_to_triton(got, case.centred, case.error, case.acts, case.aux, None) is None
        squared = update_(got, *case, step_of(step), config=config)
        assert_near(squared, reference.update_(want, *case, step_of(step)), "squared norm", rtol=2e-5)
        assert_same(got, want)
    return got


SHAPES = {  # B, D, F, K
    "D 8": (6, 8, 5, 2),
    "D 24": (6, 24, 5, 2),
    "D 136": (6, 136, 4, 2),  # the second four of some threads
    "D 384": (5, 384, 4, 2),  # no thread idle
    "D 400": (5, 400, 4, 2),  # two warps compute
    "D 600": (4, 600, 4, 2),
    "one latent": (6, 16, 1, 1),  # fewer latents than blocks
    "k 1": (9, 24, 7, 1),
    "k all": (5, 24, 5, 5),
    "one token": (1, 24, 4, 2),
    "many latents": (8, 8, 131, 3),  # more than a lane for each
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_matches_reference(shape: tuple[int, int, int, int]) -> None:
    _, D, F, _ = shape
    check(topk_case(*shape, dtype=BF16), F, D)


@pytest.mark.parametrize("D", [576, 2304, pytest.param(4096, marks=pytest.mark.slow)])
def test_shipped_configurations(D: int) -> None:
    config = config_of(D, torch.device(DEVICE))
    check(topk_case(4, D, 3, 2, dtype=BF16), 3, D, config if ON_GPU else Config(2, config.stages, 4), steps=1)


@pytest.mark.parametrize("D", [48, 400])
@pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS.keys())
def test_formats(format, D: int) -> None:
    check(topk_case(8, D, 5, 2, dtype=BF16), 5, D, steps=1, format=format)


def masked_case(active: Tensor, D: int, **kwargs: object) -> Case:
    """Token b is active on the latents of active[b], [B, F] bool."""
    B, F = active.shape
    indices = torch.arange(F, dtype=torch.int32, device=DEVICE).repeat(B, 1)
    acts = (random(B, F, seed=7).abs() + 0.1) * active.to(DEVICE)
    return case_of(acts, indices, F, D, dtype=BF16, **kwargs)


def hot_case(D: int, counts: list[int], B: int) -> Case:
    active = torch.stack(
        [torch.randperm(B, generator=torch.Generator().manual_seed(n)) < n for n in counts], 1
    )
    case = masked_case(active, D, l1=0.05, bias_norm=3.0)
    assert case.groups[0].diff().tolist() == counts
    return case


@pytest.mark.parametrize("D", [16, 400])
@pytest.mark.parametrize("window", [4, 5, 40])
def test_hot_latents(D: int, window: int) -> None:
    """Counts around the windows, one latent active in every token, one in none; at 40 no latent is hot, and the first has
    more entries than a warp has lanes."""
    counts = [37, 3, 4, 5, 12, 13, 0, 1, 8, 9]
    check(hot_case(D, counts, 37), len(counts), D, Config(3, 6, window))


@pytest.mark.parametrize("unit,tied", [(0.0, 1.0), (1.0, 0.0), (0.0, 0.0)])
def test_numbers(unit: float, tied: float) -> None:
    B, D, F, K = 7, 24, 5, 2
    check(topk_case(B, D, F, K, dtype=BF16, l1=0.1, bias_norm=2.0, unit=unit, tied=tied), F, D)


def test_dead_latents_decay() -> None:
    case, F, D = masked_case(torch.zeros(6, 3, dtype=torch.bool), 24), 3, 24
    before = weights_of(F, D, FP32)
    after = check(case, F, D, steps=1)
    torch.testing.assert_close(after.enc.exp_avg, 0.9 * before.enc.exp_avg)
    torch.testing.assert_close(after.dec.exp_avg_sq, 0.99 * before.dec.exp_avg_sq)


def test_no_tokens() -> None:
    F, D = 3, 24
    none = torch.zeros(0, 2, dtype=torch.int32, device=DEVICE)
    groups = torch.zeros(F + 1, dtype=torch.int32, device=DEVICE), none.flatten(), none.flatten()
    empty = random(0, D).to(BF16)
    case = Case(empty, empty, random(0, 2), none, None, groups, step_of(1) * 0.3, None, numbers_at(3))
    check(case, F, D)


def test_zero_row_of_W_dec_stays_zero() -> None:
    F, D = 3, 24
    got, case = weights_of(F, D, FP32), masked_case(torch.tensor([[True, False, True]] * 5), D)
    for tensor in (got.dec.weight, got.dec.exp_avg, got.dec.exp_avg_sq):
        tensor[1] = 0
    want = clone(got)
    update_(got, *case, step_of(3), config=TINY)
    reference.update_(want, *case, step_of(3))
    assert_same(got, want)
    assert not got.dec.weight[1].any()


def test_ragged_code() -> None:
    """With entries after the last token that must not be read."""
    B, F, D = 7, 6, 24
    acts, indices, row_offsets = reference.batch_topk(random(B, F, seed=3), 2)
    case = case_of(acts, indices, F, D, row_offsets, dtype=BF16)
    unused = acts.new_full((4,), math.nan), indices.new_full((4,), 9999)
    acts, indices = torch.cat([acts, unused[0]]), torch.cat([indices, unused[1]])
    pairs, tokens = (torch.cat([group, unused[1]]) for group in case.groups[1:])
    padded = case._replace(acts=acts, indices=indices, groups=(case.groups[0], pairs, tokens))
    got, want = weights_of(F, D, FP32), weights_of(F, D, FP32)
    reference.update_(want, *case, step_of(3))
    update_(got, *padded, step_of(3), config=TINY)
    assert_same(got, want)


@pytest.mark.parametrize("format", [FP32, FORMATS["split, int8"]], ids=["fp32", "split, int8"])
def test_nan_changes_nothing(format) -> None:
    F, D = 4, 32
    weights, case = weights_of(F, D, format), topk_case(8, D, F, 2, dtype=BF16)
    before = tensors(clone(weights))
    case = case._replace(grad_scale=torch.tensor(math.nan, device=DEVICE))
    assert update_(weights, *case, step_of(3), config=TINY).isnan()
    for name, tensor in tensors(weights).items():
        assert torch.equal(tensor, before[name]), name


def test_same_bits_whatever_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies and threads in other orders, rings of other lengths, and twice on a GPU."""
    counts, D = [11, 3, 0, 6], 400
    case, first = hot_case(D, counts, 11), None
    for seed, stages in enumerate((6, 4, 7, 9, 16)):
        if not ON_GPU:
            use(monkeypatch, build(), seed)
        weights = weights_of(len(counts), D, FP32)
        squared = update_(weights, *case, step_of(3), config=Config(2, stages, 4))
        now = tensors(weights) | {"squared": squared}
        first = first or now
        for name, tensor in now.items():
            assert torch.equal(tensor, first[name]), name


def test_the_rest_goes_to_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the kernels do not know, and what is launched with Triton's own configuration; the result is the reference's."""
    monkeypatch.setattr(update_cuda, "extension", lambda: pytest.fail("not these kernels"))
    F, D = 4, 20
    for format, dtype, config in (
        (FP32, BF16, None),
        (FP32, BF16, SMALL),
        (("bf16", "fp32", BF16), BF16, SMALL),
    ):
        got, case = weights_of(F, D, format), topk_case(8, D, F, 2, dtype=dtype)
        want = clone(got)
        update_(got, *case, step_of(3), config=config)
        reference.update_(want, *case, step_of(3))
        assert_same(got, want)
    weights, case = weights_of(4, 24, FP32), topk_case(8, 24, 4, 2, dtype=BF16)
    rows = case.centred, case.error, case.acts
    aux = reference.Aux(*([case.acts] * 5))
    assert "AuxK" in (left_to_triton(weights, *rows, aux, None) or "")
    assert "float32" in (left_to_triton(weights, case.centred.float(), *rows[1:], None, None) or "")
    assert "rows of 8" in (left_to_triton(weights_of(4, 8, FORMATS["int8"]), *rows, None, None) or "")
    bits = weights_of(4, 24, ("split24", "fp32", BF16))
    assert "int8 below bf16" in (left_to_triton(bits, *rows, None, None) or "")
    shifted = torch.zeros(8 * 24 + 1, dtype=BF16, device=DEVICE)[1:].view(8, 24)
    assert "16 bytes" in (left_to_triton(weights, shifted, *rows[1:], None, None) or "")


def test_says_that_it_is_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "saefast.triton_kernels._update_cuda", None)
    with pytest.raises(ImportError, match="not built.*nvcc"):
        update_(weights_of(4, 24, FP32), *topk_case(8, 24, 4, 2, dtype=BF16), step_of(3), config=TINY)


def test_the_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_backend("triton", DEVICE) is triton_kernels
    monkeypatch.setenv("SAEFAST_UPDATE", "cuda")
    ops = load_backend("triton", DEVICE)
    assert ops.update_ is update_ and ops.row_grads is triton_kernels.row_grads and ops.NAME == "triton"
    monkeypatch.undo()
    monkeypatch.setenv("SAEFAST_UPDATE", "cuda")
    monkeypatch.setitem(sys.modules, "saefast.triton_kernels._update_cuda", None)
    with pytest.raises(InputError, match="SAEFAST_UPDATE=cuda: .*not built"):
        load_backend("triton", DEVICE)
    monkeypatch.setenv("SAEFAST_UPDATE", "C")
    with pytest.raises(InputError, match="SAEFAST_UPDATE: expected 'triton' or 'cuda', got 'C'"):
        load_backend("triton", DEVICE)


def test_rejects_what_the_kernels_cannot_read() -> None:
    weights, case = weights_of(4, 24, FP32), topk_case(8, 24, 4, 2, dtype=BF16)
    for changed, name in (
        (case._replace(groups=(case.groups[0][:-1], *case.groups[1:])), "offsets"),
        (case._replace(error=case.error[:-1]), "error"),
        (case._replace(indices=case.indices.long()), "indices"),
        (case._replace(numbers=case.numbers[:8]), "numbers"),
    ):
        with pytest.raises(AssertionError, match=f"{name}: expected"):
            update_(weights, *changed, step_of(3), config=TINY)
    with pytest.raises(ValueError, match="window, blocks, stages"):
        update_(weights, *case, step_of(3), config=Config(3, 2, 4))


@pytest.mark.parametrize("D", [8, 64, 576, 768, 1024, 2304, 4096, 5120])
def test_config_fits_the_multiprocessor(D: int) -> None:
    config = config_of(D, torch.device("cpu"))
    per_multiprocessor = config.blocks // config_of(5120, torch.device("cpu")).blocks
    assert per_multiprocessor * (shared_bytes(D, config.stages) + RESERVED) <= LIMITS[9, 0].shared_bytes
    assert config.stages >= 8


@pytest.mark.skipif(ON_GPU, reason="on the host")
@pytest.mark.parametrize(
    "fault",
    [pytest.param(name, marks=() if "no wait" in name else pytest.mark.slow) for name in FAULTS],
)
def test_finds_planted_faults(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    D, counts, found = 400, [11, 3, 0, 6, 7], []
    case = hot_case(D, counts, 11)
    faulty = Faulty(*FAULTS[fault])
    for seed in range(4):
        use(monkeypatch, faulty, seed)
        try:
            check(case, len(counts), D, Config(2, 6, 4), steps=1)
        except (AssertionError, RuntimeError) as error:
            found.append(error)
    assert found, "the faulty kernel is as good as the right one"
    print(*found, sep="\n")
