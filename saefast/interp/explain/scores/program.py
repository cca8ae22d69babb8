"""What explanations that are programs say of text: they predict an activation for each token, and a threshold makes yes or no of it."""

from collections import OrderedDict
from dataclasses import dataclass
from threading import Lock

import numpy as np

from saefast.errors import check
from saefast.interp.explain import Explanation
from saefast.interp.explain.examples import Tiles
from saefast.interp.explain.scores.classification import detection_examples, fuzzing_marks

KEPT = 256  # explanations whose thresholds are kept


@dataclass(frozen=True)
class _Thresholds:
    explanation: Explanation  # kept, so that its id is that of no other
    detect: float
    fuzz: float


class ProgramJudge:
    """A `saefast.interp.explain.Judge` of LookUp, Rules, NGrams.

    The probability that the unit is active in a window is s / (s + t): s is the largest prediction in the window, and t the threshold
    that does best, by balanced accuracy, on windows of the explanation's own unit in documents for explaining. So 0.5 lies at the
    threshold, and a prediction that is the same everywhere gives 0.5 everywhere. For marked tokens s is the mean of their predictions.

    Args:
        tiles: of the split "explain", as long as the windows that will be judged.
        seed: of the windows.

    Raises:
        InputError: tiles of the other split.
    """

    name = "program"

    def __init__(self, tiles: Tiles, seed: int = 0) -> None:
        check(tiles.split == "explain", f'tiles: expected those of the split "explain", got {tiles.split!r}')
        self.tiles, self.seed = tiles, seed
        self._kept: OrderedDict[int, _Thresholds] = OrderedDict()
        self._lock = Lock()

    def simulate(self, explanation: Explanation, tokens: np.ndarray) -> np.ndarray:
        """See `Judge.simulate`: what the program predicts."""
        return explanation.predict(tokens)

    def detect(self, explanation: Explanation, tokens: np.ndarray) -> np.ndarray:
        """See `Judge.detect`."""
        return _probability(_largest(explanation.predict(tokens)), self._thresholds(explanation).detect)

    def fuzz(self, explanation: Explanation, tokens: np.ndarray, marked: np.ndarray) -> np.ndarray:
        """See `Judge.fuzz`."""
        return _probability(_mean_of(explanation.predict(tokens), marked), self._thresholds(explanation).fuzz)

    def _thresholds(self, explanation: Explanation) -> _Thresholds:
        with self._lock:
            kept = self._kept.get(id(explanation))
        if kept is None:
            kept = self._fitted(explanation)
            with self._lock:
                self._kept[id(explanation)] = kept
                while len(self._kept) > KEPT:
                    self._kept.popitem(last=False)
        return kept

    def _fitted(self, explanation: Explanation) -> _Thresholds:
        examples = detection_examples(self.tiles, explanation.latent, seed=self.seed)
        predicted, active = explanation.predict(examples.tokens), examples.active
        marked, at = fuzzing_marks(examples, self.seed), threshold(_largest(predicted), active)
        of_marked = threshold(_mean_of(predicted, marked), active) if marked.any() else at
        return _Thresholds(explanation, at, of_marked)


def threshold(strength: np.ndarray, labels: np.ndarray) -> float:
    """What best tells the labels [n] apart by strength [n] >= 0: the largest balanced accuracy of strength > threshold.

    Half-way between two strengths that are there; of several that are as good that of the widest gap, then the lowest. A strength that
    is the same everywhere is its own threshold. Where one label is missing it is the median.
    """
    values = np.unique(strength)
    if len(values) < 2 or labels.all() or not labels.any():
        return float(np.median(strength)) if len(strength) else 0.0
    above = np.searchsorted(np.sort(strength[labels]), values[:-1], "right")
    others = np.searchsorted(np.sort(strength[~labels]), values[:-1], "right")
    right = (1 - above / labels.sum() + others / (~labels).sum()) / 2
    best = (right >= right.max() - 1e-12).nonzero()[0]
    gaps = np.diff(values)[best]
    chosen = best[np.argmax(gaps)]
    return float((values[chosen] + values[chosen + 1]) / 2)


def _largest(predicted: np.ndarray) -> np.ndarray:
    return np.maximum(predicted.max(axis=1, initial=0.0), 0.0)


def _mean_of(predicted: np.ndarray, marked: np.ndarray) -> np.ndarray:
    """Around the least one, so that the mean of numbers that are the same is exactly that number; 0 where none is marked."""
    strength = np.maximum(predicted, 0.0)
    least = np.where(marked, strength, np.inf).min(axis=1, initial=np.inf)
    least[~marked.any(axis=1)] = 0.0
    return least + ((strength - least[:, None]) * marked).sum(axis=1) / np.maximum(marked.sum(axis=1), 1)


def _probability(strength: np.ndarray, at: float) -> np.ndarray:
    whole = strength + at
    return np.where(whole > 0, strength / np.where(whole > 0, whole, 1.0), 0.5)
