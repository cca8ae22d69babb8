"""Neuronpedia's upload call, POST /api/feature/upload-batch: its bodies within its limits, and sending them.

Limits as in apps/webapp/app/api/feature/upload-batch/route.tsx there: 128 features, 20 logits, 1024 tokens of an activation, 512
UTF-16 units of an explanation. The source set and the source must exist and belong to the owner of the key.
"""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

from saefast.errors import InputError, check
from saefast.interp.effects import Effects
from saefast.interp.exchange.dashboards import dashboards
from saefast.interp.explanations import read_explanations
from saefast.interp.records.read import Records
from saefast.interp.vocabulary import Vocabulary

MAX_FEATURES, MAX_LOGITS, MAX_TOKENS, MAX_EXPLANATION = 128, 20, 1024, 512
PATH = "/api/feature/upload-batch"
AGAIN = {408, 425, 429, 500, 502, 503, 504}  # answers after which the same body may succeed


def upload_batches(
    records: Records,
    effects: Effects,
    vocabulary: Vocabulary,
    *,
    model_id: str,
    source_id: str,
    groups: Sequence[str] = ("top", "interval"),
    per_batch: int = MAX_FEATURES,
    known_methods: Collection[str] = (),
) -> Iterator[dict[str, Any]]:
    """The bodies of the calls, latents in order. Latents without an example are left out: the call refuses them.

    Args:
        known_methods: names of methods of explanations that this Neuronpedia has (its error lists them). It refuses a body with
            another, so explanations of others go without. The name of a model never goes: its call (August 2026) puts it
            under a name that its own table does not have, and fails.

    Raises:
        InputError: see `dashboards`; per_batch not from 1 to 128.
    """
    ok = 1 <= per_batch <= MAX_FEATURES
    check(ok, f"per_batch: expected 1 to {MAX_FEATURES}, got {per_batch}")
    explained: dict[int, list[dict[str, Any]]] = {}
    for one in read_explanations(records.folder):
        found: dict[str, Any] = {"text": _cut(one["explanation"].replace("\0", " "))}
        found["methodName"] = one["method"] if one.get("method") in known_methods else None
        if found["text"]:
            explained.setdefault(one["latent"], []).append(found)
    body = {"modelId": model_id.lower(), "source": source_id.lower()}
    features: list[dict[str, Any]] = []
    for some in dashboards(records, effects, vocabulary, groups, MAX_LOGITS):
        for feature in some:
            if feature["activations"]:
                features.append(_feature(feature, explained.get(feature["feature_index"], [])))
            if len(features) == per_batch:
                yield body | {"features": features}
                features = []
    if features:
        yield body | {"features": features}


def _feature(feature: dict[str, Any], explanations: list[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {"index": feature["feature_index"], "density": feature["frac_nonzero"]}
    for name, sign in (("topLogits", "pos"), ("bottomLogits", "neg")):
        pairs = zip(feature[f"{sign}_str"], feature[f"{sign}_values"], strict=True)
        found[name] = [{"token": token, "value": value} for token, value in pairs]
    if explanations:
        found["explanations"] = explanations
    return found | {"activations": [_activation(one) for one in feature["activations"]]}


def _activation(one: dict[str, Any]) -> dict[str, Any]:
    """A window that is too long is cut around its token."""
    first = min(
        max(0, one["qualifying_token_index"] - MAX_TOKENS // 2), max(0, len(one["tokens"]) - MAX_TOKENS)
    )
    part = slice(first, first + MAX_TOKENS)
    found: dict[str, Any] = {"tokens": one["tokens"][part], "values": one["values"][part]}
    is_bin = one["group"] != "top"
    found |= {
        "quantileMin": one["bin_min"] if is_bin else None,
        "quantileMax": one["bin_max"] if is_bin else None,
    }
    return found | {"quantileFraction": one["bin_contains"] if is_bin else None}


def _cut(text: str) -> str:
    """The text, or as much of it as 512 UTF-16 units hold, the unit of JavaScript's lengths."""
    units = text.encode("utf-16-le")
    if len(units) <= 2 * MAX_EXPLANATION:
        return text
    return units[: 2 * (MAX_EXPLANATION - 1)].decode("utf-16-le", "ignore") + "\u2026"


def upload(
    bodies: Iterable[dict[str, Any]],
    base_url: str,
    api_key: str,
    *,
    start: int = 0,
    tries: int = 6,
    timeout: float = 120.0,
    wait: Callable[[float], object] = time.sleep,
    progress: Callable[[int], object] = lambda n_sent: None,
) -> int:
    """Send the bodies one after another. Returns how many there are.

    Args:
        start: bodies that an earlier call sent; it reported how many to `progress`, and in its error.
        tries: of each body, 1, 2, 4, ... seconds apart (or what the server asks for), when the server is busy or out of reach.
        progress: called with the number of bodies sent so far, after each.

    Raises:
        InputError: the server refused a body, or did not answer after all tries. The message says from where to go on.
    """
    n_sent = 0
    for body in bodies:
        if n_sent >= start:
            _send(body, base_url.rstrip("/") + PATH, api_key, tries, timeout, wait, n_sent)
            progress(n_sent + 1)
        n_sent += 1
    return n_sent


def _send(
    body: dict[str, Any],
    url: str,
    api_key: str,
    tries: int,
    timeout: float,
    wait: Callable[[float], object],
    number: int,
) -> None:
    headers = {"Content-Type": "application/json", "x-api-key": api_key}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers, method="POST")
    for attempt in range(tries):
        pause = 2.0**attempt
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                answer.read()
                return
        except urllib.error.HTTPError as error:
            said = f"{error.code} {error.read(500).decode('utf-8', 'replace')}"
            asked = error.headers.get("Retry-After", "")
            pause = float(asked) if asked.isdigit() else pause
            again = error.code in AGAIN
        except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
            said, again = str(error), True
        if not again or attempt == tries - 1:
            raise InputError(
                f"{url}: body {number} was not taken: {said}; go on with start = {number}"
            ) from None
        wait(pause)
