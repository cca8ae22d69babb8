"""SAEDashboard's batch-N.json: written from records, and read.

The layout is that of `NeuronpediaDashboardBatch.to_dict()` of the package sae-dashboard. Numbers are not rounded.
"""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from saefast.errors import check
from saefast.files import read_json, write_atomic
from saefast.interp.effects import Effects
from saefast.interp.exchange.dashboards import OWN, dashboards
from saefast.interp.records.read import Records
from saefast.interp.vocabulary import Vocabulary
from saefast.sae import SAE

NAME = re.compile(r"batch-(\d+)\.json")


def export_sae_dashboard(
    records: Records,
    effects: Effects,
    vocabulary: Vocabulary,
    out: str | Path,
    *,
    model_id: str,
    layer: int,
    sae_set: str,
    sae_id_suffix: str | None = None,
    groups: Sequence[str] = ("top", "interval"),
    sae: SAE | None = None,
) -> list[Path]:
    """Write out/batch-0.json and so on, 512 latents in each; files of a longer export before are removed.

    Args:
        sae: with one, each latent has its row of W_dec as "vector".

    Raises:
        InputError: see `dashboards`.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, features in enumerate(dashboards(records, effects, vocabulary, groups)):
        for feature in features:
            if sae is not None:
                feature["vector"] = sae.params.W_dec[feature["feature_index"]].float().tolist()
            feature["activations"] = [
                {key: value for key, value in activation.items() if key not in OWN}
                for activation in feature["activations"]
            ]
        batch: dict[str, Any] = {
            "model_id": model_id,
            "layer": layer,
            "sae_set": sae_set,
            "sae_id_suffix": sae_id_suffix,
        }
        text = json.dumps(batch | {"features": features}, separators=(",", ":"))
        paths.append(out / f"batch-{number}.json")
        write_atomic(paths[-1], lambda temporary, text=text: temporary.write_text(text))  # type: ignore[misc]
    for path in out.glob("batch-*.json"):
        if path not in paths and NAME.fullmatch(path.name):
            path.unlink()
    return paths


def read_sae_dashboard(folder: str | Path) -> Iterator[dict[str, Any]]:
    """The features of all batch-N.json of a folder, those of a smaller N first, one batch in memory.

    Yields:
        a feature as it is in the file ("feature_index", "activations", "pos_str", ...), with "model_id", "layer", "sae_set" and
        "sae_id_suffix" of its batch. A file without a vector or decoder weights gives empty lists.

    Raises:
        InputError: no such file; one that is not of this layout.
    """
    folder = Path(folder)
    numbered = [(int(m[1]), path) for path in folder.glob("batch-*.json") if (m := NAME.fullmatch(path.name))]
    check(len(numbered) > 0, f"{folder}: expected batch-N.json of SAEDashboard, found none")
    for _, path in sorted(numbered):
        batch = read_json(path)
        ok = isinstance(batch, dict) and isinstance(batch.get("features"), list)
        check(ok, f'{path}: expected an object with "features", as SAEDashboard writes it')
        about = {key: value for key, value in batch.items() if key != "features"}
        for feature in batch["features"]:
            ok = isinstance(feature, dict) and type(feature.get("feature_index")) is int
            check(ok, f'{path}: expected features with a "feature_index"')
            for activation in feature.get("activations", []):
                same = len(activation["tokens"]) == len(activation["values"])
                check(same, f"{path}: feature {feature['feature_index']} has tokens without values")
            yield about | {"vector": [], "decoder_weights_dist": []} | feature
