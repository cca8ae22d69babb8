"""How far rounding alone takes two runs apart: stock runs from weights that are off by a rounding error.

Where two pre-activations (or one and its threshold) are within rounding of each other, another processor or another order
of summation chooses the other one. Adam makes of that a difference that no later step takes back: sparsify's losses
differ by 3e-5 of themselves then, those of a JumpReLU by up to 4e-2."""

import torch

SEEDS = range(12)


def nudge(module, seed):
    """Multiplies each weight by a random number within 1e-6 of 1: as far as rounding takes a pre-activation."""
    generator = torch.Generator().manual_seed(seed)
    for param in module.parameters():
        param.data *= 1 + 1e-6 * (2 * torch.rand(param.shape, generator=generator) - 1)


def assert_within(found, nudged=None):
    """found: by what was compared, (difference between our run and the stock one, its tolerance). With `nudged`, which
    gives for a seed the same of a nudged stock run, a difference may also be three times that of the nudged run which
    differs most there. They are run only if a difference is beyond its tolerance."""
    beyond = {what: pair for what, pair in found.items() if not pair[0] <= pair[1]}  # NaN too
    runs = [nudged(seed) for seed in SEEDS] if beyond and nudged else []
    for what, (off, tolerance) in beyond.items():
        by_rounding = max((run[what][0] for run in runs), default=0)
        message = f"{what}: off by {off:.2e}, tolerance {tolerance:.2e}, by rounding {by_rounding:.2e}"
        assert off <= 3 * by_rounding, message
