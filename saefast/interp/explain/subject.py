"""What a latent does on texts of our own making: passes of the model it was found in."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

from saefast.activations.hooks import HookPoint
from saefast.activations.token_rows import TokenRows
from saefast.errors import check
from saefast.interp.places import call_kwargs
from saefast.sae import SAE

Activations = Callable[[np.ndarray, np.ndarray, int], np.ndarray]
"""(texts [n, L] int64 ids, at [n], latent) -> [n] float64: its activation on token at[i] of text i. What is behind that token is
only there to fill the row."""

TOKENS = 8192  # of a pass


def model_activations(model: nn.Module, hook: str | Sequence[str], sae: SAE) -> Activations:
    """Those of an SAE, or of the neurons (`saefast.interp.neurons.neurons`), at a hook point of a causal language model.

    Passes end at the hook point, and only the rows that are asked for are encoded.

    Raises (when it is called):
        InputError: an unknown hook point, another width than d_in, ids that are not the model's, texts that are too long.
    """
    points = [HookPoint(model, name) for name in ([hook] if isinstance(hook, str) else hook)]
    model.eval()
    reader: TokenRows | None = None

    def rows(texts: np.ndarray, at: np.ndarray) -> torch.Tensor:
        nonlocal reader
        batch = torch.from_numpy(np.ascontiguousarray(texts, np.int64))
        reader = reader or TokenRows(points, batch, call_kwargs(model))
        x = torch.cat(reader.read(batch).parts, dim=-1)
        shape, d_in = list(x.shape[2:]), sae.config.d_in
        check(
            shape == [1, d_in], f"hook: expected one row of width d_in = {d_in} for each token, got {shape}"
        )
        x = x[:, :, 0]
        return x[
            torch.arange(len(x), dtype=torch.int64, device=x.device), torch.from_numpy(at).to(x.device)
        ].to(sae.b_dec)

    @torch.no_grad()
    def activations(texts: np.ndarray, at: np.ndarray, latent: int) -> np.ndarray:
        found, each = np.zeros(len(texts)), max(1, TOKENS // max(texts.shape[1], 1))
        for first in range(0, len(texts), each):
            part = slice(first, first + each)
            top_acts, top_indices = sae.encode(rows(texts[part], np.asarray(at[part], np.int64)))
            found[part] = (top_acts * (top_indices == latent)).sum(dim=1).double().cpu().numpy()
        return found

    return activations
