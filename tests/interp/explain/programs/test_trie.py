"""The trie says what a plain search through all patterns says."""

import numpy as np
import pytest

from saefast.interp.explain.programs.trie import ANY, Trie


def plain(patterns, window):
    """Of each token, the longest of the patterns that the text ends with there; of equally long ones that which names the
    token nearer to the end."""
    acts = []
    for place, token in enumerate(window):
        best, act = None, 0.0
        for pattern, value in patterns.items():
            end = window[: place + 1][-len(pattern) :] if pattern else []
            fits = token >= 0 and len(end) == len(pattern) and all(t >= 0 for t in end)
            fits = fits and all(want in (ANY, have) for want, have in zip(pattern, end, strict=True))
            rank = len(pattern), [want != ANY for want in reversed(pattern)]
            if fits and (best is None or rank > best):
                best, act = rank, value
        acts.append(act)
    return acts


@pytest.mark.parametrize("seed", range(20))
def test_random_patterns_on_random_texts(seed):
    rng = np.random.default_rng(seed)
    trie, sums = Trie(), {}
    for _ in range(rng.integers(0, 30)):
        pattern = rng.integers(0, 3, rng.integers(1, 5))
        pattern[rng.random(len(pattern)) < 0.3] = ANY
        act = float(rng.integers(1, 9))
        trie.add(pattern, act)
        key = pattern.tolist()
        while key and key[0] == ANY:
            key = key[1:]
        sums.setdefault(tuple(key), []).append(act)
    patterns = {key: sum(acts) / len(acts) for key, acts in sums.items()}
    windows = rng.integers(0, 4, (12, 9))
    windows[rng.random(windows.shape) < 0.1] = -1
    assert trie.predict(windows).tolist() == [plain(patterns, window) for window in windows.tolist()]
    assert {one.tokens: one.act for one in trie.patterns()} == patterns
    assert sorted((one.act for one in trie.patterns()), reverse=True) == [one.act for one in trie.patterns()]
