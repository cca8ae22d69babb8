"""Records and effects of a few latents on a text of hostile tokens, for the tests of what other tools read."""

import gzip
import json

import numpy as np
import torch

from saefast.config.records import RecordsConfig
from saefast.interp.effects import Alignment, Effects, LogitWeights, Neighbours
from saefast.interp.records.select import Block
from tests.helpers.look_records import write

F, D_IN, LENGTH, M, DEAD = 7, 4, 16, 12, 3
RAW = (
    [b"a\0b", b"\xe2\x82", b"</script><script>alert(1)</script>", b"", "\u202e".encode(), b"\n", b'"\\']
    + [f" w{i}".encode() for i in range(12)]
    + [rb"\u0000"]
)
GROUPS = ("top", "interval", "quantile")
IDS = {"model_id": "tiny", "source_id": "3-set-a__x", "creator_id": "me", "groups": GROUPS}


class Words:
    """A vocabulary of hostile tokens."""

    raw = RAW
    strings = tuple(raw.decode("utf-8", "replace") for raw in RAW)

    def __len__(self):
        return len(RAW)


def hostile_records(folder):
    """(records of a random code in which latent DEAD never fires, the code [F, M * LENGTH], contexts [M, LENGTH])."""
    rng = np.random.default_rng(0)
    contexts = rng.integers(0, len(RAW), (M, LENGTH)).astype(np.int32)
    code = rng.random((F, M * LENGTH)).astype(np.float32) * (rng.random((F, M * LENGTH)) < 0.2)
    code[DEAD] = 0
    offsets = np.concatenate([[0], np.cumsum((code > 0).sum(1))]).astype(np.int64)
    slots = np.concatenate([row.nonzero()[0] for row in code]).astype(np.int32)
    acts = np.concatenate([row[row > 0] for row in code])
    sae = {"d_in": D_IN, "d_sae": F, "digest": "none", "hook_name": "model.layers.3"}
    config, encoded = RecordsConfig(before=4, after=3, n_top=5, n_intervals=4), np.ones((M, LENGTH), bool)
    records = write(
        folder, Block(0, offsets, slots, acts), contexts, encoded, sae, {"path": "somewhere"}, config
    )
    lines = [{"latent": 1, "explanation": "x" * 600, "method": "m", "model": None, "scores": {}}]
    lines += [
        {"latent": 2, "explanation": "nul\0 \U0001f600", "method": "m", "model": "g", "scores": {"d": 1.0}}
    ]
    (folder / "explanations.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    return records, code, contexts


def hostile_effects():
    tokens = torch.arange(F * 6, dtype=torch.int32, device="cpu").view(F, 6) % len(RAW)
    values = torch.linspace(3, 1, F * 6, dtype=torch.float32, device="cpu").view(F, 6)
    histogram = torch.ones(F, 5, dtype=torch.int32, device="cpu")
    logits = LogitWeights(tokens, values, tokens, -values, histogram, -values[:, 0], values[:, 0])
    near = torch.tensor([[1, -1]] * F, dtype=torch.int32, device="cpu")
    align = Alignment(tokens[:, :3] % D_IN, values[:, :3], values[:, :3] / 10)
    decoder, correlated, coordinates = (Neighbours(near, values[:, i : i + 2]) for i in range(3))
    return Effects(
        logits=logits,
        decoder=decoder,
        correlated=correlated,
        correlated_neurons=coordinates,
        alignment=align,
    )


def rows(folder, table):
    return [
        json.loads(s)
        for s in gzip.decompress((folder / table / "batch-0.jsonl.gz").read_bytes()).splitlines()
    ]


def string(token):
    return RAW[token].decode("utf-8", "replace").replace("\0", " ") or "\ufffd"
