"""The buffers of the peers on rows in memory, as their packages ship them.

Each is loaded from its one file, without the rest of its package (which pulls in transformer-lens, and nnsight, which
patches torch for the whole process):

    python -m venv peers && peers/bin/pip install torch==2.13.0 numpy safetensors
    peers/bin/pip install --no-deps sae-lens==6.54.12 dictionary-learning==0.1.0 saefast

SAELens' `mixing_buffer` takes tensors. dictionary_learning's `ActivationBuffer` runs a language model; here a stand-in
"runs" that hands out rows it has already, so that the buffer's own work alone is timed. What is not installed is left
out, and `versions` says so; then a buffer of the shape of dictionary_learning's takes its place.
"""

import contextlib
import importlib.metadata
import importlib.util
import itertools
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

CONTEXT, AT_ONCE = 128, 64  # tokens of a context, contexts of a forward pass: 8192 rows


def buffers(rows: Tensor, capacity: int, batch: int) -> tuple[dict[str, Iterator[Tensor]], dict[str, str]]:
    """Endless batches of each peer's buffer over `rows`, and the versions."""
    found: dict[str, Iterator[Tensor]] = {}
    versions = {}
    for package, name, open_it in (
        ("sae-lens", "SAELens mixing_buffer, memory", _sae_lens),
        ("dictionary-learning", "dictionary_learning ActivationBuffer, memory", _dictionary_learning),
    ):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
            continue
        found[name] = open_it(rows, capacity, batch)
    if versions["dictionary-learning"] == "not installed":
        found["shape of dictionary_learning's, memory"] = half_refill(rows, capacity, batch)
    return found, versions


def _load(package: str, file: str) -> Any:
    """A module of an installed package, without running the package's __init__."""
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.origin is not None
    folder = Path(spec.origin).parent
    if package not in sys.modules:
        bare = types.ModuleType(package)
        bare.__path__ = [str(folder)]
        sys.modules[package] = bare
    name = f"{package}.{file.removesuffix('.py').replace('/', '.')}"
    module_spec = importlib.util.spec_from_file_location(name, folder / file)
    assert module_spec is not None and module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    return module


def _endless(rows: Tensor) -> Iterator[Tensor]:
    return itertools.cycle(rows.split(CONTEXT * AT_ONCE))


def _sae_lens(rows: Tensor, capacity: int, batch: int) -> Iterator[Tensor]:
    return _load("sae_lens", "training/mixing_buffer.py").mixing_buffer(capacity, batch, _endless(rows))


class _Saved:
    """What nnsight calls a proxy: its value is there after the forward pass."""

    def __init__(self, value: Any = None) -> None:
        self.value = value

    def save(self) -> "_Saved":
        return self

    def stop(self) -> None:
        pass


class _Ready:
    """A language model whose activations are `rows`, and its layer."""

    def __init__(self, rows: Tensor) -> None:
        self.dtype, self._rows = rows.dtype, _endless(rows)

    @contextlib.contextmanager
    def trace(self, text: list[str], **_: Any) -> Iterator[None]:
        chunk = next(self._rows)
        self.output = _Saved(chunk.view(len(text), -1, chunk.shape[1]))
        self.inputs = _Saved(
            ((), {"attention_mask": torch.ones(len(text), len(chunk) // len(text), dtype=torch.int64)})
        )
        yield


def _dictionary_learning(rows: Tensor, capacity: int, batch: int) -> Iterator[Tensor]:
    stub = types.ModuleType("nnsight")
    stub.LanguageModel = object  # type: ignore[attr-defined]  # named in an annotation
    before = sys.modules.get("nnsight")
    sys.modules["nnsight"] = stub
    try:
        module = _load("dictionary_learning", "buffer.py")
    finally:
        del sys.modules["nnsight"]
        if before is not None:
            sys.modules["nnsight"] = before
    model = _Ready(rows)
    return module.ActivationBuffer(
        itertools.repeat(""), model, model, d_submodule=rows.shape[1], n_ctxs=capacity // CONTEXT, ctx_len=CONTEXT,
        refresh_batch_size=AT_ONCE, out_batch_size=batch,
    )  # fmt: skip


def half_refill(rows: Tensor, capacity: int, batch: int) -> Iterator[Tensor]:
    """The shape of dictionary_learning's ActivationBuffer: refill when half is read, take random unread rows."""
    held, read, at = torch.empty(0, rows.shape[1], dtype=rows.dtype), torch.empty(0, dtype=torch.bool), 0
    while True:
        if int((~read).sum()) < capacity // 2:
            held = held[~read]
            new = rows[at : at + capacity - len(held)]
            at = (at + len(new)) % len(rows)
            held = torch.cat([held, new])
            read = torch.zeros(len(held), dtype=torch.bool)
        unread = (~read).nonzero().squeeze(1)
        chosen = unread[torch.randperm(len(unread))[:batch]]
        read[chosen] = True
        yield held[chosen]
