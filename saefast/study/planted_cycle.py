"""Ground truth of the next-step graph: two planted states in turn, which have to be found and nothing else (row 30)."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from saefast.interp.automata import automata
from saefast.interp.trial import planted_records

CONTEXTS, LENGTH, WORDS, NAMES, OTHERS = 90, 64, 60, 8, 10
UNDERSCORE = 1  # 0 separates documents


def planted_cycle(folder: Path, seed: int = 0) -> dict[str, Any]:
    """In a third of the contexts an underscore and one of eight names come in turn, each with a latent of its own, which makes the
    other one more likely. In the others ten latents are active on a tenth of the tokens each, at random.

    Returns:
        "states": the planted ones, "pairs": cycles of two that were found, "found": whether they are the planted one alone.
    """
    rng = np.random.default_rng(seed)
    contexts = rng.integers(2 + NAMES, 2 + NAMES + WORDS, (CONTEXTS, LENGTH))
    acts = (rng.random((CONTEXTS, LENGTH, 2 + OTHERS)) < 0.1) * (
        0.5 + rng.random((CONTEXTS, LENGTH, 2 + OTHERS))
    )
    acts[..., :2] = 0
    names = rng.integers(2, 2 + NAMES, (CONTEXTS, LENGTH))
    here = np.arange(CONTEXTS) % 3 == 0
    contexts[here] = np.where(np.arange(LENGTH) % 2, names, UNDERSCORE)[here]
    acts[here] = 0
    acts[here, :, 0], acts[here, :, 1] = contexts[here] == UNDERSCORE, contexts[here] > UNDERSCORE
    logits = 0.1 * torch.from_numpy(rng.standard_normal((2 + OTHERS, 2 + NAMES + WORDS))).float()
    logits[0, 2 : 2 + NAMES] += 2
    logits[1, UNDERSCORE] += 2
    pairs = [one.latents for one in automata(planted_records(folder, acts, contexts), logits).pairs]
    return {"states": [0, 1], "pairs": pairs, "found": pairs == [[0, 1]]}
