"""From one and the same state a step is the step in fp64 to rounding, and what checks that sees more than rounding."""

from types import SimpleNamespace

import pytest
import torch

import saefast
from saefast import reference
from saefast.backend import OPS, load_backend, unavailable
from saefast.train import schedules
from tests.helpers import dense
from tests.helpers.exact_step import SameState, exact_step, put_into, step_of, step_of_dense

B, D, F, K, LR, STEPS = 128, 48, 320, 8, 4e-3, 40
SCALE, K_AUX = 0.3, 12


def compare(ops, steps: int = STEPS) -> tuple[SameState, SameState, int]:
    """A backend and autograd, each from the states of a run of the reference; the number of steps with AuxK."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(D, D, generator=generator)
    sae = saefast.SAE(saefast.SAEConfig(d_in=D, d_sae=F, k=K))
    sae.W_enc.data[:60] *= 0.1  # to die at once
    config = saefast.TrainConfig(
        total_tokens=B * 1000,
        batch_size=B,
        lr=LR,
        warmup_fraction=0.01,
        betas=(0.9, 0.99),
        backend="reference",
        dead_feature_threshold=2 * B,
        k_aux=K_AUX,
    )
    trainer = saefast.Trainer(sae, config)
    trainer.input_scale = SCALE
    aux = config.auxk_alpha, K_AUX, config.dead_feature_threshold
    autograd = dense.Trainer(sae.params, K, LR, config.eps, config.betas, SCALE, aux=aux, fused=True)
    ours, theirs, n_aux = SameState(), SameState(), 0
    for step in range(1, steps + 1):
        x = torch.randn(B, D, generator=generator) @ mixing + 1
        state, plan, lr = trainer.state, trainer.plan(B), schedules.lr_at(config, step, F)
        numbers = trainer.numbers(plan, step, B)
        n_aux += plan.dead_capacity > K_AUX
        metrics, after, selected = step_of(ops, state, x, plan, numbers)
        ours.add(float(metrics.fvu), after, *exact_step(state, x, plan, numbers, selected))
        put_into(autograd, state, lr, SCALE)
        fvu, after, selected = step_of_dense(autograd, x)
        theirs.add(fvu, after, *exact_step(state, x, plan, numbers, selected))
        trainer.step(x, checked=True)
    return ours, theirs, n_aux


@pytest.mark.parametrize("backend", ["reference", "native"])
def test_every_step_is_as_near_to_fp64_as_autograd(backend: str) -> None:
    if unavailable(backend):
        pytest.skip(unavailable(backend))
    ours, theirs, n_aux = compare(load_backend(backend))
    assert n_aux > STEPS // 4  # also with more dead latents than k_aux
    assert ours.follows(theirs), (ours.summary(), ours.rms_over(theirs))


def wrong_error(*args, **options):
    error, squares = reference.decode_error(*args, **options)
    return error * (1 + 1e-5), squares


def wrong_loss(*args, **options):
    error, squares = reference.decode_error(*args, **options)
    return error, squares * (1 + 1e-5)


def next_best(centred, W_enc, b_enc, k, *options):
    acts, indices = reference.encode_topk(centred, W_enc, b_enc, k + 1, *options)
    kept = [*range(k - 1), k]
    return acts[:, kept], indices[:, kept]


def one_too_few(pre_acts, k, count):
    return reference.keep_topk(pre_acts, k - 1, count)


WRONG = [
    ("decode_error", wrong_error),
    ("decode_error", wrong_loss),
    ("encode_topk", next_best),
    ("keep_topk", one_too_few),
]


@pytest.mark.parametrize("op,wrong", WRONG)
def test_what_is_more_than_rounding_is_seen(op: str, wrong) -> None:
    ops = SimpleNamespace(**{name: getattr(reference, name) for name in OPS} | {op: wrong})
    ours, theirs, _ = compare(ops, steps=15)
    assert not ours.follows(theirs)
