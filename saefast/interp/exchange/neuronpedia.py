"""Neuronpedia's export: the files that its bulk import reads, and the explanations of such files.

    out/model_id/source_id/{release,model,sourceset,source}.jsonl
    out/model_id/source_id/{features,activations,explanations,explanation_scores}/batch-N.jsonl.gz

A line is a row of a table of Neuronpedia's database (apps/webapp/prisma/schema.prisma there): SourceRelease, Model, SourceSet,
Source, Neuron, Activation, Explanation, ExplanationScore. Its import takes the columns from the first line of each file. It knows
of no files of scores, and neither does its own export: these are for neuronpedia_sql.py and for reading back.
"""

import gzip
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from saefast.errors import InputError, check, line
from saefast.files import write_atomic
from saefast.interp.effects import Effects
from saefast.interp.exchange.dashboards import about_text, dashboards, neighbours
from saefast.interp.explanations import read_explanations
from saefast.interp.records.read import Records
from saefast.interp.vocabulary import Vocabulary
from saefast.sae import SAE

SOURCE_ID = re.compile(r"(\d+)-([a-z0-9_-]+?)(__[a-z0-9_-]+)?")  # layer-set or layer-set__suffix
BLOCK = re.compile(r"(?:.*\.)?(?:layers|h|blocks)\.(\d+)")  # the output of a block, in transformers
JUDGE = "unknown"  # explanations.jsonl does not say who scored, and Neuronpedia wants a name
COPIED = [f"neuron_alignment_{name}" for name in ("indices", "values", "l1")]
COPIED += [
    f"correlated_{what}_{name}" for what in ("neurons", "features") for name in ("indices", "pearson", "l1")
]
COPIED += ["neg_str", "neg_values", "pos_str", "pos_values", "frac_nonzero"]
COPIED += [f"{what}_hist_data_bar_{name}" for what in ("freq", "logits") for name in ("heights", "values")]
COPIED += ["decoder_weights_dist"]


def export_neuronpedia(
    records: Records,
    effects: Effects,
    vocabulary: Vocabulary,
    out: str | Path,
    *,
    model_id: str,
    source_id: str,
    creator_id: str,
    creator_name: str = "",
    release: str | None = None,
    description: str = "",
    created_at: str = "2000-01-01T00:00:00.000Z",
    groups: Sequence[str] = ("top", "interval"),
    sae: SAE | None = None,
) -> Path:
    """Write the export of all latents; the same arguments give the same bytes, and a rerun replaces what was there.

    Args:
        source_id: "{layer}-{set}" or "{layer}-{set}__{suffix}", in small letters.
        creator_id: id of a user of the Neuronpedia that will import it.
        release: default: the name of the set.
        sae: with one, each latent has its row of W_dec as a vector to steer with.

    Returns: out/model_id/source_id.

    Raises:
        InputError: ids that Neuronpedia would refuse; see `dashboards`; a wrong line in explanations.jsonl.
    """
    parts = SOURCE_ID.fullmatch(source_id)
    check(parts is not None, f'source_id: expected "LAYER-SET" in small letters, got {source_id!r}')
    ok = re.fullmatch(r"[a-z0-9_.-]+", model_id) is not None and model_id.strip(".") != ""
    check(ok, f"model_id: expected small letters, digits, dots, dashes, underscores, got {model_id!r}")
    assert parts is not None
    folder = Path(out) / model_id / source_id
    key = {"modelId": model_id, "layer": source_id}
    made = {"creatorId": creator_id, "createdAt": created_at}
    explained = _by_latent(read_explanations(records.folder))
    written: set[Path] = set()
    hook = records.index["sae"].get("hook_name")
    if block := BLOCK.fullmatch(str(hook)):
        hook = (
            f"blocks.{block[1]}.hook_resid_post"  # as TransformerLens, and so Neuronpedia's steering, has it
        )

    def write(table: str, number: int, rows: list[dict[str, Any]]) -> None:
        if rows:
            path = folder / table / f"batch-{number}.jsonl.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            data = gzip.compress(_lines(rows), compresslevel=5, mtime=0)
            write_atomic(path, lambda temporary: temporary.write_bytes(data))
            written.add(path)

    for number, features in enumerate(dashboards(records, effects, vocabulary, groups)):
        rows = [_activation(key, made, f["feature_index"], a) for f in features for a in f["activations"]]
        write("activations", number, rows)
        of_set: dict[str, Any] = {"hookName": hook, "sourceSetName": parts[2]}
        write("features", number, [_feature(key, made, f, effects, sae) | of_set for f in features])
        rows = []
        scores: list[dict[str, Any]] = []
        for feature in features:
            for i, one in enumerate(explained.get(feature["feature_index"], [])):
                rows.append(_explanation(key, made, i, one))
                scores += _scores(rows[-1]["id"], made, one["scores"])
        write("explanations", number, rows)
        write("explanation_scores", number, scores)
    for path in folder.glob("*/batch-*.jsonl.gz"):
        if path not in written:
            path.unlink()
    about = _about(
        records, model_id, source_id, parts[2], creator_name, release or parts[2], description, made
    )
    for name, row in about.items():
        data = _lines([row])
        write_atomic(folder / f"{name}.jsonl", lambda temporary, data=data: temporary.write_bytes(data))  # type: ignore[misc]
    return folder


def _about(
    records: Records,
    model_id: str,
    source_id: str,
    set_name: str,
    creator_name: str,
    release: str,
    description: str,
    made: dict[str, Any],
) -> dict[str, dict[str, Any]]:
    """The row of each of the four small tables."""
    description = description or f"{records.d_sae} latents"
    public = {"visibility": "PUBLIC"}
    index = records.index
    nothing = dict.fromkeys(("defaultSourceSetName", "defaultSourceId"))
    of_release: dict[str, Any] = {"name": release, "description": description, "creatorName": creator_name}
    of_release |= {"isNewUi": True, "featured": False, "descriptionShort": description, "urls": []}
    of_release |= {"creatorEmail": None, "creatorNameShort": creator_name, "defaultUmapSourceIds": []}
    of_model: dict[str, Any] = {
        "id": model_id,
        "instruct": model_id.endswith("-it"),
        "displayNameShort": model_id,
    }
    of_model |= {"displayName": model_id, "tlensId": None, "dimension": index["sae"]["d_in"]}
    of_model |= {"inferenceEnabled": False, "layers": 0, "neuronsPerLayer": 0, "owner": creator_name}
    of_model |= {"updatedAt": made["createdAt"], "website": None}
    of_set: dict[str, Any] = {
        "modelId": model_id,
        "name": set_name,
        "hasDashboards": True,
        "description": description,
    }
    of_set |= {
        "type": "",
        "creatorName": creator_name,
        "urls": [],
        "creatorEmail": None,
        "releaseName": release,
    }
    of_set |= {"defaultOfModelId": None, "defaultRange": 1, "defaultShowBreaks": True, "showDfa": False}
    of_set |= {"showCorrelated": False, "showHeadAttribution": False, "showUmap": False}
    of_source: dict[str, Any] = {
        "id": source_id,
        "modelId": model_id,
        "setName": set_name,
        "hasDashboards": True,
    }
    of_source |= {"inferenceEnabled": False, "inferenceHosts": [], "defaultOfModelId": None, "notes": None}
    of_source |= dict.fromkeys(("saelensConfig", "saelensRelease", "saelensSaeId", "hfRepoId", "hfFolderId"))
    of_source |= dict.fromkeys(("hasUmap", "hasUmapLogSparsity", "hasUmapClusters"), False)
    text = about_text(records)
    of_source |= {"num_prompts": text["n_prompts_total"]}
    of_source |= {"num_tokens_in_prompt": text["n_tokens_in_prompt"], "dataset": text["dataset"]}
    return {
        "release": of_release | nothing | public | made,
        "model": of_model | nothing | public | made,
        "sourceset": of_set | public | made,
        "source": of_source | public | made,
    }


def _feature(
    key: dict[str, str], made: dict[str, Any], feature: dict[str, Any], effects: Effects, sae: SAE | None
) -> dict[str, Any]:
    latent = feature["feature_index"]
    largest = max((max(a["values"]) for a in feature["activations"]), default=0.0)
    similar, cosines = neighbours(effects.decoder, latent)
    vector = [] if sae is None else sae.params.W_dec[latent].float().tolist()
    row: dict[str, Any] = {**key, "index": str(latent), **made, "maxActApprox": largest}
    row |= {"hasVector": sae is not None, "vector": vector, "vectorLabel": None}
    row |= {"vectorDefaultSteerStrength": largest if sae is not None else 10.0}
    row |= {"topkCosSimIndices": similar, "topkCosSimValues": cosines}
    return row | {name: feature[name] for name in COPIED}


def _activation(
    key: dict[str, str], made: dict[str, Any], latent: int, one: dict[str, Any]
) -> dict[str, Any]:
    values = one["values"]
    largest = max(values)
    place = (one["group"], one["bin"], one["rank"])
    row: dict[str, Any] = {
        "id": _id("activation", *key.values(), latent, *place),
        "tokens": one["tokens"],
        "index": str(latent),
    }
    row |= key | {"maxValue": largest, "maxValueTokenIndex": values.index(largest), "minValue": min(values)}
    row |= {"values": values, "dataSource": None, "dataIndex": None, "dfaValues": [], "dfaTargetIndex": None}
    row |= {"dfaMaxValue": None, "lossValues": [], "logitContributions": None}
    row |= {"binMin": one["bin_min"], "binMax": one["bin_max"], "binContains": one["bin_contains"]}
    return row | {"qualifyingTokenIndex": one["qualifying_token_index"], **made}


def _explanation(
    key: dict[str, str], made: dict[str, Any], number: int, one: dict[str, Any]
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "id": _id("explanation", *key.values(), one["latent"], number),
        **key,
        "index": str(one["latent"]),
    }
    row |= {"description": one["explanation"].replace("\0", " "), "authorId": made["creatorId"]}
    row |= {"embedding": None, "triggeredById": None, "typeName": one.get("method"), "notes": None}
    return row | {"explanationModelName": one.get("model"), "createdAt": made["createdAt"]}


def _scores(explanation: str, made: dict[str, Any], scores: dict[str, float]) -> Iterator[dict[str, Any]]:
    """Of an explanation with this id. Its page parses jsonDetails when someone asks for them, so these are empty but JSON."""
    for name, value in scores.items():
        row: dict[str, Any] = {"id": _id("score", explanation, name), "explanationId": explanation}
        row |= {"value": value, "explanationScoreTypeName": name, "explanationScoreModelName": JUDGE}
        row |= {"initiatedByUserId": made["creatorId"], "jsonDetails": "[]", "createdAt": made["createdAt"]}
        yield row


def _id(*parts: object) -> str:
    """25 characters, as the ids that Neuronpedia makes, from what the row is about."""
    return "c" + hashlib.blake2b(json.dumps(parts).encode(), digest_size=12).hexdigest()


def _lines(rows: list[dict[str, Any]]) -> bytes:
    r"""A text in which \u0000 is spelled out is escaped in another way: Neuronpedia's import puts a space for these letters."""
    text = "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows)
    return text.replace(r"\\u0000", r"\u005cu0000").encode()


def _by_latent(explanations: list[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
    found: dict[int, list[dict[str, Any]]] = {}
    for one in explanations:
        found.setdefault(one["latent"], []).append(one)
    return found


def read_neuronpedia_explanations(folder: str | Path) -> Iterator[dict[str, Any]]:
    """The explanations of an export (…/model_id/source_id, also one downloaded from Neuronpedia), as lines of explanations.jsonl.

    Scores are those in explanation_scores: what was downloaded from Neuronpedia has none.

    Raises:
        InputError: there are none, or a line is not of this layout.
    """
    folder = Path(folder)
    scores: dict[str, dict[str, float]] = {}
    for path, row in _rows(folder, "explanation_scores"):
        try:
            of, name, value = row["explanationId"], row["explanationScoreTypeName"], float(row["value"])
            scores.setdefault(of, {})[name] = value
        except (KeyError, ValueError, TypeError):
            raise InputError(f"{path}: expected lines with an explanation, a type and a value") from None
    found = None
    for path, row in _rows(folder, "explanations"):
        try:
            found = {"latent": int(row["index"]), "explanation": row["description"]}
        except (KeyError, ValueError, TypeError):
            raise InputError(f'{path}: expected lines with "index" and "description"') from None
        found |= {"method": row.get("typeName"), "model": row.get("explanationModelName")}
        yield found | {"scores": scores.get(str(row.get("id")), {})}
    check(found is not None, f"{folder}: expected explanations/batch-N.jsonl.gz, found none")


def _rows(folder: Path, table: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    for path in sorted(folder.glob(f"{table}/batch-*.jsonl*"), key=lambda p: (len(p.name), p.name)):
        try:
            data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        except (OSError, EOFError) as error:
            raise InputError(f"{path}: expected gzip, got {line(error)}") from None
        yield from ((path, row) for row in _json_lines(path, data))


def _json_lines(path: Path, data: bytes) -> Iterator[dict[str, Any]]:
    for number, text in enumerate(data.decode("utf-8", "replace").split("\n"), 1):
        if text.strip():
            try:
                row = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{path}, line {number}: expected JSON, got {line(error)}") from None
            check(isinstance(row, dict), f"{path}, line {number}: expected an object")
            yield row
