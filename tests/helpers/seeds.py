"""Other seeds for the tests: with SEED_SHIFT=7 in the environment, what a file of tests/ seeds with 3 is seeded with 10.

`tests/__init__.py` installs it, so that processes which a test starts draw the same numbers as the test. The seeds that
code of the package uses stay as they are. `python -m tests.gates.chance` runs the tests so.
"""

import os
import random
import sys
from pathlib import Path

TESTS = str(Path(__file__).parents[1])
SHIFT = int(os.environ.get("SEED_SHIFT", "0"))


def moved(seed):
    """The seed for a call of the function that calls this one: another one, if a file of tests/ calls that."""
    return (
        seed + SHIFT if seed is not None and sys._getframe(2).f_code.co_filename.startswith(TESTS) else seed
    )


def install():
    import numpy as np
    import torch

    seed_all, default_rng = torch.manual_seed, np.random.default_rng

    class Generator(torch.Generator):
        def manual_seed(self, seed):
            return super().manual_seed(moved(seed))

    class Random(random.Random):
        def __init__(self, seed=None):
            super().__init__(f"{seed} {SHIFT}" if isinstance(seed, str) else moved(seed))

    torch.manual_seed = lambda seed: seed_all(moved(seed))
    np.random.default_rng = lambda seed=None: default_rng(moved(seed))
    torch.Generator, random.Random = Generator, Random


def other_order(items):
    """Sort the tests anew: the files, and the tests of a file among themselves, so that its fixtures are made once."""
    draw = random.Random(SHIFT)
    files = {item.path: draw.random() for item in items}
    draw.shuffle(items)
    items.sort(key=lambda item: files[item.path])
