"""Patterns of tokens (seeds: E1): the shortest texts that do what the examples of a latent do, by passes of the subject model.

"N2G" (Foote et al., 2023, arXiv 2305.19911) as it is in "Scaling and evaluating sparse autoencoders" (Gao et al., 2024):

1. Of each example, the shortest suffix, ending with its token, that keeps at least half of the activation.
2. Each token of the suffix in turn gives way to a padding token. Where the activation stays above half of that of the suffix, the
   token is a wild card.
3. The patterns are merged in a trie that is read backwards. A token is predicted to have the activation of the longest pattern
   that ends there; that of a pattern is the mean of the activations of its suffixes.

Three things are otherwise, so that patterns hold in the middle of a text, from which the windows come that they are tried on. A
suffix stands behind one padding token, not at the beginning of a text. Wild cards must keep half of the activation together, too:
until they do, the most important of them is none. And an example of which nothing up to `longest` tokens keeps half is left out.
"""

from dataclasses import dataclass, field

import numpy as np

from saefast.errors import check
from saefast.interp.explain.programs.split import ExplainSplit, checked_windows
from saefast.interp.explain.programs.trie import ANY, Pattern, Trie
from saefast.interp.explain.programs.words import NEVER, listed, number, quoted
from saefast.interp.explain.subject import Activations
from saefast.interp.records import Records
from saefast.interp.vocabulary import Vocabulary

KEEPS = 0.5  # of the activation
FIRST = 4  # suffixes up to this length are tried in the first pass, twice as long ones in each further pass
NAMED = 6  # patterns in the sentence
PADDINGS = (b" _", b"_", b" ", b".")


@dataclass(frozen=True)
class NGramTrie:
    latent: int
    sentence: str
    trie: Trie = field(repr=False)
    n_tokens: int  # ids that there are
    n_examples: int
    n_left_out: int  # of them, because no suffix keeps half of the activation

    @property
    def patterns(self) -> list[Pattern]:
        """The strongest first."""
        return self.trie.patterns()

    def predict(self, tokens: np.ndarray) -> np.ndarray:
        """See `saefast.interp.explain.Explanation.predict`."""
        return self.trie.predict(checked_windows(tokens, self.n_tokens))


class NGrams:
    """Args:
        activations: what latents do on other texts; `saefast.interp.explain.subject.model_activations` makes it.
        n_top: examples of each latent, its strongest tokens in documents for explaining, one of each text.
        n_random: further examples, random ones of the tokens on which it is active.
        longest: tokens of a suffix.
        padding: id of the token that says nothing; default: " _" if the vocabulary has it, see `padding_token`.
        seed: of the random examples.

    Raises:
        InputError: no examples or no length asked for, or a padding token that there is not.
    """

    name = "ngrams"

    def __init__(
        self,
        records: Records,
        vocabulary: Vocabulary,
        activations: Activations,
        *,
        n_top: int = 16,
        n_random: int = 16,
        longest: int = 16,
        padding: int | None = None,
        seed: int = 0,
        split: ExplainSplit | None = None,
    ) -> None:
        asked = min(n_top, n_random) >= 0 and n_top + n_random > 0
        check(asked, f"n_top, n_random: expected at least one example, got {n_top} and {n_random}")
        check(longest > 0, f"longest: expected at least 1, got {longest}")
        self.padding = padding_token(vocabulary) if padding is None else padding
        ok = 0 <= self.padding < len(vocabulary)
        check(ok, f"padding: expected a token id from 0 to {len(vocabulary) - 1}, got {padding}")
        self.split, self.vocabulary, self.activations = (
            split or ExplainSplit(records),
            vocabulary,
            activations,
        )
        self.n_top, self.n_random, self.longest, self.seed = n_top, n_random, longest, seed

    def explain(self, latent: int) -> NGramTrie:
        """Raises InputError if there is no such latent."""
        texts, acts = self._examples(latent)
        suffixes = self._suffixes(latent, texts, acts)
        trie = Trie()
        for pattern, act in self._patterns(latent, suffixes):
            trie.add(pattern.tolist(), act)
        n_left_out = len(texts) - len(suffixes)
        sentence = self._sentence(trie.patterns(), n_left_out) if texts else NEVER
        return NGramTrie(latent, sentence, trie, len(self.vocabulary), len(texts), n_left_out)

    def _examples(self, latent: int) -> tuple[list[np.ndarray], np.ndarray]:
        """Texts that end with a token on which the latent is active, and the activations there, the strongest first."""
        places, acts = self.split.entries(latent)
        order = np.argsort(-acts, kind="stable")
        text = np.cumsum(self.split.tokens < 0)[places]  # the gaps count the texts
        firsts = np.unique(text[order], return_index=True)[1]  # the strongest of each text
        chosen = order[np.sort(firsts)[: self.n_top]]
        others = np.setdiff1d(np.arange(len(places)), chosen)
        drawn = np.random.default_rng((self.seed, latent)).permutation(others)[: self.n_random]
        chosen = np.concatenate([chosen, drawn[np.argsort(-acts[drawn], kind="stable")]]).astype(np.int64)
        return [self.split.before(int(place), self.longest) for place in places[chosen]], acts[chosen]

    def _suffixes(
        self, latent: int, texts: list[np.ndarray], acts: np.ndarray
    ) -> list[tuple[np.ndarray, float]]:
        """Of each text the shortest suffix that keeps the activation, with its own. Short ones are tried first."""
        found: dict[int, tuple[np.ndarray, float]] = {}
        tried, end = 0, min(FIRST, self.longest)
        while tried < self.longest:
            left = [i for i, text in enumerate(texts) if i not in found and len(text) > tried]
            tries = [(i, n) for i in left for n in range(tried + 1, min(end, len(texts[i])) + 1)]
            results = self._act(latent, [texts[i][-n:] for i, n in tries])
            for (i, n), act in zip(tries, results.tolist(), strict=True):
                if i not in found and act >= KEEPS * acts[i]:
                    found[i] = texts[i][-n:], act
            tried, end = end, min(2 * end, self.longest)
        return [found[i] for i in sorted(found)]

    def _patterns(
        self, latent: int, suffixes: list[tuple[np.ndarray, float]]
    ) -> list[tuple[np.ndarray, float]]:
        """Suffixes with wild cards."""
        without = [
            np.where(np.arange(len(suffix)) == j, self.padding, suffix)
            for suffix, _ in suffixes
            for j in range(len(suffix))
        ]
        kept = self._act(latent, without)
        tries: list[
            tuple[int, np.ndarray]
        ] = []  # of each suffix: all of its wild cards, all but the most important, ...
        first = 0
        for i, (suffix, act) in enumerate(suffixes):
            here, n = kept[first : first + len(suffix)], len(suffix)
            important = np.lexsort((-np.arange(n), here))  # of equal ones the nearer to the end
            for n_exact in range(int((here <= KEEPS * act).sum()), n + 1):
                tries.append((i, np.where(np.isin(np.arange(n), important[:n_exact]), suffix, ANY)))
            first += n
        results = self._act(latent, [np.where(one == ANY, self.padding, one) for _, one in tries])
        found: dict[int, tuple[np.ndarray, float]] = {}
        for (i, pattern), result in zip(tries, results.tolist(), strict=True):
            if i not in found and (result > KEEPS * suffixes[i][1] or ANY not in pattern):
                found[i] = pattern, suffixes[i][1]
        return [found[i] for i in range(len(suffixes))]

    def _act(self, latent: int, texts: list[np.ndarray]) -> np.ndarray:
        """The activation on the last token of each text behind a padding token, [n] float64."""
        if not texts:
            return np.zeros(0)
        lengths = np.array([len(text) for text in texts])
        rows = np.full((len(texts), int(lengths.max()) + 1), self.padding, np.int64)
        for row, text in zip(rows, texts, strict=True):
            row[1 : len(text) + 1] = text
        return self.activations(rows, lengths, latent)

    def _sentence(self, patterns: list[Pattern], n_left_out: int) -> str:
        more = f" ({n_left_out} examples need more text than {self.longest} tokens)" if n_left_out else ""
        if not patterns:
            return f"No short text makes it active{more}: predicted to be inactive everywhere."
        parts = [f"{self._shown(pattern.tokens)} ({number(pattern.act)})" for pattern in patterns]
        return f"Active on the last token of {listed(parts, 'or', NAMED)}{more}."

    def _shown(self, tokens: tuple[int, ...]) -> str:
        """Tokens in quotes, wild cards as [any] between them."""
        parts: list[str] = []
        run: list[bytes] = []
        for token in (*tokens, None):
            if token is None or token == ANY:
                parts += [quoted(run)] * bool(run) + ["[any]"] * (token == ANY)
                run = []
            else:
                run.append(self.vocabulary.raw[token])
        return " ".join(parts) or "any text"


def padding_token(vocabulary: Vocabulary) -> int:
    """A token that says little: " _", as in the code of Gao et al., or what comes near to it."""
    known = {raw: i for i, raw in reversed(list(enumerate(vocabulary.raw)))}
    return next((known[raw] for raw in PADDINGS if raw in known), 0)
