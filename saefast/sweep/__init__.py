"""Several SAEs from one stream: rows are read, checked and shuffled once for all of them, and one pass evaluates all.

    saes = [sweep.Member(SAEConfig(d_in=576, d_sae=4608, k=k), TrainConfig(total_tokens=100_000)) for k in (16, 32, 64)]
    table = sweep.sweep(saes, open_source("data/mine"), "runs/sweep", held_out=open_source("data/held-out"))

OUT/NAME/                    the run folder of each SAE, as of `Trainer.fit`
OUT/table.json, pareto.png   written at the end, see `saefast.sweep.pareto`
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from saefast.activations import lm
from saefast.activations.shards import ShardSource
from saefast.activations.sources import Source
from saefast.config.train import SAEConfig, TrainConfig
from saefast.errors import check
from saefast.interp.evaluate import Sums
from saefast.interp.places import Cached
from saefast.interp.splice import evaluate_all_in_model
from saefast.sae import SAE
from saefast.sweep import pareto
from saefast.train.loop import fit
from saefast.train.memory import first_dtype, out_of_memory_help
from saefast.train.parallel import side_by_side, workers_for
from saefast.train.samples import Columns, take
from saefast.train.trainer import Trainer

SHARED = ("total_tokens", "batch_size", "buffer_rows", "nonfinite")  # they decide what the batches are
LONGEST_NAME = 100
CONTEXTS_AT_ONCE = 4  # in a forward pass of the language model

log = logging.getLogger("saefast")


@dataclass(frozen=True)
class Member:
    """One SAE of a sweep."""

    sae: SAEConfig
    train: TrainConfig
    columns: Columns = None
    """First and last + 1 of the columns of a row that it is trained on; None: all."""
    name: str = ""
    """Name of its folder. Default: what it is, and what else differs within the sweep (see `names`)."""


def names(members: Sequence[Member]) -> list[str]:
    """A folder name for each: activation, d_sae, k, columns, and those fields that differ between the members; of a long one
    the beginning, and a hash of the whole.

    Raises:
        InputError: two members are the same SAE or have the same name, or a name is not that of a folder.
    """
    fields = [asdict(m.sae) | asdict(m.train) for m in members]
    said = ("activation", "d_sae", "k", "d_in", "group_sizes")
    differ = [key for key in fields[0] if key not in said and any(f[key] != fields[0][key] for f in fields)]
    found = []
    for member, values in zip(members, fields, strict=True):
        parts = [member.sae.activation, f"d{member.sae.d_sae}"]
        parts += [f"k{member.sae.k}"] if member.sae.k else []
        parts += ["columns{}-{}".format(*member.columns)] if member.columns else []
        parts += [f"{key}-{values[key]}" for key in differ]
        name = "_".join(parts).replace("/", "-").replace(" ", "")
        if len(name) > LONGEST_NAME:  # a folder's name has at most 255 bytes
            name = f"{name[:LONGEST_NAME]}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        found.append(member.name or name)
    twice = [name for name, n in Counter(found).items() if n > 1]
    check(not twice, f"members: expected SAEs that differ, or have names, got {twice[:3]} more than once")
    bad = [name for name in found if name != Path(name).name or name in (".", "..")]
    check(not bad, f"name: expected the name of a folder, got {bad[:3]}")
    return found


def check_shared(members: Sequence[Member], width: int) -> None:
    """Raise InputError unless all can be trained on the batches of one stream of rows of `width`."""
    check(bool(members), "members: expected at least one SAE, got none")
    for key in SHARED:
        first = getattr(members[0].train, key)
        for member in members:
            own = getattr(member.train, key)
            shown = "buffer_tokens" if key == "buffer_rows" else key
            check(own == first, f"{shown}: expected the same for all SAEs of a sweep, got {first} and {own}")
    for member in members:
        start, stop = member.columns or (0, width)
        fits = 0 <= start < stop <= width
        check(fits, f"columns: expected two numbers from 0 to {width}, rising, got {member.columns}")
        need = member.sae.row_width
        what = "d_in" if member.sae.d_out is None else "d_in + d_out"
        check(stop - start == need, f"{what}: expected {stop - start}, the columns it is given, got {need}")


def sweep(
    members: Sequence[Member],
    source: Source,
    out: str | Path,
    held_out: Source | None = None,
    resume: bool = False,
    *,
    seed: int | None = None,
    contexts: int = 0,
    device: str = "cpu",
    workers: int | None = None,
) -> list[dict[str, Any]] | None:
    """Train all members, evaluate them, and write the table and the plot.

    Args:
        source: rows that hold the columns of every SAE.
        out: folder in which the run folders are made.
        held_out: what to evaluate on; None: the table has the last metrics of training.
        resume: go on from the checkpoints in `out`. The result has the same bits, even if the sweep was killed when some
            members had written a checkpoint and others not.
        seed: of the shuffling. Default: that of the first member. `TrainConfig.seed` is only that of the weights here.
        contexts: how many contexts of `held_out`, a shard folder of `saefast cache`, the evaluation in the language model
            uses; 0: no such evaluation.
        workers: how many SAEs are trained side by side (see `saefast.train.parallel`). Default: one for each thread of a
            CPU, four on a GPU. On a GPU each SAE has the same bits as when it is trained alone; on a CPU, as when it is
            trained alone on as many threads as it has here.

    Returns:
        The rows of the table. None if SIGTERM or Ctrl-C stopped the sweep, after saving, or if the source ended.

    Raises:
        InputError: members that do not go together, what `Trainer.fit` refuses, or all members diverged.
    """
    check_shared(members, source.d_in)
    labels, out = names(members), Path(out)
    if held_out is not None:
        check_shared(members, held_out.d_in)
    check(contexts == 0 or held_out is not None, "contexts: expected 0 without held_out")
    kinds = [(member.sae, "contexts", member.columns) for member in members] if contexts else []
    places = [Cached.of(held_out, *kind) for kind in kinds]
    there = out.exists() and any(out.iterdir())
    check(resume or not there, f"out: expected a new folder, {out} exists; go on with --resume")
    trainers = []
    for member in members:
        with out_of_memory_help(member.sae, member.train):
            sae = SAE(member.sae, member.train.seed, device, first_dtype(member.train))
        trainers.append(Trainer(sae, member.train))
    folders, columns = [out / label for label in labels], [member.columns for member in members]
    workers = workers_for(len(members), device) if workers is None else workers
    shared_seed = members[0].train.seed if seed is None else seed
    if not fit(trainers, source, folders, resume, columns, shared_seed, workers):
        return None
    del trainers
    steps = members[0].train.total_steps
    rows = [pareto.described(label, folder, steps) for label, folder in zip(labels, folders, strict=True)]
    good = [i for i, row in enumerate(rows) if "diverged" not in row]
    if held_out is not None:
        saes = {i: SAE.from_pretrained(folders[i]).to(device) for i in good}
        evaluate_all(saes, held_out, columns, rows, workers)
        if contexts:
            assert isinstance(held_out, ShardSource)
            evaluate_in_models(saes, held_out, places, contexts, rows)
    pareto.write(out, rows)
    return rows


def evaluate_all(
    saes: dict[int, SAE], source: Source, columns: list[Columns], rows: list[dict[str, Any]], workers: int
) -> None:
    """Evaluate all SAEs in one pass over `source`. The result of each goes into its row of the table."""
    with side_by_side(workers, next(iter(saes.values())).b_dec.device if saes else "cpu") as together:
        sums = {i: Sums(sae) for i, sae in saes.items()}
        for chunk in source:
            together(lambda i: sums[i].add(take(chunk, columns[i])), sums)  # noqa: B023 (done when it returns)
    for i, found in sums.items():
        result = found.result()._asdict()
        del result["density"]
        rows[i] |= result


def evaluate_in_models(
    saes: dict[int, SAE], source: ShardSource, places: list[Cached], contexts: int, rows: list[dict[str, Any]]
) -> None:
    """`evaluate_in_model` for all SAEs. The passes without an SAE are done once for those of the same place and width."""
    model, _ = lm.load_model(source.index["model"])
    batches = source.shard(0)["contexts"][:contexts].long().split(CONTEXTS_AT_ONCE)
    kinds = {i: (places[i], sae.config.d_in, sae.config.d_out) for i, sae in saes.items()}
    for kind in dict.fromkeys(kinds.values()):
        here, at = [i for i in saes if kinds[i] == kind], kind[0]
        own = [saes[i] for i in here]
        found = evaluate_all_in_model(own, model, at.hooks, batches, at.limits, drop_ids=at.drop_ids)
        for i, result in zip(here, found, strict=True):
            kept = ("ce", "ce_sae", "ce_zero", "ce_mean", "loss_recovered", "loss_recovered_mean", "kl")
            rows[i] |= {key: getattr(result, key) for key in kept}
