"""The next-step graph: latent i leads to latent j where i makes those tokens likely on which j is active.

An edge i -> j is there in the text and in the weights:

- in the text, where i is active on a token, j is active on the next one far more often than elsewhere (`follow`, `lift`);
- in the weights, i raises the logits of the tokens on which j is active (`raised`): with v_i the logit weights of i, s_j(t) the
  share of the activation of j on token t, p(t) the share of the text that is token t and a_i the mean activation of i,

      raised = a_i (sum_t v_i(t) s_j(t) - sum_t v_i(t) p(t))

  which is, times E[f_j], what i at its mean activation adds to the expected activation of j on the next token, to first order, where the
  next token is drawn by p and j knows the token only.
"""

from typing import NamedTuple

import numpy as np
from torch import Tensor

from saefast.errors import check
from saefast.interp.records import Records
from saefast.interp.records.select import Block
from saefast.interp.together import Code, Coded, pair_products, products, sums
from saefast.interp.top_tokens import token_masses


class NextSteps(NamedTuple):
    """Edges, in the order of `left`, then of `right`. A step is from a token to the next one in the same document and context,
    both with a row."""

    left: np.ndarray  # [m] int32, i
    right: np.ndarray  # [m] int32, j
    n_steps: np.ndarray  # [m] int64, steps with i active before and j after
    follow: np.ndarray  # [m] float64, share of the steps with i active before that have j active after
    lift: np.ndarray  # [m] float64, that over the share of all steps that have j active after
    expected: np.ndarray  # [m] float64, mean activation of j after, over the steps with i active before
    base: np.ndarray  # [m] float64, over all steps
    overlap: np.ndarray  # [m] float64, tokens with both active over those of the rarer one; 1 for i = j
    raised: np.ndarray  # [m] float64, as above; NaN without logits


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
    for part in products(active(before), active(after)):
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
    is_active, total = active(records), sums(records)[0]
    together = pair_products(is_active, is_active, left, right)
    return NextSteps(
        left.astype(np.int32),
        right.astype(np.int32),
        np.rint(count).astype(np.int64),
        count / n_before[left],
        count * n / (n_before[left] * n_after[right]),
        pair_products(active(before), after, left, right) / n_before[left],
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


def active(code: Coded) -> Code:
    """1 for each entry of a code."""
    blocks = [block._replace(acts=np.ones(len(block.acts), np.float32)) for block in code.blocks]
    return Code.of(code, blocks, code.n_rows)
