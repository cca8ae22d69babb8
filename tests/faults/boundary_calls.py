"""Right calls of every function of `saefast._C`, of random small shapes, each with what its result must be."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from saefast import _C, native, reference
from saefast.native.arrays import numpy_of
from tests.helpers.native_cases import case_of

f4, i4 = np.float32, np.int32
Random = np.random.Generator


class Call(NamedTuple):
    name: str
    call: Callable[..., Any]
    args: dict[str, Any]
    verify: Callable[[Any], None]  # raises AssertionError where the result of `args` as they are is wrong
    restore: Callable[[], None] = lambda: None  # undoes what the call has changed and the next one reads


def size(rng: Random, most: int = 40) -> int:
    least = int(rng.random() < 0.75)  # with 0 there are few calls, and damaged arguments have 0, too
    return int(rng.choice([least, 1, 1, 2, 3, 7, 16, 17, 33, rng.integers(0, most + 1)]))


def normal(rng: Random, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, dtype=f4)


def tensor(array: np.ndarray | None) -> Any:
    return None if array is None else torch.from_numpy(array)


def near(got: np.ndarray, want: torch.Tensor) -> None:
    want = want.numpy()
    bound = 1e-4 * max(1.0, float(np.abs(want).max(initial=0.0)))
    assert got.shape == want.shape and float(np.abs(got - want).max(initial=0.0)) <= bound, (got, want)


def same(got: Any, want: torch.Tensor) -> None:
    assert np.array_equal(got, want.numpy()), (got, want)


def threads_and_isa(rng: Random) -> dict[str, Any]:
    return {"threads": threads(rng), "isa": str(rng.choice(["auto", *_C.isas()]))}


def threads(rng: Random) -> int:
    return 1 if rng.random() < 0.75 else 2  # to wake a second one takes longer than the call


def code(rng: Random, B: int, F: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """A code of both layouts; k = 1 and k = F are frequent. A latent is at most once in a row."""
    counts = rng.integers(0, F + 1, B) if F else np.zeros(B, int)
    is_ragged = rng.random() < 0.5
    if not is_ragged:
        counts[:] = rng.choice([min(1, F), F, rng.integers(0, F + 1)])
    rows = [rng.permutation(F)[:n] for n in counts]
    indices = np.concatenate([np.zeros(0, i4), *rows]).astype(i4)
    acts = np.abs(normal(rng, len(indices)))
    acts[rng.random(len(acts)) < 0.1] = 0
    if is_ragged:
        return acts, indices, np.concatenate([[0], counts.cumsum()]).astype(i4)
    shape = (B, int(counts[0]) if B else min(1, F))
    return acts.reshape(shape), indices.reshape(shape), None


def topk(rng: Random) -> Call:
    B, F = size(rng), max(1, size(rng, 200))
    z, k = normal(rng, B, F), int(rng.choice([1, F, rng.integers(1, F + 1)]))
    if rng.random() < 0.3:
        z = z.round()  # ties

    def verify(got: Any) -> None:
        for one, other in zip(got, reference.topk(tensor(z), k)):
            same(one, other)

    return Call("topk", _C.topk, {"pre_acts": z, "k": k} | threads_and_isa(rng), verify)


def centre(rng: Random) -> Call:
    x, b_dec = normal(rng, size(rng), D := size(rng)), normal(rng, D)
    args = {"x": x, "b_dec": b_dec, "centred": np.empty_like(x)} | threads_and_isa(rng)

    def verify(got: float) -> None:
        same(args["centred"], tensor(x) - tensor(b_dec))
        near(np.array(got, f4), ((x - x.mean(0)) ** 2).sum() * torch.ones(()) if len(x) else torch.zeros(()))

    return Call("centre", _C.centre, args, verify)


def decode_error(rng: Random) -> Call:
    B, D, F = size(rng), size(rng), size(rng)
    acts, indices, offsets = code(rng, B, F)
    W, b, x = normal(rng, F, D), normal(rng, D), normal(rng, B, D)
    args = {"acts": acts, "indices": indices, "row_offsets": offsets, "W_dec": W, "b_dec": b, "x": x}
    args |= {"error": np.empty_like(x), "squares": np.empty(B, f4)} | threads_and_isa(rng)

    def verify(_: None) -> None:
        given = [tensor(a) for a in (acts, indices, W, b, x)]
        error, squares = reference.decode_error(*given, torch.float32, tensor(offsets))
        near(args["error"], error), near(args["squares"], squares)

    return Call("decode_error", _C.decode_error, args, verify)


def group_by_latent(rng: Random) -> Call:
    B, F = size(rng), size(rng)
    acts, indices, offsets = code(rng, B, F)
    args = {"acts": acts, "indices": indices, "row_offsets": offsets, "offsets": np.empty(F + 1, i4)}
    args |= {name: np.zeros(acts.size, i4) for name in ("pairs", "tokens")} | {"threads": threads(rng)}

    def verify(_: None) -> None:
        want = reference.group_by_latent(tensor(acts), tensor(indices), F, tensor(offsets))
        n = int(want[0][-1])
        for name, other in zip(("offsets", "pairs", "tokens"), want):
            listed = slice(None) if name == "offsets" else slice(n)
            same(args[name][listed], other[listed])

    return Call("group_by_latent", _C.group_by_latent, args, verify)


def sum_entries(rng: Random) -> Call:
    F = size(rng)
    acts, indices, offsets = code(rng, size(rng), F)
    groups = reference.group_by_latent(tensor(acts), tensor(indices), F, tensor(offsets))
    per_pair = normal(rng, acts.size)
    args = {"offsets": groups[0].numpy(), "pairs": groups[1].numpy(), "per_pair": per_pair}
    args |= {"sums": np.empty(F, f4), "threads": threads(rng)}

    def verify(_: None) -> None:
        near(args["sums"], reference.sum_entries(groups, tensor(per_pair)))

    return Call("sum_entries", _C.sum_entries, args, verify)


def grad_top_acts(rng: Random) -> Call:
    B, D, F = size(rng), size(rng), size(rng)
    acts, indices, offsets = code(rng, B, F)
    error, W = normal(rng, B, D), normal(rng, F, D)
    args = {"error": error, "W_dec": W, "acts": acts, "indices": indices, "row_offsets": offsets}
    args |= {"grads": np.empty_like(acts)} | threads_and_isa(rng)

    def verify(_: None) -> None:
        given = (tensor(a) for a in (error, W, acts, indices, offsets))
        near(args["grads"], reference.grad_top_acts(*given))

    return Call("grad_top_acts", _C.grad_top_acts, args, verify)


def parallel_for(rng: Random) -> Call:
    seen: list[int] = []
    n = size(rng, 1000)
    args = {"items": n, "threads": threads(rng), "work": lambda item, thread: seen.append(item)}

    def run(items: Any, threads: Any, work: Any) -> None:
        within = isinstance(items, int) and 1000 < items < 2**31  # so many calls would be made, one by one
        _C.parallel_for(1000 if within else items, threads, work)

    def verify(_: None) -> None:
        assert sorted(seen) == list(range(n))

    return Call("parallel_for", run, args, verify)


def update(rng: Random) -> Call:
    """update, row_grads or adam_rows, with and without `given` and `aux`."""
    torch.manual_seed(int(rng.integers(2**31)))
    F, D_in, L = max(2, size(rng)), max(1, size(rng)), int(rng.integers(1, 4))
    tied = rng.random() < 0.5
    D_out, G = D_in if tied else L * max(1, size(rng, 12)), int(rng.integers(1, 4))
    with_given, with_aux = rng.random() < 0.5, rng.random() < 0.5
    form = int(rng.integers(2)), int(tied), D_in, D_out, L if D_out % L == 0 else 1, G if with_given else 1
    sparse = tuple(tensor(a) for a in code(rng, size(rng, 12), F))
    weights, args, numbers, made = case_of(sparse, form, F, with_given, with_aux)
    centred, error, acts, indices, row_offsets, groups, scale, aux = args
    if made is None:  # entries are those with an activation
        groups = reference.group_by_latent(acts, indices, F, row_offsets)
        args = *args[:5], groups, *args[6:]
    grads = numpy_of(
        *(torch.zeros(part[0].shape) for part in (weights[0], weights[2], weights[1], weights[3]))
    )
    params = native._params(weights)
    extra = {"numbers": native._numbers(numbers)}
    which = str(rng.choice(["update", "row_grads", "adam_rows"]))
    if which == "adam_rows":
        given: dict[str, Any] = {"weights": params, "grads": grads, "factor": float(scale)} | extra
    else:
        given = {"weights": params, "batch": numpy_of(centred, error, acts.flatten(), *groups)}
        given |= {"grad_scale": float(scale), "aux": aux and numpy_of(*aux), "given": native._given(made)}
        given |= extra | ({"grads": grads} if which == "row_grads" else {})

    kept = [(array, array.copy()) for param in params for array in param]

    def restore() -> None:
        for array, before in kept:
            array[...] = before

    def verify(got: Any) -> None:
        if which == "row_grads":
            want, squared = reference.row_grads(weights, *args, numbers, made)
            for one, other in zip(grads, want):
                near(one, other)
            near(np.array(got / max(1.0, float(squared)), f4), squared / max(1.0, float(squared)))
        assert all(np.isfinite(array).all() for param in params for array in param)

    return Call(which, getattr(_C, which), given | threads_and_isa(rng), verify, restore)


def blocks(rng: Random) -> Call:
    """Pieces of a matrix fed to TopkBlock, BatchTopk (two of them, merged) or AboveBlock."""
    B, F = size(rng), max(1, size(rng, 100))
    z, cut, isa = normal(rng, B, F).round(1), int(rng.integers(0, F + 1)), threads_and_isa(rng)["isa"]
    pieces = {"left": z[:, :cut].copy(), "right": z[:, cut:].copy()}
    which = str(rng.choice(["TopkBlock", "BatchTopk", "AboveBlock"]))
    k = int(rng.choice([1, F, rng.integers(1, F + 1)]))
    if which == "TopkBlock":
        args = {"rows": B, "k": k, "isa": isa} | pieces
        args |= {"top_acts": np.empty((B, k), f4), "top_indices": np.empty((B, k), i4), "again": False}

        def run(rows, k, isa, left, right, acts, indices, again):
            block = _C.TopkBlock(rows, k, isa)
            block.feed(left), block.feed(right), block.finish(acts, indices)
            if again is not False:
                block.finish(acts, indices), block.feed(left), block.finish(acts, indices)

        def verify(_: None) -> None:
            for name, want in zip(("top_acts", "top_indices"), reference.topk(tensor(z), k)):
                same(args[name], want)
    elif which == "BatchTopk":
        keep, B = max(1, B * k), max(1, B)
        z = z if len(z) == B else normal(rng, B, F)
        keep = min(keep, z.size)
        pieces = {"left": z[:, :cut].copy(), "right": z[:, cut:].copy()}
        args = {"keep": keep, "F": F, "other_keep": keep, "other_F": F, "isa": isa, "row": 0, "column": cut}
        args |= pieces | {"acts": np.empty(keep, f4), "indices": np.empty(keep, i4)}
        args |= {"row_offsets": np.empty(B + 1, i4), "self": False}

        def run(keep, F, other_keep, other_F, isa, row, column, left, right, acts, indices, offsets, itself):
            one, other = _C.BatchTopk(keep, F, isa), _C.BatchTopk(other_keep, other_F, isa)
            one.feed(left, 0, 0), other.feed(right, row, column)
            one.merge(other)
            if itself is not False:
                one.merge(one)
            one.finish(acts, indices, offsets)

        def verify(_: None) -> None:
            if keep % B == 0:
                for name, want in zip(
                    ("acts", "indices", "row_offsets"), reference.batch_topk(tensor(z), keep // B)
                ):
                    same(args[name], want)
    else:
        bounds = normal(rng, F)
        n = int((z > bounds).sum())
        args = {"rows": B, "isa": isa} | pieces | {"low": bounds[:cut].copy(), "high": bounds[cut:].copy()}
        args |= {"acts": np.empty(n, f4), "indices": np.empty(n, i4), "counts": np.empty(B, i4)}

        def run(rows, isa, left, right, low, high, acts, indices, counts):
            block = _C.AboveBlock(rows, isa)
            block.feed(left, low), block.feed(right, high)
            block.size(), block.finish(acts, indices, counts)

        def verify(_: None) -> None:
            same(args["counts"], tensor((z > bounds).sum(1).astype(i4)))
            same(args["acts"], tensor(z[z > bounds]))

    return Call(which, run, args, verify)


# Each kind with its share of the calls, in no unit: what takes long is called less often.
KINDS = {topk: 8, centre: 6, decode_error: 8, group_by_latent: 8, sum_entries: 6, grad_top_acts: 8}
KINDS |= {update: 12, blocks: 12, parallel_for: 0.5}
