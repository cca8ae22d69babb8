"""Several explainers, and the sentence that says most about windows that none of them was shown."""

from collections.abc import Sequence

import numpy as np

from saefast.errors import check
from saefast.interp.explain import Judge
from saefast.interp.explain.asked.asker import Asker, held_out
from saefast.interp.explain.asked.said import Said, ask
from saefast.interp.explain.asked.windows import ROLE
from saefast.interp.explain.examples import Examples, Tiles
from saefast.interp.explain.models import Turn
from saefast.interp.trial.scores import pearson

LENGTH = 64  # tokens of a window that is chosen on


class Combined:
    """Asks several, has one sentence made of all, and takes of all of them the one whose simulation correlates best with the unit on other
    windows of documents for explaining; of equal ones the first.

    A sentence that a model makes of several is no better for being longer: it adds what was true and what was made up. So it is only one more that
    is tried. What is chosen on is no part of any prompt, and what is scored later is of other documents.

    Args:
        explainers: at least one, all of one set of records.
        simulator: a judge.
        merge: whether one sentence is made of all.
        n_top, n_random: windows that are chosen on.
    """

    name = "combined"

    def __init__(
        self,
        explainers: Sequence[Asker],
        simulator: Judge,
        *,
        merge: bool = True,
        n_top: int = 5,
        n_random: int = 5,
        seed: int = 0,
    ) -> None:
        folders = {one.records.folder for one in explainers}
        check(len(folders) == 1, f"explainers: expected some of one set of records, got {len(folders)} sets")
        self.explainers, self.simulator, self.merge = list(explainers), simulator, merge
        self.n_top, self.n_random, self.seed = n_top, n_random, seed
        self.tiles = Tiles(explainers[0].records, "explain", LENGTH)

    def candidates(self, latent: int) -> list[Said]:
        """All different ones that say something, or else one that does not."""
        answers = [one for explainer in self.explainers for one in explainer.candidates(latent)]
        found = {one.sentence: one for one in reversed(answers) if one.is_explained}
        different = [one for one in answers if found.get(one.sentence) is one]
        if self.merge and len(different) > 1:
            merged = self._merged(latent, different)
            different += [merged] if merged.is_explained and merged.sentence not in found else []
        return different or answers[:1]

    def explain(self, latent: int) -> Said:
        candidates = self.candidates(latent)
        if len(candidates) == 1:
            return candidates[0]
        windows = held_out(
            self.tiles, latent, [one.seen for one in candidates], self.n_top, self.n_random, self.seed
        )
        scores = [score_on(windows, one, self.simulator) for one in candidates]
        return candidates[int(np.argmax(scores))]

    def _merged(self, latent: int, candidates: Sequence[Said]) -> Said:
        model = self.explainers[0].model
        system = Turn(
            "system",
            f"{ROLE} You get what several people said of the same unit, who saw different texts. Say in one sentence what they agree on, with what "
            "only some of them say if it does not contradict the others.",
        )
        lines = "".join(f"- {one.sentence}\n" for one in candidates)
        seen = np.unique(np.concatenate([one.seen for one in candidates]))
        return ask(model, latent, (system, Turn("user", lines)), seen, self.simulator)[0]


def score_on(windows: Examples, said: Said, simulator: Judge) -> float:
    """Pearson correlation over all tokens of these windows; 0 where it is not defined."""
    return pearson(windows.acts.ravel(), simulator.simulate(said, windows.tokens).ravel())
