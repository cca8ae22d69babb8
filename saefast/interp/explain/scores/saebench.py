"""The score of SAEBench (Karvonen et al. 2025, "automated interpretability"): which of 14 windows is the unit active in?

Two top ones, two that were drawn by the square of their activation, and ten random ones; the score is plain accuracy, so that a judge
that names none gets 10 of 14 where no random window is active. That floor stands beside the score. Unlike there, random windows are
labelled by what the unit does in them.
"""

from typing import NamedTuple

import numpy as np

from saefast.interp.explain import Explanation, Judge
from saefast.interp.explain.examples import Examples, Tiles
from saefast.interp.explain.scores.held_out import check_held_out
from saefast.interp.explain.scores.statistics import Interval, wilson
from saefast.interp.records.text import mix

LENGTH = 21  # tokens of a window
N_TOP, N_WEIGHTED, N_RANDOM = 2, 2, 10


class SaebenchScore(NamedTuple):
    accuracy: Interval  # share of the windows that are judged right, by Wilson's score
    floor: float  # what a judge gets that names none: the share of windows in which the unit is not active
    n: int
    n_active: int


def saebench_examples(tiles: Tiles, latent: int, seed: int = 0) -> Examples:
    """The windows, in groups "top", "quantile" (those drawn by their weight) and "random"; fewer where it is active in fewer than 4.

    Args:
        tiles: of 21 tokens, of the split "score".
    """
    active, peaks = tiles.peaks(latent)
    order = np.argsort(-peaks, kind="stable")
    top, rest = active[order[:N_TOP]], order[N_TOP:]
    # the m largest of u^(1 / w) are a sample without replacement by weights w (Efraimidis and Spirakis 2006)
    key = mix(np.uint32(latent) ^ mix(np.uint32((16 * seed + 13) % 2**32)))
    uniform = (mix(active[rest].astype(np.uint32) ^ key) + 0.5) / 2.0**32
    drawn = np.argsort(np.log(uniform) / (peaks[rest] / peaks.max(initial=1e-300)) ** 2, kind="stable")
    weighted = active[rest[drawn[::-1][:N_WEIGHTED]]]
    taken = np.concatenate([top, weighted])
    some = tiles.random(latent, N_RANDOM, seed + 4, taken)
    return tiles.examples(latent, [("top", -1, top), ("quantile", -1, weighted), ("random", -1, some)])


def saebench(judge: Judge, explanation: Explanation, examples: Examples) -> SaebenchScore:
    """A window is named where the judge gives it more than 0.5.

    Raises:
        InputError: windows of the split that explainers see.
    """
    check_held_out(examples)
    named, active = judge.detect(explanation, examples.tokens) > 0.5, examples.active
    n = len(examples)
    floor = float((~active).mean()) if n else 0.0
    return SaebenchScore(wilson(int((named == active).sum()), n), floor, n, int(active.sum()))
