"""Where metrics go: always metrics.jsonl in the run folder, and the optional services a user asks for."""

import json
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from torch import Tensor

from saefast.errors import InputError

Log = Callable[[dict[str, Any]], None]
DENSITY_EDGES = (
    -math.inf,
    -5,
    -4,
    -3,
    -2,
    -1,
    math.inf,
)  # log10 of the share of tokens a latent is active on


def jsonl(path: Path) -> Log:
    """One JSON line per call, flushed, so a killed run keeps its curve."""
    file = open(path, "a")  # noqa: SIM115 (lives as long as the run)

    def log(line: dict[str, Any]) -> None:
        file.write(json.dumps(line) + "\n")
        file.flush()

    return log


def open_logger(name: str, folder: Path, config: dict[str, Any]) -> Log:
    """A function that sends a line of metrics to 'wandb', 'tensorboard' or 'trackio'.

    Raises:
        InputError: the package is not installed; names the extra that brings it.
    """
    try:
        if name == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter

            writer = SummaryWriter(str(folder / "tensorboard"))

            def log_scalars(line: dict[str, Any]) -> None:
                for key, value in line.items():
                    if isinstance(value, (int, float)):
                        writer.add_scalar(key, value, line["step"])
                writer.flush()

            return log_scalars
        if name == "wandb":
            import wandb

            run = wandb.init(project="saefast", name=folder.name, dir=str(folder), config=config)
            return lambda line: run.log(line, step=line["step"])
        import trackio

        trackio.init(project="saefast", name=folder.name, config=config)
        return lambda line: trackio.log(line)
    except ImportError as error:
        raise InputError(f"loggers: {name!r} needs `pip install saefast[{name}]` ({error})") from None


def density_histogram(fired: Tensor, n_tokens: int) -> list[int]:
    """Number of latents between the DENSITY_EDGES; the first also counts those never active.

    fired: [F], tokens of n_tokens in which each latent was active.
    """
    density = (fired / n_tokens).log10()
    inside = [(density > a) & (density <= b) for a, b in pairwise(DENSITY_EDGES)]
    inside[0] |= density.isneginf()
    return [int(mask.sum()) for mask in inside]
