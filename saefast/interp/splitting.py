"""How the latents of a small dictionary split into those of larger ones, over a ladder of dictionaries of one model.

    found = splitting([records_0, records_1, records_2], [sets.live for sets in density_sets_of_each])
    found.numbers()["steps"][0]["with_children"]
    families(found, records)[0]              # one latent, the few that it splits into, the many that they split into

The graph is that of "Towards Monosemanticity" (2023): a link where the masked cosine is above 0.4, ultra-low-density latents
left out. A latent can have several parents, so that it is no tree; a family keeps, of each child, the strongest parent.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from saefast.errors import check
from saefast.interp.compare import split_links
from saefast.interp.records import Records
from saefast.interp.together import sums
from saefast.interp.top_tokens import top_tokens
from saefast.interp.universality import permuted
from saefast.interp.vocabulary import Vocabulary, visible


class Step(NamedTuple):
    """The links between a dictionary and the next larger one, in the order of parents."""

    parents: np.ndarray  # [m] int32
    children: np.ndarray  # [m] int32
    cosine: np.ndarray  # [m] float32, the masked cosine


class Splitting(NamedTuple):
    """The graph over the ladder."""

    steps: list[Step]  # one fewer than there are dictionaries
    density: list[np.ndarray]  # of the latents of each dictionary, [F] float64
    alive: list[np.ndarray]  # latents that are in the graph, [F] bool

    def children_of(self, step: int) -> np.ndarray:
        """The number of children of each latent of dictionary `step`, [F] int64."""
        return np.bincount(self.steps[step].parents, minlength=len(self.alive[step]))

    def numbers(self) -> dict[str, Any]:
        """What a report shows, as JSON."""
        return {"steps": [self._step(i) for i in range(len(self.steps))]}

    def _step(self, i: int) -> dict[str, Any]:
        """Of one step: "split" is the share of parents with two children or more, "lower_density" the share of links whose child
        is active on fewer tokens than its parent."""
        step, parents, children = self.steps[i], self.alive[i], self.alive[i + 1]
        n_children = self.children_of(i)[parents]
        n_parents = np.bincount(step.children, minlength=len(children))[children]
        lower = self.density[i + 1][step.children] < self.density[i][step.parents]
        split = np.isin(step.parents, np.flatnonzero(self.children_of(i) >= 2))
        return {
            "parents": int(parents.sum()),
            "children": int(children.sum()),
            "links": len(step.cosine),
            "with_a_child": _share(n_children >= 1),
            "split": _share(n_children >= 2),
            "mean_children": float(n_children.mean()) if len(n_children) else None,
            "with_a_parent": _share(n_parents >= 1),
            "with_several_parents": _share(n_parents >= 2),
            "lower_density": _share(lower),
            "lower_density_where_split": _share(lower[split]),
            "children_counts": np.bincount(
                n_children.clip(0, 20), minlength=21
            ).tolist(),  # 0 to 19, 20 and more
        }


class Member(NamedTuple):
    """A latent of a family."""

    level: int  # which dictionary, 0 the smallest
    latent: int
    parent: int | None  # place in the level above, from 0 on
    cosine: float | None  # the masked cosine with it
    density: float
    tokens: list[int]  # on which it is most active
    shares: list[float]  # of all its activation


class Family(NamedTuple):
    """A latent and what it splits into: each level in the order of its parents, then by cosine, the largest first."""

    levels: list[list[Member]]
    cosine: float  # mean of all links

    def as_json(self, vocabulary: Vocabulary | None = None) -> dict[str, Any]:
        """With a vocabulary, tokens as text, too."""

        def described(member: Member) -> dict[str, Any]:
            text = [visible(vocabulary.raw[token]) for token in member.tokens] if vocabulary else None
            return member._asdict() | ({"text": text} if text is not None else {})

        levels = [[described(member) for member in level] for level in self.levels]
        return {"cosine": self.cosine, "sizes": [len(level) for level in levels], "levels": levels}


def splitting(
    ladder: Sequence[Records],
    alive: Sequence[np.ndarray] | None = None,
    threshold: float = 0.4,
    min_count: int = 10,
    permute: int | None = None,
) -> Splitting:
    """Link each dictionary to the next one.

    Args:
        ladder: records of the same text, of dictionaries from the smallest to the largest.
        alive: of each, [F] bool: live latents that are not of ultra-low density (`saefast.interp.density`).
        threshold: links are masked cosines above it, see `saefast.interp.compare.split_links`.
        min_count: latents that are active on fewer tokens are not in the graph.
        permute: a seed, for the control: the tokens of each larger dictionary are in a random order, and what is left are links by
            chance. The masked cosine with a latent that is active on a share d of the tokens is about the root of d by chance:
            parents above some 15 % have all as children.

    Raises:
        InputError: fewer than two records, of different texts, or `alive` of another length.
    """
    check(len(ladder) >= 2, f"ladder: expected records of two dictionaries or more, got {len(ladder)}")
    counts = [sums(records)[0] for records in ladder]
    given = alive if alive is not None else [np.ones(records.d_sae, bool) for records in ladder]
    lengths, want = [len(one) for one in given], [records.d_sae for records in ladder]
    check(lengths == want, f"alive: expected masks of {want} latents, got {lengths}")
    here = [np.asarray(one, bool) & (count >= min_count) for one, count in zip(given, counts, strict=True)]
    steps = []
    for i in range(len(ladder) - 1):
        larger = ladder[i + 1] if permute is None else permuted(ladder[i + 1], permute)
        links = split_links(ladder[i], larger, threshold, min_count)
        parents, children, cosine = (column.numpy() for column in links)
        keep = here[i][parents] & here[i + 1][children]
        steps.append(Step(parents[keep], children[keep], cosine[keep]))
    density = [count / max(records.n_rows, 1) for count, records in zip(counts, ladder, strict=True)]
    return Splitting(steps, density, here)


def families(
    found: Splitting,
    ladder: Sequence[Records],
    n: int = 6,
    *,
    root: int | None = None,
    fewest: int = 2,
    most: int = 6,
    n_tokens: int = 4,
) -> list[Family]:
    """The clearest families: the latents of the smallest dictionary that have `fewest` to `most` children of their own (whose
    strongest parent they are), more at each further level, in the order of the mean cosine of all their links.

    Args:
        ladder: the records that `found` was made from.
        root: one latent of the smallest dictionary, for its family alone, of any size.
        n_tokens: of each member.
    """
    strongest = [
        _strongest_parents(step, len(alive)) for step, alive in zip(found.steps, found.alive[1:], strict=True)
    ]
    own = [_grouped(*of, len(alive)) for of, alive in zip(strongest, found.alive, strict=False)]
    roots = np.flatnonzero(found.alive[0]).tolist() if root is None else [root]
    clear: list[tuple[float, list[list[tuple[int, int | None]]]]] = []
    for one in roots:
        levels: list[list[tuple[int, int | None]]] = [[(one, None)]]
        cosines: list[float] = []
        for depth, children in enumerate(own):
            below: list[tuple[int, int | None]] = [
                (child, place) for place, (latent, _) in enumerate(levels[-1]) for child in children[latent]
            ]
            cosines += [float(strongest[depth][1][child]) for child, _ in below]
            levels.append(below)
        sizes = [len(level) for level in levels]
        grows = fewest <= sizes[1] <= most and all(a < b for a, b in pairwise(sizes[1:]))
        if (grows or root is not None) and cosines:
            clear.append((sum(cosines) / len(cosines), levels))
    clear.sort(key=lambda one: (-one[0], one[1][0][0][0]))
    return [Family(_members(levels, found, strongest, ladder, n_tokens), mean) for mean, levels in clear[:n]]


def _strongest_parents(step: Step, n_children: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each latent of the larger dictionary its parent of the largest cosine, of equal ones the smallest, -1: none; the cosine."""
    parent, cosine = np.full(n_children, -1, np.int32), np.zeros(n_children, np.float32)
    order = np.lexsort([-step.parents, step.cosine])  # what is written last stays
    parent[step.children[order]], cosine[step.children[order]] = step.parents[order], step.cosine[order]
    return parent, cosine


def _grouped(parent: np.ndarray, cosine: np.ndarray, n_parents: int) -> list[list[int]]:
    """The children of each parent, by the cosine, the largest first."""
    found: list[list[int]] = [[] for _ in range(n_parents)]
    for child in np.argsort(-cosine, kind="stable").tolist():
        if parent[child] >= 0:
            found[int(parent[child])].append(child)
    return found


def _members(
    levels: list[list[tuple[int, int | None]]],
    found: Splitting,
    strongest: list[tuple[np.ndarray, np.ndarray]],
    ladder: Sequence[Records],
    n_tokens: int,
) -> list[list[Member]]:
    members = []
    for level, latents in enumerate(levels):
        tokens = top_tokens(ladder[level], [latent for latent, _ in latents], n_tokens)
        members.append(
            [
                Member(
                    level,
                    latent,
                    parent,
                    None if parent is None else float(strongest[level - 1][1][latent]),
                    float(found.density[level][latent]),
                    top.tokens,
                    top.shares,
                )
                for (latent, parent), top in zip(latents, tokens, strict=True)
            ]
        )
    return members


def _share(of: np.ndarray) -> float | None:
    return float(of.mean()) if len(of) else None
