"""The stages of feature against neuron: the pre-registered trial by programs, and the blind evaluation by people."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from saefast.config.blind import BlindConfig
from saefast.interp.blind import deal, leak_of, tool_trial
from saefast.interp.effects import effects_of
from saefast.interp.effects.logits import logit_weights
from saefast.interp.explain import Explainer
from saefast.interp.explain.programs.lookup import LookUp
from saefast.interp.explain.programs.ngrams import NGrams
from saefast.interp.explain.programs.rules import Rules
from saefast.interp.explain.subject import model_activations
from saefast.interp.records import Records
from saefast.interp.trial import (
    Arm,
    Registration,
    TrialConfig,
    gate,
    plant,
    register,
    score_trial,
    trial_result,
)
from saefast.interp.vocabulary import Vocabulary
from saefast.study.measures import live
from saefast.study.progress import bar
from saefast.study.world import World, subject_of

ARMS = {"features": "A1", "today": "A1k", "neurons": "neurons-A", "shuffled": "S1"}
EXPLAINERS = ("lookup", "ngrams", "two rules", "rules")
PRIMARY = "two rules"  # it tells planted units apart best
LOGITS = 60  # positive ones that the test on logits ranks


def gates(world: World) -> dict[str, Any]:
    """Which explainers tell planted units that stand for one thing from those that do not."""
    planted = plant(world.path / "trial" / "planted")
    explainers: list[Explainer] = [
        LookUp(planted.records, planted.vocabulary),
        NGrams(planted.records, planted.vocabulary, planted.activations),
        *rules_of(planted.records, planted.vocabulary),
    ]
    found = gate(planted, explainers)
    return {
        name: asdict(one) | {"usable": one.usable, "logit_usable": one.logit_usable}
        for name, one in found.items()
    }


def _pool(world: World, name: str) -> Sequence[int]:
    return [int(latent) for latent in np.flatnonzero(live(world, name))]


def _config(world: World) -> TrialConfig:
    return TrialConfig(explainers=EXPLAINERS, primary=PRIMARY, also=("today",), n_units=world.scale.units)


def registered(world: World) -> dict[str, Any]:
    """Draw the units and write the registration, before any score is made."""
    arms = {arm: Arm(world.records(name), pool=_pool(world, name)) for arm, name in ARMS.items()}
    found = register(registration_of(world), arms, _config(world))
    return {
        "sha256": found.sha256,
        "words": found.config.words(),
        "units": len(found.ids),
        "dropped": found.dropped,
    }


def registration_of(world: World) -> Path:
    return world.path / "trial" / "registration.json"


def scored(world: World, gates: dict[str, Any]) -> dict[str, Any]:
    """Score all units, whose kind the loop does not know; then join. gates: what `gates` found."""
    registration = Registration(registration_of(world))
    arms = {arm: _arm(world, name) for arm, name in ARMS.items()}
    path = world.path / "trial" / "scores.jsonl"
    with bar(None, "score", "trial") as progress:
        done = [0]

        def moved(rows: int, total: int) -> None:
            progress(rows - done[0])
            done[0] = rows

        score_trial(registration, arms, path, moved)
    usable = {name: {key: gates[name][key] for key in ("usable", "logit_usable")} for name in EXPLAINERS}
    return asdict(trial_result(registration, path)) | {"gates": usable}


def _arm(world: World, name: str) -> Arm:
    records, subject = world.records(name), subject_of(name)
    model, sae = world.model(subject), world.sae(name)
    weights = logit_weights(sae, model, LOGITS, hook=world.hook, n_vocab=len(world.vocabulary))
    return Arm(
        records, explainers(records, world.vocabulary, model, world.hook, sae), weights, _pool(world, name)
    )


def explainers(records: Records, vocabulary: Vocabulary, model: Any, hook: str, sae: Any) -> list[Explainer]:
    """Those that need no remote model."""
    return [
        LookUp(records, vocabulary),
        NGrams(records, vocabulary, model_activations(model, hook, sae)),
        *rules_of(records, vocabulary),
    ]


def rules_of(records: Records, vocabulary: Vocabulary) -> list[Rules]:
    """At most two, and at most eight."""
    return [Rules(records, vocabulary, n_rules=2, name=PRIMARY), Rules(records, vocabulary)]


def blind(world: World) -> dict[str, Any]:
    """The page for people, with its key beside; and the tool tried on planted units."""
    from dataclasses import replace

    folder = world.path / "blind"
    for name in ("A1", "neurons-A"):
        effects_of(
            world.records(name),
            world.sae(name),
            world.model("A"),
            world.source("A", "heldout"),
            hook=world.hook,
            n_vocab=len(world.vocabulary),
        )
    sets = {"features": world.records("A1"), "neurons": world.records("neurons-A")}
    config = replace(BlindConfig(), units=world.scale.cards)
    if not (folder / "cards.html").exists():
        deal(sets, folder, world.vocabulary, config, title="Which of these can you read?")
    tried = tool_trial(fresh(folder / "tool"), units=world.scale.cards)
    leak = leak_of(sets, fresh(folder / "leak"), world.vocabulary, config)
    return {
        "page": "blind/cards.html",
        "cards": 2 * world.scale.cards,
        "planted": {"one_kind": tried.one_kind, "mixtures": tried.mixtures, "refused": tried.refused},
        "leak_planted": tried.leak._asdict(),
        "leak": leak._asdict(),
    }


def fresh(folder: Path) -> Path:
    """The folder without what an interrupted stage left in it."""
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
