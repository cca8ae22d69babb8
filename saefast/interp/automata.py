"""Latents as states of finite automata: the short cycles of the next-step graph (`saefast.interp.next_steps`).

    found = automata(records, logit_matrix(sae, model), alive=sets.live)
    found.loops[0], found.pairs[0]           # the strongest self loop, the strongest cycle of two states

"Towards Monosemanticity" (2023) shows a loop for base64, a pair for names in capitals with underscores, four states for HTML.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from saefast.errors import check
from saefast.interp.next_steps import NextSteps, active, next_steps
from saefast.interp.records import Records
from saefast.interp.together import pair_products, sums
from saefast.interp.top_tokens import TopTokens, top_tokens
from saefast.interp.vocabulary import Vocabulary, visible

LISTED = 20  # cycles
NEXT = 12  # the strongest edges from a state that longer cycles are looked for along: there are too many cycles for all


class Cycle(NamedTuple):
    """States that lead to one another and from the last back to the first, which is the smallest latent."""

    latents: list[int]
    follow: list[float]  # of the edge from each to the next
    lift: list[float]
    raised: list[float]
    n_steps: list[int]
    strength: float  # geometric mean of `follow`
    tokens: list[TopTokens]  # what each state is active on

    @property
    def is_of_contexts(self) -> bool:
        """Each state is active on three tokens or more, by their effective number: none is that of a single word."""
        return all(top.effective >= 3 for top in self.tokens)

    def as_json(self, vocabulary: Vocabulary | None = None) -> dict[str, Any]:
        """With a vocabulary, tokens as text, too."""

        def described(top: TopTokens) -> dict[str, Any]:
            text = {"text": [visible(vocabulary.raw[token]) for token in top.tokens]} if vocabulary else {}
            return top._asdict() | text

        tokens = [described(top) for top in self.tokens]
        raised = [None if np.isnan(one) else one for one in self.raised]
        return self._asdict() | {"tokens": tokens, "raised": raised, "is_of_contexts": self.is_of_contexts}


class Automata(NamedTuple):
    """The graph and its short cycles, the strongest first."""

    steps: NextSteps
    loops: list[Cycle]  # states that lead to themselves: all
    pairs: list[Cycle]  # of two states
    longer: list[
        Cycle
    ]  # of three and more, without those that share more than half of their states with a stronger one

    def as_json(self, vocabulary: Vocabulary | None = None) -> dict[str, Any]:
        """What a report shows, with at most as many loops as there are in a list."""
        return {
            "states": len(np.union1d(self.steps.left, self.steps.right)),
            "edges": len(self.steps.left),
            "n_loops": len(self.loops),
            "n_loops_of_contexts": sum(one.is_of_contexts for one in self.loops),
            "loops": [one.as_json(vocabulary) for one in self.loops[:LISTED]],
            "loops_of_contexts": [one.as_json(vocabulary) for one in self.loops if one.is_of_contexts][
                :LISTED
            ],
            "pairs": [one.as_json(vocabulary) for one in self.pairs],
            "longer": [one.as_json(vocabulary) for one in self.longer],
        }


def automata(
    records: Records,
    logits: Tensor | None = None,
    *,
    alive: np.ndarray | None = None,
    n: int = LISTED,
    longest: int = 4,
    most_alike: float = 0.1,
    **limits: Any,
) -> Automata:
    """The next-step graph and its cycles.

    Args:
        logits: [F, V] of `saefast.interp.effects.logit_matrix`; without them edges are of the text alone.
        alive: [F] bool, latents that are states; default: all.
        n: cycles of each list but that of the loops.
        longest: states of a cycle.
        most_alike: no two states of a cycle are active together on more than this share of the tokens of the rarer one: else
            they are one context under two names, and each leads to the other as it leads to itself.
        limits: those of `saefast.interp.next_steps.next_steps`.

    Raises:
        InputError: logits or `alive` of another shape, or a number out of its range.
    """
    check(longest >= 1, f"longest: expected 1 or more, got {longest}")
    steps = next_steps(records, logits, alive=alive, **limits)
    index = {
        pair: place for place, pair in enumerate(zip(steps.left.tolist(), steps.right.tolist(), strict=True))
    }
    apart = _Apart(records, steps, most_alike)

    def listed(candidates: list[tuple[int, ...]], n: int) -> list[Cycle]:
        made = ((_strength(steps, [index[edge] for edge in _edges(one)]), one) for one in candidates)
        chosen: list[Cycle] = []
        for strength, latents in sorted(made, key=lambda one: (-one[0], one[1])):
            if len(chosen) == n:
                break
            shared = max((len({*latents} & {*one.latents}) for one in chosen), default=0)
            if 2 * shared <= len(latents) and apart(latents):
                chosen.append(_cycle(records, steps, [index[e] for e in _edges(latents)], latents, strength))
        return chosen

    found = list(_cycles(steps, longest, most_alike))
    loops, pairs = ([one for one in found if len(one) == size] for size in (1, 2))
    longer = [one for one in found if len(one) > 2]
    return Automata(steps, listed(loops, len(loops)), listed(pairs, n), listed(longer, n))


def _cycles(steps: NextSteps, longest: int, most_alike: float) -> Iterator[tuple[int, ...]]:
    """Simple cycles of the graph up to that length, each from its smallest latent on; of two states and more without edges between
    states that are alike. Loops and pairs: all; of longer ones those along the strongest edges of each state but the first."""
    after: dict[int, list[int]] = {}
    order = np.lexsort([steps.right, -steps.follow])
    for i, j, overlap in zip(
        *(of[order].tolist() for of in (steps.left, steps.right, steps.overlap)), strict=True
    ):
        if i == j:
            yield (i,)
        elif overlap <= most_alike:
            after.setdefault(i, []).append(j)
    edges = {(i, j) for i, found in after.items() for j in found}
    paths: list[tuple[int, ...]] = [(i,) for i in sorted(after)]
    while paths:
        path = paths.pop()
        if len(path) > 1 and (path[-1], path[0]) in edges:
            yield path
        if len(path) < longest:
            following = after.get(path[-1], [])[: NEXT if len(path) > 1 else None]
            paths += [(*path, j) for j in following if j > path[0] and j not in path]


class _Apart:
    """Whether no two of some latents are active together too often; what is not an edge is looked up once."""

    def __init__(self, records: Records, steps: NextSteps, most_alike: float) -> None:
        self.code = active(records)
        self.count, self.most_alike = sums(records)[0], most_alike
        pairs = zip(steps.left.tolist(), steps.right.tolist(), steps.overlap.tolist(), strict=True)
        self.known = {(min(i, j), max(i, j)): overlap for i, j, overlap in pairs}

    def __call__(self, latents: Sequence[int]) -> bool:
        ordered = sorted(latents)
        pairs = [(i, j) for place, i in enumerate(ordered) for j in ordered[place + 1 :]]
        return all(self._overlap(pair) <= self.most_alike for pair in pairs)

    def _overlap(self, pair: tuple[int, int]) -> float:
        if pair not in self.known:
            left, right = (np.asarray([one]) for one in pair)
            together = float(pair_products(self.code, self.code, left, right)[0])
            self.known[pair] = together / max(min(self.count[pair[0]], self.count[pair[1]]), 1)
        return self.known[pair]


def _edges(latents: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip(latents, [*latents[1:], latents[0]], strict=True))


def _strength(steps: NextSteps, places: list[int]) -> float:
    return float(np.exp(np.log(steps.follow[places]).mean()))


def _cycle(
    records: Records, steps: NextSteps, places: list[int], latents: Sequence[int], strength: float
) -> Cycle:
    columns = (steps.follow, steps.lift, steps.raised, steps.n_steps)
    follow, lift, raised, n_steps = (column[places].tolist() for column in columns)
    return Cycle(list(latents), follow, lift, raised, n_steps, strength, top_tokens(records, latents))
