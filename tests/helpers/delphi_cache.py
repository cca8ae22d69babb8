"""A dense code, records of it, and a latent cache as delphi writes it: by torch.nonzero, split by split."""

import json

import numpy as np
import torch
from safetensors.numpy import save_file

from saefast.interp.neurons import neurons
from saefast.interp.records import record
from tests.helpers.small_records import CONFIG, shards

HOOK = "layers.3"
M, L, F, DEAD = 12, 16, 9, 4
BOUNDS = [(0, 3), (3, 6), (6, 9)]


def a_code():
    """[M, L, F], of which about a fifth is active: exact in float16, with ties."""
    rng = np.random.default_rng(0)
    code = np.ceil(rng.gamma(2.0, 3.0, (M, L, F)) * 8) / 8 * (rng.random((M, L, F)) < 0.2)
    code[..., DEAD] = 0
    return torch.from_numpy(code.astype(np.float32))


def contexts():
    return torch.randint(0, 60, (M, L), generator=torch.Generator().manual_seed(1), dtype=torch.int32)


def recorded(folder, code, left_out=0):
    """Records of these activations, in which every coordinate is a latent."""
    source = shards(folder / "shards", code.flatten(0, 1), contexts(), left_out)
    return record(neurons(code.shape[2]), source, folder / "records", CONFIG, separators=[7])


def raw(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def splits_of(code, tokens, bounds):
    """Name -> arrays of each split, for code [m, L, F] and tokens [m, L]; bounds: (first latent, end) of each."""
    code, found = torch.as_tensor(code), {}
    places = torch.nonzero(code.abs() > 1e-5).numpy()
    acts = code[code.abs() > 1e-5].half().numpy()
    for first, end in bounds:
        mine = (places[:, 2] >= first) & (places[:, 2] < end)
        locations = places[mine] - [0, 0, first]
        small = not mine.any() or max(locations[:, 0].max(), locations[:, 2].max()) < 2**16
        found[f"{first}_{end - 1}"] = {
            "locations": locations.astype(np.uint16 if small else np.uint32),
            "activations": acts[mine],
            "tokens": np.asarray(tokens).astype(np.int64),
        }
    return found


def write_cache(folder, code, tokens, bounds, **config):
    """A cache in `folder`, which is named like its hookpoint. Returns `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, arrays in splits_of(code, tokens, bounds).items():
        save_file(arrays, folder / f"{name}.safetensors")
    about = {"n_splits": len(bounds), "model_name": "a model", "dataset_repo": "a text"}
    (folder / "config.json").write_text(json.dumps(about | config))
    return folder
