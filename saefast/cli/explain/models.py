"""Who explains and who judges, as the flags of `saefast explain` name them."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from saefast.cli.explain.units import Method, ScoreName, UnitKind
from saefast.errors import check
from saefast.interp.explain import Explainer, Judge
from saefast.interp.explain.asked.given import Given
from saefast.interp.explain.asked.judge import ModelJudge
from saefast.interp.explain.examples import Tiles
from saefast.interp.explain.models import LanguageModel
from saefast.interp.explain.models.budget import Budget
from saefast.interp.explain.models.dry import Dry
from saefast.interp.explain.scores.program import ProgramJudge
from saefast.interp.explain.scoring import SHORT
from saefast.interp.explain.trust import RuleJudge, Trust, load_bank, trust

GIVEN = "given"
PROGRAMS = ("lookup", "rules", "ngrams")  # explain without a language model
WAYS = {  # how a judge is tried on the bank before it gives these scores; those of an embedder are no judgements
    "simulation": "simulate",
    "ablation": "simulate",
    "detection": "detect",
    "saebench": "detect",
    "intruder": "detect",
    "surprisal": "detect",
    "fuzz": "fuzz",
}


class Asked(NamedTuple):
    """How an explainer is made."""

    name: str  # one of PROGRAMS, GIVEN, or of a language model
    method: Method  # of a language model
    n_rules: int
    revise: bool
    temperature: float
    seed: int


class Models:
    """
    Args:
        explains, judges: language models; None: a program.
        budget: of servers.
    """

    def __init__(
        self, asked: Asked, explains: LanguageModel | None, judges: LanguageModel | None, budget: Budget
    ) -> None:
        self.asked, self.explains, self.judges, self.budget = asked, explains, judges, budget

    @property
    def all(self) -> list[LanguageModel]:
        """Each once."""
        there = [one for one in (self.explains, self.judges) if one is not None]
        return there[:1] if len(there) == 2 and there[0] is there[1] else there

    @property
    def at_once(self) -> int:
        return max((one.at_once for one in self.all), default=1)

    def explainer_of(self, unit: UnitKind, judge: Judge) -> Explainer:
        asked = self.asked
        if asked.name == GIVEN:
            check(
                self.judges is not None, "judge: expected a language model that judges the given explanations"
            )
            return Given(unit.records.folder, judge)
        if self.explains is None:
            return unit.program(asked.name, asked.n_rules, asked.revise)
        return unit.asked(self.explains, asked.method, judge, asked.temperature, asked.seed, asked.revise)

    def judge_of(self, unit: UnitKind) -> Judge:
        if self.judges is None:
            return ProgramJudge(Tiles(unit.records, "explain", SHORT), self.asked.seed)
        return ModelJudge(self.judges, unit.vocabulary)

    def trusted(self, scores: Sequence[ScoreName]) -> Trust | None:
        """What the judge does on the bank, in the ways that these scores need; None: they need none. A program is tried with the rules
        of the bank."""
        bank = load_bank()
        ways = list(dict.fromkeys(WAYS[name] for name in scores if name in WAYS))
        if not ways:
            return None
        judge = RuleJudge() if self.judges is None else ModelJudge(self.judges, bank[0].vocabulary)
        return trust(judge, bank, ways)

    def dry(self) -> "Models":
        """Models that only count what they are asked."""
        dry = {id(one): Dry(one, self.budget) for one in self.all}
        explains, judges = (None if one is None else dry[id(one)] for one in (self.explains, self.judges))
        return Models(self.asked, explains, judges, self.budget)

    @property
    def counted(self) -> np.ndarray:
        """Questions, tokens and dollars that `dry` ones were asked, [3] float64."""
        found = [one for one in self.all if isinstance(one, Dry)]
        rows = [(one.asked, one.cost.tokens_in + one.cost.tokens_out, one.cost.dollars) for one in found]
        return np.asarray(rows, np.float64).reshape(-1, 3).sum(axis=0)

    def words(self) -> dict[str, Any]:
        """For the settings of the results, and the report."""
        asked = self.asked
        explained: dict[str, Any] = {
            "explained by": asked.name if self.explains is None else self.explains.name
        }
        if self.explains is None:
            explained |= {"rules": asked.n_rules} if asked.name == "rules" else {}
        else:
            explained |= {"method": asked.method, "temperature": asked.temperature}
        judged = "the program itself" if self.judges is None else self.judges.name
        return explained | {"revised": asked.revise, "judged by": judged}

    def notes(self) -> Iterator[str]:
        """What was spent."""
        if self.budget.spent.tokens_in:
            spent = self.budget.spent
            yield f"Spent on servers, over all runs: {spent.tokens_in + spent.tokens_out:,} tokens, ${spent.dollars:.2f}."


def opened(
    asked: Asked, judge: str | None, folder: Path, budget: Budget, concurrency: int, device: str
) -> Models:
    """The models of the flags; their answers are kept in `folder`.

    Raises:
        InputError: no such model.
    """
    from saefast.interp.explain.models.open import open_model

    def model(name: str) -> LanguageModel:
        return open_model(name, folder=folder, budget=budget, concurrency=concurrency, device=device)

    explains = None if asked.name in (*PROGRAMS, GIVEN) else model(asked.name)
    judges = explains if judge in (None, asked.name) else model(str(judge))
    return Models(asked, explains, judges, budget)
