"""OpenAI's neuron-explainer records, those of "Language models can explain neurons in language models"; openai_read.py reads them.

    collated-activations/LAYER/LATENT.json             NeuronRecord: examples and moments
    related-tokens/activation-based/LAYER/LATENT.json  TokenLookupTableSummaryOfNeuron: tokens of the largest average activation
    related-tokens/weight-based/LAYER/LATENT.json      WeightBasedSummaryOfNeuron: logit weights
    explanations/LAYER/LATENT.jsonl                    NeuronSimulationResults: explanations, simulations, scores

An object names its class (of openai/automated-interpretability) under "dataclass_name". Numbers that are not finite are null.
"""

import json
import math
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np

from saefast.errors import check
from saefast.files import staged
from saefast.interp.effects import Effects
from saefast.interp.exchange.dashboards import dashboards, peaks_of, short
from saefast.interp.exchange.openai_simulations import scored_simulation
from saefast.interp.explanations import read_explanations
from saefast.interp.records import engine
from saefast.interp.records.read import Records
from saefast.interp.records.select import TRIES
from saefast.interp.records.text import mix
from saefast.interp.simulations import Simulations
from saefast.interp.vocabulary import Vocabulary

RECORDS, EXPLANATIONS = "collated-activations", "explanations"
TOKENS, WEIGHTS = "related-tokens/activation-based", "related-tokens/weight-based"
MOMENTS = ("mean", "variance", "skewness", "kurtosis")
SCORES = {  # their names of ours; "simulation" is as delphi calls the same number
    "simulation": "ev_correlation_score",
    "rsquared_score": "rsquared_score",
    "absolute_dev_explained_score": "absolute_dev_explained_score",
}


def export_openai(
    records: Records,
    effects: Effects,
    vocabulary: Vocabulary,
    out: str | Path,
    *,
    layer: int,
    n_random: int = 20,
    n_tokens: int = 50,
    min_count: int = 10,
) -> Path:
    """Write the files of all latents; the same arguments give the same bytes, and a rerun replaces what was there.

    most_positive_activation_records are the examples of the group "top", random_sample_by_quantile those of the group
    "quantile", between quantile_boundaries (the first and the last are null, as in OpenAI's files): of the contexts in which the
    latent is active, by their largest activations. random_sample is drawn from all tokens, as OpenAI's is, whether the latent is
    active there or not. Moments are those of `saefast.interp.records.select.select`.

    weight-based is written where there are logit weights; its input side is empty. In explanations, an explanation keeps its
    text, the simulations that simulations.jsonl has of it, and OpenAI's three scores: of these simulations, or without any those
    that it has of `SCORES`.

    Args:
        layer: where in the model; a folder may have several.
        n_random: windows in random_sample. OpenAI's splits take 5 for each of three purposes.
        n_tokens: of the largest average activation over all tokens with a row.
        min_count: tokens that are rarer in the text are left out of them.

    Returns: `out`.

    Raises:
        InputError: see `dashboards`; a negative number; a wrong line in explanations.jsonl or simulations.jsonl.
    """
    out = Path(out)
    given = {"layer": layer, "n_random": n_random, "n_tokens": n_tokens, "min_count": min_count}
    for name, value in given.items():
        check(type(value) is int and value >= 0, f"{name}: expected a number from 0 on, got {value!r}")
    strings = vocabulary.strings
    flat, config = records.text.contexts.ravel(), records.config
    counts = np.bincount(flat[records.text.encoded.ravel()], minlength=len(vocabulary))
    explained: dict[int, list[dict[str, Any]]] = {}
    for one in read_explanations(records.folder):
        explained.setdefault(one["latent"], []).append(one)
    moments = records.table(list(MOMENTS))
    written: dict[str, set[str]] = {RECORDS: set(), TOKENS: set(), WEIGHTS: set(), EXPLANATIONS: set()}
    with ExitStack() as stack:
        folders: dict[str, Path] = {}
        simulations = stack.enter_context(closing(Simulations(records.folder)))

        def write(kind: str, latent: int, value: dict[str, Any]) -> None:
            if kind not in folders:
                folders[kind] = stack.enter_context(staged(out / kind / str(layer)))
            name = f"{latent}.jsonl" if kind == EXPLANATIONS else f"{latent}.json"
            text = json.dumps(value, separators=(",", ":"), allow_nan=False)
            (folders[kind] / name).write_text(text + "\n" * (kind == EXPLANATIONS))
            written[kind].add(name)

        for features in dashboards(records, effects, vocabulary, ("top", "quantile"), strings=strings):
            first = features[0]["feature_index"]
            drawn = _random_samples(records, range(first, first + len(features)), n_random, strings)
            rows = moments.slice(first, len(features)).to_pylist()
            for feature, sample, row in zip(features, drawn, rows, strict=True):
                latent = feature["feature_index"]
                slots, acts = records.entries(latent)
                neuron = _named("NeuronId", layer_index=layer, neuron_index=latent)
                found = _named("NeuronRecord", neuron_id=neuron, random_sample=sample)
                found |= _quantiles(feature, peaks_of(slots, acts, records.text.length), config.n_quantiles)
                found |= {name: value if math.isfinite(value) else None for name, value in row.items()}
                found["most_positive_activation_records"] = [
                    _activations(one["tokens"], one["values"]) for one in _of(feature, "top")
                ]
                write(RECORDS, latent, found)
                tokens, means = _averages(flat[slots], acts, counts, n_tokens, min_count)
                lookup = _named("TokenLookupTableSummaryOfNeuron", tokens=[strings[i] for i in tokens])
                write(TOKENS, latent, lookup | {"average_activations": means})
                if effects.logits is not None:
                    write(WEIGHTS, latent, _weights(feature))
                if latent in explained:
                    results = _named("NeuronSimulationResults", neuron_id=neuron)
                    results["scored_explanations"] = [
                        _scored(one, simulations, records, strings) for one in explained[latent]
                    ]
                    write(EXPLANATIONS, latent, results)
    for kind, names in written.items():
        for path in (out / kind / str(layer)).glob("*.json*"):
            if path.name not in names:
                path.unlink()
    return out


def _named(name: str, **fields: Any) -> dict[str, Any]:
    return {"dataclass_name": name, **fields}


def _activations(tokens: Sequence[str], values: Sequence[float]) -> dict[str, Any]:
    return _named("ActivationRecord", tokens=tokens, activations=values)


def _of(feature: dict[str, Any], group: str) -> list[dict[str, Any]]:
    return [one for one in feature["activations"] if one["group"] == group]


def _quantiles(feature: dict[str, Any], peaks: np.ndarray, n: int) -> dict[str, Any]:
    if n == 0:
        return {"random_sample_by_quantile": None, "quantile_boundaries": None}
    groups: list[list[dict[str, Any]]] = [[] for _ in range(n)]
    for one in _of(feature, "quantile"):
        groups[one["bin"]].append(_activations(one["tokens"], one["values"]))
    inner = [peaks[i * len(peaks) // n] if len(peaks) else 0.0 for i in range(1, n)]
    return {"random_sample_by_quantile": groups, "quantile_boundaries": [None, *short(inner), None]}


def _random_samples(
    records: Records, latents: range, n: int, strings: Sequence[str]
) -> list[list[dict[str, Any]]]:
    """Of each latent, windows around n tokens with a row, one of each context, drawn by hashes of the latent."""
    text, encoded = records.text, records.text.encoded.ravel()
    drawn = []
    for latent in latents:
        key = mix(np.uint32(latent) ^ mix(np.uint32(8 * records.config.seed + 5)))
        tries = mix(np.arange(TRIES * n, dtype=np.uint32) ^ key).astype(np.uint64)
        slots = (tries * np.uint64(text.n_slots) >> np.uint64(32)).astype(np.int64)
        slots = slots[encoded[slots]]
        _, first_of_context = np.unique(slots // text.length, return_index=True)
        drawn.append(slots[np.sort(first_of_context)[:n]])
    owners = np.repeat(np.asarray(latents), [len(slots) for slots in drawn])
    flat_slots = np.concatenate(drawn)
    windows = engine.windows(flat_slots, text, records.config)
    bounds = (flat_slots // text.length * text.length)[:, None] + windows
    offsets, at, acts = engine.window_acts(records.blocks, owners, bounds)
    places, numbers, tokens = at.tolist(), short(acts), text.contexts.ravel()
    found: list[list[dict[str, Any]]] = [[] for _ in latents]
    edges = zip(owners.tolist(), bounds.tolist(), offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
    for latent, (begin, end), first, last in edges:
        values = [0.0] * (end - begin)
        for place, act in zip(places[first:last], numbers[first:last], strict=True):
            values[place] = act
        window = [strings[token] for token in tokens[begin:end].tolist()]
        found[latent - latents.start].append(_activations(window, values))
    return found


def _averages(
    tokens: np.ndarray, acts: np.ndarray, counts: np.ndarray, n: int, min_count: int
) -> tuple[list[int], list[float]]:
    """The n tokens with the largest average activation, the largest first, of equal ones the smaller id; and the averages.

    Args:
        tokens, acts: all activations of a latent, [N].
        counts: tokens with a row in the whole text, by id.
    """
    some, place = np.unique(tokens, return_inverse=True)
    means = np.bincount(place, acts.astype(np.float64), len(some)) / counts[some]
    order = np.lexsort((some, -means))
    order = order[counts[some][order] >= min_count][:n]
    return some[order].tolist(), short(means[order])


def _weights(feature: dict[str, Any]) -> dict[str, Any]:
    """Of the output side: ours are without the median over the vocabulary, see `LogitWeights`. The input side is empty."""
    found = _named("WeightBasedSummaryOfNeuron")
    for side in ("input", "output"):
        for sign, key in (("positive", "pos"), ("negative", "neg")):
            tokens, values = (feature[f"{key}_{what}"] for what in ("str", "values"))
            is_ours = side == "output"
            parts = {"tokens": tokens if is_ours else [], "strengths": values if is_ours else []}
            found[f"{side}_{sign}"] = _named("TokensAndWeights", **parts)
    return found


def _scored(
    one: dict[str, Any], simulations: Simulations, records: Records, strings: Sequence[str]
) -> dict[str, Any]:
    simulated = simulations.get(one["latent"], one["method"], one["model"])
    if simulated:
        found = scored_simulation(simulated, one["latent"], records, strings)
    else:
        found = _named("ScoredSimulation", scored_sequence_simulations=[])
        found |= {theirs: one["scores"].get(ours) for ours, theirs in SCORES.items()}
    return _named("ScoredExplanation", explanation=one["explanation"], scored_simulation=found)
