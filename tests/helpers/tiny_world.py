"""Small inputs for the tests of the command line, and the commands that made them."""

import numpy as np

from saefast import cli
from tests.helpers import tiny_lm

TRAIN = "--d-sae 64 --k 4 --tokens 1280 --batch-size 64 --buffer-tokens 256 --log-every 5 --seed 1 --lr 3e-3"
CACHE = "--hook model.layers.1 --context-length 16 --contexts-per-batch 4"


def run(command):
    cli.main(command.split())


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def make(folder):
    """A model, text, a cache of its activations, a trained run and a matrix."""
    tiny_lm.save(folder / "model")
    (folder / "text").mkdir()
    for i in range(4):
        (folder / "text" / f"{i}.txt").write_text(tiny_lm.text(300, seed=i))
    np.save(folder / "x.npy", np.random.default_rng(0).normal(size=(300, 32)).astype(np.float32))
    run(f"cache {folder}/model {folder}/text {CACHE} --out {folder}/cache --tokens 1000")
    run(f"train {folder}/cache --out {folder}/run {TRAIN}")
    return folder
