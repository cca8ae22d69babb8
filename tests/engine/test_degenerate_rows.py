"""A step on rows of zeros, equal rows, ties and no active latent: loss and gradients of every architecture are those of
autograd of its formula in fp64, and nothing that a step leaves is NaN."""

import math

import pytest
import torch

import saefast
from saefast import InputError, SAEConfig, TrainConfig, reference
from saefast.backend import load_backend, unavailable
from tests.helpers.architecture_cases import CASES, gradients, oracle, set_up


def zero_rows(setup):
    setup.rows[::5] = 0


def zeros(setup):
    setup.rows.zero_()


def minus_zeros(setup):
    setup.rows.copy_(torch.full_like(setup.rows, -0.0))


def equal(setup):
    setup.rows.copy_((setup.rows[:1] * 8).round() / 8)


def constant_rows(setup):
    setup.rows.copy_(setup.rows[:, :1].expand_as(setup.rows))


def silent(setup):
    setup.trainer.sae.b_enc.data -= 30
    for name in ("threshold", "b_mag"):  # a negative threshold lets negative activations through
        if name in setup.trainer.state.extra and not setup.trainer.config.log_threshold:
            setup.trainer.state.extra[name].value.abs_()


def ties(setup):
    """Pairs of latents with the same encoder, and sums that are exact, so that the pairs are equal in any order of them."""
    sae = setup.trainer.sae
    for tensor in (sae.W_enc.data, sae.b_enc.data, sae.b_dec.data, setup.rows):
        tensor.copy_((tensor * 8).round() / 8)
    half = sae.config.d_sae // 2
    for tensor in (sae.W_enc.data, sae.b_enc.data):
        tensor[half : 2 * half] = tensor[:half]
    if sae.config.scale_by_norm:
        sae.W_dec.data[half : 2 * half] = sae.W_dec.data[:half].flip(1)
        sae.W_dec.data.copy_(sae.W_dec.data.sign() * 0.25)


KINDS = {f.__name__: f for f in (zero_rows, zeros, minus_zeros, equal, constant_rows, silent, ties)}
WITHOUT_VARIANCE = {
    "zeros",
    "minus_zeros",
    "equal",
}  # the residual has none either: AuxK's formula has no value


def cases(kind):
    for name, case in CASES.items():
        of_residual = case.train.get("auxk_scale", "residual") == "residual" and case.train.get(
            "auxk_alpha", 0
        )
        if not (of_residual and kind in WITHOUT_VARIANCE | {"silent"}):
            yield name


@pytest.mark.parametrize("backend", ["reference", "native"])
@pytest.mark.parametrize("kind,name", [(kind, name) for kind in KINDS for name in cases(kind)])
def test_loss_and_gradients_are_those_of_the_formula(kind, name, backend):
    if unavailable(backend):
        pytest.skip(unavailable(backend))
    exact = backend == "reference"
    setup = set_up(CASES[name], torch.float64 if exact else torch.float32, backend)
    KINDS[kind](setup)
    setup.trainer.state.refresh()
    loss, penalty, want = oracle(setup)
    metrics, got = gradients(setup)
    rel = 1e-9 if exact else 2e-5
    assert float(metrics.loss) == pytest.approx(float(loss), rel=rel)
    assert float(metrics.penalty) == pytest.approx(float(penalty), rel=rel, abs=1e-9)
    assert all(math.isfinite(value) for value in metrics)
    largest = max(float(grad.norm()) for grad in want.values())
    share = (
        1 if kind == "silent" else 1e-3
    )  # then W_dec's is what rounding leaves of a sum that the projection takes out
    for key, grad in want.items():
        assert (got[key] - grad).norm() <= (1e-8 if exact else 2e-5) * max(
            float(grad.norm()), share * largest
        ), key


@pytest.mark.parametrize("backend", ["reference", "native"])
@pytest.mark.parametrize("name", CASES)
def test_steps_on_any_of_them_leave_finite_weights(name, backend):
    if unavailable(backend):
        pytest.skip(unavailable(backend))
    for change in KINDS.values():
        setup = set_up(CASES[name], torch.float32, backend)
        change(setup)
        setup.trainer.state.refresh()
        for _ in range(3):
            metrics = setup.trainer.step(setup.rows, checked=True)
            assert all(math.isfinite(value) for value in metrics), change.__name__
        assert all(tensor.isfinite().all() for tensor in setup.trainer.state.tensors().values()), (
            change.__name__
        )


@pytest.mark.parametrize("backend", ["reference", "native"])
@pytest.mark.parametrize("activation", ["topk", "batch_topk", "jumprelu"])
def test_a_decoder_row_of_zeros_is_never_chosen_by_its_norm(activation, backend):
    if unavailable(backend):
        pytest.skip(unavailable(backend))
    k = None if activation == "jumprelu" else 8
    sae = saefast.SAE(SAEConfig(d_in=4, d_sae=8, k=k, activation=activation, scale_by_norm=True))
    sae.W_dec.data[3] = 0
    x = torch.randn(32, 4, generator=torch.Generator().manual_seed(1))
    config = TrainConfig(total_tokens=320, batch_size=32, lr=1e-3, unit_norm=False, backend=backend)
    trainer = saefast.Trainer(sae, config)
    for _ in range(3):
        assert all(math.isfinite(value) for value in trainer.step(x))
    sae.W_dec.data[3] = 0
    evaluated, out = saefast.evaluate(sae, x, backend), sae(x)
    assert evaluated.density[3] == 0 and math.isfinite(evaluated.fvu)
    assert out.x_hat.isfinite().all() and not (out.top_acts[out.top_indices == 3] > 0).any()


@pytest.mark.parametrize("backend", ["reference", "native"])
@pytest.mark.parametrize("n,value", [(1, 3.0), (7, 0.1), (1000, 0.1), (300, -1e4), (5, 0.0), (0, 0.0)])
def test_rows_without_variance_have_their_number_of_entries_for_it(n, value, backend):
    """Not what the rounding of their mean leaves of it, by which FVU would be a huge number."""
    if unavailable(backend):
        pytest.skip(unavailable(backend))
    x = torch.full((n, 6), value) * (1 + torch.arange(6))
    _, variance = load_backend(backend).centre(x, torch.zeros(6), torch.float32)
    assert float(variance) == float(reference.total_variance(x)) == max(1, 6 * n)
    if n:
        assert float(reference.fvu(x + 2, x)) == pytest.approx(
            float(((x + 2) - x).double().square().mean()), rel=1e-6
        )


def test_fvu_of_any_magnitude_and_precision():
    g = torch.Generator().manual_seed(5)
    x, error = torch.randn(50, 8, generator=g), torch.randn(50, 8, generator=g)
    want = float(error.double().square().sum() / (x.double() - x.double().mean(dim=0)).square().sum())
    for unit in (1e30, 1e-18, 1e-30, 1e-36):
        assert float(reference.fvu((x + error) * unit, x * unit)) == pytest.approx(want, rel=1e-4), unit
    for dtype in (torch.bfloat16, torch.float16):
        got = reference.fvu(((x + error) * 1000).to(dtype), (x * 1000).to(dtype))  # squares are above 65504
        assert got.dtype == torch.float32 and float(got) == pytest.approx(want, rel=2e-2)
    leaf = (x * 1e30).requires_grad_()
    reference.fvu(torch.zeros_like(leaf) + 1e30, leaf).backward()
    assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("value", [1e30, 1e-38, 1e-42])
def test_values_whose_squares_leave_fp32_are_refused(value):
    trainer = saefast.Trainer(
        saefast.SAE(SAEConfig(d_in=4, d_sae=8, k=2)), TrainConfig(total_tokens=64, batch_size=32)
    )
    x = torch.randn(32, 4) * value
    message = r"^x: expected the largest \|x\| between 1e-13 and 7e\+12, or 0, got .*: scale the rows$"
    for call in (trainer.step, trainer.fit):
        with pytest.raises(InputError, match=message):
            call(x)


def plain(x, **config):
    options = {"total_tokens": 640, "batch_size": 64, "lr": 1e-3} | config
    trainer = saefast.Trainer(
        saefast.SAE(SAEConfig(d_in=16, d_sae=64, k=None, activation="relu")), TrainConfig(**options)
    )
    loss = float(trainer.step(x).loss)
    return trainer.sae.W_enc.detach().clone(), trainer.sae.b_dec.detach().clone(), loss


CONTEXTS = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "inference mode": torch.inference_mode,
    "no grad": torch.no_grad,
    "meta device": lambda: torch.device("meta"),
}


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("backend", ["reference", "native"])
def test_what_a_step_runs_in_changes_no_bit(context, backend):
    if unavailable(backend):
        pytest.skip(unavailable(backend))
    x = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
    want = plain(x, backend=backend)
    with CONTEXTS[context]():
        got = plain(x, backend=backend)
        evaluated = saefast.evaluate(saefast.SAE(SAEConfig(d_in=16, d_sae=64, k=4)), x.clone(), backend)
    assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1]) and got[2] == want[2]
    assert evaluated == saefast.evaluate(saefast.SAE(SAEConfig(d_in=16, d_sae=64, k=4)), x, backend)


def test_a_trainer_made_in_inference_mode_is_refused_outside_of_it():
    with torch.inference_mode():
        sae = saefast.SAE(SAEConfig(d_in=16, d_sae=64, k=4))
    trainer = saefast.Trainer(sae, TrainConfig(total_tokens=640, batch_size=64))
    with pytest.raises(
        InputError, match=r"^sae: expected tensors that can change, got .* torch\.inference_mode\(\)$"
    ):
        trainer.step(torch.randn(64, 16))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_sae_with_16_bit_biases_is_refused(dtype):
    sae = saefast.SAE(SAEConfig(d_in=16, d_sae=64, k=4)).to(dtype)
    with pytest.raises(
        InputError, match=rf"^sae: W_enc: expected parameters of float32 .*, got {dtype}; sae\.float\(\)"
    ):
        saefast.Trainer(sae, TrainConfig(total_tokens=640))


@pytest.mark.parametrize("backend", ["reference", "native"])
@pytest.mark.parametrize("kind", ["requires grad", "parameter", "transposed", "sliced"])
def test_the_memory_and_the_graph_of_a_batch_change_no_bit(kind, backend):
    if unavailable(backend):
        pytest.skip(unavailable(backend))
    x = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
    given = {
        "requires grad": x.clone().requires_grad_(),
        "parameter": torch.nn.Parameter(x.clone()),
        "transposed": x.T.contiguous().T,
        "sliced": torch.cat([x, x], dim=1)[:, :16],
    }[kind]
    want, got = plain(x, backend=backend), plain(given, backend=backend)
    assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1]) and got[2] == want[2]


@pytest.mark.parametrize("backend", ["reference", "native"])
@pytest.mark.parametrize("d_in,d_sae,k", [(1, 1, 1), (1, 8, 8), (5, 1, 1), (5, 12, 12), (3, 7, 2)])
@pytest.mark.parametrize(
    "activation", ["topk", "batch_topk", "matryoshka", "group_max", "relu", "jumprelu", "gated"]
)
def test_the_smallest_shapes(activation, d_in, d_sae, k, backend):
    """FVU and L0 of a step are those of the SAE before it, by plain products in fp64; the weights stay finite."""
    if unavailable(backend):
        pytest.skip(unavailable(backend))
    if activation == "group_max" and d_sae % k:
        k = 1
    k = None if activation in ("relu", "jumprelu", "gated") else k
    sae = saefast.SAE(SAEConfig(d_in=d_in, d_sae=d_sae, k=k, activation=activation), seed=2)
    x = torch.randn(9, d_in, generator=torch.Generator().manual_seed(1))
    x[4] = 0
    pre = x.double() @ sae.W_enc.double().T
    if k and activation == "group_max":
        groups = pre.unflatten(1, (k, -1))
        acts = (groups.relu() * (groups == groups.amax(dim=2, keepdim=True))).flatten(1)
    elif k:
        flat = pre.flatten()[None] if activation in ("batch_topk", "matryoshka") else pre
        order = flat.argsort(dim=1, descending=True, stable=True)[:, : k * (9 if len(flat) == 1 else 1)]
        acts = (flat.relu() * torch.zeros_like(flat).scatter(1, order, 1.0)).view(9, -1)
    else:
        acts = pre * (pre > 1e-3 / trainer_scale(x)) if activation == "jumprelu" else pre.relu()
    error = acts @ sae.W_dec.double() - x
    fvu = float(error.square().sum() / (x.double() - x.double().mean(dim=0)).square().sum())
    config = TrainConfig(total_tokens=90, batch_size=9, lr=1e-3, backend=backend)
    trainer = saefast.Trainer(sae, config)
    metrics = trainer.step(x)
    assert float(metrics.fvu) == pytest.approx(fvu, rel=1e-5)
    assert float(metrics.l0) == pytest.approx(float((acts > 0).sum()) / 9)
    for _ in range(3):
        assert all(math.isfinite(value) for value in trainer.step(x))
    assert all(tensor.isfinite().all() for tensor in trainer.state.tensors().values())


def trainer_scale(x):
    """By which the thresholds of a fresh JumpReLU are divided: they are in units of rows with E||x||^2 = d_in."""
    return math.sqrt(x.shape[1] / float(x.double().square().sum(dim=1).mean()))
