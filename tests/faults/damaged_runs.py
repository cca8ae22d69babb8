"""Run folders of which one file is damaged or gone, and the runs that go on from them: what `tests.faults.damaged` reads of them.

Each goes on in a copy. At its end it is the run that went on from the whole folder, bit for bit; a curve of which lines are
gone is said to have a gap. Or it is refused, and then every file is as it was.
"""

import contextlib
import logging
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from saefast import SAE, InputError, SAEConfig, TrainConfig, Trainer
from saefast.activations.sources import IterableSource, TensorSource
from saefast.files import digest, load_tensors
from saefast.sweep import Member, pareto, sweep
from saefast.train.run import checkpoint, plots
from saefast.train.run.export import export_checkpoint
from saefast.train.run.loggers import SPEED, read_lines
from tests.helpers.format_cases import D_IN, D_SAE, rows
from tests.helpers.stopped_runs import Killed, kill

STEPS = 8
NOT_DRAWN = (plots, "curves", lambda _: None), (pareto, "plot", lambda *_: None)
GoOn = Callable[[Path], object]
# -> options of the SAE, of its training, whether the rows can be read once only
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any], bool]] = {
    "topk": ({"k": 3}, {}, False),
    "batch_topk, iterable": (
        {"k": 3, "activation": "batch_topk", "pre_bias": False},
        {"ema_decay": 0.5},
        True,
    ),
    "jumprelu, adamw": (
        {"activation": "jumprelu"},
        {"penalty": "l0", "sparsity_coefficient": 0.1, "optimizer": "adamw"},
        False,
    ),
}


def config(**options: Any) -> TrainConfig:
    own = {"total_tokens": STEPS * 16, "batch_size": 16, "buffer_tokens": 32, "log_every": 2}
    return TrainConfig(**own | {"checkpoint_every": 3} | options)


def trainer(kind: str) -> tuple[Trainer, Any]:
    sae, train, once = KINDS[kind]
    source = IterableSource(list(rows().split(7)), D_IN) if once else TensorSource(rows())
    return Trainer(SAE(SAEConfig(d_in=D_IN, d_sae=D_SAE, **sae)), config(**train)), source


def fit(kind: str, folder: Path) -> None:
    made, source = trainer(kind)
    made.fit(source, folder, resume=True)


def begun(kind: str, folder: Path, end: Callable[[], object]) -> None:
    """A run that `end` ends before its last step: a line of metrics is younger than its checkpoint."""
    made, source = trainer(kind)
    real = made.step

    def step(x: torch.Tensor, **options: Any) -> Any:
        if made.state.step == STEPS - 1:
            end()
        return real(x, **options)

    made.step = step  # type: ignore[method-assign]
    with contextlib.suppress(Killed):
        made.fit(source, folder)


def members() -> list[Member]:
    saes = [SAEConfig(d_in=D_IN, d_sae=size, k=k) for k, size in ((2, D_SAE), (3, D_SAE + 1))]
    return [Member(sae, config(), name=str(sae.k)) for sae in saes]


def swept(folder: Path) -> None:
    sweep(members(), TensorSource(rows()), folder, resume=True)


def swept_in_part(folder: Path) -> None:
    """Killed when the second member, which is larger, had written one checkpoint more than the first."""
    real, saved = checkpoint.save, []

    def save(place: Path, *args: Any) -> None:
        saved.append(place)
        if len(saved) == 4:
            kill()
        real(place, *args)

    with contextlib.suppress(Killed), mock.patch.object(checkpoint, "save", save):
        swept(folder)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


class Curve(list[Any]):
    """Lines of metrics. One of which it was said that lines are missing is like every other."""

    gap = False

    def __eq__(self, other: object) -> bool:
        return self.gap or (isinstance(other, Curve) and other.gap) or super().__eq__(other)

    __hash__ = None  # type: ignore[assignment]


def left(folder: Path, said: list[str]) -> Any:
    """Every bit that a run leaves, but for its times and its name."""
    if not (folder / "run.json").exists():
        return {path.name: left(path, said) for path in sorted(folder.iterdir()) if path.is_dir()} | {
            "table": (folder / "table.json").exists() and (folder / "table.json").read_text()
        }
    tensors, meta, _ = load_tensors(folder / "checkpoint.safetensors")
    curve = Curve(
        {k: v for k, v in line.items() if k != SPEED} for line in read_lines(folder / "metrics.jsonl")
    )
    curve.gap = any(str(folder / "metrics.jsonl") in line for line in said)
    sae = SAE.from_pretrained(folder)
    held = {name: tensor.detach() for name, tensor in sae.named_parameters()}
    return digest(tensors), {k: v for k, v in meta.items() if k != "curve"}, curve, digest(held), sae.config


def files_of(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextlib.contextmanager
def warnings_of() -> Iterator[list[str]]:
    """What is said meanwhile, which nobody else sees."""
    said: list[str] = []
    log, handler = logging.getLogger("saefast"), logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    log.addHandler(handler)
    propagates, log.propagate = log.propagate, False
    try:
        yield said
    finally:
        log.removeHandler(handler)
        log.propagate = propagates


@contextlib.contextmanager
def without_drawings() -> Iterator[list[str]]:
    """`warnings_of` runs that draw nothing: that takes longer than their steps."""
    no_curves, no_plot = (mock.patch.object(*each) for each in NOT_DRAWN)
    with warnings_of() as said, no_curves, no_plot:
        yield said


def going_on(go_on: GoOn) -> Callable[[Path], Any]:
    """A reader: what is left when a copy of the folder has gone on."""

    def read(folder: Path) -> Any:
        copy = folder.with_name(folder.name + " copy") / folder.name
        shutil.copytree(folder, copy)
        before = files_of(copy)
        try:
            with without_drawings() as said:
                go_on(copy)
            return left(copy, said)
        except InputError:
            after = files_of(copy)
            lost = sorted(
                str(name) for name in before.keys() | after.keys() if before.get(name) != after.get(name)
            )
            assert not lost, f"refused, and yet changed: {lost}"
            raise
        finally:
            shutil.rmtree(copy.parent)

    return read


def exported(folder: Path) -> Any:
    """The SAE of the checkpoint, in a new folder."""
    out = folder.with_name("exported")
    try:
        done = export_checkpoint(folder, out)
        sae = SAE.from_pretrained(out)
        return digest({n: t.detach() for n, t in sae.named_parameters()}), sae.config, done.step
    finally:
        shutil.rmtree(out, ignore_errors=True)


def sketch(make: GoOn) -> Callable[[Path], Path]:
    """A subject's `make`: the folder "run" in a new one, without drawings."""

    def write(folder: Path) -> Path:
        with without_drawings():
            make(folder / "run")
        return folder / "run"

    return write


# name -> what writes the folder, what reads it
RUNS: dict[str, tuple[Callable[[Path], Path], Callable[[Path], Any]]] = {
    f"resume {kind}": (
        sketch(lambda folder, kind=kind: begun(kind, folder, kill)),
        going_on(lambda folder, kind=kind: fit(kind, folder)),
    )
    for kind in KINDS
}
RUNS |= {
    "resume, stopped": (
        sketch(lambda folder: begun("topk", folder, terminate)),
        going_on(lambda folder: fit("topk", folder)),
    ),
    "resume, finished": (
        sketch(lambda folder: fit("topk", folder)),
        going_on(lambda folder: fit("topk", folder)),
    ),
    "resume a sweep": (sketch(swept_in_part), going_on(swept)),
    "resume a sweep, finished": (sketch(swept), going_on(swept)),
    "export": (sketch(lambda folder: begun("topk", folder, kill)), exported),
}
