"""Every architecture on the Triton kernels: gradients and a fused step against autograd of its formula in fp64."""

import pytest
import torch

from tests.helpers.architecture_cases import CASES, gradients, leaves_of, objective, oracle, set_up
from tests.helpers.kernels import DEVICE, ON_GPU

TOKENS = 12
QUICK = ["gated-dense", "transcoder-jumprelu"]
SLOW = ["relu-april", "relu-l1", "relu-lp-norms", "crosscoder", "topk-untied", "topk-by-norm"]
SLOW += ["multi-topk", "batch-topk-by-norm"]
SLOW += ["group-max", "jumprelu", "jumprelu-dead", "jumprelu-log", "gated-norms", "skip-transcoder"]
SLOW += ["transcoder-matryoshka", "topk-auxk", "jumprelu-auxk", "transcoder-auxk", "relu-april-dense"]
SLOW += ["matryoshka-weights", "jumprelu-anthropic", "jumprelu-anthropic-dense"]
# The interpreter takes 6 s for one: `make test` has those with most kernels of their own (test_step.py has topk, batch_topk
# and relu), `make test-all` those that add to them, and a GPU runs them all.
NAMES = [
    pytest.param(name, marks=[] if name in QUICK or ON_GPU else pytest.mark.slow)
    for name in CASES
    if ON_GPU or name in QUICK + SLOW
]


@pytest.mark.parametrize("name", NAMES)
def test_gradients_and_a_fused_step(name):
    setup = set_up(CASES[name], torch.float32, "triton", TOKENS, DEVICE)
    loss, penalty, want = oracle(setup)
    metrics, got = gradients(setup)
    assert float(metrics.loss) == pytest.approx(float(loss), rel=1e-5)
    assert float(metrics.penalty) == pytest.approx(float(penalty), rel=1e-5, abs=1e-9)
    assert got.keys() == want.keys()
    for key, grad in want.items():
        assert (got[key].cpu() - grad.cpu()).norm() <= 2e-5 * grad.norm(), key

    if CASES[name].dense:
        _, in_pieces = gradients(
            set_up(CASES[name], torch.float32, "triton", TOKENS, DEVICE, micro_batch_size=5)
        )
        for key, grad in want.items():
            assert (in_pieces[key].cpu() - grad.cpu()).norm() <= 2e-5 * grad.norm(), key

    # from the same state again: the step above has counted which latents fired
    setup = set_up(CASES[name], torch.float32, "triton", TOKENS, DEVICE)
    trainer = setup.trainer
    squares = sum(
        g.square().sum() * (1 / 0.7**2 if key in setup.in_data_units else 1) for key, g in want.items()
    )
    before = leaves_of(setup)
    metrics = trainer.step(setup.rows, checked=True)
    assert float(metrics.grad_norm) == pytest.approx(float(squares.sqrt()), rel=1e-4)
    after = leaves_of(setup)
    assert all(not torch.equal(after[key], before[key]) for key in want)
    assert float(objective(setup, after)[0]) < float(loss), "the step went down"
