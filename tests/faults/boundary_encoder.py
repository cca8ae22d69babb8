"""Right calls of the screened encoder, as those of `boundary_calls`."""

from typing import Any

import numpy as np

from saefast import _C, reference
from tests.faults.boundary_calls import Call, Random, f4, i4, near, normal, size, tensor, threads


def encoder(rng: Random) -> Call:
    selection = str(rng.choice(["top_k", "batch_topk", "group_max", "above"]))
    k, D = int(rng.integers(1, 3)), int(rng.choice([16, 17, 31, 64]))
    B, F = size(rng), 32 * k + k * size(rng)
    x, W, b = normal(rng, B, D), normal(rng, F, D), normal(rng, F)
    limit = [None, 0, F, int(rng.integers(0, F + 1))][int(rng.integers(4))]
    args = {"centred": x, "W_enc": W, "b_enc": b, "k": k}
    if selection == "above":
        del args["k"]
        args |= {"thresholds": normal(rng, F), "row_offsets": np.empty(B + 1, i4)}
    else:
        shape = B * k if selection == "batch_topk" else (B, k)
        args |= {"top_acts": np.empty(shape, f4), "top_indices": np.empty(shape, i4)}
        args |= {"row_offsets": np.empty(B + 1, i4)} if selection == "batch_topk" else {}
    args |= {"threads": threads(rng), "limit": limit}
    written = np.empty(B * F, f4), np.empty(B * F, i4)
    made = _C.ScreenedEncoder(str(rng.choice(["auto", *_C.isas()])))

    def verify(got: int) -> None:
        assert got == -1, got
        pre_acts = tensor(x @ W.T + b)
        if selection == "above":
            n = made.write_above(*written)
            assert n == args["row_offsets"][-1] and (written[1][:n] < F).all()
        elif selection == "batch_topk":
            near(np.sort(args["top_acts"]), reference.batch_topk(pre_acts, k)[0].sort().values)
        else:
            spec = reference.topk if selection == "top_k" else reference.group_max
            near(args["top_acts"], spec(pre_acts, k)[0])

    def run(*args: Any) -> int:
        found = getattr(made, selection)(*args)
        assert made.dense_rows >= 0 <= made.candidates
        return found

    return Call("ScreenedEncoder", run, args, verify)


KINDS = {encoder: 2}
