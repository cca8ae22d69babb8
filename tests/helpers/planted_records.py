"""Records whose activations are what a test wants them to be."""

import torch

from saefast.interp.neurons import neurons
from saefast.interp.records import RecordsConfig
from tests.helpers.small_records import small_records


def planted(folder, acts, contexts, separators=(), config=None):
    """acts: [m, L, F], of as many latents as there are columns; contexts: [m, L]."""
    acts = torch.as_tensor(acts, dtype=torch.float32)
    rows = acts.reshape(-1, acts.shape[-1])
    tokens = torch.as_tensor(contexts, dtype=torch.int32)
    return small_records(folder, neurons(rows.shape[1]), tokens, rows, separators, config or RecordsConfig())
