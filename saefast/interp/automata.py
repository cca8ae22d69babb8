"""Latents as states of finite automata: latent i leads to latent j where i makes those tokens likely on which j is active.

    found = automata(records, logit_matrix(sae, model), alive=sets.live)
    found.loops[0], found.pairs[0]           # the strongest self loop, the strongest cycle of two states

An edge i -> j is there in the text and in the weights:

- in the text, where i is active on a token, j is active on the next one far more often than elsewhere (`follow`, `lift`);
- in the weights, i raises the logits of the tokens on which j is active (`raised`): with v_i the logit weights of i, s_j(t) the
  share of the activation of j on token t, p(t) the share of the text that is token t and a_i the mean activation of i,

      raised = a_i (sum_t v_i(t) s_j(t) - sum_t v_i(t) p(t))

  which is, times E[f_j], what a unit step of i adds to the expected activation of j on the next token, to first order, where the
  next token is drawn by p and j knows the token only.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from saefast.errors import check
from saefast.interp.records import Records
from saefast.interp.records.select import Block
from saefast.interp.together import Code, pair_products, products, sums
from saefast.interp.top_tokens import TopTokens, token_masses, top_tokens
from saefast.interp.vocabulary import Vocabulary, visible

LISTED = 20  # cycles


class NextSteps(NamedTuple):
    """Edges, in the order of `left`, then of `right`. A step is from a token to the next one in the same document and context,
    both with a row."""

    left: np.ndarray  # [m] int32, i
    right: np.ndarray  # [m] int32, j
    count: np.ndarray  # [m] int64, steps with i active before and j after
    follow: np.ndarray  # [m] float64, share of the steps with i active before that have j active after
    lift: np.ndarray  # [m] float64, that over the share of all steps that have j active after
    expected: np.ndarray  # [m] float64, mean activation of j after, over the steps with i active before
    base: np.ndarray  # [m] float64, over all steps
    overlap: np.ndarray  # [m] float64, tokens with both active over those of the rarer one; 1 for i = j
    raised: np.ndarray  # [m] float64, as above; NaN without logits


class Cycle(NamedTuple):
    """States that lead to one another and from the last back to the first, which is the smallest latent."""

    latents: list[int]
    follow: list[float]  # of the edge from each to the next
    lift: list[float]
    raised: list[float]
    count: list[int]
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
        limits: those of `next_steps`.

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


def next_steps(
    records: Records,
    logits: Tensor | None = None,
    *,
    alive: np.ndarray | None = None,
    min_count: int = 10,
    min_follow: float = 0.1,
    min_lift: float = 5.0,
    min_raised: float = 0.0,
) -> NextSteps:
    """The edges whose numbers are at least these, `raised` above `min_raised`; exact."""
    check(min_count >= 1, f"min_count: expected 1 or more, got {min_count}")
    if alive is None:
        alive = np.ones(records.d_sae, bool)
    check(len(alive) == records.d_sae, f"alive: expected [{records.d_sae}], got [{len(alive)}]")
    before, after, n = _steps(records)
    n_before, n_after = sums(before)[0], sums(after)[0]
    found = []
    for part in products(_active(before), _active(after)):
        of = n_before[part.first : part.first + len(part.both)]
        enough = part.both >= np.maximum(min_count, min_follow * of)[:, None]
        enough &= part.both * n >= min_lift * of[:, None] * n_after
        enough &= alive[part.first : part.first + len(of), None] & alive
        left, right = enough.nonzero()
        found.append((left + part.first, right, part.both[left, right]))
    left, right, count = (np.concatenate(column) for column in zip(*found, strict=True))
    raised = np.full(len(left), np.nan)
    if logits is not None:
        raised = raised_logits(records, logits, left, right)
        keep = raised > min_raised
        left, right, count, raised = left[keep], right[keep], count[keep], raised[keep]
    everywhere = Code.of(records, records.blocks, records.n_rows)
    is_active, total = _active(everywhere), sums(records)[0]
    together = pair_products(is_active, is_active, left, right)
    return NextSteps(
        left.astype(np.int32),
        right.astype(np.int32),
        np.rint(count).astype(np.int64),
        count / n_before[left],
        count * n / (n_before[left] * n_after[right]),
        pair_products(_active(before), after, left, right) / n_before[left],
        sums(after)[1][right] / max(n, 1),
        together / np.minimum(total[left], total[right]),
        raised,
    )


def raised_logits(records: Records, logits: Tensor, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """`raised` of chosen pairs of latents, [m] float64, in logits in units of the scale of the final norm. A latent that is never
    active raises nothing and is raised by nothing: 0.

    Raises:
        InputError: logits of another shape than [F, V] with all tokens of the text.
    """
    text, v = records.text, logits.detach().float().cpu().numpy()
    largest = int(text.contexts.max(initial=0))
    ok = v.ndim == 2 and v.shape[0] == records.d_sae and v.shape[1] > largest
    want = f"[{records.d_sae}, V] with V > {largest}, the largest token of the text"
    check(ok, f"logits: expected {want}, got {list(v.shape)}")
    p = np.bincount(text.contexts[text.encoded], minlength=v.shape[1]) / max(text.n_rows, 1)
    count, total, _ = sums(records)
    mean_act, usual = total / np.maximum(count, 1), v @ p
    found = np.zeros(len(left))
    for j in np.unique(right).tolist():
        ids, mass = token_masses(records, j)
        pairs = np.flatnonzero(right == j)
        if len(ids):
            i = left[pairs]
            found[pairs] = mean_act[i] * (v[np.ix_(i, ids)] @ (mass / mass.sum()) - usual[i])
    return found


def _steps(records: Records) -> tuple[Code, Code, int]:
    """What is active before and after each step, both at the slot of the token before; and the number of steps."""
    text = records.text
    is_step = np.zeros(text.contexts.shape, bool)
    is_step[:, :-1] = text.encoded[:, :-1] & text.encoded[:, 1:] & ~text.ends[:, :-1]
    flat, n = is_step.reshape(-1), int(is_step.sum())
    ends_step = np.concatenate([[False], flat[:-1]])  # the slot before it begins one

    def kept(keep: np.ndarray, back: int) -> Code:
        blocks = []
        for block in records.blocks:
            chosen = keep[block.slots.astype(np.int64) + block.first_slot]
            offsets = np.concatenate([[0], np.cumsum(chosen)])[block.offsets]
            slots = (block.slots[chosen] - back).astype(np.int32)
            blocks.append(Block(block.first_slot, offsets, slots, block.acts[chosen]))
        return Code.of(records, blocks, n)

    return kept(flat, 0), kept(ends_step, 1), n


def _active(code: Code) -> Code:
    """1 for each entry."""
    blocks = [block._replace(acts=np.ones(len(block.acts), np.float32)) for block in code.blocks]
    return Code.of(code, blocks, code.n_rows)


def _cycles(steps: NextSteps, longest: int, most_alike: float) -> Iterator[tuple[int, ...]]:
    """All simple cycles of the graph up to that length, each from its smallest latent on; of two states and more without edges
    between states that are alike."""
    after: dict[int, list[int]] = {}
    for i, j, overlap in zip(steps.left.tolist(), steps.right.tolist(), steps.overlap.tolist(), strict=True):
        if i == j:
            yield (i,)
        elif overlap <= most_alike:
            after.setdefault(i, []).append(j)
    paths = [(i,) for i in sorted(after)]
    while paths:
        path = paths.pop()
        for j in after.get(path[-1], ()):
            if j == path[0] and len(path) > 1:
                yield path
            elif j > path[0] and j not in path and len(path) < longest:
                paths.append((*path, j))


class _Apart:
    """Whether no two of some latents are active together too often; what is not an edge is looked up once."""

    def __init__(self, records: Records, steps: NextSteps, most_alike: float) -> None:
        self.code = _active(Code.of(records, records.blocks, records.n_rows))
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
    of = (column[places].tolist() for column in (steps.follow, steps.lift, steps.raised, steps.count))
    return Cycle(list(latents), *of, strength, top_tokens(records, latents))
