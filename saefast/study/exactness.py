"""The clauses of the 2023 recipe that a figure can be given for: gradient projection, unit norm, resampling."""

from typing import NamedTuple

import torch
from torch import Tensor

from saefast.config.sae import SAEConfig
from saefast.engine.state import State
from saefast.reference import project_rows_
from saefast.sae import SAE
from saefast.storage import load_moments, load_weight
from saefast.train.resample import ENCODER_NORM, resample


class Projection(NamedTuple):
    along: float  # largest |gradient . row| / |gradient| of a decoder row after the projection
    before: float  # the same before
    norm_error: float  # largest | ||W_dec row|| - 1 | of the trained dictionary


@torch.no_grad()
def projection(sae: SAE, x: Tensor) -> Projection:
    """Of a trained SAE with unit rows, on rows x [n, d_in]: the gradient of the squared error by autograd."""
    W_dec = sae.W_dec.detach().clone().requires_grad_()
    top_acts, top_indices = sae.encode(x)
    acts = top_acts.new_zeros(len(x), len(W_dec)).scatter_add_(1, top_indices.long(), top_acts)
    with torch.enable_grad():
        (acts @ W_dec + sae.b_dec.detach() - x).square().sum().backward()
    assert W_dec.grad is not None
    gradient, rows = W_dec.grad, W_dec.detach()
    some = gradient.norm(dim=1) > 0

    def along(gradient: Tensor) -> float:
        part = (gradient.double() * rows.double()).sum(dim=1).abs()
        return float((part / gradient.double().norm(dim=1))[some].max())

    before = along(gradient)
    after = along(project_rows_(gradient.clone(), rows))
    return Projection(after, before, float((rows.double().norm(dim=1) - 1).abs().max()))


class Resampled(NamedTuple):
    """After `saefast.train.resample.resample` of a state in the middle of training; errors are the largest ones."""

    decoder_norm_error: float  # | ||W_dec row|| - 1 |
    encoder_norm_error: float  # | ||W_enc row|| / (0.2 mean norm of the live rows) - 1 |
    bias: float  # |b_enc|
    moment: float  # |Adam's moments| of what was touched
    untouched: bool  # whether everything of the live latents kept its bits
    p_value: float  # chi-square of the draws against loss^2


def resampled(seed: int = 0) -> Resampled:
    """Every clause of the procedure, on a state with numbers in every place."""
    from scipy.stats import chisquare

    generator = torch.Generator("cpu").manual_seed(seed)
    n_rows, d_in, d_sae = 16, 32, 6000
    sae = SAE(SAEConfig(d_in=d_in, d_sae=d_sae, activation="relu"), seed)
    state = State.fresh(sae.params)
    for moments in (*state.weights.enc[3:5], *state.weights.dec[3:5], *state.weights.b_enc[1:]):
        moments.fill_(1.0)
    state.weights.b_enc.value.fill_(1.0)
    dead = torch.arange(d_sae, dtype=torch.int64, device="cpu") >= 1000
    x = torch.linalg.qr(torch.randn(d_in, d_in, generator=generator, dtype=torch.float32, device="cpu"))[0]
    x = 5 * x[:n_rows]
    losses = torch.linspace(0.5, 2.0, n_rows, dtype=torch.float32, device="cpu")
    live = [tensor[~dead].clone() for tensor in _per_latent(state)]
    usual = ENCODER_NORM * float(load_weight(state.weights.enc)[~dead].double().norm(dim=1).mean())
    resample(state, x, losses, dead, generator)
    W_enc, W_dec = (load_weight(matrix)[dead].double() for matrix in state.weights[:2])
    drawn = (W_dec @ x.double().T).argmax(dim=1)
    expected = losses.double().square() / losses.double().square().sum() * int(dead.sum())
    counts = torch.bincount(drawn, minlength=n_rows).numpy()
    touched = [m[dead] for matrix in state.weights[:2] for m in load_moments(matrix)]
    touched += [m[dead] for m in state.weights.b_enc[1:]]
    return Resampled(
        float((W_dec.norm(dim=1) - 1).abs().max()),
        float((W_enc.norm(dim=1) / usual - 1).abs().max()),
        float(state.weights.b_enc.value[dead].abs().max()),
        max(float(m.abs().max()) for m in touched),
        all(torch.equal(a, b[~dead]) for a, b in zip(live, _per_latent(state), strict=True)),
        float(chisquare(counts, expected.numpy()).pvalue),
    )


def _per_latent(state: State) -> list[Tensor]:
    enc, dec, b_enc, _ = state.weights
    return [load_weight(enc), load_weight(dec), *load_moments(enc), *load_moments(dec), *b_enc]
