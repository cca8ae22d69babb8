"""The sections of the report that are about features and neurons: the trial, the cards, contexts, control, graphs."""

from typing import Any

from saefast.interp.blocks import Link, Picture, Table

Found = dict[str, Any]
LOOK = "look/index.html"
ARMS = {
    "features": "features (A/1)",
    "today": "features (BatchTopK)",
    "neurons": "neurons",
    "shuffled": "shuffled model",
}
MEASURES = {  # and what an explainer has to pass on planted units for them to be shown
    "spearman": "usable",
    "spearman_weighted": "usable",
    "other_spearman": "usable",
    "logit_accuracy": "logit_usable",
}


def latent(number: int, dictionary: str = "A1") -> str | Link:
    """To its page in the browser, which is of A/1."""
    name = f"{dictionary[0]}/{dictionary[1:]} {number}"
    return Link(name, f"{LOOK}#latent/{number}") if dictionary == "A1" else name


def registration(found: Found) -> list[Any]:
    words = found["words"]
    said = f"Registered before any score was made, SHA-256 {found['sha256']}: {words['hypothesis']} Statistic: {words['statistic']}."
    return [
        said + f" Test: {words['test']}. {found['units']} units.",
        Link("the registration", "trial/registration.json"),
    ]


def trial(found: Found) -> list[Any]:
    lines = []
    for explainer, strata in found["measured"].items():
        for stratum, measures in strata.items():
            for measure, needs in MEASURES.items():
                if measure in measures and found["gates"][explainer][needs]:
                    one = measures[measure]
                    means = [_mean(one["arms"].get(arm)) for arm in ARMS]
                    p = one["difference"]["p"]
                    lines.append((explainer, stratum, measure, *means, "" if p is None else f"{p:.4f}"))
    arms = ", ".join(f"{arm}: {one['single_token']} of {one['units']}" for arm, one in found["arms"].items())
    said = (
        f"Means with 95 % intervals over units; p is one-sided, features over neurons. Single tokens: {arms}."
    )
    silent = [name for name, gate in found["gates"].items() if not gate["usable"]]
    left_out = (
        f"Not shown on activations, for they do not tell planted units apart there: {', '.join(silent)}."
        if silent
        else ""
    )
    head = ("explainer", "units", "measure", *ARMS.values(), "p")
    return [said, Table(head, lines), left_out]


def _mean(one: Found | None) -> str:
    if one is None or one["mean"] is None:
        return ""
    return f"{one['mean']:.3f} ({one['low']:.3f} to {one['high']:.3f})"


def blind(found: Found) -> list[Any]:
    one, mixed = found["planted"]["one_kind"], found["planted"]["mixtures"]
    said = f"{found['cards']} cards for people, whose key lies beside them, sealed: `saefast blind unseal` joins them when all are rated. "
    said += f"A program that reads only the cards gives planted units {min(one)} to {max(one)} of 14 points, mixtures {min(mixed)} to {max(mixed)}."
    head = ("what a classifier sees", "planted", "features and neurons")
    lines = [
        (
            name,
            *(
                ", ".join(f"{how} {auc:.2f}" for how, auc in found[key][name].items())
                for key in ("leak_planted", "leak")
            ),
        )
        for name in ("metadata", "shades", "logits", "text")
    ]
    return [said, Link("the cards", found["page"]), Table(head, lines)]


def contexts(found: Found) -> list[Any]:
    of_unit = ("AUC", "precision", "recall", "top half in it")
    head = (
        "context",
        "share",
        "feature",
        *of_unit,
        "AUC of the best of A/0, A/1, A/2, A/0k, A/1k",
        "neuron",
        *of_unit,
        "missed",
    )
    lines = []
    for row in found["rows"]:
        feature, neuron = (
            [f"{of['auc']:.3f}", *(_share(of[key]) for key in ("precision", "recall", "top_half"))]
            for of in (row["feature"], row["neuron"])
        )
        cells = [
            row["context"],
            f"{row['share']:.2%}",
            latent(row["feature"]["latent"], row["dictionary"]),
            *feature,
        ]
        cells += [", ".join(f"{of['auc']:.3f}" for of in row["of"].values())]
        lines.append([*cells, row["neuron"]["latent"], *neuron, ", ".join(row["missed"])])
    skipped = ", ".join(f"{name} ({n})" for name, n in found["skipped"].items())
    said = "Chosen on one half of the documents, measured on the other; A/0k and A/1k are BatchTopK's. Precision: of the tokens on which it is active at all, the share in the context. "
    said += f"Too little of it in the text (tokens): {skipped or 'none'}."
    pictures = [
        Picture(f"context-{row['context']}", f"{row['context']}: activations in it and outside")
        for row in found["rows"]
    ]
    return [said, Table(head, lines), *pictures]


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def control(found: Found) -> list[Any]:
    head = (
        "context",
        "feature",
        "loss in it, nats",
        "outside",
        "ratio",
        "pinned",
        "unpinned",
        "random direction",
    )
    lines, written = [], []
    for name, one in found["contexts"].items():
        shares = [one["pinned"][arm]["share"] for arm in ("pinned", "unpinned", "random")]
        ablation = one["ablation"]
        cells = [
            name,
            latent(one["latent"], one["dictionary"]),
            f"{ablation['inside']['value']:.4f}",
            f"{ablation['outside']['value']:.4f}",
        ]
        lines.append([*cells, _ratio(ablation["ratio"]["value"]), *(f"{share:.0%}" for share in shares)])
        written.append((name, one["examples"]["pinned"][0][:160], one["examples"]["unpinned"][0][:160]))
    heard = [
        (
            f"times {one['factor']:g}",
            *(f"{one[key]['mean']:.4f}" for key in ("scaled", "random", "covariance")),
        )
        for one in found["listens"]
    ]
    return [
        "A feature taken out of the model, and pinned to its largest activation while the model writes on after 1,2,3,4,5,6,7,8,9,10.",
        Table(head, lines),
        Table(("context", "pinned", "unpinned"), written),
        "Features scaled, in nats a token on which they are active, beside random directions of the same norm and of the covariance of the rows.",
        Table(("scaled", "features", "random", "covariance"), heard),
    ]


def _ratio(value: float | None) -> str:
    return "no effect outside" if value is None else f"{value:.1f}"


def universality(found: Found) -> list[Any]:
    if "skipped" in found:
        return [found["skipped"]]
    lines = []
    for what, one in found.items():
        for name in ("activation", "logits", "attribution"):
            if name in one:
                best = one[name]["best"] if "best" in one[name] else one[name]
                lines.append(
                    (
                        what,
                        name,
                        f"{best['median']:.2f}",
                        f"{best['lower_quartile']:.2f}",
                        f"{best['upper_quartile']:.2f}",
                    )
                )
        lines.append((what, "tokens permuted", f"{one['permuted']['median']:.3f}", "", ""))
    head = ("of A", "similarity with the best match in B", "median", "lower quartile", "upper quartile")
    return [
        "The paper has 0.72 for features and 0.46 for neurons.",
        Table(head, lines),
        Picture("universality", "Best matches in the other model"),
    ]


def splitting(found: Found) -> list[Any]:
    head = ("step", "parents", "children", "links", "split in two or more", "children on fewer tokens")
    lines = [
        (
            f"A/{i} to A/{i + 1}",
            one["parents"],
            one["children"],
            one["links"],
            _share(one["split"]),
            _share(one["lower_density_where_split"]),
        )
        for i, one in enumerate(found["steps"])
    ]
    clusters = [
        (cluster["number"], len(cluster["members"]), " ".join(cluster.get("text", [])))
        for cluster in found["clusters"]
    ]
    pictures = [Picture("families", "Families: what a latent splits into")] if found["families"] else []
    said = f"{found['n_clusters']} clusters (HDBSCAN) on the map of A/0 and A/1; the first:"
    return [
        Table(head, lines),
        *pictures,
        said,
        Table(("cluster", "latents", "common tokens"), clusters),
        Picture("map", "UMAP of A/0 and A/1"),
    ]


def automata(found: Found) -> list[Any]:
    head = ("states", "follows", "tokens")
    lines = [
        (
            " to ".join(map(str, one["latents"])),
            ", ".join(f"{share:.0%}" for share in one["follow"]),
            " | ".join(" ".join(top.get("text", [])) for top in one["tokens"]),
        )
        for kind in ("loops_of_contexts", "pairs", "longer")
        for one in found[kind][:10]
    ]
    said = f"{found['states']:,} states, {found['edges']:,} edges, {found['n_loops']} self loops, {found['n_loops_of_contexts']} of them of contexts."
    pictures = [Picture("automata", "The strongest self loops and cycles")] if lines else []
    return [said, *pictures, Table(head, lines)]
