"""Scores by how alike texts are, without a language model that answers: embedding, example embedding, and an intruder test.

    windows = embed_windows(embedder, vocabulary, detection_examples(tiles, 17))
    embedding_score(embedder, explanation, windows)       # does the explanation tell in which windows the unit is active?
    example_embedding_score(windows)                      # are these alike at all? No explanation is needed
    embedding_intruder(embedder, vocabulary, intruder_trials(tiles, 17))    # the same, asked in another way

The first two are those of delphi (Paulo et al., "Automatically interpreting millions of features in large language models", 2024); the
third is its intruder test with the embedder as the judge.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from saefast.errors import check
from saefast.interp.explain import Explanation
from saefast.interp.explain.examples import Examples
from saefast.interp.explain.scores.embedders import Embedder, of_norm_1
from saefast.interp.explain.scores.held_out import check_held_out
from saefast.interp.explain.scores.intruder import IntruderScore, IntruderTrial, intruder_score
from saefast.interp.explain.scores.separation import UNKNOWN, separation, sides
from saefast.interp.explain.scores.statistics import Interval, mean_interval
from saefast.interp.vocabulary import Vocabulary

NOTHING_KNOWN = Interval(0.0, -2.0, 2.0)  # of a difference of cosines


class Windows(NamedTuple):
    """n windows of a unit as vectors."""

    vectors: np.ndarray  # [n, d] float64, of norm 1, or 0
    active: np.ndarray  # [n] bool
    part: np.ndarray  # [n] int8, `Examples.part`
    latent: int


class EmbeddingScore(NamedTuple):
    auc: Interval  # 0.5 by chance, and of 0 to 1 where one kind of windows is missing
    active: float  # mean cosine of the explanation with windows in which the unit is active, 0 without any
    inactive: float
    n_active: int
    n_inactive: int


class ExampleEmbedding(NamedTuple):
    """Over trials: how much more a window is like active ones than like inactive ones."""

    active: Interval  # an active window (delta +)
    inactive: Interval  # an inactive window (delta -)
    auc: Interval  # how often the former is above the latter: 0.5 by chance
    n_trials: int  # 0 where there are too few windows


def embed_windows(embedder: Embedder, vocabulary: Vocabulary, examples: Examples) -> Windows:
    """The texts of windows, without special tokens, and without a mark on the tokens on which the unit is active.

    Raises:
        InputError: no windows, or windows of the split that explainers see.
    """
    check_held_out(examples)
    check(len(examples) > 0, "examples: expected at least one window, got none")
    vectors = embedder.embed(_texts(vocabulary, examples.tokens)).astype(np.float64)
    return Windows(vectors, examples.active, examples.part, examples.latent)


def embedding_score(
    embedder: Embedder, explanation: Explanation, windows: Windows, *, seed: int = 0
) -> EmbeddingScore:
    """The cosine of what an explanation says with each window, as a sign that the unit is active there.

    Args:
        embedder: that of the windows.
    """
    said = embedder.embed([explanation.sentence])[0].astype(np.float64)
    have = windows.vectors.shape[1]
    check(len(said) == have, f"embedder: expected that of the windows, with d = {have}, got d = {len(said)}")
    cosines = windows.vectors @ said
    return EmbeddingScore(separation(windows.active, cosines, seed=seed), *sides(windows.active, cosines))


def example_embedding_score(
    windows: Windows, *, n_trials: int = 20, size: int = 10, seed: int = 0
) -> ExampleEmbedding:
    """Are the windows in which a unit is active more like one another than like other windows? No explanation is looked at.

        delta = mean cosine with active windows - mean cosine with inactive windows

    In each trial it is measured of an active window (delta +) and of an inactive one (delta -), with the same `size` windows of either
    kind: other active ones of the quantile of the active window, as many as there are, and other inactive ones. The windows of a
    unit are few, and trials share them: the intervals are about these windows, not about all of its text.

    Raises:
        InputError: a number below 1.
    """
    for what, value in (("n_trials", n_trials), ("size", size)):
        check(value > 0, f"{what}: expected at least 1, got {value}")
    active, inactive = windows.active.nonzero()[0], (~windows.active).nonzero()[0]
    alike = {i: active[(windows.part[active] == windows.part[i]) & (active != i)] for i in active.tolist()}
    asked = [i for i, others in alike.items() if len(others)]
    if not asked or len(inactive) < 2:
        return ExampleEmbedding(NOTHING_KNOWN, NOTHING_KNOWN, UNKNOWN, 0)
    rng = np.random.default_rng([seed, windows.latent])
    cosines = windows.vectors @ windows.vectors.T
    deltas = np.zeros((2, n_trials))
    for trial in range(n_trials):
        query = asked[rng.integers(len(asked))]
        other, *far = rng.permutation(inactive)[: size + 1]
        near = rng.permutation(alike[query])[:size]
        deltas[:, trial] = [cosines[one, near].mean() - cosines[one, far].mean() for one in (query, other)]
    auc = separation(np.repeat([True, False], n_trials), deltas.ravel(), seed=seed)
    return ExampleEmbedding(mean_interval(deltas[0], seed), mean_interval(deltas[1], seed), auc, n_trials)


def embedding_intruder(
    embedder: Embedder, vocabulary: Vocabulary, trials: Sequence[IntruderTrial]
) -> IntruderScore:
    """The answer is the window that is the least like the mean of the others, of equal ones the first; marks are not read.

    Args:
        trials: `saefast.interp.explain.scores.intruder.intruder_trials`.
    """
    texts = [_texts(vocabulary, trial.tokens) for trial in trials]
    once = {text: i for i, text in enumerate(dict.fromkeys(text for some in texts for text in some))}
    vectors = embedder.embed(list(once)).astype(np.float64)
    answers = []
    for some in texts:
        own = vectors[[once[text] for text in some]]
        others = of_norm_1(own.sum(axis=0) - own)
        answers.append(int(np.argmin((own * others).sum(axis=1).round(6))))
    return intruder_score(trials, answers)


def _texts(vocabulary: Vocabulary, tokens: np.ndarray) -> list[str]:
    special = vocabulary.special
    return [vocabulary.text(i for i in row if i >= 0 and i not in special) for row in tokens.tolist()]
