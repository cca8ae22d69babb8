"""Records and effects for the files of other tools: hostile tokens, a latent that never fires, explanations."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from saefast.interp.effects import Effects, LogitWeights
from saefast.interp.records import Records
from tests.helpers.look_records import Tokens, make

F = 12  # latents; the last two never fire
RAW = [b"a\0b", b"\xe2\x82", b"\xac", rb"\x41", b"", "\u202e".encode(), b"\n", b'"\\', b"</script>", b"\xff"]
RAW += [f" w{i}".encode() for i in range(6)]
LINES = [
    {"latent": 1, "explanation": "dates\0", "method": "m", "model": None, "scores": {}},
    {
        "latent": 2,
        "explanation": "\U0001f600",
        "method": "m",
        "model": "g",
        "scores": {"simulation": -0.25, "rsquared_score": 0.5},
    },
    {"latent": 2, "explanation": "other", "method": None, "model": None, "scores": {"fuzz": 1.0}},
]


class Words(Tokens):
    strings = tuple(raw.decode("utf-8", "replace") for raw in RAW)


WORDS = Words(RAW)


def records(folder: Path, **given: Any) -> Records:
    found = make(folder, WORDS, d_sae=F, **given)
    (folder / "explanations.jsonl").write_text("".join(json.dumps(one) + "\n" for one in LINES))
    return found


def effects() -> Effects:
    tokens = torch.arange(F * 5, dtype=torch.int32, device="cpu").view(F, 5) % len(RAW)
    values = torch.linspace(3, 1, F * 5, dtype=torch.float32, device="cpu").view(F, 5)
    histogram = torch.ones(F, 5, dtype=torch.int32, device="cpu")
    return Effects(LogitWeights(tokens, values, tokens, -values, histogram, -values[:, 0], values[:, 0]))


def dense(found: Records) -> np.ndarray:
    """The code of all tokens, [F, m, L] float32."""
    block, text = found.blocks[0], found.text
    code = np.zeros((F, text.n_slots), np.float32)
    owners = np.repeat(np.arange(F), np.diff(block.offsets))
    code[owners, block.slots] = block.acts
    return code.reshape(F, *text.contexts.shape)


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
