"""Dealing: units are drawn from sets of records, and written as one page of shuffled cards with a sealed key."""

import secrets
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from saefast.config.blind import BlindConfig
from saefast.errors import check
from saefast.interp.blind.cards import Card, Deck, shown_of
from saefast.interp.blind.page import digest_of, write_page
from saefast.interp.blind.rubric import ITEMS
from saefast.interp.blind.seal import KEY, PAGE, seal
from saefast.interp.effects import Effects, LogitWeights
from saefast.interp.look.tokens import Shown
from saefast.interp.records import Records

LETTERS = "bcdfghjkmnpqrstvwxyz23456789"  # of ids: no vowels, so no words
LENGTH = 6


class Tokens(Protocol):
    """What is needed of a `Vocabulary`."""

    raw: list[bytes]
    special: set[int]

    def __len__(self) -> int: ...


class Drawn(NamedTuple):
    """How the units of a set were found: units in a random order were tried until there were enough."""

    tried: int
    dead: int  # of these: never active
    short: int  # of these: active, but without enough examples for all intervals


class Dealt(NamedTuple):
    page: Path
    key: Path
    commitment: str
    n_cards: int
    drawn: dict[str, Drawn]  # by the name of the set


def deal(
    sets: Mapping[str, Records],
    out: str | Path,
    vocabulary: Tokens,
    config: BlindConfig | None = None,
    *,
    seed: int | None = None,
    title: str = "Blind rating",
) -> Dealt:
    """Draw the same number of units from each set, and write OUT/cards.html for the raters and OUT/key.json.

    Args:
        sets: records by the type of their units ("features", "neurons", ...), of texts of one tokenizer. Logits are shown
            where all sets have logit weights (`effects_of` writes them beside the records).
        seed: of all that is random. Who knows it can deal again and see which card is which; so by default it is drawn, and
            only the key has it. With it, the same sets and config give the same two files.
        title: of the page, the same for all raters.

    Raises:
        InputError: fewer than two sets, too few units that fill a card, logits for some sets only, or a deal that is there.
    """
    config, out = config or BlindConfig(), Path(out).absolute()
    check(len(sets) > 1, f"sets: expected at least two sets of records to tell apart, got {len(sets)}")
    there = [name for name in (KEY, PAGE) if (out / name).exists()]
    new = "a new folder, because ratings need the key that belongs to their page"
    check(not there, f"out: expected {new}, {out} has {' and '.join(there)}")
    seed = secrets.randbits(128) if seed is None else seed
    check(seed >= 0, f"seed: expected 0 or more, got {seed}")
    rng = np.random.default_rng(seed)
    logits = _logits(sets, config.n_logits)
    cards: list[tuple[str, int, Card]] = []
    drawn: dict[str, Drawn] = {}
    for name, records in sets.items():
        found, drawn[name] = _draw(Deck(records, logits[name], config), rng)
        tried = (
            f"of {drawn[name].tried} {drawn[name].dead} are dead, {drawn[name].short} have too few examples"
        )
        enough = f"{config.units} units with {config.n_intervals} intervals of {config.per_interval} examples"
        check(len(found) == config.units, f"{name}: expected {enough}, found {len(found)}: {tried}")
        cards += [(name, unit, card) for unit, card in found]
    cards = [cards[i] for i in rng.permutation(len(cards))]
    names = _names(len(cards), rng)
    arrays = [array for _, _, card in cards for array in (card.windows, card.logit_tokens)]
    shown = Shown(vocabulary, arrays)  # type: ignore[arg-type]  # of which it takes what `Tokens` has
    has_logits = None not in logits.values()
    on_page = [shown_of(card, name, shown, config) for name, (_, _, card) in zip(names, cards, strict=True)]
    described = {
        name: {"digest": records.index["sae"]["digest"], "n_units": records.d_sae, **drawn[name]._asdict()}
        for name, records in sets.items()
    }
    key = {"salt": rng.bytes(32).hex(), "seed": seed, "config": asdict(config), "logits": has_logits}
    key |= {"sets": described, "page": digest_of(on_page)}
    key["cards"] = {
        name: {"set": of, "unit": unit, "intervals": card.intervals.tolist(), "own": card.own.tolist()}
        for name, (of, unit, card) in zip(names, cards, strict=True)
    }
    out.mkdir(parents=True, exist_ok=True)
    commitment = seal(out / KEY, key)
    values = {"commitment": commitment, "config": asdict(config), "logits": has_logits, "cards": on_page}
    values["rubric"] = [item._asdict() for item in ITEMS]
    write_page(out / PAGE, title, values, shown)
    return Dealt(out / PAGE, out / KEY, commitment, len(cards), drawn)


def _logits(sets: Mapping[str, Records], n: int) -> dict[str, LogitWeights | None]:
    """Of each set, or of none."""
    found = {name: Effects.load(records.folder).logits for name, records in sets.items()}
    without = [name for name, logits in found.items() if logits is None]
    if without:
        some = len(without) == len(found)
        check(
            some, f"{', '.join(without)}: expected logit weights beside the records, as the others have them"
        )
    for name, logits in found.items():
        width = n if logits is None else logits.positive_tokens.shape[1]
        check(width >= n, f"n_logits: expected at most {width}, which {name} has of each unit, got {n}")
    return found


def _draw(deck: Deck, rng: np.random.Generator) -> tuple[list[tuple[int, Card]], Drawn]:
    counts = deck.records.table(["count"])["count"].to_numpy()
    found: list[tuple[int, Card]] = []
    tried = dead = 0
    for unit in rng.permutation(len(counts)).tolist():
        if len(found) == deck.config.units:
            break
        tried += 1
        dead += int(counts[unit] == 0)
        card = deck.card(unit, rng)
        if card is not None:
            found.append((unit, card))
    return found, Drawn(tried, dead, tried - dead - len(found))


def _names(n: int, rng: np.random.Generator) -> list[str]:
    found: dict[str, Any] = {}
    while len(found) < n:
        found["".join(LETTERS[i] for i in rng.integers(len(LETTERS), size=LENGTH))] = None
    return list(found)
