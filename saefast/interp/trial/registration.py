"""What a trial will do, in a file that is written before any score is computed: which units, which test, which threshold.

    register("trial/registration.json", arms, TrialConfig(explainers=("lookup", "rules"), primary="rules"))

Nothing in it depends on an explanation. Commit the file, or print its SHA-256, before the scores are made: they are bound to it.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from saefast.errors import check, shown
from saefast.files import read_json, write_atomic
from saefast.interp.effects import LogitWeights
from saefast.interp.explain import Explainer
from saefast.interp.records import Records
from saefast.interp.together import check_same_text
from saefast.interp.trial.single_token import single_token
from saefast.interp.trial.windows import SCORED, Places, draw

FORMAT, VERSION = "saefast-trial", 1


@dataclass(frozen=True)
class Arm:
    """One dictionary of a trial."""

    records: Records
    explainers: Sequence[Explainer] = ()  # needed for scoring only
    logits: LogitWeights | None = None  # n = 60 or more; needed for scoring only
    pool: Sequence[int] | None = (
        None  # latents that units are drawn from; default: those that are ever active
    )


@dataclass(frozen=True, kw_only=True)
class TrialConfig:
    """What is registered besides the units."""

    explainers: tuple[str, ...]
    """Names; all are scored."""
    primary: str
    """The explainer whose scores the hypothesis is about; the others are published beside it."""
    better: str = "features"
    """The arm that the hypothesis says is better."""
    worse: str = "neurons"
    also: tuple[str, ...] = ()
    """Further arms that are said to be better than `worse`, each by the same test."""
    n_units: int = 100
    """Of each arm, or as many as there are."""
    seed: int = 0
    """Of everything that is random."""
    logit_test: bool = True
    """Whether explanations are tested on logits, too."""
    judged_text: int = 2**19
    """Tokens of the text by which tokens are judged in the test on logits. See `Following`."""
    least_places: int = 32
    """Places of that text before a token that can be judged."""
    n_permutations: int = 10_000
    threshold: float = 0.01
    """The p-value below which the hypothesis is taken to hold."""
    n_bootstrap: int = 2_000

    def __post_init__(self) -> None:
        object.__setattr__(self, "explainers", tuple(self.explainers))
        object.__setattr__(self, "also", tuple(self.also))
        names, n = self.explainers, len(set(self.explainers))
        check(n == len(names) > 0, f"explainers: expected different names, got {list(names)}")
        check(self.primary in names, f"primary: expected one of {list(names)}, got {self.primary!r}")
        check(self.better != self.worse, f"better, worse: expected two arms, got {self.better!r} twice")
        others = {self.better, self.worse}.isdisjoint(self.also) and len(set(self.also)) == len(self.also)
        check(
            others,
            f"also: expected other arms than {self.better!r} and {self.worse!r}, got {list(self.also)}",
        )
        for name, least in (
            ("n_units", 2),
            ("n_permutations", 99),
            ("n_bootstrap", 99),
            ("seed", 0),
            ("judged_text", 1),
            ("least_places", 1),
        ):
            value = getattr(self, name)
            ok = type(value) is int and value >= least
            check(ok, f"{name}: expected an integer of at least {least}, got {value!r}")
        check(0 < self.threshold < 1, f"threshold: expected a number from 0 to 1, got {self.threshold!r}")

    def words(self) -> dict[str, str]:
        """The hypothesis as sentences."""
        a, b, by = self.better, self.worse, self.primary
        too = (
            f" So do those of {' and of '.join(self.also)}, each by the same statistic and test."
            if self.also
            else ""
        )
        return {
            "hypothesis": f"Explanations ({by}) of {a} predict their activations better than those of {b}.{too}",
            "statistic": f"mean Spearman correlation of {a} minus that of {b}, over units that are no single token",
            "test": f"permutation of the two arms, one-sided, {self.n_permutations} permutations; it holds if the "
            f"difference is above 0 and p < {self.threshold}",
        }


class Unit(NamedTuple):
    """What an opaque id stands for."""

    arm: str
    latent: int
    single_token: bool


class Registration:
    """A registration in a file.

    Attributes:
        sha256: of the file, in every row of scores.
        content: the parsed JSON.
        config: what was registered.
        ids: opaque ids of the units, in an order that says nothing about them.

    Raises:
        InputError: there is none, or it is not whole.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()
        self.content = read_json(self.path)
        self.sha256 = hashlib.sha256(self.path.read_bytes()).hexdigest()
        want = f"{self.path}: expected the registration of a trial, version {VERSION}"
        try:
            ok = self.content["format"] == FORMAT and self.content["version"] == VERSION
            check(ok, want)
            self.config = TrialConfig(**self.content["config"])
            self.ids: list[str] = list(self.content["units"])
            self._key = _key(self.content["arms"], self.config.seed)
        except (KeyError, TypeError, AttributeError):
            check(False, f"{want}, got {shown(self.content)}")
        ok = sorted(self._key) == self.ids
        check(ok, f"{self.path}: expected the ids of the units that are registered, got others")

    @property
    def dropped(self) -> dict[str, dict[str, int]]:
        """By arm and reason: units that were drawn and cannot be scored."""
        return {name: dict(arm["dropped"]) for name, arm in self.content["arms"].items()}

    def key(self) -> dict[str, Unit]:
        """What the ids stand for. Scoring does not ask for it; `saefast.interp.trial.unblind` does, when all is scored."""
        return dict(self._key)

    def check_fits(self, arms: Mapping[str, Arm]) -> None:
        """Raise InputError unless these dictionaries would be registered with these very units."""
        found = json.loads(json.dumps(content_of(arms, self.config)))
        for name, value in found.items():
            given = self.content.get(name)
            want = (
                f"{self.path}: expected {name} = {shown(value)}, which these records give, got {shown(given)}"
            )
            check(given == value, want)
        check(self.content.keys() == found.keys(), f"{self.path}: expected only {list(found)}")


def register(path: str | Path, arms: Mapping[str, Arm], config: TrialConfig) -> Registration:
    """Draw the units and write the registration; one that is there already must be the same.

    Of each arm `config.n_units` usable units are drawn, one after another from all that are alive; those with fewer than 20
    windows, or always the same activation on them, are dropped and counted, by the same rule in every arm.

    Raises:
        InputError: another registration is there, an arm is missing or has fewer than 2 usable units, or the arms are not of
            the same text with the same splits.
    """
    path, content = Path(path).absolute(), content_of(arms, config)
    if path.exists():
        other = "delete it, if no score was made with it, or choose another file"
        same = read_json(path) == json.loads(json.dumps(content))
        check(same, f"{path}: expected no registration or the same one, got another: {other}")
        return Registration(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (f"{json.dumps(name)}: {json.dumps(value)}" for name, value in content.items())
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    write_atomic(path, lambda temporary: temporary.write_text(text))
    return Registration(path)


def content_of(arms: Mapping[str, Arm], config: TrialConfig) -> dict[str, Any]:
    """What the registration of these says."""
    needed = [config.better, config.worse, *config.also]
    check(set(needed) <= arms.keys(), f"arms: expected {needed}, got {list(arms)}")
    first = next(iter(arms.values())).records
    for arm in arms.values():
        check_same_text(first, arm.records)
        one, other = ((of.config.score_fraction, of.config.seed) for of in (first, arm.records))
        want = f"records: expected the splits of {first.folder} in {arm.records.folder}, {one}"
        check(one == other, f"{want} (score_fraction, seed), got {other}")
    scored = Places(first.text, first.config, "score")
    anywhere = Places(first.text, first.config, None)
    found = {name: _arm(name, arm, config, scored, anywhere) for name, arm in arms.items()}
    return {
        "format": FORMAT,
        "version": VERSION,
        **config.words(),
        "config": asdict(config),
        "windows": SCORED._asdict(),
        "arms": found,
        "units": sorted(_key(found, config.seed)),
    }


def _arm(name: str, arm: Arm, config: TrialConfig, scored: Places, anywhere: Places) -> dict[str, Any]:
    counts = arm.records.table(["count"])["count"].to_numpy()
    pool = (counts > 0).nonzero()[0].tolist() if arm.pool is None else [int(one) for one in arm.pool]
    good = all(0 <= one < len(counts) and counts[one] > 0 for one in pool) and len(set(pool)) == len(pool)
    check(good, f"arms: expected a pool of different active latents of {name!r}, got others")
    units: list[int] = []
    dropped: Counter[str] = Counter()
    for latent in draw_order(pool, name, config.seed):
        if len(units) == config.n_units:
            break
        reason = draw(scored, arm.records, latent, SCORED, config.seed).unusable
        if reason is None:
            units.append(latent)
        else:
            dropped[reason] += 1
    few = f"arms: expected at least 2 usable units of {name!r}, got {len(units)} of {len(pool)} alive"
    check(len(units) >= 2, few)
    single = [single_token(anywhere, arm.records, latent, config.seed) for latent in units]
    index = arm.records.index
    what = {key: index[key] for key in ("sae", "source", "config", "separators", "blocks")}
    return {
        "records": hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest(),
        "alive": len(pool),
        "dropped": dict(sorted(dropped.items())),
        "units": units,
        "single_token": [one.is_single for one in single],
        "top_examples": [one.n for one in single],  # by which `single_token` was decided
    }


def draw_order(pool: Sequence[int], arm: str, seed: int) -> list[int]:
    """The latents in random order, the same on every machine."""
    return sorted(np.asarray(pool, np.int64).tolist(), key=lambda latent: _hash(seed, arm, latent, "draw"))


def _key(arms: Mapping[str, Any], seed: int) -> dict[str, Unit]:
    return {
        _hash(seed, arm, latent, "id")[:16]: Unit(arm, latent, bool(single))
        for arm, content in arms.items()
        for latent, single in zip(content["units"], content["single_token"], strict=True)
    }


def _hash(*parts: object) -> str:
    return hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest()
