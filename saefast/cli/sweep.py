"""`saefast sweep` trains every combination of the values listed, or the SAEs that a file describes."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from tyro.conf import Fixed, Positional, Suppress, arg

from saefast.cli.flags import LISTS, configs_of
from saefast.cli.from_text import Live, LiveFlags, check_text_flags, open_rows
from saefast.cli.param_dtype import kept_by, param_dtype_of
from saefast.cli.train import say_recipe, usable_device
from saefast.config.compatible import DEFAULTS, without_idle
from saefast.config.recipes import recipe
from saefast.config.train import SAEConfig, TrainConfig
from saefast.errors import InputError, check

if TYPE_CHECKING:
    from saefast.activations.sources import Source
    from saefast.sweep import Member


class Asked(NamedTuple):
    """An SAE of a sweep as it is asked for."""

    sae: dict[str, Any]
    train: dict[str, Any]
    columns: Any
    name: str = ""
    own: frozenset[str] = frozenset()  # fields that a file gives to this SAE alone


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Train many SAEs from one stream of activations, and write one table and one plot of them.

    Every combination of the values of --d-sae, --k, --activation, --lr, --sparsity-coefficient and --seed is trained.
    """

    source: Annotated[Positional[str], arg(metavar="SOURCE")]
    """A shard folder (of `saefast cache`), a .npy or a .safetensors file. With TEXT: a language model."""
    text: Annotated[Positional[Path | None], arg(metavar="TEXT")] = None
    """Text: the SAEs are trained on the activations of the model SOURCE on it, at --hook."""
    out: Path
    """Folder: one run folder for each SAE, table.json, pareto.png."""
    recipe: str | None = None
    """Begin with the settings of a recipe (see `saefast recipes`). Other flags win over it."""
    configs: Path | None = None
    """A JSON list of SAEs in place of the lists of values. Each is an object with any of "name", "recipe", "sae" and
    "train" (fields of the configs, which win over those of the recipe and the flags), and "columns" or "hook"."""
    held_out: Path | None = None
    """Activations to evaluate on. Default: none; the table then shows the last metrics of training."""
    contexts: int = 0
    """Contexts of --held-out for the evaluation inside the language model; 0: none."""
    resume: bool = False
    """Go on from the checkpoints in --out, bit for bit."""
    device: str | None = None
    """Where to train; default: the GPU if there is one."""
    live: LiveFlags = field(default_factory=Live)
    of_recipe: Fixed[Suppress[tuple[str, ...]]] = ()
    """The fields of the configs whose value is the recipe's, and no flag's."""

    def run(self) -> None:
        from saefast.activations.open import open_source
        from saefast.sweep import pareto, sweep

        device = usable_device(self.device)
        check_text_flags(self.text, self.live, but=("hook",))
        held_out = open_source(self.held_out) if self.held_out else None
        lm_device, batch_size = (
            usable_device(self.live.lm_device or device),
            configs_of(self)[1]["batch_size"],
        )
        source = open_rows(self.source, self.text, self.live, lm_device, batch_size)
        check(self.contexts >= 0, f"contexts: expected 0 or more, got {self.contexts}")
        members = self.members(source, device)
        if self.recipe is not None:
            say_recipe(self.recipe)
        print(f"training {len(members)} SAEs on {members[0].train.total_tokens} tokens, on {device}")
        seed = next(iter(configs_of(self)[1]["seed"]), 0)
        rows = sweep(
            members, source, self.out, held_out, self.resume, seed=seed, contexts=self.contexts, device=device
        )
        if rows is not None:
            print(pareto.table(rows))
            print(f"done: {self.out / pareto.TABLE}, {self.out / pareto.PLOT}")

    def members(self, source: "Source", device: str) -> list["Member"]:
        """A flag need not act in every SAE: where it does not, it is left at its default. One that acts in none is refused."""
        flags = configs_of(self)[0] | configs_of(self)[1]
        goes_on = self.resume and flags["param_dtype"] is None
        earlier = kept_by(sorted(self.out.glob("*/"))) if goes_on else None
        idle: dict[str, str] = {}
        found: list[Member] = []
        for asked in self._combinations(source) if self.configs is None else self._from_file(source):
            asked.train["param_dtype"] = param_dtype_of(asked.train, device, earlier)
            idle |= without_idle(asked.sae, asked.train, (asked.sae | asked.train).keys() - asked.own)
            member = make_member(asked, source)
            if member not in found:  # twice the same one: an architecture without k
                found.append(member)
        for name in idle.keys() - set(self.of_recipe):
            given, default = flags[name], DEFAULTS[name]
            acts = any((vars(m.sae) | vars(m.train))[name] != default for m in found)
            ok = acts or given in (default, (default,), ())
            check(ok, f"{name}: expected {default!r} with {idle[name]}, got {given!r}")
        return found

    def _combinations(self, source: "Source") -> Iterator[Asked]:
        sae, train = configs_of(self)
        check(bool(sae["d_sae"]), "d_sae: expected at least one number (or --configs), got none")
        lists = [(sae | train)[name] or (DEFAULTS[name],) for name in LISTS]
        for hook, *values in product(self._hooks(source), *lists):
            chosen = dict(zip(LISTS, values, strict=True))
            own_sae, own_train = ({name: chosen.get(name, c[name]) for name in c} for c in (sae, train))
            yield Asked(own_sae, own_train, columns_of(source, hook))

    def _hooks(self, source: "Source") -> tuple[str | None, ...]:
        return self.live.hooks or (tuple(hooks) if len(hooks := hooks_of(source)) > 1 else (None,))

    def _entries(self) -> list[dict[str, Any]]:
        assert self.configs is not None
        try:
            entries = json.loads(self.configs.read_text())
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise InputError(f"configs: {self.configs}: expected JSON, {error}") from None
        known = {"name", "recipe", "sae", "train", "columns", "hook"}
        fits = isinstance(entries, list) and all(isinstance(e, dict) and e.keys() <= known for e in entries)
        check(fits, f"configs: {self.configs}: expected a list of objects with keys from {sorted(known)}")
        return list(entries)

    def _from_file(self, source: "Source") -> Iterator[Asked]:
        sae, train = configs_of(self)
        none = self.text is not None or not self.live.hooks  # a model needs them all
        check(none, f"hook: expected none with --configs, which names them, got {self.live.hooks}")
        for config in (sae, train):
            for name in config.keys() & LISTS.keys():
                check(len(config[name]) < 2, f"{name}: expected one value with --configs, got {config[name]}")
                config[name] = next(iter(config[name]), DEFAULTS[name] if name != "d_sae" else None)
        for entry in self._entries():
            both = not ("columns" in entry and "hook" in entry)
            check(both, f"configs: {self.configs}: expected columns or hook, got both")
            of_sae, of_train = recipe(entry["recipe"]) if "recipe" in entry else ({}, {})
            own_sae, own_train = entry.get("sae", {}), entry.get("train", {})
            columns = tuple(entry["columns"]) if "columns" in entry else columns_of(source, entry.get("hook"))
            own = frozenset(own_sae.keys() | own_train.keys())
            yield Asked(
                sae | of_sae | own_sae, train | of_train | own_train, columns, entry.get("name", ""), own
            )


def hooks_of(source: "Source") -> dict[str, int]:
    """The hook points of a source, and the width of each in its rows."""
    from saefast.activations.live_source import Background
    from saefast.activations.lm import ModelSource
    from saefast.activations.shards import ShardSource

    of = source.source if isinstance(source, Background) else source
    if not isinstance(of, ShardSource | ModelSource):
        return {}
    return {str(hook): width for hook, width in zip(of.hooks, of.widths, strict=True)}


def columns_of(source: "Source", hook: str | None) -> tuple[int, int] | None:
    """First and last + 1 of the columns of this hook point in the rows of the source; None for all columns."""
    if hook is None:
        return None
    widths = hooks_of(source)
    check(hook in widths, f"hook: expected one of those of the source, {list(widths)}, got {hook!r}")
    start = sum(list(widths.values())[: list(widths).index(hook)])
    return start, start + widths[hook]


def make_member(asked: Asked, source: "Source") -> "Member":
    """As in `saefast train`, d_in is the width of its columns, less d_out, where it is not given."""
    from saefast.sweep import Member

    width = asked.columns[1] - asked.columns[0] if asked.columns else source.d_in
    sae = asked.sae | {"d_in": asked.sae["d_in"] or width - (asked.sae["d_out"] or 0)}
    for values in (sae, asked.train):
        values |= {key: tuple(value) for key, value in values.items() if isinstance(value, list)}
    try:
        return Member(SAEConfig(**sae), TrainConfig(**asked.train), asked.columns, asked.name)
    except TypeError as error:
        raise InputError(f"configs: {error}") from None
