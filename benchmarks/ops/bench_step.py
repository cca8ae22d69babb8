"""The whole TopK step on identical work: plain dense PyTorch, the best of stock ops, and each backend; and a guard.

    pytest benchmarks/ops/bench_step.py
    pytest benchmarks -k guard          only whether the CPU engine is as fast as it has to be, by ratios; always times

Everybody starts from the same weights; the FVUs of the first three steps are compared with those of fp64 before anything is
timed. Plain and stock have torch's fused Adam; "compiled" is plain with the forward, the loss and their gradients under
torch.compile. The floor is the sum of the stages in `roofline.py`. Larger shapes and peers: `benchmarks/peers/step_ratios.py`.
"""

import copy
import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks.measuring import interleaved, ratio
from benchmarks.ops.contest import DEVICE, DTYPE, OF_GPU, ON_GPU, SMOKE, Case, compiled, stages_of
from benchmarks.peers.pytorch import PlainStep, StockStep
from saefast import SAE, SAEConfig, TrainConfig, Trainer
from saefast.backend import MODULES, unavailable

DEMO = (512, 576, 4608, 32)
SHAPES = {"smoke": SMOKE} | (OF_GPU if ON_GPU else {"demo": DEMO})
ADAM = 1e-3, (0.9, 0.999), 1e-8
FVU_TOLERANCE = 5e-3 if ON_GPU else 1e-4  # relative; after an update the 16-bit products have a say in it
# Times as long as ours, generous: twice as much is measured.
GUARD = {"plain": 2.0, "stock": 1.0}
GUARD_ROUNDS, ATTEMPTS = 15, 2
CONTENDERS = ("plain", "compiled", "stock", *MODULES)
Step = Callable[[Tensor], Tensor]


def data(shape: tuple[int, int, int, int]) -> tuple[Tensor, SAE]:
    B, D, F, K = shape
    torch.manual_seed(0)
    x = torch.randn(B, D) @ torch.randn(D, D) / D**0.5
    return x.to(DEVICE), SAE(SAEConfig(d_in=D, d_sae=F, k=K)).to(DEVICE)


def make(name: str, sae: SAE, batch_size: int) -> Step | str:
    """A step from the weights of `sae`, which stay as they are; or why there is none."""
    lr, betas, eps = ADAM
    if name == "stock":
        return StockStep(sae.params, sae.config.k, lr, betas, eps)
    if name in ("plain", "compiled"):
        plain = PlainStep(sae.params, sae.config.k, lr, betas, eps)
        if name == "compiled":
            fvu = compiled(plain.fvu)
            if isinstance(fvu, str):
                return fvu
            plain.fvu = fvu
        return in_16_bits(plain) if ON_GPU else plain
    if reason := unavailable(name):
        return reason
    if name == "native" and ON_GPU:
        return "the native backend runs on the CPU"
    config = TrainConfig(
        total_tokens=10**9,
        batch_size=batch_size,
        lr=lr,
        betas=betas,
        eps=eps,
        warmup_fraction=0,
        normalize_input=False,
        backend=name,
    )
    trainer = Trainer(copy.deepcopy(sae), config)
    return lambda x: trainer.step(x).fvu


def in_16_bits(plain: Step) -> Step:
    def step(x: Tensor) -> Tensor:
        with torch.autocast(DEVICE, dtype=DTYPE):
            return plain(x)

    return step


@pytest.fixture(scope="module", params=SHAPES)
def start(request: pytest.FixtureRequest) -> tuple[Case, SAE]:
    """The case, and the weights that every contender gets a copy of."""
    shape = SHAPES[request.param]
    x, sae = data(shape)
    in_fp64 = StockStep([param.double() for param in sae.params], shape[3], *ADAM)
    exact = [float(in_fp64(x.double())) for _ in range(3)]

    def check(*fvus: Tensor) -> None:
        for i, (fvu, want) in enumerate(zip(fvus, exact, strict=True)):
            off = float(fvu) / want - 1
            assert abs(off) <= FVU_TOLERANCE, f"FVU of step {i + 1} is off by {off:.1e}, relative"

    return Case("step", shape, (x,), check, stages_of(shape), calls=len(exact)), sae


@pytest.mark.parametrize("contender", CONTENDERS)
def bench_step(contest, start: tuple[Case, SAE], contender: str) -> None:
    case, sae = start
    names = dict.fromkeys(("plain", contender))
    contest(case, {name: make(name, sae, case.shape[0]) for name in names}, contender)


def guarded_ratios() -> dict[str, list[float]]:
    """How many times as long as the CPU engine's a step of plain and of stock takes: spreads."""
    x, sae = data(DEMO)
    steps = {name: make(name, sae, DEMO[0]) for name in ("native", *GUARD)}
    fvus = {name: float(step(x)) for name, step in steps.items()}
    assert all(abs(fvu / fvus["plain"] - 1) <= FVU_TOLERANCE for fvu in fvus.values()), fvus
    seconds = interleaved(steps, itertools.repeat(x), GUARD_ROUNDS)
    return {name: ratio(seconds[name], seconds["native"]) for name in GUARD}


@pytest.mark.skipif(ON_GPU or bool(unavailable("native")), reason="of the CPU engine, built")
def bench_guard(capsys: pytest.CaptureFixture[str]) -> None:
    for attempt in range(ATTEMPTS):  # a neighbour may take one of the cores during a whole attempt
        found = guarded_ratios()
        with capsys.disabled():
            print(f"\nguard, attempt {attempt + 1}: times as long as the CPU engine's step", found)
        if all(found[name][0] >= least for name, least in GUARD.items()):
            return
    pytest.fail(f"a step of the CPU engine is too slow: {found}, expected at least {GUARD}")
