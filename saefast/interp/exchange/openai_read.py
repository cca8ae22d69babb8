"""Reading OpenAI's neuron-explainer records, of which openai.py describes the files: their own of GPT-2, or ours."""

import math
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from saefast.errors import check, shown
from saefast.files import read_json
from saefast.interp.exchange.openai import EXPLANATIONS, MOMENTS, RECORDS, SCORES
from saefast.interp.simulations import DISTRIBUTION, SCALES

METHOD = "oai_token-act-pair"  # what Neuronpedia calls explanations that were made as OpenAI's were


def read_openai(
    folder: str | Path, layer: int | None = None, latents: Collection[int] | None = None
) -> Iterator[dict[str, Any]]:
    """The NeuronRecords of a layer, in the order of the latents (neurons), one in memory.

    Args:
        folder: the one that has collated-activations in it, or that itself: folders of layers with files NUMBER.json.
        layer: default: the only one that is there.
        latents: default: all that are there.

    Yields:
        "layer", "latent" and the fields of a NeuronRecord: examples are {"tokens": [text], "activations": [number]}; moments
        and bounds of quantiles that are not finite, None.

    Raises:
        InputError: no such folder; a file that is not a NeuronRecord, or that of another neuron.
    """
    for number, latent, path in _files(Path(folder), RECORDS, "json", layer, latents):
        value = read_json(path)
        _check_class(value, "NeuronRecord", path)
        _check_neuron(value, number, latent, path)
        quantiles, bounds = (value.get(key) for key in ("random_sample_by_quantile", "quantile_boundaries"))
        ok = quantiles is None or isinstance(quantiles, list)
        check(ok, f"{path}: expected lists of records in random_sample_by_quantile")
        ok = bounds is None or (isinstance(bounds, list) and all(map(_is_number_or_null, bounds)))
        check(ok, f"{path}: expected numbers in quantile_boundaries")
        found = {"layer": number, "latent": latent, "random_sample": _samples(value, "random_sample", path)}
        found["random_sample_by_quantile"] = quantiles and [_checked(part, path) for part in quantiles]
        found["quantile_boundaries"] = bounds and [_finite(bound) for bound in bounds]
        for name in MOMENTS:
            ok = _is_number_or_null(value.get(name))
            check(ok, f"{path}: expected a number as {name}, got {shown(value.get(name))}")
            found[name] = _finite(value.get(name))
        top = "most_positive_activation_records"
        yield found | {top: _samples(value, top, path)}


def read_openai_explanations(folder: str | Path, layer: int | None = None) -> Iterator[dict[str, Any]]:
    """The explanations of a layer as lines of explanations.jsonl, see `saefast.interp.explanations`; scores by our names in `SCORES`.

    The files do not say how an explanation was made. The method is `METHOD`, and that of further ones of the same latent `METHOD`
    with "-2", "-3": so each is known by its latent, method and model.

    Args:
        folder: the one that has explanations in it, or that itself: folders of layers with files NUMBER.jsonl.
        layer: default: the only one that is there.

    Raises:
        InputError: no such folder; a file that is not of NeuronSimulationResults, or that of another neuron.
    """
    for _, key, explanation, simulation in _scored_explanations(folder, layer):
        scores = {ours: _finite(simulation.get(theirs)) for ours, theirs in SCORES.items()}
        known = {name: score for name, score in scores.items() if score is not None}
        yield key | {"explanation": explanation, "scores": known}


def read_openai_simulations(folder: str | Path, layer: int | None = None) -> Iterator[dict[str, Any]]:
    """The simulations of these explanations, of those that have some, one explanation in memory.

    Yields:
        "latent", "method", "model" as `read_openai_explanations` has them, and "simulations": {"tokens": [text],
        "true_activations": [number], "expected": [number], "scale": text}, and both distributions where they are known.

    Raises:
        InputError: see there; numbers that are not finite, or not as many as tokens.
    """
    for path, key, _, scored in _scored_explanations(folder, layer):
        sequences = scored.get("scored_sequence_simulations") or []
        check(isinstance(sequences, list), f"{path}: expected a list of scored_sequence_simulations")
        if sequences:
            yield key | {"simulations": [_simulation(one, path) for one in sequences]}


def _scored_explanations(
    folder: str | Path, layer: int | None
) -> Iterator[tuple[Path, dict[str, Any], str, dict[str, Any]]]:
    """(path, {"latent", "method", "model"}, text, scored_simulation) of each."""
    for number, latent, path in _files(Path(folder), EXPLANATIONS, "jsonl", layer, None):
        value = read_json(path)  # one line
        _check_class(value, "NeuronSimulationResults", path)
        _check_neuron(value, number, latent, path)
        for i, one in enumerate(value.get("scored_explanations") or []):
            simulation = one.get("scored_simulation") if isinstance(one, dict) else None
            ok = isinstance(simulation, dict) and isinstance(one.get("explanation"), str)
            check(ok, f"{path}: expected scored_explanations with an explanation and a scored_simulation")
            assert simulation is not None
            method = f"{METHOD}-{i + 1}" if i else METHOD
            yield path, {"latent": latent, "method": method, "model": None}, one["explanation"], simulation


def _simulation(one: Any, path: Path) -> dict[str, Any]:
    simulation = one.get("simulation") if isinstance(one, dict) else None
    found: dict[str, Any] = simulation if isinstance(simulation, dict) else {}
    of_acts = {"tokens": found.get("tokens"), "activations": one.get("true_activations") if found else None}
    of_expected = {"tokens": found.get("tokens"), "activations": found.get("expected_activations")}
    true, expected = _checked([of_acts, of_expected], path)
    check(found.get("activation_scale") in SCALES, f"{path}: expected an activation_scale of {SCALES}")
    known = {name: found[name] for name in DISTRIBUTION if found.get(name)}
    tokens, truth = true["tokens"], true["activations"]
    both = {"tokens": tokens, "true_activations": truth, "expected": expected["activations"]}
    return both | {"scale": found["activation_scale"]} | known


def _files(
    folder: Path, kind: str, suffix: str, layer: int | None, latents: Collection[int] | None
) -> list[tuple[int, int, Path]]:
    """(layer, number, path) of each file."""
    base = folder / kind if (folder / kind).is_dir() else folder
    numbered = [path for path in base.glob("*") if path.is_dir() and re.fullmatch("[0-9]+", path.name)]
    layers = sorted(int(path.name) for path in numbered)
    check(len(layers) > 0, f"{folder}: expected {kind}/LAYER/NUMBER.{suffix}, found none")
    ok = layer in layers if layer is not None else len(layers) == 1
    check(ok, f"layer: expected one of {layers}, which are in {base}, got {layer}")
    number = layers[0] if layer is None else layer
    names = [(path, re.fullmatch(rf"([0-9]+)\.{suffix}", path.name)) for path in base.glob(f"{number}/*")]
    found = sorted((int(match[1]), path) for path, match in names if match is not None)
    missing = sorted(set(latents or ()) - {latent for latent, _ in found})
    check(
        not missing, f"{base / str(number)}: expected files of {shown(latents)}, found none of {missing[:5]}"
    )
    return [(number, latent, path) for latent, path in found if latents is None or latent in latents]


def _check_class(value: Any, name: str, path: Path) -> None:
    ok = isinstance(value, dict) and value.get("dataclass_name", name) == name
    check(ok, f"{path}: expected the {name} of OpenAI's neuron-explainer")


def _check_neuron(value: dict[str, Any], layer: int, latent: int, path: Path) -> None:
    neuron = value.get("neuron_id")
    got = [neuron.get(key) for key in ("layer_index", "neuron_index")] if isinstance(neuron, dict) else neuron
    check(got == [layer, latent], f"{path}: expected neuron {latent} of layer {layer}, got {shown(got)}")


def _samples(value: dict[str, Any], key: str, path: Path) -> list[dict[str, Any]]:
    return _checked(value.get(key, []), path)


def _checked(samples: Any, path: Path) -> list[dict[str, Any]]:
    """ActivationRecords with the fields that all versions have."""
    check(isinstance(samples, list), f"{path}: expected lists of tokens and activations")
    found = []
    for one in samples:
        value: dict[str, Any] = one if isinstance(one, dict) else {}
        tokens, acts = value.get("tokens"), value.get("activations")
        ok = isinstance(tokens, list) and isinstance(acts, list) and len(tokens) == len(acts)
        ok = ok and all(isinstance(token, str) for token in tokens or ())
        ok = ok and all(type(act) in (int, float) and math.isfinite(act) for act in acts or ())
        check(ok, f"{path}: expected as many finite activations as tokens in each record")
        found.append({"tokens": tokens, "activations": acts})
    return found


def _is_number_or_null(value: Any) -> bool:
    return value is None or type(value) in (int, float)


def _finite(value: Any) -> float | None:
    return float(value) if type(value) in (int, float) and math.isfinite(value) else None
