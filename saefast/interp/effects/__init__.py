"""What a latent does to the output, and what else it has to do with.

    effects = effects_of(records, sae, model, source)    # all tables, saved beside the records
    ablation_effects(records, sae, model, hook, [17])    # of the shown windows of latent 17; passes of the model
    active_latents(sae, model, hook, "any text", tokenizer)

Each table can be made alone, from any SAE and from neurons: `logit_weights`, `neighbours`, `alignment`, `correlated`,
`correlated_neurons`.
"""

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

from torch import nn

from saefast.activations.sources import Source
from saefast.errors import InputError, check
from saefast.interp.effects.ablation import Cost, Window, ablation_cost, ablation_effects, shown_windows
from saefast.interp.effects.ablation_file import ABLATIONS, ablations_table, read_ablations
from saefast.interp.effects.active import Active, active_latents
from saefast.interp.effects.checks import check_same
from saefast.interp.effects.correlated import correlated, correlated_neurons
from saefast.interp.effects.logits import logit_matrix, logit_weights
from saefast.interp.effects.neighbours import alignment, neighbours
from saefast.interp.effects.types import EFFECTS, Alignment, Effects, LogitWeights, Neighbours
from saefast.interp.records import Records
from saefast.sae import SAE

__all__ = [
    "ABLATIONS",
    "EFFECTS",
    "Active",
    "Alignment",
    "Cost",
    "Effects",
    "LogitWeights",
    "Neighbours",
    "Window",
    "ablation_cost",
    "ablation_effects",
    "ablations_table",
    "active_latents",
    "alignment",
    "correlated",
    "correlated_neurons",
    "effects_of",
    "logit_matrix",
    "logit_weights",
    "neighbours",
    "read_ablations",
    "shown_windows",
]

log = logging.getLogger("saefast")
T = TypeVar("T")


def effects_of(
    records: Records,
    sae: SAE,
    model: nn.Module | None = None,
    source: Source | None = None,
    *,
    hook: str | Sequence[str] | None = None,
    n: int = 10,
    n_vocab: int | None = None,
) -> Effects:
    """Make all tables that can be made, and save them in the folder of the records.

    Args:
        model: for the logit weights.
        source: what the records were made from, for the correlated coordinates of the activations.
        hook, n_vocab: see `logit_weights`.
        n: rows of each table.

    Returns:
        The tables; None for one that cannot be made, with the reason in the log.

    Raises:
        InputError: records of another SAE, or n < 1.
    """
    check(n > 0, f"n: expected at least 1, got {n}")
    check_same(records, sae)

    def made(name: str, make: Callable[[], T]) -> T | None:
        try:
            return make()
        except InputError as error:
            log.warning("effects: no %s: %s", name, error)
            return None

    def of_logits() -> LogitWeights:
        if model is None:
            raise InputError("the model was not given")
        return logit_weights(sae, model, n, hook=hook, n_vocab=n_vocab)

    def of_neurons() -> Neighbours:
        if source is None:
            raise InputError("the source was not given")
        return correlated_neurons(records, source, sae, n)

    effects = Effects(
        logits=made("logit weights", of_logits),
        decoder=neighbours(sae, n=n, side="decoder"),
        encoder=neighbours(sae, n=n, side="encoder"),
        correlated=made("correlated latents", lambda: correlated(records, n=n)),
        correlated_neurons=made("correlated coordinates of the activations", of_neurons),
        alignment=alignment(sae, n),
    )
    effects.save(records.folder)
    return effects
