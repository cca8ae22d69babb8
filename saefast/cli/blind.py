"""`saefast blind`: deal cards of units to people who do not know what they rate, and unseal what they said."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import OmitArgPrefixes, OmitSubcommandPrefixes, Positional, arg, subcommand

from saefast.config.blind import BlindConfig
from saefast.errors import check

CardFlags = Annotated[BlindConfig, arg(name="cards"), OmitArgPrefixes]


@dataclass(frozen=True, kw_only=True)
class Deal:
    """Draw units from sets of records, and write OUT/cards.html for the raters and OUT/key.json, which says which card is which
    and stays with who deals."""

    records: Annotated[Positional[tuple[Path, ...]], arg(metavar="RECORDS")]
    """Two or more folders of records (`saefast look`): of features, of neurons, of a model with shuffled weights, ..."""
    out: Path
    """A new folder."""
    names: tuple[str, ...] | None = None
    """The type of the units of each RECORDS. Default: "neurons" or "features", where that says which is which."""
    model: str | None = None
    """The language model whose tokenizer made the text. Default: the one in the first RECORDS."""
    seed: int | None = None
    """Of all that is random. Who knows it can find out which card is which; by default only the key has it."""
    title: str = "Blind rating"
    """Of the page."""
    cards: CardFlags = field(default_factory=BlindConfig)

    def run(self) -> None:
        from saefast.interp.blind import deal
        from saefast.interp.records import Records
        from saefast.interp.vocabulary import tokenizer_of

        sets = dict(zip(self._names(), map(Records, self.records), strict=True))
        first = next(iter(sets.values()))
        vocabulary, _ = tokenizer_of(self.model or first.index["source"].get("model"))
        for records in sets.values():
            vocabulary.check_fits(records.text.contexts[:64].tolist())
        found = deal(sets, self.out, vocabulary, self.cards, seed=self.seed, title=self.title)
        for name, drawn in found.drawn.items():
            without = f"{drawn.dead} of them dead, {drawn.short} with too few examples"
            print(f"{name}: {self.cards.units} units of {drawn.tried} tried, {without}")
        print(f"{found.n_cards} cards for the raters: {found.page}")
        print(f"the key, not for the raters: {found.key}")
        print(f"its SHA-256, to publish before anybody rates: {found.commitment}")

    def _names(self) -> list[str]:
        from saefast.interp.records import Records

        n = len(self.records)
        check(n > 1, f"records: expected at least two folders of records, got {n}")
        found = list(self.names or ())
        if not found:
            kinds = [Records(folder).index["sae"].get("dictionary") for folder in self.records]
            found = ["neurons" if kind == "neurons" else "features" for kind in kinds]
        want = f"{n} different names, one of each RECORDS"
        check(len(found) == len(set(found)) == n, f"names: expected {want}, got {', '.join(found)}")
        return found


@dataclass(frozen=True)
class Status:
    """How many cards the raters have rated; the key stays sealed."""

    folder: Annotated[Positional[Path], arg(metavar="DIR")]
    """Folder of the deal."""
    ratings: Annotated[Positional[tuple[Path, ...]], arg(metavar="RATINGS")] = ()
    """Files that the page saved."""

    def run(self) -> None:
        from saefast.interp.blind import status

        found = status(self.folder, self.ratings)
        print(f"{found.n_cards} cards, committed to {found.commitment}")
        for rater, n in found.rated.items():
            print(f"{rater}: {n} rated, {found.n_cards - n} missing")


@dataclass(frozen=True)
class Unseal:
    """Join key and ratings when all cards are rated: DIR/results.json, and DIR/results.png where matplotlib is installed."""

    folder: Annotated[Positional[Path], arg(metavar="DIR")]
    """Folder of the deal."""
    ratings: Annotated[Positional[tuple[Path, ...]], arg(metavar="RATINGS")]
    """Files that the page saved, one of each rater."""
    seed: int = 0
    """Of the bootstrap and the permutation tests."""

    def run(self) -> None:
        from importlib.util import find_spec

        from saefast.interp.blind import draw_results, unseal

        results = unseal(self.folder, self.ratings, seed=self.seed)
        print("\n".join(told(results)))
        print(f"all of it: {self.folder / 'results.json'}")
        if find_spec("matplotlib") is None:
            print("no picture: pip install 'saefast[viz]'")
        else:
            print(f"picture: {draw_results(results, self.folder / 'results.png')}")


def told(results: dict[str, Any]) -> list[str]:
    """What was found, in lines."""
    lines = [f"{results['n_cards']} cards rated by {', '.join(results['raters'])}"]
    for name, found in results["sets"].items():
        for level in ("units", "intervals"):
            if level in found:
                one = found[level]
                low, high = one["median_interval"]
                about = f"mean {one['mean']:.2f}, {one['fairly_interpretable']:.0%} above 8"
                number = f"{one['values']} {level} of {name}"
                lines.append(f"{number}: median {one['median']:g} (95 %: {low:g} to {high:g}), {about}")
    for one in results["comparisons"]:
        low, high = one["mean_interval"]
        by = f"{one['mean_difference']:+.2f} points (95 %: {low:+.2f} to {high:+.2f})"
        p = f"permutation p = {one['permutation_p']:.2g}, Mann-Whitney p = {one['mann_whitney_p']:.2g}"
        what = f"{one['first']} against {one['second']}, {one['of']}"
        lines.append(f"{what}: {by}, {p}, rank-biserial {one['rank_biserial']:+.2f}")
    for name, value in (results["agreement"] or {}).items():
        lines.append(
            f"agreement of the raters on {name}: alpha {'undefined' if value is None else f'{value:.2f}'}"
        )
    return lines


Command = (
    Annotated[Deal, subcommand("deal", prefix_name=False)]
    | Annotated[Unseal, subcommand("unseal", prefix_name=False)]
    | Annotated[Status, subcommand("status", prefix_name=False)]
)


@dataclass(frozen=True)
class Blind:
    """Blind evaluation by people: deal cards of features and neurons, unseal what was said of them."""

    command: OmitArgPrefixes[OmitSubcommandPrefixes[Command]]

    def run(self) -> None:
        self.command.run()
