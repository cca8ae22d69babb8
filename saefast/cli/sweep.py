"""`saefast sweep` trains every combination of the values listed, or the SAEs that a file describes."""

import json
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import OmitArgPrefixes, Positional, arg

from saefast.activations.open import open_source
from saefast.activations.shards import ShardSource
from saefast.activations.sources import Source
from saefast.cli.train import SAEFlags, TrainFlags, usable_device
from saefast.config.recipes import recipe
from saefast.config.sae import WITH_K, Activation
from saefast.config.train import SAEConfig, TrainConfig
from saefast.errors import InputError, check
from saefast.sweep import Member, pareto, sweep


@dataclass(frozen=True, kw_only=True)
class SweepSAEFlags(SAEFlags):
    """What to train: every combination of the values listed."""

    d_sae: tuple[int, ...] = ()  # type: ignore[assignment]
    """Numbers of latents."""
    activation: tuple[Activation, ...] = ("topk",)  # type: ignore[assignment]
    """Architectures, see `saefast train --help`."""
    k: tuple[int, ...] = ()  # type: ignore[assignment]
    """Active latents per token, for the architectures that have one. Default: 32."""


@dataclass(frozen=True, kw_only=True)
class SweepTrainFlags(TrainFlags):
    """How to train: every combination of the values listed."""

    lr: tuple[float, ...] = ()  # type: ignore[assignment]
    """Peak learning rates. Default: as `saefast train`."""
    sparsity_coefficient: tuple[float, ...] = (0.0,)  # type: ignore[assignment]
    """Weights of the penalty."""
    seed: tuple[int, ...] = (0,)  # type: ignore[assignment]
    """Seeds of the initial weights. The first one is also the seed of the shuffling, which all SAEs share."""


@dataclass(frozen=True)
class Sweep:
    """Train many SAEs from one stream of activations, and write one table and one plot of them."""

    source: Annotated[Positional[Path], arg(metavar="SOURCE")]
    """A shard folder (of `saefast cache`), a .npy or a .safetensors file."""
    out: Path
    """Folder: one run folder for each SAE, table.json, pareto.png."""
    sae: OmitArgPrefixes[SweepSAEFlags]
    train: OmitArgPrefixes[SweepTrainFlags]
    hook: tuple[str, ...] = ()
    """With a cache of several hook points: those to train on, one set of SAEs for each. Default: all."""
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

    def run(self) -> None:
        source = open_source(self.source)
        held_out = open_source(self.held_out) if self.held_out else None
        device = usable_device(self.device)
        check(self.contexts >= 0, f"contexts: expected 0 or more, got {self.contexts}")
        members = self.members(source)
        print(f"training {len(members)} SAEs on {members[0].train.total_tokens} tokens, on {device}")
        seed = self.train.seed[0] if self.train.seed else 0
        rows = sweep(
            members, source, self.out, held_out, self.resume, seed=seed, contexts=self.contexts, device=device
        )
        if rows is not None:
            print(pareto.table(rows))
            print(f"done: {self.out / pareto.TABLE}, {self.out / pareto.PLOT}")

    def members(self, source: Source) -> list[Member]:
        sae, train = asdict(self.sae), asdict(self.train)
        if self.configs is not None:
            return [self._from_file(entry, source) for entry in self._entries()]
        check(bool(self.sae.d_sae), "d_sae: expected at least one number (or --configs), got none")
        found = []
        kinds = product(self._hooks(source), self.sae.d_sae, self.sae.activation, self.sae.k or (None,))
        ways = product(self.train.lr or (None,), self.train.sparsity_coefficient, self.train.seed)
        for (hook, d_sae, activation, k), (lr, coefficient, seed) in product(kinds, ways):
            own_k = k if activation in WITH_K else None
            own_sae = sae | {"d_sae": d_sae, "activation": activation, "k": own_k}
            own_train = train | {"lr": lr, "sparsity_coefficient": coefficient, "seed": seed}
            member = make_member(own_sae, own_train, columns_of(source, hook), source)
            if member not in found:  # twice the same one: an architecture without k
                found.append(member)
        return found

    def _hooks(self, source: Source) -> tuple[str | None, ...]:
        if self.hook:
            return self.hook
        several = isinstance(source, ShardSource) and len(source.hooks) > 1
        return tuple(source.hooks) if several and isinstance(source, ShardSource) else (None,)

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

    def _from_file(self, entry: dict[str, Any], source: Source) -> Member:
        sae, train = asdict(self.sae), asdict(self.train)
        sae |= {key: next(iter(sae[key]), None) for key in ("d_sae", "activation", "k")}
        train |= {key: next(iter(train[key]), None) for key in ("lr", "sparsity_coefficient", "seed")}
        if "recipe" in entry:
            of_sae, of_train = recipe(entry["recipe"])
            sae, train = sae | of_sae, train | of_train
        columns = tuple(entry["columns"]) if "columns" in entry else columns_of(source, entry.get("hook"))
        sae, train = sae | entry.get("sae", {}), train | entry.get("train", {})
        return make_member(sae, train, columns, source, entry.get("name", ""))


def columns_of(source: Source, hook: str | None) -> tuple[int, int] | None:
    """First and last + 1 of the columns of this hook point in the rows of the source; None for all columns."""
    if hook is None:
        return None
    hooks = source.hooks if isinstance(source, ShardSource) else []
    check(hook in hooks, f"hook: expected one of those of the source, {hooks}, got {hook!r}")
    assert isinstance(source, ShardSource)
    start = sum(source.widths[: hooks.index(hook)])
    return start, start + source.widths[hooks.index(hook)]


def make_member(
    sae: dict[str, Any], train: dict[str, Any], columns: Any, source: Source, name: str = ""
) -> Member:
    """An SAE of a sweep. As in `saefast train`, d_in is the width of its columns, less d_out, where it is not given."""
    width = columns[1] - columns[0] if columns else source.d_in
    sae = sae | {"d_in": sae["d_in"] or width - (sae["d_out"] or 0)}
    for values in (sae, train):
        values |= {key: tuple(value) for key, value in values.items() if isinstance(value, list)}
    try:
        return Member(SAEConfig(**sae), TrainConfig(**train), columns, name)
    except TypeError as error:
        raise InputError(f"configs: {error}") from None
