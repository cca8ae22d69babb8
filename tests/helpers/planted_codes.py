"""Records of planted activations: latent i is active with x[i]."""

import numpy as np
import torch

from saefast.interp.neurons import neurons
from saefast.interp.records import record
from tests.helpers.small_records import CONFIG, shards


def planted(folder, acts, contexts, left_out=0, separators=()):
    """Records of acts [m, L, F] (numpy, >= 0) on contexts [m, L]."""
    x = torch.from_numpy(np.asarray(acts, np.float32)).flatten(0, 1)
    source = shards(folder / "shards", x, torch.as_tensor(contexts), left_out)
    sae = neurons(x.shape[1])
    return record(sae, source, folder / "records", CONFIG, separators=separators)


def sparse(shape, density, seed):
    """Sparse positive numbers, a tenth of them by default."""
    generator = np.random.default_rng(seed)
    return np.where(generator.random(shape) < density, generator.random(shape) + 0.5, 0.0)
