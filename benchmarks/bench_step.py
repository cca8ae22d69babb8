"""The whole training step: plain dense PyTorch with fused Adam beside each backend, on identical work.

The first losses are compared before anything is timed. Same process, same data, same start.
"""

import pytest
import torch
from plain import PlainStep
from pytest_benchmark.fixture import BenchmarkFixture

from saefast import SAE, SAEConfig, TrainConfig, Trainer
from saefast.backend import unavailable

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = {
    "smoke": (256, 64, 512, 8),
    "demo": (1024, 576, 4608, 32),
    "smollm": (4096, 576, 9216, 32),
}  # B, D, F, K
BACKENDS = ["plain", "reference", "native", "triton"]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("backend", BACKENDS)
def bench_step(benchmark: BenchmarkFixture, backend: str, shape: str) -> None:
    if backend != "plain" and (reason := unavailable(backend)):
        pytest.skip(reason)
    B, D, F, K = SHAPES[shape]
    benchmark.group = (
        f"step {shape} B={B} d_in={D} d_sae={F} k={K} on {DEVICE}, {torch.get_num_threads()} threads"
    )
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(B, D, generator=generator) @ torch.randn(D, D, generator=generator) / D**0.5).to(DEVICE)
    sae = SAE(SAEConfig(d_in=D, d_sae=F, k=K)).to(DEVICE)
    config = TrainConfig(
        total_tokens=10**9, batch_size=B, lr=1e-3, warmup_fraction=0, normalize_input=False,
        backend="reference" if backend == "plain" else backend,
    )  # fmt: skip
    plain = PlainStep(sae.params, K, config.lr, config.betas, config.eps)
    trainer = Trainer(sae, config)
    for _ in range(3):
        torch.testing.assert_close(trainer.step(x).fvu, plain(x), rtol=1e-4, atol=0)

    def run() -> None:
        plain(x) if backend == "plain" else trainer.step(x)
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    benchmark.pedantic(run, rounds=7 if shape == "smollm" else 15, warmup_rounds=1)
    benchmark.extra_info |= (
        {"tokens_per_second": round(B / benchmark.stats.stats.median)} if benchmark.stats else {}
    )
