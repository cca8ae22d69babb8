"""Texts of known tokens and records of latents that were planted in them, for what explains latents."""

from pathlib import Path

import numpy as np
import torch

from saefast.interp.neurons import neurons
from saefast.interp.records import Records, RecordsConfig
from tests.helpers.look_records import Tokens
from tests.helpers.small_records import small_records

CONFIG = RecordsConfig(
    n_top=2, n_intervals=2, per_interval=1, n_quantiles=1, per_quantile=1, n_random=1, n_inactive=1
)
PIECES = [
    *(
        "<eos>",
        " the",
        " a",
        " of",
        " cat",
        " dog",
        " house",
        " River",
        " Paris",
        " blue",
        " law",
        " court",
        "s",
        "ing",
    ),
    *(
        "0",
        "7",
        "42",
        " 19",
        "A",
        "C",
        "GT",
        "AC",
        "TT",
        ".",
        ",",
        "(",
        ")",
        " (",
        '"',
        ' "',
        "\n",
        "  ",
        " EU",
        "deadbeef",
        "Qx9Z",
    ),
    *(
        "\u05d0",
        "\u05d1\u05d2",
        " \u05e9\u05dc",
        "\u0627",
        "\u0644\u0645",
        "\u0414\u0430",
        "\u4e2d",
        "<",
        ">",
        "/",
    ),
]
VOCABULARY = Tokens([*(piece.encode() for piece in PIECES), b"\xd7", b"\x95"], special=(0,))
ID = {piece: i for i, piece in enumerate(PIECES)} | {b"\xd7": len(PIECES), b"\x95": len(PIECES) + 1}


def ids(*pieces: str | bytes) -> list[int]:
    return [ID[piece] for piece in pieces]


def text(m: int, length: int, seed: int = 0, runs: float = 0.5) -> np.ndarray:
    """[m, length] int32: random tokens, in which now and then some of one kind follow each other."""
    rng = np.random.default_rng(seed)
    kinds = [
        ids("A", "C", "GT", "AC", "TT"),
        ids("0", "7", "42"),
        ids("\u05d0", "\u05d1\u05d2", " \u05e9\u05dc"),
    ]
    out: list[int] = []
    while len(out) < m * length:
        if rng.random() < runs / 8:
            out += rng.choice(kinds[rng.integers(len(kinds))], rng.integers(3, 9)).tolist()
        elif rng.random() < 1 / 32:
            out += ids("\n", "  ")
        else:
            out.append(int(rng.integers(1, len(PIECES))))
    return np.array(out[: m * length], np.int32).reshape(m, length)


def planted(
    folder: Path,
    contexts: np.ndarray,
    acts: np.ndarray,
    separators: tuple[int, ...] = (),
    config: RecordsConfig = CONFIG,
) -> Records:
    """Records in which latent i is active with acts [m, L, n] wherever that is positive."""
    x = torch.from_numpy(acts.reshape(contexts.size, -1).astype(np.float32))
    sae = neurons(x.shape[1])
    return small_records(folder, sae, torch.from_numpy(contexts), x, separators, config)
