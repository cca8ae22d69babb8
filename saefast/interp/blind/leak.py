"""Whether anything but what a card is about tells its type: a classifier tries it.

It is for deals that nobody rates, as it opens the key.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from saefast.config.blind import BlindConfig
from saefast.errors import InputError, check
from saefast.interp.blind.cards import SIZES
from saefast.interp.blind.deal import LETTERS, Tokens, deal
from saefast.interp.blind.page import Page, read_page
from saefast.interp.blind.seal import KEY, PAGE, opened
from saefast.interp.records import Records

FOLDS = 5


class Leak(NamedTuple):
    """Areas under the ROC curve on units that the classifier has not seen; 0.5 is chance.

    metadata: what a card has besides text: its place in the deck, its id, its numbers of examples, tokens, logits and sets, which
        examples are in the sets, and the histogram of the shades of the drawn tokens.
    shades: how many tokens are shaded, and how strongly: nothing where only the drawn token is.
    logits: the relative sizes of the logits.
    text: how long, how various and how often repeated the tokens are.
    """

    metadata: dict[str, float]  # by classifier: "logistic", "forest"
    shades: dict[str, float]
    logits: dict[str, float]
    text: dict[str, float]
    chance: float  # standard deviation of the AUC of guesses on so many cards
    n_cards: int


def leak_of(
    sets: Mapping[str, Records],
    out: str | Path,
    vocabulary: Tokens,
    config: BlindConfig | None = None,
    *,
    deals: int = 8,
    seed: int = 0,
) -> Leak:
    """`leak` of the first two sets, over several deals into OUT/0, OUT/1, ...: a single one has too few cards to see much."""
    folders = [Path(out) / str(i) for i in range(deals)]
    for i, folder in enumerate(folders):
        deal(sets, folder, vocabulary, config, seed=seed + i)
    first, second = list(sets)[:2]
    return leak(folders, first, second, seed=seed)


def leak(folders: Sequence[str | Path], first: str, second: str, *, seed: int = 0) -> Leak:
    """How well the cards of two sets are told apart, in deals of the same sets. A unit is in one fold with all its cards.

    Raises:
        InputError: no deal, no such set, too few units, or scikit-learn (extra `interp`) is missing.
    """
    tables: dict[str, list[list[float]]] = {name: [] for name in SEEN}
    owners: list[tuple[str, int]] = []
    for folder in map(Path, folders):
        page, key = read_page(folder / PAGE), opened(folder / KEY)
        known = ", ".join(key["sets"])
        check({first, second} <= key["sets"].keys(), f"sets: expected two of {known}, got {first}, {second}")
        owners += [(key["cards"][card["id"]]["set"], key["cards"][card["id"]]["unit"]) for card in page.cards]
        for name, make in SEEN.items():
            tables[name] += make(page)
    here = np.asarray([name in (first, second) for name, _ in owners], bool)
    is_first = np.asarray([name == first for name, _ in owners], bool)[here]
    units = {unit: i for i, unit in enumerate(dict.fromkeys(owners))}
    groups = np.asarray([units[owner] for owner in owners])[here]
    n = int(min(is_first.sum(), (~is_first).sum()))
    least = min(len(np.unique(groups[is_first])), len(np.unique(groups[~is_first])))
    check(least >= FOLDS, f"units: expected at least {FOLDS} of each set, got {least}")
    found = {
        name: _auc(np.asarray(table, np.float64)[here], is_first, groups, seed)
        for name, table in tables.items()
    }
    return Leak(**found, chance=float(np.sqrt((2 * n + 1) / (12 * n * n))), n_cards=int(here.sum()))


def _auc(table: np.ndarray, is_first: np.ndarray, groups: np.ndarray, seed: int) -> dict[str, float]:
    """Of both classifiers, the mean over the folds; 0.5 where all cards are the same."""
    try:
        from sklearn.ensemble import RandomForestClassifier
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import StratifiedGroupKFold, cross_val_score
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError:
        raise InputError("leak needs scikit-learn: pip install 'saefast[interp]'") from None
    table = table[:, table.std(axis=0) > 0]
    folds = StratifiedGroupKFold(n_splits=FOLDS, shuffle=True, random_state=seed)
    models = {
        "logistic": make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
        "forest": RandomForestClassifier(n_estimators=50, min_samples_leaf=5, random_state=seed),
    }
    if not table.shape[1]:
        return dict.fromkeys(models, 0.5)
    options = {"groups": groups, "cv": folds, "scoring": "roc_auc"}
    return {
        name: float(cross_val_score(model, table, is_first, **options).mean())
        for name, model in models.items()
    }


def _drawn_levels(page: Page, card: dict[str, Any]) -> np.ndarray:
    """How dark each drawn token is."""
    if "levels" in card:
        return np.asarray(card["levels"])[:, page.config["before"]]
    return np.arange(len(card["examples"])) // page.config["per_interval"] + 1


def _metadata(page: Page) -> list[list[float]]:
    n, rows = page.config["n_intervals"], []
    for place, card in enumerate(page.cards):
        sizes = [len(window) for window in card["examples"]]
        row = [place, len(sizes), min(sizes), max(sizes), len(card["logits"]), len(card["sets"]), len(card)]
        row += [LETTERS.index(letter) for letter in card["id"]]
        row += [one for some in card["sets"] for one in some]
        row += np.bincount(_drawn_levels(page, card), minlength=n + 1).tolist()
        rows.append([float(one) for one in row])
    return rows


def _shades(page: Page) -> list[list[float]]:
    n, at, rows = page.config["n_intervals"], page.config["before"], []
    for card in page.cards:
        levels = np.asarray(card.get("levels", np.zeros((1, at + 1), np.int64)))
        others = np.delete(levels, at, axis=1)
        rows.append(np.bincount(others.ravel(), minlength=n + 1).tolist())
    return rows


def _logits(page: Page) -> list[list[float]]:
    return [[size / SIZES for _, size in card["logits"]] for card in page.cards]


def _text(page: Page) -> list[list[float]]:
    length, rows = np.asarray([len(raw) for raw in page.tokens]), []
    for card in page.cards:
        windows = np.asarray(card["examples"])
        drawn = windows[:, page.config["before"]]
        raised = [token for token, _ in card["logits"]]
        bytes_ = length[windows].sum(axis=1)
        row = [bytes_.mean(), bytes_.std(), length[drawn].mean(), len(np.unique(drawn)) / len(drawn)]
        row += [len(np.unique(windows)) / windows.size, len(np.unique(windows, axis=0)) / len(windows)]
        rows.append([*map(float, row), float(length[raised].mean()) if raised else 0.0])
    return rows


SEEN = {"metadata": _metadata, "shades": _shades, "logits": _logits, "text": _text}
