"""Where metrics go: always metrics.jsonl in the run folder, and the optional services a user asks for."""

import errno
import json
import logging
import math
import os
import zlib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from saefast.errors import InputError, check
from saefast.files import write_atomic

DENSITY_EDGES = (
    -math.inf,
    -5,
    -4,
    -3,
    -2,
    -1,
    math.inf,
)  # log10 of the share of tokens a latent is active on
SPEED, CHECKSUM = (
    "tokens_per_second",
    "crc32",
)  # a line's checksum is of all but its speed, the one thing that varies

log = logging.getLogger("saefast")


class Log:
    """A function that takes a line of metrics, and `close`."""

    def __init__(
        self, write: Callable[[dict[str, Any]], None], close: Callable[[], Any] = lambda: None
    ) -> None:
        self._write, self.close = write, close

    def __call__(self, line: dict[str, Any]) -> None:
        self._write(line)


def jsonl(path: Path) -> Log:
    """One JSON line per call, with its checksum, and written at once, so that a killed run keeps its curve."""
    file = open(path, "ab", buffering=0)  # noqa: SIM115 (lives as long as the run)

    def write(line: dict[str, Any]) -> None:
        text = (json.dumps(line | {CHECKSUM: checksum(line)}) + "\n").encode()
        try:
            whole = file.write(text) == len(text)
        except OSError as error:  # a write does not name its file
            raise OSError(error.errno, error.strerror, str(path)) from None
        if not whole:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    return Log(write, file.close)


def checksum(line: dict[str, Any]) -> int:
    """CRC-32 of a line of metrics without its speed, as JSON."""
    text = json.dumps({key: value for key, value in line.items() if key not in (SPEED, CHECKSUM)})
    return zlib.crc32(text.encode())


def renamed(line: dict[str, Any]) -> bool:
    """Whether the last value of a line without a checksum is one, whose name was damaged."""
    *others, (_, last) = line.items()
    return last == checksum(dict(others))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; none if there is no such file. A last line that is not whole does not count.

    Raises:
        InputError: a damaged line; names it.
    """
    found: list[dict[str, Any]] = []
    *lines, last = path.read_bytes().split(b"\n") if path.exists() else [b""]
    # half a line has no second brace after its end; where there is more, the end of the line itself is damaged
    lines += [last] if b"}" in last[:-1] else []
    for number, text in enumerate(lines, start=1):
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            line = None
        # lines of older runs have no checksum
        whole = isinstance(line, dict) and isinstance(line.get("step"), int)
        whole = whole and (line[CHECKSUM] == checksum(line) if CHECKSUM in line else not renamed(line))
        whole = whole and (not found or line["step"] > found[-1]["step"])  # a line that is there twice
        check(whole, f"{path}: line {number} is damaged (the run goes on when the line is deleted)")
        found.append(line)
    return found


class Curve(NamedTuple):
    """Which lines a metrics.jsonl has, for the checkpoint: a file of which lines are gone is whole in itself."""

    lines: int = 0
    crc32: int = 0  # of their checksums

    def with_line(self, line: dict[str, Any]) -> "Curve":
        return Curve(self.lines + 1, zlib.crc32(checksum(line).to_bytes(4, "little"), self.crc32))


def curve_of(path: Path, lines: list[dict[str, Any]], step: int, expected: Curve | None) -> Curve:
    """What `lines` are, those up to `step`. expected: what the checkpoint says; if lines are gone, it is said here."""
    found = Curve()
    for line in lines:
        found = found.with_line(line)
    if expected is not None and found != expected:
        got = f"found {found.lines}" if found.lines != expected.lines else "some of them are of another run"
        log.warning(
            f"{path}: expected the {expected.lines} lines of this run up to step {step}, {got}: "
            "the curve has a gap, the training has none"
        )
    return found


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    write_atomic(path, lambda temporary: temporary.write_text("".join(json.dumps(e) + "\n" for e in lines)))


def open_logger(
    name: str, folder: Path, config: dict[str, Any], id: str = "", step: int = 0, sent: int = 0
) -> Log:
    """Sends lines of metrics to 'wandb', 'tensorboard' or 'trackio'; a run that goes on appends to its own curves.

    Args:
        id: of the run, the same whenever it goes on.
        step: at which it goes on; 0: it begins.
        sent: the last step that was sent before. Steps after `step` come again: wandb and trackio cannot take back what
            they have, and get those after `sent` only, tensorboard hides the old ones.

    Raises:
        InputError: the package is not installed; names the extra that brings it.
    """
    try:
        if name == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter

            place = str(folder / "tensorboard")
            writer = SummaryWriter(place, purge_step=step + 1) if step else SummaryWriter(place)

            def log_scalars(line: dict[str, Any]) -> None:
                for key, value in line.items():
                    if isinstance(value, (int, float)):
                        writer.add_scalar(key, value, line["step"])
                writer.flush()

            return Log(log_scalars, lambda: writer.close())
        if name == "wandb":
            import wandb

            # create_new: each SAE of a sweep has a run of its own
            own = {"id": id or None, "dir": str(folder), "resume": "allow", "reinit": "create_new"}
            run = wandb.init(project="saefast", name=folder.name, config=config, **own)
        else:
            import trackio

            named = f"{folder.name}-{id}" if id else folder.name  # it knows a run by its name only
            run = trackio.init(project="saefast", name=named, config=config, resume="allow")
    except ImportError as error:
        raise InputError(f"loggers: {name!r} needs `pip install saefast[{name}]` ({error})") from None

    def send(line: dict[str, Any]) -> None:
        if line["step"] > sent:
            # trackio keeps "step" for its own
            values = line if name == "wandb" else {k: v for k, v in line.items() if k != "step"}
            run.log(values, step=line["step"])

    return Log(send, lambda: run.finish())


def density_histogram(fired: Tensor, n_tokens: int) -> list[int]:
    """Number of latents between the DENSITY_EDGES; the first also counts those never active.

    fired: [F], tokens of n_tokens in which each latent was active.
    """
    density = (fired.float() / n_tokens).log10()
    inside = [(density > a) & (density <= b) for a, b in pairwise(DENSITY_EDGES)]
    inside[0] |= density.isneginf()
    return [int(mask.sum()) for mask in inside]
