"""Explainers that ask a language model what windows of a unit have in common.

    explainer = TokenActivations(records, vocabulary, model, simulator=judge)
    explainer.explain(17).sentence

All windows are of documents for explaining. A unit that is active in none of them is not asked about.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from saefast.errors import check
from saefast.interp.effects import LogitWeights, Neighbours
from saefast.interp.explain.asked.asker import Asker, Explained, Question, slots_of
from saefast.interp.explain.asked.windows import (
    MARKED,
    ROLE,
    Window,
    examples_of,
    highlighted,
    listed,
    nines,
    promoted,
    tenths,
    windows_of,
)
from saefast.interp.explain.examples import Tiles, by_quantile, inactive
from saefast.interp.explain.models import LanguageModel, Turn
from saefast.interp.records import Records
from saefast.interp.trial.windows import EXPLAINED, GROUPS, N_INTERVALS, Mix, Places, draw
from saefast.interp.vocabulary import Vocabulary


class TokenActivations(Asker):
    """Bills et al., "Language models can explain neurons in language models" (2023): the strongest windows, each token with its activation
    as an integer from 0 to 10. There with temperature 1.

    Args:
        n_top, length: windows, and tokens of each.
        options: see `Asker`.
    """

    name = "token-activations"

    def __init__(
        self,
        records: Records,
        vocabulary: Vocabulary,
        model: LanguageModel,
        *,
        n_top: int = 5,
        length: int = 64,
        **options: Any,
    ) -> None:
        super().__init__(records, vocabulary, model, **options)
        check(n_top >= 1, f"n_top: expected at least 1 window, got {n_top}")
        self.tiles, self.n_top = Tiles(records, "explain", length), n_top

    def question(self, latent: int) -> Question | None:
        active, peaks = self.tiles.peaks(latent)
        top = active[np.argsort(-peaks, kind="stable")[: self.n_top]]
        if not len(top):
            return None
        examples = self.tiles.examples(latent, [("top", -1, top)])
        how = "You get texts, a token in each line, and after each token how active the unit is on it, from 0 to 10 (its strongest)."
        return Question(
            self._prompt(how, self._body, self._body(examples_of(self.vocabulary, examples))),
            slots_of(examples),
        )

    @staticmethod
    def _body(windows: Sequence[Window]) -> str:
        return listed(windows, [tenths(window) for window in windows])


class NineTokens(Asker):
    """As in "Towards Monosemanticity" (2023): 49 windows of 9 tokens, 10 of the strongest activations, 2 of each of 12 weaker intervals, 5 random
    ones, and 10 around the unit's top token in other texts; activations from 0 to 9.

    Args:
        logits: with them, the tokens that the unit makes more and less likely are shown too, as in the paper.
        counts: how many windows of each group.
        options: see `Asker`.
    """

    name = "nine-tokens"

    def __init__(
        self,
        records: Records,
        vocabulary: Vocabulary,
        model: LanguageModel,
        *,
        logits: LogitWeights | None = None,
        counts: Mix = EXPLAINED,
        **options: Any,
    ) -> None:
        super().__init__(records, vocabulary, model, **options)
        self.places = Places(records.text, records.config, "explain")
        self.explained, self.logits, self.counts = Explained(records), logits, counts

    def question(self, latent: int) -> Question | None:
        if not len(self.explained.entries(latent)[0]):
            return None
        drawn = draw(self.places, self.explained, latent, self.counts, self.seed)
        if not drawn.acts.any():  # it is active only where there is no whole window
            return None
        windows = windows_of(self.vocabulary, drawn.tokens, drawn.acts, drawn.largest)
        heads = [_head(*of) for of in zip(drawn.group.tolist(), drawn.interval.tolist(), strict=True)]
        how = (
            "You get short texts, a token in each line, and after each token how active the unit is on it, from 0 to 9 (its strongest). "
            "Above each text stands how it was chosen."
        )
        logits = promoted(self.logits, self.vocabulary, latent, 10) if self.logits else ""
        body = listed(windows, [nines(window) for window in windows], heads)
        prompt = self._prompt(
            how, lambda shown: listed(shown, [nines(one) for one in shown]), f"{body}{logits}"
        )
        return Question(prompt, np.unique(self.places.windows(drawn.slots)))


class Contrastive(Asker):
    """Marked windows of all strengths, as delphi (arXiv 2410.13928) shows them, and beside them windows in which the unit is not active: near
    misses, in which units like it are, and random ones.

    Args:
        near: units like each, from `saefast.interp.effects.neighbours`; without, only random windows.
        length: tokens of a window.
        n_active, n_near, n_random: windows of each kind, as many as there are.
        options: see `Asker`.
    """

    name = "contrastive"

    def __init__(
        self,
        records: Records,
        vocabulary: Vocabulary,
        model: LanguageModel,
        *,
        near: Neighbours | None = None,
        length: int = 32,
        n_active: int = 20,
        n_near: int = 5,
        n_random: int = 5,
        **options: Any,
    ) -> None:
        super().__init__(records, vocabulary, model, **options)
        check(n_active >= 1, f"n_active: expected at least 1 window, got {n_active}")
        ok = min(n_near, n_random) >= 0
        check(ok, f"n_near, n_random: expected at least 0 windows, got {n_near} and {n_random}")
        self.tiles, self.near = Tiles(records, "explain", length), near
        self.n_active, self.n_near, self.n_random = n_active, n_near, n_random

    def question(self, latent: int) -> Question | None:
        active = by_quantile(self.tiles, latent, self.n_active, seed=self.seed)
        if not len(active):
            return None
        active = active.take(np.argsort(-active.acts.max(axis=1), kind="stable"))
        near = [] if self.near is None else [one for one in self.near.indices[latent].tolist() if one >= 0]
        hard = inactive(self.tiles, latent, self.n_near if near else 0, self.seed, near).of("near")
        easy = inactive(self.tiles, latent, self.n_random, self.seed + 1, without=hard.slots)
        how = (
            f"You get texts. Tokens on which it is active at more than {MARKED} of its strongest are between << and >>, and listed below the text with "
            "how active it is, from 0 to 10. In other texts it is not active at all, though some are like those in which it is: what you say "
            "must hold for the marked tokens, and not for these."
        )
        parts = [examples_of(self.vocabulary, some) for some in (active, hard, easy)]
        question = _kinds(*parts)
        return Question(
            self._prompt(how, _shot, question),
            np.concatenate([slots_of(one) for one in (active, hard, easy)]),
        )


class FromLogits(Asker):
    """What a unit does to the output, from the tokens that it makes more and less likely; no text is looked at.

    Args:
        logits: of all units of the records.
        n_tokens: of each kind.
        options: see `Asker`.
    """

    name = "logits"

    def __init__(
        self,
        records: Records,
        vocabulary: Vocabulary,
        model: LanguageModel,
        *,
        logits: LogitWeights,
        n_tokens: int = 10,
        **options: Any,
    ) -> None:
        super().__init__(records, vocabulary, model, **options)
        n, want = len(logits.positive_tokens), records.d_sae
        check(n == want, f"logits: expected those of {want} units, got {n}")
        check(n_tokens >= 1, f"n_tokens: expected at least 1, got {n_tokens}")
        self.explained, self.logits, self.n_tokens = Explained(records), logits, n_tokens

    def question(self, latent: int) -> Question | None:
        if not len(self.explained.entries(latent)[0]):
            return None
        system = Turn(
            "system",
            f"{ROLE} You get the tokens that the unit makes more and less likely to come next. Say what the text is about, or like, "
            "where such tokens come next.",
        )
        question = promoted(self.logits, self.vocabulary, latent, self.n_tokens)
        return Question((system, Turn("user", question)), np.zeros(0, np.int64))


def _head(group: int, interval: int) -> str:
    return {
        "top": "One of its strongest:\n",
        "interval": f"Strength {interval + 1} of {N_INTERVALS}:\n",
        "random": "Any text:\n",
        "token": "With the token of its strongest ones:\n",
    }[GROUPS[group]]


def _kinds(active: Sequence[Window], near: Sequence[Window], random: Sequence[Window]) -> str:
    return "\n".join(
        part
        for part in (
            highlighted(active, "Active, the strongest first:"),
            highlighted(near, "Not active, though alike:"),
            highlighted(random, "Not active:"),
        )
        if part
    )


def _shot(windows: Sequence[Window]) -> str:
    active = [window for window in windows if window.shares.any()]
    return _kinds(active, [], [window for window in windows if not window.shares.any()])
