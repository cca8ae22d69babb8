"""Activations on disk: a folder of safetensors shards and an index.json. Format version 1.

index.json
    format "saefast-activations", version 1, complete (false while it is written), d_in, dtype ("float16", ...),
    n_tokens, model, hook (or null), notes (what the writer wants to keep: rows dropped and why, context length, ...),
    checksum (of all the rest; older folders have none), shards: [{file, n_tokens, n_contexts, bytes, sha256}]; sha256 is `saefast.files.digest` of the tensors
    and the shard's own metadata. With several hook points, "hook" is a list. A row then holds their activations at the
    same token side by side, in the order of that list, and "widths" says how many columns each of them has.

shard-00000.safetensors
    activations [n, d_in]; and, when the rows come from text,
    contexts [m, context_length] int32 token ids of the m contexts the rows come from,
    context [n] int32 and position [n] int32: row i is token contexts[context[i], position[i]].

The index is rewritten after each shard, so that an interrupted writer can go on where it stopped.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saefast.activations.hooks import recorded
from saefast.activations.sources import Source
from saefast.errors import InputError, check
from saefast.files import load_tensors, read_json_checked, save_tensors, write_json_checked

FORMAT, VERSION, INDEX = "saefast-activations", 1, "index.json"
SHARD_TOKENS = 65_536
FIELDS = {"complete", "d_in", "dtype", "n_tokens", "model", "hook", "notes", "shards"}


def read_index(folder: Path) -> dict[str, Any]:
    """The index of a shard folder, complete or not."""
    index = read_json_checked(folder / INDEX)
    is_ours = index.get("format") == FORMAT and index.get("version") == VERSION
    is_ours = is_ours and index.keys() >= FIELDS
    check(is_ours, f"{folder / INDEX}: expected a {FORMAT} index, version {VERSION}")
    check(well_formed(index), f"{folder / INDEX}: corrupt: an entry is not of the kind that saefast writes")
    return index


def well_formed(index: dict[str, Any]) -> bool:
    """Whether every entry of an index is of its kind: an older one has no checksum that would say so."""

    def count(value: Any) -> bool:
        return type(value) is int and 0 <= value < 2**63

    def names(value: Any) -> bool:
        return isinstance(value, str) and Path(value).name == value

    def whole(shard: Any) -> bool:
        counts = isinstance(shard, dict) and all(
            count(shard.get(n)) for n in ("n_tokens", "n_contexts", "bytes")
        )
        return counts and names(shard.get("file")) and isinstance(shard.get("sha256"), str)

    shards, hook, widths, dtype = index["shards"], index["hook"], index.get("widths", []), index["dtype"]
    hooks = hook if isinstance(hook, list) else [hook]
    ok = isinstance(shards, list) and all(map(whole, shards)) and isinstance(index["notes"], dict)
    ok = ok and isinstance(index["complete"], bool) and count(index["d_in"]) and count(index["n_tokens"])
    ok = (
        ok
        and isinstance(widths, list)
        and all(type(width) is int for width in widths)
        and all(isinstance(h, str | None) for h in hooks)
    )
    known = isinstance(dtype, str) and isinstance(getattr(torch, dtype, None), torch.dtype)
    return ok and known and index["n_tokens"] == sum(shard["n_tokens"] for shard in shards)


def check_widths(name: str, hooks: Sequence[str | None], widths: Sequence[int], d_in: int) -> None:
    """Raise InputError unless there is a width for each hook point and they add up to d_in."""
    fits = len(widths) == len(hooks) and sum(widths) == d_in and min(widths) > 0
    want = f"{len(hooks)} positive numbers that add up to d_in = {d_in}"
    check(fits, f"{name}: expected widths of the hook points {list(hooks)}, {want}, got {list(widths)}")


class ShardWriter:
    """Writes a shard folder: `append` activations, then `close`.

    Args:
        folder: made if it does not exist. A folder with a finished cache is refused. An interrupted cache is continued
            if all other arguments are the same as before, or if no shard is written yet; `n_contexts` says how many
            contexts it has already.
        d_in, dtype: of the activations. With several hook points d_in is a sequence: the number of columns of each.
        model, hook, notes: recorded in the index.
        shard_tokens: rows after which a shard is written.

    Raises:
        InputError: the folder cannot be used, see above, or the widths do not fit the hook points.
    """

    def __init__(
        self,
        folder: str | Path,
        d_in: int | Sequence[int],
        dtype: torch.dtype = torch.float16,
        model: str | None = None,
        hook: str | Sequence[str] | None = None,
        notes: dict[str, Any] | None = None,
        shard_tokens: int = SHARD_TOKENS,
    ) -> None:
        self.folder, self.dtype, self.shard_tokens = Path(folder).absolute(), dtype, shard_tokens
        hooks = [hook] if isinstance(hook, str | None) else list(hook)
        widths = [d_in] if isinstance(d_in, int) else list(d_in)
        check_widths("d_in", hooks, widths, sum(widths))
        self.index: dict[str, Any] = {"format": FORMAT, "version": VERSION, "complete": False}
        self.index |= {"d_in": sum(widths), "dtype": str(dtype).removeprefix("torch."), "n_tokens": 0}
        self.index |= {"model": model, "hook": None, "notes": notes or {}, "shards": []}
        self.index |= recorded(hooks, widths)
        if (self.folder / INDEX).exists():
            found = read_index(self.folder)
            unfinished = not found["complete"]
            check(unfinished, f"out: expected a new folder, {self.folder} already holds a finished cache")
            if found["shards"]:
                for key in ("d_in", "dtype", "model", "hook", "widths", "notes"):
                    begun, given = found.get(key), self.index.get(key)
                    check(begun == given, f"out: {self.folder} was begun with {key} = {begun}, got {given}")
                self.index = found
        else:
            # a writer that was killed before its first index leaves a temporary file of `write_atomic`
            empty = not self.folder.exists() or all(path.suffix == ".tmp" for path in self.folder.iterdir())
            check(empty, f"out: expected a new or empty folder, {self.folder} holds other files")
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json_checked(self.folder / INDEX, self.index)
        self._pending: list[dict[str, Tensor]] = []

    @property
    def n_contexts(self) -> int:
        return sum(shard["n_contexts"] for shard in self.index["shards"])

    @property
    def n_tokens(self) -> int:
        """Rows so far, including those that are not yet on disk."""
        return self.index["n_tokens"] + sum(len(part["activations"]) for part in self._pending)

    def append(
        self,
        activations: Tensor,
        contexts: Tensor | None = None,
        context: Tensor | None = None,
        position: Tensor | None = None,
    ) -> None:
        """Add rows.

        Args:
            activations: [n, d_in].
            contexts, context, position: for rows from text, integers [m, L], [n] below m and [n] below L: row i is
                token contexts[context[i], position[i]].

        Raises:
            InputError: another shape, or finite values that overflow the dtype of the cache.
        """
        d_in = self.index["d_in"]
        ok = activations.ndim == 2 and activations.shape[1] == d_in
        check(ok, f"activations: expected [n, {d_in}], got {list(activations.shape)}")
        stored = activations.to("cpu", self.dtype)
        lost = int((activations.isfinite().all(dim=1).cpu() & ~stored.isfinite().all(dim=1)).sum())
        check(lost == 0, f"dtype: {lost} rows overflow {self.dtype}; use bfloat16 or float32")
        part = {"activations": stored}
        if contexts is not None and context is not None and position is not None:
            part |= {"contexts": contexts.int(), "context": context.int(), "position": position.int()}
        self._pending.append(part)
        if sum(len(part["activations"]) for part in self._pending) >= self.shard_tokens:
            self._flush()

    def _flush(self) -> None:
        parts, self._pending = self._pending, []
        tensors = {"activations": torch.cat([part["activations"] for part in parts])}
        n_contexts = 0
        if "contexts" in parts[0]:
            first = []  # context numbers count from the first context of the shard
            for part in parts:
                first.append(part["context"] + n_contexts)
                n_contexts += len(part["contexts"])
            tensors["context"] = torch.cat(first)
            tensors["contexts"] = torch.cat([part["contexts"] for part in parts])
            tensors["position"] = torch.cat([part["position"] for part in parts])
        path = self.folder / f"shard-{len(self.index['shards']):05d}.safetensors"
        checksum = save_tensors(path, tensors, {"format": FORMAT, "version": VERSION})
        n = len(tensors["activations"])
        self.index["n_tokens"] += n
        entry = {"file": path.name, "n_tokens": n, "n_contexts": n_contexts, "bytes": path.stat().st_size}
        self.index["shards"].append(entry | {"sha256": checksum})
        write_json_checked(self.folder / INDEX, self.index)

    def close(self) -> None:
        """Write what is pending and mark the cache complete."""
        if any(len(part["activations"]) for part in self._pending):  # a shard has rows
            self._flush()
        self.index["complete"] = True
        write_json_checked(self.folder / INDEX, self.index)


class ShardSource(Source):
    """Reads a shard folder. Sizes are checked when it is opened, the checksum of a shard when the shard is first read.

    Attributes:
        hooks: the hook points, None if the index names none.
        widths: the number of columns of each, in the same order.

    Raises:
        InputError: not a shard folder, not complete, or a shard that is missing, truncated or altered (its file is named).
    """

    random_access = True

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).absolute()  # the process may change its folder
        self._shards: dict[int, dict[str, Tensor]] = {}
        self.index = index = read_index(self.folder)
        finish = "run `saefast cache` again to finish it"
        check(index["complete"], f"{self.folder}: this cache is incomplete; {finish}")
        check(index["n_tokens"] > 0, f"{self.folder}: expected at least one activation, the cache is empty")
        self.d_in: int = index["d_in"]
        hook = index["hook"]
        self.hooks: list[str | None] = hook if isinstance(hook, list) else [hook]
        self.widths: list[int] = index.get("widths", [self.d_in])
        check_widths(str(self.folder / INDEX), self.hooks, self.widths, self.d_in)
        sizes = [0] + [shard["n_tokens"] for shard in index["shards"]]
        self.starts = torch.tensor(sizes, dtype=torch.int64, device="cpu").cumsum(
            0
        )  # first row of each shard, and the end
        for shard in index["shards"]:
            path, want = self.folder / shard["file"], shard["bytes"]
            found = path.stat().st_size if path.exists() else "no file"
            check(found == want, f"{path}: expected {want} bytes, found {found}")

    def __len__(self) -> int:
        return self.index["n_tokens"]

    def shard(self, i: int) -> dict[str, Tensor]:
        """The tensors of shard i, memory-mapped, after their checksum was compared the first time."""
        if i in self._shards:
            return self._shards[i]
        path = self.folder / self.index["shards"][i]["file"]
        tensors, _, checksum = load_tensors(path)
        if checksum != self.index["shards"][i]["sha256"]:
            raise InputError(f"{path}: not the shard that {INDEX} lists (its SHA-256 differs)")
        found, shape = tensors["activations"], [self.index["shards"][i]["n_tokens"], self.d_in]
        fits = list(found.shape) == shape and str(found.dtype) == f"torch.{self.index['dtype']}"
        want = f"{shape} in torch.{self.index['dtype']}, as {INDEX} says"
        check(fits, f"{path}: expected activations {want}, got {list(found.shape)} in {found.dtype}")
        self._shards[i] = tensors
        return tensors

    def rows(self, start: int = 0) -> Iterator[Tensor]:
        for i in range(len(self.index["shards"])):
            first, end = self.starts[i : i + 2].tolist()
            if end > start:
                yield self.shard(i)["activations"][max(0, start - first) :]

    def take(self, index: Tensor) -> Tensor:
        shard_of = torch.searchsorted(self.starts, index, right=True) - 1
        out = torch.empty(len(index), self.d_in, dtype=getattr(torch, self.index["dtype"]), device="cpu")
        for i in shard_of.unique().tolist():
            chosen = shard_of == i
            out[chosen] = self.shard(i)["activations"][index[chosen] - self.starts[i]]
        return out

    def context(self, row: int, before: int = 20, after: int = 5) -> tuple[list[int], int]:
        """Token ids around `row` in its context, and the position of the token of the row among them."""
        i = (
            int(
                torch.searchsorted(
                    self.starts, torch.tensor(row, dtype=torch.int64, device="cpu"), right=True
                )
            )
            - 1
        )
        shard, local = self.shard(i), row - int(self.starts[i])
        from_text = "contexts" in shard
        check(from_text, f"{self.folder}: expected a cache made from text, this one has no token ids")
        tokens, position = shard["contexts"][shard["context"][local]], int(shard["position"][local])
        first = max(0, position - before)
        return tokens[first : position + after + 1].tolist(), position - first

    def describe(self) -> dict[str, Any]:
        found = {"type": "shards", "path": str(self.folder), "model": self.index["model"]}
        found |= recorded(self.hooks, self.widths)
        return found | {key: self.index[key] for key in ("n_tokens", "dtype", "notes")}
