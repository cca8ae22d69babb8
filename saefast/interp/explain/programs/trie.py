"""Patterns of tokens that a text ends with, merged in a trie that is read from the last token to the first."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

ANY = -2  # a wild card: any token, but there must be one


@dataclass(frozen=True)
class Pattern:
    tokens: tuple[int, ...]  # ids and wild cards, in the order of the text
    act: float  # the mean over the examples that it is from
    count: int  # how many


class Node:
    """Where the last tokens of a text, as many as the node is deep, are those on the way to it."""

    def __init__(self) -> None:
        self.next: dict[int, Node] = {}
        self.total, self.count = 0.0, 0  # of the patterns that end here


class Trie:
    def __init__(self) -> None:
        self.root = Node()

    def add(self, tokens: Sequence[int], act: float) -> None:
        """tokens in the order of the text. Wild cards in front of the first token say nothing and are left out."""
        node, pattern = self.root, list(tokens)
        while pattern and pattern[0] == ANY:
            del pattern[0]
        for token in reversed(pattern):
            node = node.next.setdefault(int(token), Node())
        node.total, node.count = node.total + act, node.count + 1

    def patterns(self) -> list[Pattern]:
        """All of them, the strongest first."""
        found: list[Pattern] = []
        todo: list[tuple[tuple[int, ...], Node]] = [((), self.root)]
        while todo:
            tokens, node = todo.pop()
            if node.count:
                found.append(Pattern(tokens, node.total / node.count, node.count))
            todo += [((token, *tokens), child) for token, child in node.next.items()]
        return sorted(found, key=lambda pattern: (-pattern.act, pattern.tokens))

    def predict(self, tokens: np.ndarray) -> np.ndarray:
        """tokens [n, L] -> of each token the activation of the longest pattern that the text ends with there, 0 without one.

        Of patterns of the same length, the one that names the token nearer to the end. Padding matches nothing.
        """
        n, length = tokens.shape
        acts = np.zeros(tokens.size)
        level = [(self.root, (tokens.ravel() >= 0).nonzero()[0])]
        depth = 0
        while level:
            # In the order of this loop a better pattern comes after a worse one, and overwrites it: all of a level are
            # longer than those before, and each node has its wild card first.
            for node, at in level:
                if node.count:
                    acts[at] = node.total / node.count
            earlier = np.full((n, length), -1, np.int64)  # the token `depth` places before each
            earlier[:, depth:] = tokens[:, : max(length - depth, 0)]
            flat, following = earlier.ravel(), []
            for node, at in level:
                for token, child in sorted(node.next.items()):
                    here = flat[at]
                    matched = at[here >= 0 if token == ANY else here == token]
                    if len(matched):
                        following.append((child, matched))
            level, depth = following, depth + 1
        return acts.reshape(n, length)
