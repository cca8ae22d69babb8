"""SIGKILL, again and again, at a random moment or at a random operation on a file, in every phase of every scenario: what goes
on afterwards must leave the same bits as what was never killed.

    python -m tests.faults.kills --budget 60 --seed 0
    python -m tests.faults.kills --kills 1000 --budget 3600 --write    benchmarks/results/cpu/kills.json

Each piece of work runs in a child of this process, which has everything loaded; so a kill costs a few milliseconds.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import saefast
from saefast.errors import InputError
from tests.faults.looked import look_between
from tests.faults.scenarios import SCENARIOS, Operations, choose, in_child, kill_self, result

RESULT = Path(__file__).parents[2] / "benchmarks" / "results" / "cpu" / "kills.json"


class Whole:
    """What a scenario leaves when nobody interferes, how long it takes and how many operations it has."""

    def __init__(self, name: str, place: Path) -> None:
        out = place / f"whole-{len(list(place.iterdir()))}"
        out.mkdir()

        def run() -> None:
            operations = Operations()
            operations.watch(out)
            SCENARIOS[name](out)
            (place / "operations").write_text(str(operations.stop()))

        started = time.perf_counter()
        status = in_child(run)
        assert status == 0, f"{name}: ended with {status}"
        self.seconds = time.perf_counter() - started
        self.operations, self.files = int((place / "operations").read_text()), result(out)


def look(out: Path) -> None:
    """What is read between a kill and the next start is whole, or one line."""
    for run in [*out.glob("run"), *out.glob("*_*")]:
        with suppress(InputError):
            saefast.SAE.from_pretrained(run)
    look_between(out)


def once(name: str, whole: Whole, out: Path, rng: random.Random, counts: Counter) -> list[str]:
    """One piece of work, killed up to five times and then left alone. Returns what is wrong with it."""
    for _ in range(rng.randint(1, 5)):
        at = rng.randint(1, whole.operations) if rng.random() < 0.5 else 0

        def run(at: int = at) -> None:
            look(out)
            if at:
                Operations().watch(out, at, kill_self)
            SCENARIOS[name](out)

        status = in_child(run, None if at else rng.uniform(0, whole.seconds))
        if status == -9:
            counts[name] += 1
            counts["at an operation" if at else "at a moment"] += 1
        elif status:
            return [f"{name}: ended with {status} after a kill"]
        else:
            break
    if in_child(lambda: SCENARIOS[name](out)):
        return [f"{name}: does not go on"]
    found = result(out)
    wrong = [key for key in whole.files.keys() | found.keys() if whole.files.get(key) != found.get(key)]
    return [f"{name}: {key} differs" for key in sorted(wrong)]


def campaign(budget: float, seed: int, kills: int | None = None, names: list[str] | None = None) -> dict:
    """budget: seconds after which no new piece of work begins. kills: how many are enough."""
    rng, started, counts, wrong, pieces = random.Random(seed), time.perf_counter(), Counter(), [], 0
    whole: dict[str, Whole] = {}
    shm = Path("/dev/shm")  # no disk that has to be waited for
    with tempfile.TemporaryDirectory(dir=shm if shm.is_dir() else None) as folder:
        place = Path(folder)
        while time.perf_counter() - started < budget:
            n = counts["at an operation"] + counts["at a moment"]
            if wrong or (kills is not None and n >= kills):
                break
            name = choose(rng, names or list(SCENARIOS))
            if name not in whole:
                whole[name] = Whole(name, place)
            out = place / f"killed-{pieces}"
            out.mkdir()
            wrong += once(name, whole[name], out, rng, counts)
            pieces += 1
            shutil.rmtree(out)
    modes = {mode: counts.pop(mode, 0) for mode in ("at an operation", "at a moment")}
    found = {"kills": sum(modes.values())} | modes | {"pieces_of_work": pieces, "wrong": wrong}
    found |= {"by_scenario": dict(sorted(counts.items())), "seed": seed}
    return found | {"seconds": round(time.perf_counter() - started, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", type=float, default=60.0, help="seconds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", help="these scenarios")
    parser.add_argument("--kills", type=int, help="end after so many")
    parser.add_argument("--write", action="store_true", help=f"keep the figures in {RESULT.name}")
    args = parser.parse_args()
    found = campaign(args.budget, args.seed, args.kills, args.only)
    print(json.dumps(found, indent=2))
    if args.write:
        RESULT.write_text(json.dumps(found, indent=2) + "\n")
    sys.exit(bool(found["wrong"]))


if __name__ == "__main__":
    main()
