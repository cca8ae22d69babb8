"""How far rounding alone takes two runs apart: stock runs from weights that are off by a rounding error.

Where two pre-activations (or one and its threshold) are within rounding of each other, another processor or another order
of summation chooses the other one. Adam makes of that a difference that no later step takes back: sparsify's losses
differ by 3e-5 of themselves then, those of a JumpReLU by up to 4e-2."""

import torch

SEEDS = range(12)


def nudge(module, seed, by=1e-6):
    """Multiplies each weight by a random number within `by` of 1: by default as far as rounding takes a pre-activation."""
    generator = torch.Generator().manual_seed(seed)
    for param in module.parameters():
        param.data *= 1 + by * (2 * torch.rand(param.shape, generator=generator) - 1)


def assert_within(found, nudged=None):
    """found: by what was compared, (difference between our run and the stock one, its tolerance). With `nudged`, which
    gives for a seed the same of a nudged stock run, a difference may also be three times that of the nudged run which
    differs most there. They are run only while a difference is beyond both."""
    beyond = {what: pair for what, pair in found.items() if not pair[0] <= pair[1]}  # NaN too
    by_rounding, seeds = dict.fromkeys(beyond, 0.0), iter(SEEDS if nudged else ())
    too_far = lambda: [what for what, (off, _) in beyond.items() if not off <= 3 * by_rounding[what]]
    while too_far() and (seed := next(seeds, None)) is not None:
        run = nudged(seed)
        by_rounding = {what: max(most, run[what][0]) for what, most in by_rounding.items()}
    for what in too_far():
        off, tolerance = beyond[what]
        message = f"{what}: off by {off:.2e}, tolerance {tolerance:.2e}, by rounding {by_rounding[what]:.2e}"
        raise AssertionError(message)
