"""The stages about contexts and what their features do: row 11 of the acceptance table, ablation, pinned sampling, steering."""

from typing import Any

import numpy as np

from saefast.interp.contexts import (
    ContextTable,
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
from saefast.study.training import held_out_contexts
from saefast.study.world import World

ASKED = ("dna", "base64", "hebrew", "arabic", "http", "legal", "nutrition")
"""Contexts of row 11, by the names of their proxies."""
IN_CONTEXT = 0.5  # of the tokens of a sample, for it to be of the context
LISTENED = 20  # features that are scaled, the first of the context table and then the strongest


def contexts(world: World) -> dict[str, Any]:
    """The best feature and the best neuron of every context in the text."""
    features, neurons = world.records("A1"), world.records("neurons-A")
    proxies = standard_proxies()
    judged = judge(features.text, world.vocabulary, proxies)
    of_both = evaluate_contexts(features, judged), evaluate_contexts(neurons, judged)
    table = context_table(features, neurons, judged, of_both)
    for row in table.rows:
        labels = judged.labels_of(row.context)
        pair = [
            activation_histogram(records, labels, unit.latent)
            for records, unit in ((features, row.feature), (neurons, row.neuron))
        ]
        context_picture(world.picture(f"context-{row.context}"), row, *pair)
    return plain(table)


def plain(table: ContextTable) -> dict[str, Any]:
    """As JSON has it."""
    rows = [
        row._asdict() | {"feature": row.feature._asdict(), "neuron": row.neuron._asdict()}
        for row in table.rows
    ]
    return {
        "rows": rows,
        "misses": [row.context for row in table.misses],
        "skipped": table.skipped,
        "asked": table.asked,
    }


def control(world: World, table: dict[str, Any]) -> dict[str, Any]:
    """What the features of the contexts do: without them in and outside of their context, pinned, and scaled.

    table: what `contexts` found.
    """
    records, sae, model = world.records("A1"), world.sae("A1"), world.model("A")
    latents = {
        row["context"]: row["feature"]["latent"]
        for row in table["rows"]
        if row["context"] in ASKED and row["feature"]["n_active"] > 0
    }
    proxies: dict[str, Proxy] = {proxy.name: proxy for proxy in standard_proxies(records.text)}
    labels = {
        name: proxies[name].labels(records.text, world.vocabulary) & records.text.encoded for name in latents
    }
    found: dict[str, Any] = {}
    for name, latent in latents.items():
        removed = context_ablation(records, sae, model, world.hook, latent, labels[name])
        sampled = pinned_sampling(
            model,
            world.tokenizer,
            sae,
            world.hook,
            [pin(records, latent)],
            lambda sample, name=name: is_of(sample, proxies[name], world),  # type: ignore[misc]
            n=world.scale.samples,
        )
        examples = {
            arm: [one.text for one in getattr(sampled, arm).samples[:3]] for arm in ("pinned", "unpinned")
        }
        found[name] = {
            "latent": latent,
            "ablation": {key: getattr(removed, key)._asdict() for key in ("inside", "outside", "ratio")},
            "pinned": sampled.figures(),
            "examples": examples,
        }
    spliced = splice_check(sae, model, world.hook, held_out_contexts(world, world.scale.contexts))
    energy = records.table(["energy"])["energy"].to_numpy()
    strongest = np.argsort(-energy, kind="stable")[:LISTENED].tolist()
    chosen = list(dict.fromkeys([*latents.values(), *strongest]))[:LISTENED]
    heard = listens(records, sae, model, world.hook, chosen)
    factors = [
        {"factor": one.factor}
        | {
            key: getattr(one, key)._asdict()
            for key in ("scaled", "random", "covariance", "share_above_random")
        }
        for one in heard.factors
    ]
    return {"contexts": found, "splice": spliced._asdict(), "listens": factors}


def is_of(sample: Sample, proxy: Proxy, world: World) -> bool:
    """Whether half of what was written is of the context."""
    if not sample.tokens:
        return False
    tokens = np.asarray([sample.tokens], np.int32)
    text = Text(tokens, np.ones(tokens.shape, bool), ())
    return bool(proxy.labels(text, world.vocabulary).mean() >= IN_CONTEXT)
