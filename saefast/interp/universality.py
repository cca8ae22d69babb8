"""Is a latent of one model found again in another? Three similarities of the latents of dictionary a with those of b.

    found = universality(records_a, records_b, logit_matrix(sae_a, model_a), logit_matrix(sae_b, model_b))
    found.numbers()["activation"]["median"]

"Towards Monosemanticity" (2023): the activations on the same tokens, the logit weights, and the attributions
f_i(token) v_i(next token), activation times the logit weight of the token that follows. Features and neurons alike.
"""

from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from saefast.errors import check
from saefast.interp.effects.correlated import correlations
from saefast.interp.records import Records
from saefast.interp.records.select import Block
from saefast.interp.together import Code, Coded, check_same_text, moments, pair_products, sums

BINS = 50  # of the histograms, over [-1, 1]
ROWS = 1024  # of logit weights at a time


class Matches(NamedTuple):
    """By one similarity, a Pearson correlation; NaN for latents that have none."""

    partner: (
        np.ndarray
    )  # [F_a] int32, the latent of b that is most similar, of equal ones the first; -1: none
    best: np.ndarray  # [F_a] float32, how similar it is
    of_pair: np.ndarray  # [F_a] float32, how similar the partner by activation is


class Universality(NamedTuple):
    """How similar the latents of a are to those of b."""

    activation: Matches
    permuted: (
        np.ndarray
    )  # [F_a] float32, the best match by activation when the tokens of b are permuted: the control
    expected: float  # of the maximum of as many normal correlations by chance; sparse codes have larger ones
    logits: Matches | None  # over the vocabulary
    attribution: Matches | None  # over the tokens that are followed by another one in their context
    tracking: (
        float | None
    )  # Pearson of the attribution and the activation similarity of the pairs by activation

    def numbers(self) -> dict[str, Any]:
        """What a report shows, as JSON: medians, quartiles and histograms."""
        found: dict[str, Any] = {
            "activation": _described(self.activation.best),
            "permuted": _described(self.permuted),
            "permuted_expected": self.expected,
            "attribution_tracks_activation": self.tracking,
        }
        for name, matches in (("logits", self.logits), ("attribution", self.attribution)):
            if matches is not None:
                found[name] = {
                    "best": _described(matches.best),
                    "pairs_by_activation": _described(matches.of_pair),
                }
        return found


def universality(
    records_a: Records,
    records_b: Records,
    logits_a: Tensor | None = None,
    logits_b: Tensor | None = None,
    *,
    alive_a: np.ndarray | None = None,
    alive_b: np.ndarray | None = None,
    min_count: int = 10,
    seed: int = 0,
) -> Universality:
    """Compare them, exactly.

    Time: three times the sum over tokens of L0 x L0 products, and F_a F_b V for the logit weights. Memory: three copies of
    the entries of both codes, besides what `saefast.interp.together` takes.

    Args:
        records_a, records_b: of the same text, with a row for the same tokens.
        logits_a, logits_b: [F, V] of `saefast.interp.effects.logit_matrix`; without them there is neither the similarity of
            logit weights nor that of attributions.
        alive_a, alive_b: [F] bool, latents that are compared; default: those active on at least `min_count` tokens.
        seed: of the permutation.

    Raises:
        InputError: another text, or logits of another shape than the dictionary and its tokens.
    """
    check_same_text(records_a, records_b)
    check((logits_a is None) == (logits_b is None), "logits_a, logits_b: expected both or neither")
    alive = [
        _alive(records, given, name, min_count)
        for records, given, name in ((records_a, alive_a, "alive_a"), (records_b, alive_b, "alive_b"))
    ]
    partner, best = _best(correlations(records_a, records_b), *alive)
    _, by_chance = _best(correlations(records_a, permuted(records_b, seed)), *alive)
    logits: Matches | None = None
    attribution: Matches | None = None
    tracking: float | None = None
    if logits_a is not None and logits_b is not None:
        check(
            logits_a.shape[1] == logits_b.shape[1],
            f"logits_b: expected {logits_a.shape[1]} tokens, got {logits_b.shape[1]}",
        )
        a, b = attributions(records_a, logits_a), attributions(records_b, logits_b)
        attribution = Matches(*_best(correlations(a, b), *alive), _of_pairs(a, b, partner))
        unit_a, unit_b = _standard(logits_a), _standard(logits_b)
        logits = Matches(*_best(_cosines(unit_a, unit_b), *alive), _cosines_of_pairs(unit_a, unit_b, partner))
        tracking = _pearson(attribution.of_pair, best)
    expected = expected_maximum(int(alive[1].sum()), records_a.n_rows)
    return Universality(Matches(partner, best, best), by_chance, expected, logits, attribution, tracking)


def attributions(records: Records, logits: Tensor) -> Code:
    """f_i(token) v_i(next token) as a code, over the tokens with a row that another token follows in their context.

    Raises:
        InputError: logits of another shape than [F, V] with all tokens of the text.
    """
    text, v = records.text, logits.detach().float().cpu().numpy()
    largest = int(text.contexts.max(initial=0))
    ok = v.ndim == 2 and v.shape[0] == records.d_sae and v.shape[1] > largest
    want = f"[{records.d_sae}, V] with V > {largest}, the largest token of the text"
    check(ok, f"logits: expected {want}, got {list(v.shape)}")
    tokens, blocks = text.contexts.reshape(-1), []
    for block in records.blocks:
        latent = np.repeat(np.arange(records.d_sae), np.diff(block.offsets))
        slots = block.slots.astype(np.int64) + block.first_slot
        followed = (slots + 1) % text.length != 0
        acts = np.zeros(len(slots), np.float32)
        acts[followed] = block.acts[followed] * v[latent[followed], tokens[slots[followed] + 1]]
        blocks.append(block._replace(acts=acts))
    return Code.of(records, blocks, int(text.encoded[:, :-1].sum()))


def permuted(records: Coded, seed: int = 0) -> Code:
    """The same code with its tokens in a random order: each latent as active as before, on tokens that say nothing."""
    places = np.flatnonzero(records.text.encoded.reshape(-1))
    moved = np.zeros(records.text.n_slots, np.int32)
    moved[places] = np.random.default_rng(seed).permutation(places)
    latents = np.concatenate(
        [np.repeat(np.arange(records.d_sae), np.diff(b.offsets)) for b in records.blocks]
    )
    order = np.argsort(latents, kind="stable")
    slots = np.concatenate([moved[b.slots.astype(np.int64) + b.first_slot] for b in records.blocks])
    acts = np.concatenate([block.acts for block in records.blocks])
    counts = sum(np.diff(block.offsets) for block in records.blocks)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return Code.of(records, [Block(0, offsets, slots[order], acts[order])], records.n_rows)


def expected_maximum(n: int, n_tokens: int) -> float:
    """Of n correlations over `n_tokens` tokens of what has nothing in common, where they are normal (Blom's formula)."""
    if n < 1 or n_tokens < 2:
        return 0.0
    return NormalDist().inv_cdf((n - 0.375) / (n + 0.25)) / (n_tokens - 1) ** 0.5


def _alive(records: Records, given: np.ndarray | None, name: str, min_count: int) -> np.ndarray:
    if given is None:
        return np.asarray(sums(records)[0] >= min_count)
    check(len(given) == records.d_sae, f"{name}: expected [{records.d_sae}], got [{len(given)}]")
    return np.asarray(given, bool)


def _best(blocks: Any, alive_a: np.ndarray, alive_b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(first, r [m, F_b]) one after another -> the largest of each row, and where it is."""
    partner, best = np.full(len(alive_a), -1, np.int32), np.full(len(alive_a), np.nan, np.float32)
    for first, r in blocks:
        r[:, ~alive_b] = -np.inf
        at, of = r.argmax(axis=1), r.max(axis=1)
        rows = np.flatnonzero(alive_a[first : first + len(r)] & (of > -np.inf))
        partner[rows + first], best[rows + first] = at[rows], of[rows]
    return partner, best


def _of_pairs(a: Coded, b: Coded, partner: np.ndarray) -> np.ndarray:
    """Pearson of each latent of a with its partner in b, [F_a] float32."""
    (mean_a, std_a), (mean_b, std_b) = moments(a), moments(b)
    found = np.full(len(partner), np.nan, np.float32)
    left = np.flatnonzero(partner >= 0)
    right = partner[left]
    keep = (std_a[left] > 0) & (std_b[right] > 0)
    left, right = left[keep], right[keep]
    both = pair_products(a, b, left, right) / a.n_rows
    found[left] = (both - mean_a[left] * mean_b[right]) / (std_a[left] * std_b[right])
    return found


def _standard(logits: Tensor) -> Tensor:
    """Rows with mean 0 and length 1; a row without variance is zero."""
    rows = logits.detach().float().cpu()
    rows = rows - rows.mean(dim=1, keepdim=True)
    length = rows.norm(dim=1, keepdim=True)
    return torch.where(length > 0, rows / length.clamp_min(1e-30), torch.zeros_like(rows))


def _cosines(a: Tensor, b: Tensor) -> Any:
    for first in range(0, len(a), ROWS):
        found = a[first : first + ROWS] @ b.T
        found[~a[first : first + ROWS].any(dim=1)] = -torch.inf
        found[:, ~b.any(dim=1)] = -torch.inf
        yield first, found.numpy()


def _cosines_of_pairs(a: Tensor, b: Tensor, partner: np.ndarray) -> np.ndarray:
    left = np.flatnonzero(partner >= 0)
    found = np.full(len(partner), np.nan, np.float32)
    one, other = a[torch.from_numpy(left)], b[torch.from_numpy(partner[left]).long()]
    values = (one * other).sum(dim=1)
    values[~(one.any(dim=1) & other.any(dim=1))] = torch.nan
    found[left] = values.numpy()
    return found


def _pearson(x: np.ndarray, y: np.ndarray) -> float | None:
    both = ~(np.isnan(x) | np.isnan(y))
    x, y = x[both].astype(np.float64), y[both].astype(np.float64)
    if len(x) < 2 or x.std() == 0 or y.std() == 0:
        return None
    return float(np.corrcoef(x, y)[0, 1])


def _described(values: np.ndarray) -> dict[str, Any]:
    there = values[~np.isnan(values)].astype(np.float64)
    counts, edges = np.histogram(there.clip(-1, 1), BINS, (-1, 1))
    quartiles = np.quantile(there, [0.25, 0.5, 0.75]).tolist() if len(there) else [None] * 3
    return {
        "latents": len(there),
        "lower_quartile": quartiles[0],
        "median": quartiles[1],
        "upper_quartile": quartiles[2],
        "largest": float(there.max()) if len(there) else None,
        "histogram": {"edges": edges.round(6).tolist(), "latents": counts.tolist()},
    }
