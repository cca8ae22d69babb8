"""Latents as the dictionaries that SAEDashboard and Neuronpedia have in common, some hundred at a time."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from saefast.errors import check
from saefast.interp.effects import Effects
from saefast.interp.records.read import Records
from saefast.interp.records.select import parts_of
from saefast.interp.records.tables import ROWS_PER_GROUP
from saefast.interp.vocabulary import Vocabulary

SHOWN = ("top", "interval", "quantile")
OWN = ("group", "bin", "rank", "slot")  # keys of an activation that are ours


def short(values: Any) -> list[float]:
    """Numbers of float32 as the shortest decimals that are read back as the same float32."""
    array = values.numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
    return array.astype(np.float32).astype("U24").astype(np.float64).tolist()


def token_strings(vocabulary: Vocabulary) -> list[str]:
    """What Postgres and the other tools can hold: no NUL (a space, as Neuronpedia has it), and no empty token."""
    return [text.replace("\0", " ") or "\ufffd" for text in vocabulary.strings]


def dashboards(
    records: Records,
    effects: Effects,
    vocabulary: Vocabulary,
    groups: Sequence[str] = ("top", "interval"),
    n_logits: int | None = None,
    strings: Sequence[str] | None = None,
) -> Iterator[list[dict[str, Any]]]:
    """The latents of one row group of the records after another, with the keys of SAEDashboard's features.

    An activation has the keys `OWN` more; "slot" is that of its token. Its bin is (-1, largest activation, -1) in the group "top".
    In an interval it is its bounds and the share of all tokens with an activation in it; in a quantile group, the smallest and
    the largest activation of its contexts and their share of the contexts in which the latent is active.

    Args:
        groups: which examples, of SHOWN.
        n_logits: tokens of the logit weights; default: all that the effects have.
        strings: how each token is written; default: `token_strings`.

    Raises:
        InputError: an unknown group, effects of other latents, or a token that the vocabulary does not have.
    """
    wrong = sorted(set(groups) - set(SHOWN))
    check(not wrong and len(groups) > 0, f"groups: expected some of {list(SHOWN)}, got {list(groups)}")
    for name, table in effects._asdict().items():
        n = None if table is None else len(table[0])
        check(n in (None, records.d_sae), f"effects: expected {records.d_sae} latents, {name} has {n}")
    largest = int(records.text.contexts.max(initial=0))
    want = f"one with ids below {len(vocabulary)}"
    check(largest < len(vocabulary), f"tokenizer: expected {want}, the text has token {largest}")
    strings = token_strings(vocabulary) if strings is None else strings
    statistics = records.table(["density", "max", "histogram"])
    notes = about_text(records)
    for first in range(0, records.d_sae, ROWS_PER_GROUP):
        latents = range(first, min(first + ROWS_PER_GROUP, records.d_sae))
        rows = statistics.slice(first, len(latents)).to_pylist()
        found = [
            {"feature_index": latent}
            | _effects(effects, latent, strings, n_logits)
            | _histogram(row)
            | notes
            | {"decoder_weights_dist": [], "activations": [], "vector": []}
            for latent, row in zip(latents, rows, strict=True)
        ]
        _add_activations(found, rows, records, strings, groups)
        yield found


def about_text(records: Records) -> dict[str, Any]:
    """What the latents were recorded on: its contexts, their length and its name."""
    source = records.index["source"]
    dataset = (source.get("notes") or {}).get("text") or source.get("path") or ""
    n_contexts = sum(block["n_contexts"] for block in records.index["blocks"])
    return {
        "n_prompts_total": n_contexts,
        "n_tokens_in_prompt": records.index["context_length"],
        "dataset": str(dataset),
    }


def _histogram(row: dict[str, Any]) -> dict[str, Any]:
    """Bars by their middles; none of a latent that never fires."""
    n_bins, largest = len(row["histogram"]), row["max"]
    bars = range(n_bins if largest > 0 else 0)
    return {
        "frac_nonzero": row["density"],
        "freq_hist_data_bar_values": short([(i + 0.5) * largest / n_bins for i in bars]),
        "freq_hist_data_bar_heights": [float(row["histogram"][i]) for i in bars],
    }


def _effects(effects: Effects, latent: int, strings: Sequence[str], n_logits: int | None) -> dict[str, Any]:
    """Lists; empty where the effects do not have the table."""
    found: dict[str, Any] = {}
    alignment = effects.alignment
    found["neuron_alignment_indices"] = [] if alignment is None else alignment.indices[latent].tolist()
    found["neuron_alignment_values"] = [] if alignment is None else short(alignment.values[latent])
    found["neuron_alignment_l1"] = [] if alignment is None else short(alignment.l1[latent])
    tables = {"correlated_neurons": effects.correlated_neurons, "correlated_features": effects.correlated}
    for name, table in tables.items():
        indices, values = neighbours(table, latent)
        found |= {f"{name}_indices": indices, f"{name}_pearson": values, f"{name}_l1": []}
    logits = effects.logits
    signs = [("neg", "negative"), ("pos", "positive")]
    for short_name, name in signs:
        tokens = [] if logits is None else getattr(logits, f"{name}_tokens")[latent, :n_logits].tolist()
        values = [] if logits is None else short(getattr(logits, name)[latent, :n_logits])
        found |= {f"{short_name}_str": [strings[token] for token in tokens], f"{short_name}_values": values}
    heights = [] if logits is None else logits.histogram[latent].double().tolist()
    middles: Any = []
    if logits is not None:
        low, high = float(logits.lowest[latent]), float(logits.highest[latent])
        middles = short(low + (np.arange(len(heights)) + 0.5) * (high - low) / len(heights))
    return found | {"logits_hist_data_bar_heights": heights, "logits_hist_data_bar_values": middles}


def neighbours(table: Any, latent: int) -> tuple[list[int], list[float]]:
    """Indices and values of one latent, without the places that are empty."""
    if table is None:
        return [], []
    is_one = table.indices[latent] >= 0
    return table.indices[latent][is_one].tolist(), short(table.values[latent][is_one])


def _add_activations(
    found: list[dict[str, Any]],
    rows: list[dict[str, Any]],
    records: Records,
    strings: Sequence[str],
    groups: Sequence[str],
) -> None:
    first = found[0]["feature_index"]
    table = records.examples_table(range(first, first + len(found)))
    all_latents, names = table["latent"].to_numpy(), np.asarray(table["group"].to_pylist(), dtype=object)
    keep = np.isin(names, list(groups)) & (all_latents >= first) & (all_latents < first + len(found))
    table = table.filter(keep)
    numbers = ("latent", "bin", "rank", "context", "position", "start", "length")
    columns = zip(*(table[name].to_pylist() for name in numbers), strict=True)
    at, acts = table["at"].combine_chunks(), table["acts"].combine_chunks()
    lengths = at.value_lengths().to_numpy(zero_copy_only=False)
    ends = np.cumsum(lengths).tolist()
    at_values, act_values = at.flatten().to_pylist(), short(acts.flatten().to_numpy())
    contexts = records.text.contexts
    bounds: dict[tuple[int, str], list[tuple[float, float, float]]] = {}
    begin = 0
    for group, end, columns_of in zip(names[keep].tolist(), ends, columns, strict=True):
        latent, part, rank, context, position, start, length = columns_of
        if (latent, group) not in bounds:
            bounds[latent, group] = _bounds(group, latent, rows[latent - first]["max"], records)
        low, high, contains = bounds[latent, group][part]
        values = [0.0] * length
        for place, act in zip(at_values[begin:end], act_values[begin:end], strict=True):
            values[place] = act
        begin = end
        activation: dict[str, Any] = {"bin_min": low, "bin_max": high, "bin_contains": contains}
        activation["tokens"] = [
            strings[token] for token in contexts[context, start : start + length].tolist()
        ]
        activation |= {"values": values, "qualifying_token_index": position - start}
        own = zip(OWN, (group, part, rank, context * records.text.length + position), strict=True)
        found[latent - first]["activations"].append(activation | dict(own))


def _bounds(group: str, latent: int, largest: float, records: Records) -> list[tuple[float, float, float]]:
    """(least, largest, share) of each bin of a group."""
    if group == "top":
        return [(-1.0, short([largest])[0], -1.0)]
    slots, acts = records.entries(latent)
    if group == "interval":
        n = records.config.n_intervals
        counts = np.bincount(parts_of(acts, largest, n), minlength=n) / max(records.n_rows, 1)
        edges = short(np.arange(n + 1) * largest / n)
        return list(zip(edges[:-1], edges[1:], counts.tolist(), strict=True))
    n = records.config.n_quantiles
    peaks = peaks_of(slots, acts, records.text.length)
    m = len(peaks)
    parts = [peaks[i * m // n : (i + 1) * m // n] for i in range(n)]
    ends = [(p.min(), p.max()) if len(p) else (0.0, 0.0) for p in parts]
    lows, highs = (short(list(column)) for column in zip(*ends, strict=True))
    return [(low, high, len(p) / m) for low, high, p in zip(lows, highs, parts, strict=True)]


def peaks_of(slots: np.ndarray, acts: np.ndarray, length: int) -> np.ndarray:
    """The largest activation of each context in which there is one, the smallest first; [m] float32."""
    if not len(slots):
        return acts
    starts = np.concatenate([[0], np.flatnonzero(np.diff(slots // length)) + 1])
    return np.sort(np.maximum.reduceat(acts, starts))
