"""The stages about contexts and what their features do: row 11 of the acceptance table, ablation, pinned sampling, steering."""

import math
from typing import Any

import numpy as np

from saefast.interp.contexts import (
    Mean,
    activation_histogram,
    context_ablation,
    context_picture,
    context_table,
    evaluate_contexts,
    judge,
    standard_proxies,
)
from saefast.interp.contexts.proxy import Proxy
from saefast.interp.records.text import Text
from saefast.interp.steering import Sample, listens, pin, pinned_sampling, splice_check
from saefast.study.measures import LADDER
from saefast.study.training import held_out_contexts
from saefast.study.world import World

ASKED = ("dna", "base64", "hebrew", "arabic", "http", "legal", "nutrition")
"""Contexts of row 11, by the names of their proxies."""
CANDIDATES = (*LADDER, "A0k", "A1k")
"""Dictionaries whose features may stand for a context."""
IN_CONTEXT = 0.5  # of the tokens of a sample, for it to be of the context
LISTENED = 20  # features that are scaled, the first of the context table and then the strongest


def contexts(world: World) -> dict[str, Any]:
    """The best feature of all dictionaries and the best neuron of every context in the text.

    A larger dictionary splits a context into parts, so that none of its features stands for all of it. Which dictionary has the
    best feature is decided on the documents that latents are chosen on, too.
    """
    neurons = world.records("neurons-A")
    judged = judge(neurons.text, world.vocabulary, standard_proxies())
    of_neurons = evaluate_contexts(neurons, judged)
    best: dict[str, dict[str, Any]] = {}
    for name in CANDIDATES:
        records = world.records(name)
        of_features = evaluate_contexts(records, judged)
        table = context_table(records, neurons, judged, (of_features, of_neurons))
        for row in table.rows:
            latent = row.feature.latent
            chosen_by = float(of_features.explain.auc[judged.names.index(row.context), latent])
            known = best.setdefault(row.context, {"chosen_by": -1.0, "of": {}})
            known["of"][name] = {"latent": latent, "auc": row.feature.auc}
            if chosen_by > known["chosen_by"]:
                known |= {"row": row, "dictionary": name, "chosen_by": chosen_by}
    for context, one in best.items():
        row, labels = one["row"], judged.labels_of(context)
        pair = [
            activation_histogram(records, labels, unit.latent)
            for records, unit in ((world.records(one["dictionary"]), row.feature), (neurons, row.neuron))
        ]
        context_picture(world.picture(f"context-{context}"), row, *pair)
    rows = [plain(one) for one in best.values()]
    misses = [row["context"] for row in rows if row["missed"]]
    return {"rows": rows, "misses": misses, "skipped": table.skipped, "asked": table.asked}


def plain(best: dict[str, Any]) -> dict[str, Any]:
    """A row, as JSON has it; "of": the best latent of each dictionary."""
    row = best["row"]
    units = {"feature": row.feature._asdict(), "neuron": row.neuron._asdict()}
    return row._asdict() | units | {"dictionary": best["dictionary"], "of": best["of"]}


def control(world: World, table: dict[str, Any]) -> dict[str, Any]:
    """What the features of the contexts do: without them in and outside of their context, pinned, and scaled.

    table: what `contexts` found.
    """
    records, sae, model = world.records("A1"), world.sae("A1"), world.model("A")
    chosen = {
        row["context"]: (row["dictionary"], row["feature"]["latent"])
        for row in table["rows"]
        if row["context"] in ASKED and row["feature"]["n_active"] > 0
    }
    proxies: dict[str, Proxy] = {proxy.name: proxy for proxy in standard_proxies(records.text)}
    labels = {
        name: proxies[name].labels(records.text, world.vocabulary) & records.text.encoded for name in chosen
    }
    found: dict[str, Any] = {}
    for name, (dictionary, latent) in chosen.items():
        of = world.records(dictionary), world.sae(dictionary)
        removed = context_ablation(*of, model, world.hook, latent, labels[name])
        sampled = pinned_sampling(
            model,
            world.tokenizer,
            of[1],
            world.hook,
            [pin(of[0], latent)],
            lambda sample, name=name: is_of(sample, proxies[name], world),  # type: ignore[misc]
            n=world.scale.samples,
        )
        examples = {
            arm: [one.text for one in getattr(sampled, arm).samples[:3]] for arm in ("pinned", "unpinned")
        }
        found[name] = {
            "dictionary": dictionary,
            "latent": latent,
            "ablation": {key: _finite(getattr(removed, key)) for key in ("inside", "outside", "ratio")},
            "pinned": sampled.figures(),
            "examples": examples,
        }
    spliced = splice_check(sae, model, world.hook, held_out_contexts(world, world.scale.contexts))
    energy = records.table(["energy"])["energy"].to_numpy()
    strongest = np.argsort(-energy, kind="stable")[:LISTENED].tolist()
    of_a1 = [
        one["of"]["A1"]["latent"] for one in table["rows"] if one["context"] in chosen and "A1" in one["of"]
    ]
    heard = listens(records, sae, model, world.hook, list(dict.fromkeys([*of_a1, *strongest]))[:LISTENED])
    factors = [
        {"factor": one.factor}
        | {
            key: getattr(one, key)._asdict()
            for key in ("scaled", "random", "covariance", "share_above_random")
        }
        for one in heard.factors
    ]
    return {"contexts": found, "splice": spliced._asdict(), "listens": factors}


def _finite(mean: Mean) -> dict[str, float | None]:
    """JSON has no infinite numbers: None."""
    return {name: value if math.isfinite(value) else None for name, value in mean._asdict().items()}


def is_of(sample: Sample, proxy: Proxy, world: World) -> bool:
    """Whether half of what was written is of the context."""
    if not sample.tokens:
        return False
    tokens = np.asarray([sample.tokens], np.int32)
    text = Text(tokens, np.ones(tokens.shape, bool), ())
    return bool(proxy.labels(text, world.vocabulary).mean() >= IN_CONTEXT)
