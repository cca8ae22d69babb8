"""What delphi says of latents, and back: explanations, and the scores that delphi gave them.

results/NAME/explanations/{hookpoint}_latent{i}.txt         a JSON string
results/NAME/scores/{scorer}/{hookpoint}_latent{i}.txt      a JSON list of results; "/" of the hookpoint is "--" here

add_explanations(records.folder, read_delphi_explanations("results/mine"))
"""

import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from saefast.errors import InputError, check, shown
from saefast.files import read_json, write_atomic
from saefast.interp.exchange.delphi import delphi_hookpoint

NAME = re.compile(r"(.+)_latent(\d+)\.txt", re.DOTALL)


def export_delphi_explanations(
    explanations: Iterable[dict[str, Any]], out: str | Path, *, hookpoint: str
) -> int:
    """Write explanations (of `read_explanations`) where delphi's scorers look for them, with `--explainer none`.

    delphi keeps one for each latent: of several the last is written, in place of one that is there.

    Args:
        out: results/NAME of delphi.

    Returns:
        How many files were written.

    Raises:
        InputError: a hookpoint that cannot be part of a path.
    """
    hookpoint = delphi_hookpoint(None, hookpoint)
    texts = {one["latent"]: one["explanation"] for one in explanations}
    for latent, text in texts.items():
        path = Path(out) / "explanations" / f"{hookpoint}_latent{latent}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        data = json.dumps(text).encode()
        write_atomic(path, lambda temporary, data=data: temporary.write_bytes(data))  # type: ignore[misc]
    return len(texts)


def read_delphi_explanations(folder: str | Path, hookpoint: str | None = None) -> list[dict[str, Any]]:
    """The explanations of a run of delphi with their scores, as lines of explanations.jsonl, in the order of the latents.

    Scores are named after delphi's scorers. "fuzz" and "detection" (and what else judges examples one by one) are the
    class-balanced accuracy, and with "_f1" the F1 score, over the examples that were judged, as delphi's own log computes them
    (delphi/log/result_analysis.py); there are none if no example was. "simulation" is the correlation over all examples. Those
    of other scorers are left out.

    Args:
        folder: results/NAME of delphi.
        hookpoint: what delphi calls the module; default: the only one that has explanations.

    Raises:
        InputError: there are no explanations, or of several hookpoints; a file is not as above, or has a score of a latent
            without an explanation.
    """
    folder = Path(folder)
    files = _files(folder / "explanations")
    hooks = sorted(files)
    check(len(hooks) > 0, f"{folder}: expected explanations/HOOKPOINT_latentN.txt of delphi, found none")
    asked = f"hookpoint: expected one of {', '.join(hooks)}, got {hookpoint!r}"
    check(hookpoint in files or (hookpoint is None and len(hooks) == 1), asked)
    hook = hookpoint or hooks[0]
    config = read_json(folder / "run_config.json") if (folder / "run_config.json").exists() else {}
    model = config.get("explainer_model") if isinstance(config, dict) else None
    found: dict[int, dict[str, Any]] = {}
    for latent, path in sorted(files[hook].items()):
        text = read_json(path)
        check(isinstance(text, str), f"{path}: expected an explanation, a JSON string, got {shown(text)}")
        found[latent] = {
            "latent": latent,
            "explanation": text,
            "method": "delphi",
            "model": model,
            "scores": {},
        }
    for scorer in sorted((folder / "scores").glob("*/")):
        for latent, path in sorted(_files(scorer).get(hook.replace("/", "--"), {}).items()):
            check(latent in found, f"{path}: the score of an explanation that is not there")
            found[latent]["scores"] |= _scores(scorer.name, path)
    return list(found.values())


def _files(folder: Path) -> dict[str, dict[int, Path]]:
    """Hookpoint -> latent -> file, of all files of latents in a folder and below it."""
    found: dict[str, dict[int, Path]] = {}
    for path in folder.rglob("*.txt"):
        if parts := NAME.fullmatch(path.relative_to(folder).as_posix()):
            found.setdefault(parts[1], {})[int(parts[2])] = path
    return found


def _scores(scorer: str, path: Path) -> dict[str, float]:
    """What one file of a scorer comes to."""
    results = read_json(path)
    listed = isinstance(results, list) and all(isinstance(one, dict) for one in results)
    got = f"{path}: expected a list of results of delphi's {scorer}, got {shown(results)}"
    check(listed, got)
    try:
        if scorer == "simulation":  # distance 0: all examples; NaN is null or "nan"
            of_all = [_number(one["ev_correlation_score"]) for one in results if one["distance"] == 0]
            return {"simulation": of_all[0]} if of_all and math.isfinite(of_all[0]) else {}
        if not all("prediction" in one and "activating" in one for one in results):
            return {}
        judged = [one for one in results if one["prediction"] is not None]
        pairs = [(bool(one["prediction"] >= 0.5), bool(one["activating"])) for one in judged]
    except (KeyError, TypeError, ValueError):
        raise InputError(got) from None
    if not pairs:
        return {}
    hits = pairs.count((True, True))
    n_active, n_found = sum(active for _, active in pairs), sum(found for found, _ in pairs)
    recall = _share(hits, n_active)
    precision = _share(hits, n_found)
    accuracy = (recall + _share(pairs.count((False, False)), len(pairs) - n_active)) / 2
    return {scorer: accuracy, f"{scorer}_f1": _share(2 * precision * recall, precision + recall)}


def _number(score: Any) -> float:
    return math.nan if score is None else float(score)


def _share(part: float, of: float) -> float:
    return part / of if of > 0 else 0.0
