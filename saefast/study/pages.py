"""The stage that writes the browser: pages of the features of A/1 and of the neurons, with what they were explained to stand for."""

from typing import Any

import numpy as np

from saefast.interp.atlas import Atlas, atlas
from saefast.interp.compare import compare
from saefast.interp.effects import Effects
from saefast.interp.explain import add_sentences
from saefast.interp.explain.programs.lookup import LookUp
from saefast.interp.look import Compared, write_site
from saefast.interp.trial import Registration, unblind
from saefast.study.measures import live
from saefast.study.people import ARMS, EXPLAINERS, registration_of, rules_of
from saefast.study.world import World


def pages(world: World) -> dict[str, Any]:
    """Of each: the look-up of all that are live, and the rules of those that were in the trial, with their scores."""
    scores = _scores(world)
    for arm, name in (("features", "A1"), ("neurons", "neurons-A")):
        records = world.records(name)
        look = LookUp(records, world.vocabulary)
        alive = [int(latent) for latent in np.flatnonzero(live(world, name))]
        add_sentences(
            records.folder,
            "lookup",
            {latent: look.explain(latent) for latent in alive},
            scores[arm, "lookup"],
        )
        for rules in rules_of(records, world.vocabulary):
            chosen = scores[arm, rules.name]
            add_sentences(
                records.folder, rules.name, {latent: rules.explain(latent) for latent in chosen}, chosen
            )
    return {
        "features": _write(world, "A1", "B1" if world.has_twin else None, "look"),
        "neurons": _write(world, "neurons-A", None, "look-neurons"),
    }


def _scores(world: World) -> dict[tuple[str, str], dict[int, dict[str, float]]]:
    """By arm and explainer, the Spearman correlation of each unit of the trial."""
    found: dict[tuple[str, str], dict[int, dict[str, float]]] = {
        (arm, name): {} for arm in ARMS for name in EXPLAINERS
    }
    for unit, row in unblind(Registration(registration_of(world)), world.path / "trial" / "scores.jsonl"):
        found[unit.arm, row["explainer"]][unit.latent] = {"spearman": float(row["scores"]["spearman"])}
    return found


def _write(world: World, name: str, other: str | None, folder: str) -> str:
    records, sae = world.records(name), world.sae(name)
    shown = None
    if other is not None:
        both = compare(records, world.records(other), sae, world.sae(other))
        # directions in one model say nothing about those in another
        shown = Compared(world.records(other), None, both.activation, other)
    places = Atlas.load(records.folder)
    if places is None:
        places = atlas(sae, alive=records.table(["count"])["count"].to_numpy() > 0)
        places.save(records.folder)
    page = write_site(
        records,
        world.path / folder,
        world.vocabulary,
        Effects.load(records.folder),
        title=f"{name}, Towards Monosemanticity",
        compare=shown,
        coordinates=places.coordinates.numpy(),
        clusters=places.clusters.numpy(),
    )
    return str(page.relative_to(world.path))
