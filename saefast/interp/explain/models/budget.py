"""What may be spent on a language model, what was spent, and what it would be: tokens and dollars.

budget = Budget(dollars=2.0, price_in=0.15, price_out=0.60, folder="runs/mine/models")
model = Endpoint(url, "gpt-4o-mini", budget=budget)
"""

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from threading import Condition
from typing import NamedTuple

from saefast.errors import InputError, check
from saefast.interp.explain.models import Prompt
from saefast.interp.explain.models.store import Store

FILE = "spending.sqlite"
TABLES = """
    CREATE TABLE IF NOT EXISTS spent (one INTEGER PRIMARY KEY, tokens_in INTEGER, tokens_out INTEGER, dollars REAL);
    INSERT OR IGNORE INTO spent VALUES (1, 0, 0, 0.0);
"""
ADD = "UPDATE spent SET tokens_in = tokens_in + ?, tokens_out = tokens_out + ?, dollars = dollars + ?"
TURN = 8  # tokens of a template around a turn, generously


class BudgetReached(InputError):
    """The next request could cost more than is left. What was answered is kept."""


class Cost(NamedTuple):
    tokens_in: int
    tokens_out: int
    dollars: float


class Budget:
    """Limits over all runs with one folder.

    Before a request its worst case is put down as spent, tokens_in by the bytes of the prompt (no tokenizer makes more tokens) and
    tokens_out by what it may write; afterwards what the server says it was. A request that was under way in a kill, or whose answer
    never came, stays at its worst case. While requests under way hold what a new one needs, that one waits.

    Args:
        dollars, tokens: the most that may be spent, tokens of prompts and answers together; None: no limit.
        price_in, price_out: dollars for a million tokens of prompts and of answers.
        folder: with the file spending.sqlite; None forgets at the end.

    Raises:
        InputError: negative numbers; dollars without a price; a damaged file.
    """

    def __init__(
        self,
        dollars: float | None = None,
        tokens: int | None = None,
        price_in: float = 0.0,
        price_out: float = 0.0,
        folder: str | Path | None = None,
    ) -> None:
        given = {"dollars": dollars, "tokens": tokens, "price_in": price_in, "price_out": price_out}
        for name, value in given.items():
            ok = value is None or (math.isfinite(value) and value >= 0)
            check(ok, f"budget: {name}: expected a number of 0 or more, got {value}")
        priced = dollars is None or price_in > 0 or price_out > 0
        check(priced, "budget: dollars need price_in and price_out, in dollars for a million tokens")
        self.dollars, self.tokens, self.price_in, self.price_out = dollars, tokens, price_in, price_out
        self._store = Store(None if folder is None else Path(folder) / FILE, TABLES)
        self._under_way, self._changed = 0, Condition()

    @property
    def spent(self) -> Cost:
        """By all runs, requests under way at their worst case."""
        return Cost(*self._store.read("SELECT tokens_in, tokens_out, dollars FROM spent")[0])

    def cost(self, tokens_in: int, tokens_out: int) -> Cost:
        return Cost(
            tokens_in, tokens_out, (tokens_in * self.price_in + tokens_out * self.price_out) / 1_000_000
        )

    def reserve(self, worst: Cost) -> None:
        """Put a request down at its worst case.

        Raises:
            BudgetReached: it could cost more than is left.
        """
        with self._changed:
            while not self._taken(worst):
                if not self._under_way:
                    raise self._reached(worst)
                self._changed.wait()
            self._under_way += 1

    def settle(self, worst: Cost, used: Cost) -> None:
        """What a reserved request cost in the end."""
        with self._changed:
            try:
                with self._store.changing() as db:
                    db.execute(ADD, [after - before for before, after in zip(worst, used, strict=True)])
            finally:
                self._under_way -= 1
                self._changed.notify_all()

    def _taken(self, worst: Cost) -> bool:
        with (
            self._store.changing() as db
        ):  # of another process too, nothing comes between the look and the entry
            now = self.spent
            tokens = now.tokens_in + now.tokens_out + worst.tokens_in + worst.tokens_out
            fits = self.tokens is None or tokens <= self.tokens
            fits &= self.dollars is None or now.dollars + worst.dollars <= self.dollars
            if fits:
                db.execute(ADD, worst)
        return fits

    def _reached(self, worst: Cost) -> BudgetReached:
        now = self.spent
        spent, next_one = (f"{c.tokens_in + c.tokens_out} tokens, ${c.dollars:.4f}" for c in (now, worst))
        limits = [
            f"{self.tokens} tokens" if self.tokens is not None else "",
            f"${self.dollars:g}" if self.dollars is not None else "",
        ]
        limit = " and ".join(filter(None, limits))
        return BudgetReached(
            f"budget: {limit} reached: {spent} are spent, and the next request could take {next_one} more; "
            "what was answered is kept, a larger budget goes on from there"
        )


def estimate(
    prompts: Iterable[Prompt | str],
    max_tokens: int,
    budget: Budget | None = None,
    n_tokens: Callable[[str], int] | None = None,
) -> Cost:
    """About what it takes to have these prompts answered, before anything is asked: an estimate, not a bound.

    Args:
        prompts: conversations, or texts.
        max_tokens: of each answer, which is counted in full.
        budget: with the prices; without, dollars are 0.
        n_tokens: of a text, by the model's tokenizer; default: a token for every 4 characters.
    """
    count = n_tokens or estimated_tokens
    tokens_in = tokens_out = 0
    for prompt in prompts:
        turns = [prompt] if isinstance(prompt, str) else [turn.text for turn in prompt]
        tokens_in += sum(count(text) for text in turns) + (
            0 if isinstance(prompt, str) else TURN * len(turns)
        )
        tokens_out += max_tokens
    return (budget or Budget()).cost(tokens_in, tokens_out)


def estimated_tokens(text: str) -> int:
    return -(-len(text) // 4)
