"""The stages that look at how latents hang together: universality, splitting, the map, automata."""

from typing import Any

from torch import Tensor

from saefast.interp.automata import automata
from saefast.interp.effects.logits import logit_matrix
from saefast.interp.ladder_map import common_tokens, ladder_map
from saefast.interp.pictures import draw_automata, draw_families, draw_ladder_map, draw_similarities
from saefast.interp.splitting import families, splitting
from saefast.interp.universality import universality
from saefast.study.measures import LADDER, live
from saefast.study.planted_cycle import planted_cycle
from saefast.study.world import World, subject_of

NAMES = ["A/0", "A/1", "A/2"]
LISTED = 12


def logits_of(world: World, name: str) -> Tensor:
    """Logit weights of all latents, [F, V]."""
    return logit_matrix(
        world.sae(name), world.model(subject_of(name)), hook=world.hook, n_vocab=len(world.vocabulary)
    )


def similarity(world: World) -> dict[str, Any]:
    """A against B: features, neurons, and the tokens of B permuted."""
    if not world.has_twin:
        return {"skipped": "there is one subject only: the model that was given"}
    found = {}
    for what, a, b in (("features", "A1", "B1"), ("neurons", "neurons-A", "neurons-B")):
        found[what] = universality(
            world.records(a),
            world.records(b),
            logits_of(world, a),
            logits_of(world, b),
            alive_a=live(world, a),
            alive_b=live(world, b),
        )
    draw_similarities(found, world.picture("universality"))
    return {what: one.numbers() for what, one in found.items()}


def split(world: World) -> dict[str, Any]:
    """How latents split over the ladder; the families and the map drawn."""
    ladder = [world.records(name) for name in LADDER]
    alive = [live(world, name) for name in LADDER]
    found = splitting(ladder, alive)
    clear = families(found, ladder)
    if clear:
        draw_families(clear, world.picture("families"), world.vocabulary, names=NAMES)
    shown = ladder_map([world.sae(name) for name in LADDER[:2]], alive[:2])
    clusters = common_tokens(shown, ladder[:2])
    of_two = splitting(ladder[:2], alive[:2])
    draw_ladder_map(shown, of_two, world.picture("map"), world.vocabulary, clusters=clusters, names=NAMES[:2])
    return found.numbers() | {
        "families": [family.as_json(world.vocabulary) for family in clear],
        "n_clusters": len(clusters),
        "clusters": [cluster.as_json(world.vocabulary) for cluster in clusters[:LISTED]],
    }


def states(world: World) -> dict[str, Any]:
    """The next-step graph of A/1, and a planted one."""
    found = automata(world.records("A1"), logits_of(world, "A1"), alive=live(world, "A1"))
    if found.loops or found.pairs or found.longer:
        draw_automata(found, world.picture("automata"), world.vocabulary)
    return found.as_json(world.vocabulary) | {"planted": planted_cycle(world.path / "planted-cycle")}
