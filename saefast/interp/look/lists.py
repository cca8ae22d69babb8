"""What the list shows of each latent, and the text that its search reads."""

from typing import Any

import numpy as np

from saefast.config.records import GROUPS
from saefast.interp.explanations import read_explanations
from saefast.interp.look.latents import Examples, spans
from saefast.interp.look.tokens import Shown
from saefast.interp.records import Records

N_TOKENS = 6  # tokens at which a latent is most active
N_TEXTS, BEFORE, AFTER = 5, 16, 8  # examples, and tokens around each, that are searched first


def statistics(records: Records, latents: np.ndarray) -> dict[str, np.ndarray]:
    table = records.table(["count", "max", "energy"])
    return {
        "latent": latents.astype(np.uint32),
        "count": table["count"].to_numpy()[latents].astype(np.uint32),
        "max": table["max"].to_numpy()[latents].astype(np.float32),
        "energy": table["energy"].to_numpy()[latents].astype(np.float32),
    }


def peaks(examples: Examples, latents: np.ndarray, records: Records, shown: Shown) -> np.ndarray:
    """The tokens at which each latent is most active, one per context, `shown.none` where there are fewer: [m, N_TOKENS]."""
    columns, rows = examples.columns, examples.of(latents)
    rows = rows[(columns["group"][rows] == GROUPS.index("top")) & (columns["rank"][rows] < N_TOKENS)]
    tokens = np.full((len(latents), N_TOKENS), -1, np.int64)
    place = np.searchsorted(latents, columns["latent"][rows])
    tokens[place, columns["rank"][rows]] = records.text.contexts[
        columns["context"][rows], columns["position"][rows]
    ]
    return shown(tokens)


def texts(examples: Examples, latents: np.ndarray, records: Records, shown: Shown) -> tuple[np.ndarray, ...]:
    """Tokens around the strongest examples: how many examples each latent has [m], their lengths [n], where in them the token
    of the example is [n], tokens [N]."""
    columns, rows = examples.columns, examples.of(latents)
    rows = rows[(columns["group"][rows] == GROUPS.index("top")) & (columns["rank"][rows] < N_TEXTS)]
    start, position = columns["start"][rows], columns["position"][rows]
    begin = np.maximum(start, position - BEFORE)
    length = np.minimum(start + columns["length"][rows], position + AFTER + 1) - begin
    first = columns["context"][rows].astype(np.int64) * records.text.length + begin
    tokens = shown(records.text.contexts.ravel()[spans(first, length)])
    each = np.bincount(np.searchsorted(latents, columns["latent"][rows]), minlength=len(latents))
    return each.astype(np.uint8), length.astype(np.uint8), (position - begin).astype(np.uint8), tokens


def explanations(records: Records, latents: np.ndarray) -> list[dict[str, Any]]:
    """Those in the folder of the records, of these latents, without what is null.

    Raises:
        InputError: a line is no explanation.
    """
    wanted = set(latents.tolist())
    found = [one for one in read_explanations(records.folder) if one["latent"] in wanted]
    return [{key: value for key, value in one.items() if value is not None} for one in found]
