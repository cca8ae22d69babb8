"""Simulations in OpenAI's neuron-explainer records: the windows of simulations.jsonl with tokens and scores, and back.

OpenAI's files have the tokens of a window, ours say where in the text of the records it is.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from saefast.errors import check
from saefast.interp.exchange.dashboards import short
from saefast.interp.records.read import Records
from saefast.interp.simulations import DISTRIBUTION, SIMULATIONS

ODD = 0x9E3779B97F4A7C15  # the golden ratio of 2^64, which spreads powers
TRIED = 4096  # windows of the same tokens
NEAR = 1e-3  # activations that were rounded, of the largest one


def scored_simulation(
    simulations: Sequence[Mapping[str, Any]], latent: int, records: Records, strings: Sequence[str]
) -> dict[str, Any]:
    """A ScoredSimulation of simulations of a latent: all scores are of what is in it, of one window and of all tokens together.

    Raises:
        InputError: a window is not in one context of the text.
    """
    text, found, true, expected = records.text, [], [], []
    slots, acts = records.entries(latent)
    for one in simulations:
        slot, length = one["slot"], one["length"]
        ok = slot + length <= text.n_slots and slot % text.length + length <= text.length
        where = f"{records.folder / SIMULATIONS}: simulations of latent {latent}"
        check(ok, f"{where}: expected windows in one of the contexts, got slot {slot} and length {length}")
        truth = short(_acts(slots, acts, np.asarray([slot]), length)[0])
        tokens = [strings[token] for token in text.contexts.ravel()[slot : slot + length].tolist()]
        simulation = {"dataclass_name": "SequenceSimulation", "tokens": tokens}
        simulation |= {"expected_activations": one["expected"], "activation_scale": one["scale"]}
        simulation |= {name: one.get(name, []) for name in DISTRIBUTION} | {"uncalibrated_simulation": None}
        sequence: dict[str, Any] = {"dataclass_name": "ScoredSequenceSimulation", "simulation": simulation}
        found.append(sequence | {"true_activations": truth} | scores_of(truth, one["expected"]))
        true += truth
        expected += one["expected"]
    named = {"dataclass_name": "ScoredSimulation", "scored_sequence_simulations": found}
    return named | scores_of(true, expected)


def scores_of(true: Sequence[float], expected: Sequence[float]) -> dict[str, float | None]:
    """OpenAI's three scores: Pearson's correlation, 1 - E(true - expected)^2 / E(true^2), 1 - E|true - expected| / E|true|.

    None where they are not defined: the correlation with what is the same everywhere, the others where all true ones are 0.
    """
    x, y = np.asarray(true, np.float64), np.asarray(expected, np.float64)
    found: dict[str, float | None] = {"ev_correlation_score": None}
    with np.errstate(all="ignore"):
        if np.ptp(x) and np.ptp(y):
            found["ev_correlation_score"] = float(np.corrcoef(x, y)[0, 1])
        found["rsquared_score"] = float(1 - np.mean((x - y) ** 2) / np.mean(x**2))
        found["absolute_dev_explained_score"] = float(1 - np.mean(np.abs(x - y)) / np.mean(np.abs(x)))
    return {name: value if _is_finite(value) else None for name, value in found.items()}


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _acts(slots: np.ndarray, acts: np.ndarray, first: np.ndarray, length: int) -> np.ndarray:
    """Activations in windows that begin there, [n] -> [n, length], of the entries of a latent."""
    where = first[:, None] + np.arange(length)
    near = np.minimum(np.searchsorted(slots, where), max(len(slots) - 1, 0))
    return np.where(slots[near] == where, acts[near], np.float32(0)) if len(slots) else np.zeros(where.shape)


class Places:
    """Where in the text of records a window is, by its tokens as text and its activations.

    Args:
        strings: of each token id.
    """

    def __init__(self, records: Records, strings: Sequence[str]) -> None:
        self._records = records
        self._groups: dict[str, int] = {}  # tokens of the same text are one
        of_id = [self._groups.setdefault(text, len(self._groups)) for text in strings]
        self._text = np.asarray(of_id, np.int64)[records.text.contexts.ravel()]
        self._hashed: dict[int, tuple[np.ndarray, np.ndarray]] = {}  # by length

    def find(self, latent: int, tokens: Sequence[str], true: Sequence[float]) -> int | None:
        """The slot of the first token of the window: of several with these tokens, the one whose activations are nearest.

        None: these tokens are not in the text, or not with these activations (to a thousandth of the largest one).
        """
        wanted, length = np.asarray([self._groups.get(one, -1) for one in tokens], np.int64), len(tokens)
        if not 0 < length <= self._records.text.length or (wanted < 0).any():
            return None
        hashes, firsts = self._hashes(length)
        key = _polynomials(wanted, length)
        found = firsts[np.searchsorted(hashes, key[0]) : np.searchsorted(hashes, key[0], side="right")]
        slots, acts = self._records.entries(latent)
        n_active = np.searchsorted(slots, found + length) - np.searchsorted(slots, found)
        truth = np.asarray(true, np.float64)
        found = found[n_active == np.count_nonzero(truth)][:TRIED]
        found = found[(self._text[found[:, None] + np.arange(length)] == wanted).all(axis=1)]
        if not len(found):
            return None
        apart = np.abs(_acts(slots, acts, found, length) - truth).max(axis=1)
        best = int(apart.argmin())
        return int(found[best]) if apart[best] <= NEAR * np.abs(truth).max() else None

    def _hashes(self, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Of all windows of a length in one context: hashes, ascending, and first slots, of equal ones ascending."""
        if length not in self._hashed:
            n = self._records.text.length
            firsts = np.arange(len(self._text) - length + 1)
            inside = firsts % n + length <= n
            hashes, firsts = _polynomials(self._text, length)[inside], firsts[inside]
            order = np.argsort(hashes, kind="stable")
            self._hashed[length] = hashes[order], firsts[order]
        return self._hashed[length]


def _polynomials(text: np.ndarray, length: int) -> np.ndarray:
    """sum_j (text[i + j] + 1) ODD^(length - 1 - j) modulo 2^64 of every window, [n] int64 -> [n - length + 1] uint64."""
    found = np.zeros(len(text) - length + 1, np.uint64)
    for j in range(length):
        found = found * np.uint64(ODD) + (text[j : j + len(found)] + 1).astype(np.uint64)
    return found
