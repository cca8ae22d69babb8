"""Is a latent a neuron? How many neurons it writes to, and how well its activations agree with those of the best neuron.

found = neuron_basis(records, records_of_neurons, sae, alive=sets.live)
found.numbers()["median_best_neuron"]
"""

from typing import Any, NamedTuple

import numpy as np
import torch

from saefast.errors import check
from saefast.interp.effects import correlated
from saefast.interp.effects.checks import check_same
from saefast.interp.records import Records
from saefast.sae import SAE


class NeuronBasis(NamedTuple):
    """Of each latent. Coefficients w are those of its row of W_dec, one for each neuron."""

    participation: (
        np.ndarray
    )  # [F] float64, (sum w^2)^2 / sum w^4: 1 for one neuron, d for d equal ones; NaN for a zero row
    by_size: (
        np.ndarray
    )  # [F] float64, (sum |w|)^2 / sum w^2: the same of |w| in place of w^2, which counts small ones more
    neuron: np.ndarray  # [F] int32, whose activations correlate most with its own; -1: none does
    correlation: np.ndarray  # [F] float32, Pearson over all tokens; NaN: none
    alive: np.ndarray  # [F] bool, those that `numbers` are of

    def numbers(self) -> dict[str, Any]:
        """What a report shows, as JSON. Shares: of latents whose participation is 1, 2 to 10, or more, rounded."""
        ratio, by_size = self.participation[self.alive], self.by_size[self.alive]
        correlation = self.correlation[self.alive]
        ratio, by_size = ratio[~np.isnan(ratio)], by_size[~np.isnan(by_size)]
        correlation = correlation[~np.isnan(correlation)]
        rounded = np.rint(ratio)
        n = max(len(rounded), 1)
        counts, edges = np.histogram(correlation, 40, (-1, 1))
        return {
            "latents": len(ratio),
            "median_participation": _median(ratio),
            "median_participation_by_size": _median(by_size),
            "one_neuron": float((rounded <= 1).sum() / n),
            "2_to_10_neurons": float(((rounded >= 2) & (rounded <= 10)).sum() / n),
            "more_neurons": float((rounded > 10).sum() / n),
            "median_best_neuron": _median(correlation),
            "best_neuron_above_0.8": float((correlation > 0.8).mean()) if len(correlation) else None,
            "histogram": {"edges": edges.tolist(), "latents": counts.tolist()},
        }


def neuron_basis(
    records: Records, records_of_neurons: Records, sae: SAE, alive: np.ndarray | None = None
) -> NeuronBasis:
    """
    Args:
        records_of_neurons: `record(neurons(d_in), source, ...)` on the same text.
        sae: that of `records`, which decodes to the neurons.
        alive: [F] bool; default: latents that are active on any token.

    Raises:
        InputError: another SAE or text, or W_dec of another width than there are neurons.
    """
    check_same(records, sae)
    W_dec = sae.W_dec.detach().double().cpu().numpy()
    d_in = records_of_neurons.d_sae
    check(
        W_dec.shape[1] == d_in,
        f"records_of_neurons: expected {W_dec.shape[1]}, the width of W_dec, got {d_in}",
    )
    best = correlated(records, records_of_neurons, 1)
    correlation = best.values[:, 0].masked_fill(best.indices[:, 0] < 0, torch.nan).numpy()
    if alive is None:
        alive = records.table(["count"])["count"].to_numpy() > 0
    return NeuronBasis(
        *participation(W_dec), best.indices[:, 0].numpy(), correlation, np.asarray(alive, bool)
    )


def participation(W_dec: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows [F, d] -> (sum w^2)^2 / sum w^4 and (sum |w|)^2 / sum w^2, [F] float64 each, from 1 to d; NaN for a zero row."""
    size = np.abs(np.asarray(W_dec, np.float64))
    largest = size.max(axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        size = size / largest
        square = (size**2).sum(axis=1)
        return square**2 / (size**4).sum(axis=1), size.sum(axis=1) ** 2 / square


def _median(values: np.ndarray) -> float | None:
    return float(np.median(values)) if len(values) else None
