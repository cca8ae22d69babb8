"""The sections of the report: what each stage found, in words, tables and pictures. Those about units are in unit_sections.py."""

from collections.abc import Callable
from typing import Any

from saefast.interp.blocks import Link, Picture, Section, Table
from saefast.study import unit_sections
from saefast.study.world import World

Found = dict[str, Any]


def sections(world: World, results: dict[str, dict[str, Any]]) -> list[Section]:
    """Of the stages that have run, and how long each took."""
    found = [
        Section(title, make(results[stage]["found"])) for stage, title, make in SECTIONS if stage in results
    ]
    lines = [(name, f"{result['seconds']:,.0f}") for name, result in results.items()]
    total = sum(result["seconds"] for result in results.values())
    said = f"All stages took {total / 60:.0f} minutes on this machine, without what was there before."
    return [*found, Section("Time", [said, Table(("stage", "seconds"), lines)])]


def _text(found: Found) -> list[Any]:
    head = ("kind", "training, MB", "held out, MB", "documents")
    lines = [
        (
            kind,
            f"{of['train']['bytes'] / 1e6:.2f}",
            f"{of.get('heldout', {}).get('bytes', 0) / 1e6:.2f}",
            f"{of['train']['documents']:,}",
        )
        for kind, of in found["kinds"].items()
        if "train" in of
    ]
    absent = (
        f"Not to be had: {', '.join(found['absent'])}."
        if found["absent"]
        else "Every kind that was asked for is there."
    )
    return [absent, Table(head, lines)]


def _ground_truth(found: Found) -> list[Any]:
    said = "Sparse sums of known directions: the share that a dictionary finds (cosine of at least 0.95)."
    lines = [(name, f"{one['found']:.1%}", f"{one['median_cosine']:.4f}") for name, one in found.items()]
    return [said, Table(("dictionary", "found", "median cosine"), lines)]


def _gates(found: Found) -> list[Any]:
    said = "Planted units that stand for one thing, beside mixtures, noise and dense ones: what each explainer scores on them. "
    said += "One that does not tell them apart (AUC 0.9) may not speak about real units."
    head = (
        "explainer",
        "AUC",
        "one thing",
        "mixtures",
        "another unit's explanation",
        "logits: AUC",
        "usable",
    )
    lines = [
        (
            name,
            f"{one['auc']:.3f}",
            f"{one['monosemantic']:.2f}",
            f"{one['polysemantic']:.2f}",
            f"{one['other']:.3f}",
            f"{one['logit_auc']:.2f}",
            one["usable"],
        )
        for name, one in found.items()
    ]
    return [said, Table(head, lines)]


def _subjects(found: Found) -> list[Any]:
    lines = [
        (name, f"{found[name]['loss']:.3f}", f"{found[name]['without_mlp']:.3f}")
        for name in ("A", "B", "shuffled")
        if name in found
    ]
    lines += [(name, f"{found[name]:.3f}", "") for name in ("unigrams", "bigrams") if name in found]  # type: ignore[misc]
    speed = found.get("tokens_per_second", {})
    said = [f"{name}: {rate:,.0f} tokens/s" for name, rate in speed.items() if rate]
    share = found.get("share", 1.0)
    cut = (
        f" Dictionaries and records have {share:.0%} of the tokens of the scale: this machine is slower."
        if share < 1
        else ""
    )
    return [
        f"Held-out loss in nats a token. Trained at {', '.join(said) or 'an earlier time'}.{cut}",
        Table(("model", "loss", "without the MLP"), lines),
    ]


def _dictionaries(found: Found) -> list[Any]:
    head = (
        "dictionary",
        "kind",
        "latents",
        "activations",
        "L0",
        "FVU",
        "recovered",
        "of mean ablation",
        "dead",
        "tokens/s",
    )
    lines = [
        (
            name,
            one["kind"],
            f"{one['d_sae']:,}",
            f"{one['tokens']:,}",
            f"{one['l0']:.1f}",
            f"{one['fvu']:.3f}",
            *(_recovered(one[key], name) for key in ("recovered", "recovered_of_mean")),
            f"{one['dead']:.1%}",
            f"{one['tokens_per_second']:,.0f}",
        )
        for name, one in found.items()
    ]
    said = "Recovered: the share of the loss that ablating the MLP costs which the dictionary gives back; the paper warns that zero ablation flatters it."
    return [said, Table(head, lines)]


def _records(found: Found) -> list[Any]:
    said = "What every latent and every neuron did on the same held-out text."
    lines = [(name, f"{one['tokens']:,}", f"{one['tokens_per_second']:,.0f}") for name, one in found.items()]
    return [said, Table(("dictionary", "tokens", "tokens/s"), lines)]


def _recovered(share: float, name: str) -> str:
    """The MLP of the shuffled model is of no use to it: there is nothing to recover."""
    return "" if name.startswith("S") else f"{share:.1%}"


def _densities(found: Found) -> list[Any]:
    names = [name for name in found if name != "brute_force"]
    lines = [
        (name, one["latents"], one["live"], one["ultra_low"], one["dead"], one["above_1_percent"], one["why"])
        for name, one in ((name, found[name]) for name in names)
    ]
    said = "Of 4096 latents trained on 8 billion activations the paper has 168 dead and 292 of ultra-low density."
    head = ("dictionary", "latents", "live", "ultra-low", "dead", "above 1 %", "told apart by")
    return [said, Table(head, lines), Picture("densities", "Densities of the latents of the ladder")]


def _neurons(found: Found) -> list[Any]:
    said = f"A live feature of A/1 correlates with its best neuron by {found['median_best_neuron']:.2f} (median). "
    said += f"{found['one_neuron']:.0%} of the features are one neuron, {found['2_to_10_neurons']:.0%} two to ten, "
    return [
        said
        + f"{found['more_neurons']:.0%} more; the median participation ratio is {found['median_participation']:.0f}."
    ]


def _pages(found: Found) -> list[Any]:
    return [Link("the features of A/1", found["features"]), Link("the neurons of A", found["neurons"])]


SECTIONS: list[tuple[str, str, Callable[[Found], list[Any]]]] = [
    ("pages", "Look inside", _pages),
    ("text", "Text", _text),
    ("subjects", "Subjects", _subjects),
    ("dictionaries", "Dictionaries", _dictionaries),
    ("records", "Records", _records),
    ("densities", "Densities", _densities),
    ("ground_truth", "Known ground truth", _ground_truth),
    ("neurons", "Features are not neurons", _neurons),
    ("gates", "Ground truth of the scorers", _gates),
    ("registration", "Registration", unit_sections.registration),
    ("trial", "Feature against neuron, automatically", unit_sections.trial),
    ("blind", "Feature against neuron, blind, by people", unit_sections.blind),
    ("contexts", "Contexts", unit_sections.contexts),
    ("control", "What features do", unit_sections.control),
    ("universality", "Universality", unit_sections.universality),
    ("splitting", "Splitting and the map", unit_sections.splitting),
    ("automata", "Automata", unit_sections.automata),
]
