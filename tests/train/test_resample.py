"""Every clause of "Towards Monosemanticity"'s neuron resampling, in every format a matrix is kept in."""

from types import SimpleNamespace

import pytest
import torch

from saefast import SAE, SAEConfig, reference, storage
from saefast.engine.state import State
from saefast.errors import InputError
from saefast.reference import Params
from saefast.storage import Vector
from saefast.train import resample

F, D = 37, 19
FORMATS = [
    ("fp32", "fp32", torch.float32),
    ("fp32", "fp32", torch.bfloat16),
    ("fp32", "int8", torch.bfloat16),
    ("fp32", "bf16", torch.float32),
    ("split", "fp32", torch.bfloat16),
    ("split", "int8", torch.bfloat16),
    ("split24", "fp32", torch.bfloat16),
    ("split24", "int8", torch.bfloat16),
    ("bf16", "bf16", torch.bfloat16),
    ("bf16", "int8", torch.bfloat16),
    ("bf16", "fp32", torch.bfloat16),
]


def used(param_dtype="fp32", state_dtype="fp32", compute_dtype=torch.float32, extra=()):
    """A state in the middle of training: nothing in it is zero."""
    generator = torch.Generator().manual_seed(3)
    rand = lambda *shape: torch.randn(*shape, generator=generator)
    params = Params(rand(F, D), rand(F), torch.nn.functional.normalize(rand(F, D)), rand(D))
    state = State.fresh(params, param_dtype, state_dtype, compute_dtype)
    bits = storage.random_bits(torch.arange(F), D, 1, 0)
    for matrix in (state.weights.enc, state.weights.dec):
        storage.store_moments_(matrix, rand(F, D), rand(F, D).square() + 0.1, bits)
    state.extra = {name: Vector(rand(F), rand(F), rand(F).square()) for name in extra}
    for vector in (state.weights.b_enc, state.weights.b_dec):
        vector.exp_avg.copy_(rand(len(vector.value)))
        vector.exp_avg_sq.copy_(rand(len(vector.value)).square())
    state.num_tokens_since_fired.copy_(torch.arange(F) + 100)
    state.fired.fill_(7)
    return state


def inputs(n=50, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return 30 * torch.randn(n, D, generator=generator) + 5, torch.rand(n, generator=generator)


def mask(*latents):
    return torch.zeros(F, dtype=torch.bool).index_fill_(0, torch.tensor(latents, dtype=torch.long), True)


def run(state, x, losses, dead, seed=0):
    return resample.resample(state, x, losses, dead, torch.Generator().manual_seed(seed))


def everything(state):
    found = dict(state.tensors())
    for name, matrix in (("enc", state.weights.enc), ("dec", state.weights.dec)):
        found[f"shadow.{name}"] = matrix.shadow
    for name, vector in state.extra.items():
        found |= {f"{name}.{part}": tensor for part, tensor in vector._asdict().items()}
    return found


def copies(state):
    return {name: tensor.clone() for name, tensor in everything(state).items()}


@pytest.mark.parametrize("rows_at_once", [2, 4096], ids=["rows in twos", "at once"])
@pytest.mark.parametrize("formats", FORMATS, ids=str)
def test_every_clause_in_every_format(formats, rows_at_once, monkeypatch):
    monkeypatch.setattr(resample, "ROWS_AT_ONCE", rows_at_once)
    state, (x, losses) = used(*formats, extra=("threshold", "r_mag")), inputs()
    dead = mask(0, 5, 6, 7, 20, F - 1)
    before, at = copies(state), {name: tensor.data_ptr() for name, tensor in everything(state).items()}
    live_norm = float(storage.load_weight(state.weights.enc)[~dead].double().norm(dim=1).mean())
    assert run(state, x, losses, dead) == 6
    enc, dec, b_enc, _ = state.weights

    rounding = {"fp32": 2e-7, "split": 2e-7, "split24": 2**-16, "bf16": 2**-8}[formats[0]]
    W_enc, W_dec = (storage.load_weight(matrix)[dead].double() for matrix in (enc, dec))
    unit = torch.nn.functional.normalize(x.double())
    drawn = (W_dec @ unit.T).argmax(dim=1)
    torch.testing.assert_close(W_dec, unit[drawn], rtol=rounding, atol=1e-7)  # 4.
    torch.testing.assert_close(W_enc, unit[drawn] * 0.2 * live_norm, rtol=2 * rounding, atol=1e-7)  # 5.
    if rounding < 1e-6:
        torch.testing.assert_close(W_dec.norm(dim=1), torch.ones(6).double(), rtol=0, atol=1e-6)
    assert (b_enc.value[dead] == 0).all()
    for matrix in (enc, dec):  # 6.
        m, v = storage.load_moments(matrix)
        assert (m[dead] == 0).all() and (v[dead] == 0).all() and (m[~dead] != 0).any(dim=1).all()
        assert torch.equal(matrix.shadow, matrix.weight.to(matrix.shadow.dtype))
    for vector in (b_enc, *state.extra.values()):
        assert (vector.exp_avg[dead] == 0).all() and (vector.exp_avg_sq[dead] == 0).all()
    assert (state.num_tokens_since_fired[dead] == 0).all()

    for name, tensor in everything(state).items():
        assert tensor.data_ptr() == at[name], f"{name}: a graph would read the old memory"
        whole = name.endswith(("b_dec", ".value")) or name == "fired"
        kept = slice(None) if whole else ~dead
        assert torch.equal(tensor[kept], before[name][kept]), name


def test_the_shadow_stays_the_weight_where_it_was():
    state = used()
    run(state, *inputs(), mask(1))
    assert all(matrix.shadow is matrix.weight for matrix in state.weights[:2])


def test_rows_are_drawn_by_the_square_of_their_loss():
    """Chi-square with 11 degrees of freedom, at 0.1%; the same draws refuse loss^1 and loss^3."""
    losses = torch.linspace(0.2, 1.6, 12)
    x = torch.eye(12)
    generator, counts = torch.Generator().manual_seed(0), torch.zeros(12).double()
    for _ in range(10):
        sae = SAE(SAEConfig(d_in=12, d_sae=400, k=1))
        state = State.fresh(sae.params)
        resample.resample(state, x, losses, torch.ones(400, dtype=torch.bool), generator)
        counts += state.params.W_dec.sum(dim=0)

    def chi_square(power):
        expected = 4000 * losses.double() ** power / (losses.double() ** power).sum()
        return float(((counts - expected).square() / expected).sum())

    assert counts.sum() == 4000
    assert chi_square(2) < 31.3 < min(chi_square(1), chi_square(3))


def test_latents_draw_for_themselves_and_may_draw_the_same_row():
    state, (x, losses) = used(), inputs(3)
    run(state, x, losses, mask(*range(20)))
    cosines = state.params.W_dec[:20] @ torch.nn.functional.normalize(x).T
    assert len(cosines.argmax(dim=1).unique()) == 3 and (cosines.amax(dim=1) > 0.999).all()


def test_the_seed_decides_the_draw():
    results = []
    for seed in (4, 4, 5):
        state = used()
        run(state, *inputs(), mask(2, 9, 30), seed)
        results.append(state.params.W_dec.clone())
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


def test_nothing_dead_changes_nothing():
    state, generator = used(), torch.Generator().manual_seed(0)
    before, random_state = copies(state), generator.get_state()
    assert resample.resample(state, *inputs(), mask(), generator) == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in everything(state).items())
    assert torch.equal(generator.get_state(), random_state)


def test_with_all_dead_the_mean_norm_is_that_of_all():
    state = used()
    norm = float(state.params.W_enc.norm(dim=1).mean())
    assert run(state, *inputs(), torch.ones(F, dtype=torch.bool)) == F
    torch.testing.assert_close(state.params.W_enc.norm(dim=1), torch.full((F,), 0.2 * norm))


def test_one_row_in_fp16_and_a_loss_of_zero():
    state, x = used(), torch.arange(1, D + 1).half()[None]
    assert run(state, x, torch.zeros(1), mask(3, 4)) == 2
    expected = torch.nn.functional.normalize(x.float()).expand(2, D)
    torch.testing.assert_close(state.params.W_dec[3:5], expected)


def test_equal_losses_of_zero_are_drawn_evenly_and_a_loss_of_zero_among_others_never():
    x = torch.eye(D)
    state = used()
    run(state, x, torch.zeros(D), torch.ones(F, dtype=torch.bool))
    assert len(state.params.W_dec.argmax(dim=1).unique()) > D / 2
    state, losses = used(), torch.zeros(D)
    losses[[2, 11]] = 1e-30  # its square is no fp32
    run(state, x, losses, torch.ones(F, dtype=torch.bool))
    assert set(state.params.W_dec.argmax(dim=1).tolist()) == {2, 11}


def test_a_row_of_zeros_is_never_drawn():
    state, x = used(), torch.zeros(3, D)
    x[1, 7] = 1e-40  # has a direction all the same
    run(state, x, torch.tensor([9.0, 1e-3, 9.0]), mask(0, 1))
    torch.testing.assert_close(state.params.W_dec[:2], torch.eye(D)[[7, 7]])


def test_fp64():
    params = Params(*(p.double() for p in used().params))
    state, (x, losses) = State.fresh(params), inputs()
    state.extra = {}
    run(state, x.double(), losses.double(), mask(1, 2))
    norms = state.params.W_dec[[1, 2]].norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(2).double(), rtol=0, atol=1e-15)


NAN = float("nan")
BAD = [
    (lambda a: {"x": a.x[:, :-1]}, r"x: expected \[n > 0, 19\], got \[50, 18\]"),
    (lambda a: {"x": a.x[:0], "losses": a.losses[:0]}, r"x: expected \[n > 0, 19\], got \[0, 19\]"),
    (lambda a: {"x": torch.zeros(50, D)}, "x: expected a row that is not zero, got only zeros"),
    (lambda a: {"x": a.x.index_fill(0, torch.tensor(3), NAN)}, "x: expected finite values, got NaN or Inf"),
    (lambda a: {"losses": a.losses[:-1]}, r"losses: expected \[50\], got \[49\]"),
    (lambda a: {"losses": -a.losses}, "losses: expected finite numbers of 0 or more, got a negative"),
    (lambda a: {"losses": a.losses / 0}, "losses: expected finite numbers of 0 or more, got a negative"),
    (lambda a: {"losses": a.losses * NAN}, "losses: expected finite numbers of 0 or more, got a negative"),
    (lambda a: {"dead": a.dead[1:]}, r"dead: expected \[37\] torch.bool, got \[36\] torch.bool"),
    (lambda a: {"dead": a.dead.long()}, r"dead: expected \[37\] torch.bool, got \[37\] torch.int64"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_input_is_named_and_changes_nothing(change, message):
    x, losses = inputs()
    arguments = SimpleNamespace(x=x, losses=losses, dead=mask(1, 2))
    state = used()
    before = copies(state)
    with pytest.raises(InputError, match=message):
        run(state, **(vars(arguments) | change(arguments)))
    assert all(torch.equal(tensor, before[name]) for name, tensor in everything(state).items())


def test_a_transcoder_is_refused():
    params = used().params
    wide = State.fresh(params._replace(W_dec=torch.randn(F, D + 1), b_dec=torch.zeros(D + 1)))
    with pytest.raises(InputError, match="W_dec: expected rows of d_in = 19 for resampling, got 20"):
        run(wide, *inputs(), mask(1))


def test_a_relu_sae_ends_with_fewer_dead_latents_on_the_same_data():
    def dead_at_the_end(resampled):
        generator = torch.Generator().manual_seed(0)
        truth = torch.nn.functional.normalize(torch.randn(32, D, generator=generator))
        state = State.fresh(SAE(SAEConfig(d_in=D, d_sae=64, k=4), seed=1).params)
        state.weights.b_enc.value[:24] = -100.0
        parts = [(matrix.weight, matrix.exp_avg, matrix.exp_avg_sq) for matrix in state.weights[:2]]
        parts += [tuple(vector) for vector in state.weights[2:]]  # W_enc, W_dec, b_enc, b_dec
        for step in range(1, 121):
            code = torch.rand(128, 32, generator=generator) * (torch.rand(128, 32, generator=generator) < 0.1)
            x = 3 * code @ truth
            W_enc, W_dec, b_enc, b_dec = leaves = [value.detach().requires_grad_() for value, _, _ in parts]
            acts = torch.relu((x - b_dec) @ W_enc.T + b_enc)
            losses = (acts @ W_dec + b_dec - x).square().sum(dim=1)
            grads = torch.autograd.grad(losses.mean() + 0.3 * acts.sum(dim=1).mean(), leaves)
            for (value, m, v), grad in zip(parts, grads):
                m.lerp_(grad, 0.1)
                v.lerp_(grad.square(), 0.001)
                value -= 2e-3 * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-9)
            reference.normalize_rows_(state.params.W_dec)
            state.num_tokens_since_fired += len(x)
            state.num_tokens_since_fired[(acts > 0).any(dim=0)] = 0
            if resampled and step == 60:
                run(state, x, losses.detach(), state.num_tokens_since_fired >= 2000)
        return int((state.num_tokens_since_fired >= 2000).sum())

    assert dead_at_the_end(resampled=False) >= 24
    assert dead_at_the_end(resampled=True) <= 4
