"""The scores that need more than a judge: an embedder, a judge that reads prompts, the subject."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from saefast.errors import check
from saefast.interp.explain import Explanation, Judge
from saefast.interp.explain.examples import Examples, Tiles, check_apart, top_and_random
from saefast.interp.explain.scores.ablation import AblationScore, AblationScorer, ablation
from saefast.interp.explain.scores.embedders import Embedder
from saefast.interp.explain.scores.embedding import (
    EmbeddingScore,
    ExampleEmbedding,
    Windows,
    embed_windows,
    embedding_intruder,
    embedding_score,
    example_embedding_score,
)
from saefast.interp.explain.scores.intruder import IntruderScore, intruder_score, intruder_trials
from saefast.interp.explain.scores.saebench import LENGTH, SaebenchScore, saebench, saebench_examples
from saefast.interp.explain.scores.surprisal import surprisal_score
from saefast.interp.explain.scoring import LONG, SHORT, Score
from saefast.interp.records import Records
from saefast.interp.vocabulary import Vocabulary

MORE = ("intruder", "embedding", "examples", "surprisal", "ablation", "saebench")
WITHOUT = ("intruder", "examples")  # scores that look at no explanation
INTRUDERS = 20  # trials


def more_scores(
    names: tuple[str, ...],
    records: Records,
    vocabulary: Vocabulary,
    judge: Judge,
    embedder: Embedder,
    subject: Callable[[], AblationScorer],
    seed: int = 0,
) -> dict[str, Score]:
    """Those of `MORE` that are among the names.

    Args:
        embedder: of texts, for "embedding" and "examples", and for "intruder" where the judge is a program.
        subject: the model the records are of, which only "ablation" asks for.

    Raises:
        InputError: "surprisal" of a judge that reads no prompts.
    """
    embedded = _Embedded(embedder, vocabulary)
    makers: dict[str, Callable[[], Score]] = {
        "intruder": lambda: partial(
            _intruder, Tiles(records, "score", SHORT), vocabulary, judge, embedder, seed
        ),
        "embedding": lambda: partial(_embedding, embedded, embedder, seed),
        "examples": lambda: partial(_examples, embedded, seed),
        "surprisal": lambda: partial(_surprisal, judge, seed),
        "ablation": lambda: _ablation(records, judge, subject(), seed),
        "saebench": lambda: partial(_saebench, Tiles(records, "score", LENGTH), judge, seed),
    }
    if "surprisal" in names:
        can = hasattr(judge, "surprisal")
        check(can, "score: surprisal needs a language model that judges: --judge MODEL, or --with MODEL")
    return {name: makers[name]() for name in MORE if name in names}


def _intruder(
    tiles: Tiles,
    vocabulary: Vocabulary,
    judge: Any,
    embedder: Embedder,
    seed: int,
    explanation: Explanation,
    examples: Examples,
) -> IntruderScore:
    trials = intruder_trials(tiles, examples.latent, INTRUDERS, seed=seed)
    if not hasattr(judge, "intruder"):
        return embedding_intruder(embedder, vocabulary, trials)
    return intruder_score(trials, [_chosen(judge.intruder(one.tokens, one.marked)) for one in trials])


def _chosen(probabilities: np.ndarray) -> int:
    """The most probable one; -1, which is wrong, where a judge that could not answer left several as probable."""
    best = np.flatnonzero(probabilities == probabilities.max())
    return int(best[0]) if len(best) == 1 else -1


class _Embedded:
    """The windows of a unit as vectors: made once for both scores and for controls."""

    def __init__(self, embedder: Embedder, vocabulary: Vocabulary) -> None:
        self.embedder, self.vocabulary = embedder, vocabulary
        self._last: tuple[Examples, Windows] | None = None

    def __call__(self, examples: Examples) -> Windows:
        last = self._last
        if last is None or last[0].latent != examples.latent:
            self._last = last = examples, embed_windows(self.embedder, self.vocabulary, examples)
        return last[1]


def _embedding(
    embedded: Callable[[Examples], Windows],
    embedder: Embedder,
    seed: int,
    explanation: Explanation,
    examples: Examples,
) -> EmbeddingScore:
    return embedding_score(embedder, explanation, embedded(examples), seed=seed)


def _examples(
    embedded: Callable[[Examples], Windows], seed: int, explanation: Explanation, examples: Examples
) -> ExampleEmbedding:
    return example_embedding_score(embedded(examples), seed=seed)


def _surprisal(judge: Any, seed: int, explanation: Explanation, examples: Examples) -> Any:
    return surprisal_score(judge, explanation, examples, seed=seed)


def _saebench(
    tiles: Tiles, judge: Judge, seed: int, explanation: Explanation, examples: Examples
) -> SaebenchScore:
    return saebench(judge, explanation, saebench_examples(tiles, examples.latent, seed))


def _ablation(records: Records, judge: Judge, scorer: AblationScorer, seed: int) -> Score:
    scored, fitted = Tiles(records, "score", LONG), Tiles(records, "explain", LONG)

    def score(explanation: Explanation, examples: Examples) -> AblationScore:
        own = top_and_random(scored, examples.latent, seed=seed)
        others = top_and_random(fitted, examples.latent, seed=seed)
        check_apart(others, own)
        return ablation(scorer, judge, [explanation], own, others)[0]

    return score
