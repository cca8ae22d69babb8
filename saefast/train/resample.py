"""Neuron resampling of "Towards Monosemanticity" (Bricken et al. 2023, appendix "Neuron Resampling"): dead latents
start again as inputs that the SAE explains badly.

    1. dead: not active over a number of steps                              (the caller's mask)
    2. the loss of each of many random inputs                               (the caller's; the paper takes 819,200)
    3. each input has the probability loss^2 / sum of loss^2
    4. W_dec row <- an input drawn by it, scaled to unit norm
    5. W_enc row <- the same direction, 0.2 times as long as a live row of W_enc is on average; b_enc <- 0
    6. Adam's moments of every number that was touched <- 0

Each dead latent draws for itself, so two of them can draw the same input: the paper draws "for each dead neuron" and
says nothing of leaving out what was drawn. It also says "the input vector", not the input less b_dec: whoever wants the
latter gives x - b_dec. The paper does it at steps 25k, 50k, 75k and 100k of a million, for a ReLU SAE. Under top-k a row
of 0.2 times the usual length seldom gets among the k largest: use AuxK there.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from saefast.engine.state import State
from saefast.errors import check
from saefast.storage import NEAREST, Matrix, load_weight, store_weight_

ENCODER_NORM = 0.2  # of the mean norm of the live rows
ROWS_AT_ONCE = 2**12
MOST_INPUTS = 2**24  # torch.multinomial takes no more


@torch.no_grad()
def resample(state: State, x: Tensor, losses: Tensor, dead: Tensor, generator: torch.Generator) -> int:
    """Replace the dead latents of `state` in place, which keeps its tensors; those of the others keep their bits.

    Args:
        x: [n, d_in], on any device.
        losses: [n] >= 0, of each row, in any unit. If all are 0, every row is as likely. A row of zeros has no
            direction and is never drawn.
        dead: [F] bool. If all are dead there is no live row to measure, and the mean norm is that of all rows.
        generator: of the draw, on any device. If nothing is dead it is left as it is.

    Returns:
        The number of latents replaced. Waits for the device.

    Parameters beyond the four (`state.extra`) keep their value, say a threshold; where they are [F] their moments go.

    Raises:
        InputError: shapes or dtypes that do not fit, NaN or Inf or a negative loss, x without a row that is not 0; an
            SAE whose output is not its input, for which the paper has no rule.
    """
    enc, dec, b_enc, _ = state.weights
    F, D = enc.weight.shape
    check(x.ndim == 2 and x.shape[1] == D and len(x) > 0, f"x: expected [n > 0, {D}], got {list(x.shape)}")
    check(len(x) <= MOST_INPUTS, f"x: expected at most {MOST_INPUTS} rows, got {len(x)}")
    check(losses.shape == x.shape[:1], f"losses: expected [{len(x)}], got {list(losses.shape)}")
    got = f"{list(dead.shape)} {dead.dtype}"
    check(dead.shape == (F,) and dead.dtype == torch.bool, f"dead: expected [{F}] torch.bool, got {got}")
    width = dec.weight.shape[1]
    check(width == D, f"W_dec: expected rows of d_in = {D} for resampling, got {width}")
    latents = dead.to(enc.weight.device).nonzero().squeeze(1)
    if not len(latents):
        return 0

    drawn = torch.multinomial(
        likelihood(x, losses).to(generator.device), len(latents), replacement=True, generator=generator
    ).to(x.device)
    length = ENCODER_NORM * mean_norm(enc, dead if bool(dead.all()) else ~dead)
    for numbers, inputs in zip(latents.split(ROWS_AT_ONCE), drawn.split(ROWS_AT_ONCE), strict=True):
        direction = x[inputs].double()
        direction = (direction / direction.norm(dim=1, keepdim=True)).to(b_enc.value)
        restart_(dec, numbers, direction)
        restart_(enc, numbers, direction * length)
    b_enc.value[latents] = 0
    for vector in (b_enc, *state.extra.values()):
        if vector.value.shape == (F,):
            vector.exp_avg[latents] = 0
            vector.exp_avg_sq[latents] = 0
    state.num_tokens_since_fired[latents] = 0
    return len(latents)


def likelihood(x: Tensor, losses: Tensor) -> Tensor:
    """[n, D], [n] -> [n] fp64, proportional to the probability of each row."""
    norms = torch.cat([rows.double().norm(dim=1) for rows in x.split(ROWS_AT_ONCE)])
    check(bool(norms.isfinite().all()), "x: expected finite values, got NaN or Inf")
    usable = (losses >= 0) & losses.isfinite()
    check(bool(usable.all()), "losses: expected finite numbers of 0 or more, got a negative one, NaN or Inf")
    check(bool(norms.any()), "x: expected a row that is not zero, got only zeros")
    likely = losses.to(x.device, torch.float64).masked_fill(norms == 0, 0)
    return torch.where(likely.any(), likely.square(), (norms > 0).double())


def mean_norm(matrix: Matrix, among: Tensor) -> float:
    """Mean norm of the rows of the weight where among [F] is true; a few rows at a time, in fp64."""
    total = 0.0
    for part, listed in zip(parts(matrix), among.split(ROWS_AT_ONCE), strict=True):
        norms = load_weight(part).norm(dim=1, dtype=torch.float64)
        total += float(norms[listed.to(norms.device)].sum())
    return total / int(among.sum())


def parts(matrix: Matrix) -> Iterator[Matrix]:
    """Views of a few rows each."""
    for start in range(0, len(matrix.weight), ROWS_AT_ONCE):
        yield _rows(matrix, slice(start, start + ROWS_AT_ONCE))


def restart_(matrix: Matrix, latents: Tensor, value: Tensor) -> None:
    """Set these rows of the weight, in every form it is kept in, to `value` and their moments to 0."""
    part = _rows(matrix, latents)  # copies
    nearest = torch.tensor(NEAREST, dtype=torch.int64, device=value.device)  # for nothing adds up here
    store_weight_(part, value, nearest)
    for whole, rows in zip(matrix[:3], part[:3], strict=True):  # weight, low, shadow
        if whole is not None and rows is not None:
            whole[latents] = rows
    for moment in matrix[3:]:
        if moment is not None:
            moment[latents] = 0


def _rows(matrix: Matrix, rows: Tensor | slice) -> Matrix:
    return Matrix(*(None if tensor is None else tensor[rows] for tensor in matrix))  # type: ignore[arg-type]
