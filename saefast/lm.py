"""Activations of a language model, or of any module: hook points, packed contexts, and the model with an SAE inside.

A hook point is the path of a module, as `named_modules()` spells it, for its output, or `path:in` for its input.
In a Llama-like model of Hugging Face:

    residual stream after block 12   model.layers.12
    attention out                    model.layers.12.self_attn
    MLP out                          model.layers.12.mlp
    MLP hidden                       model.layers.12.mlp.down_proj:in
"""

import difflib
import json
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from saefast.errors import InputError, check
from saefast.sources import Source

log = logging.getLogger("saefast")


class _Stop(Exception):
    """Ends a forward pass once the hooked activations are there."""


class HookPoint:
    """A place in a model: `capture` reads the activations there, `replace` puts others in."""

    def __init__(self, model: nn.Module, hook: str) -> None:
        path, _, side = hook.partition(":")
        modules = dict(model.named_modules())
        if path not in modules or side not in ("", "in") or not path:
            near = difflib.get_close_matches(path, modules, n=4, cutoff=0.3)
            raise InputError(
                f"hook: expected a module path or path:in, got {hook!r}; near it: {', '.join(near)}"
            )
        self.model, self.module, self.is_input = model, modules[path], side == "in"

    def _register(self, function: Any) -> Any:
        """Call function(activations) at the hook point; what it returns, if not None, takes their place."""

        def on_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            name = None if args else next(iter(kwargs))  # Hugging Face blocks call attention by keyword
            new = function(args[0] if name is None else kwargs[name])
            if new is None:
                return None
            return ((new, *args[1:]), kwargs) if name is None else (args, kwargs | {name: new})

        def on_output(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            if isinstance(output, Tensor):
                return function(output)
            new = function(output[0])  # Hugging Face blocks may return (hidden states, ...)
            return None if new is None else (new, *output[1:])

        if self.is_input:
            return self.module.register_forward_pre_hook(on_input, with_kwargs=True)
        return self.module.register_forward_hook(on_output)

    def capture(self, *args: Any, **kwargs: Any) -> Tensor:
        """Run the model up to the hook point only and return the activations there."""
        captured: list[Tensor] = []

        def keep(activations: Tensor) -> None:
            is_float = (
                isinstance(activations, Tensor) and activations.is_floating_point() and activations.ndim > 1
            )
            check(is_float, "hook: expected a module with floating-point activations [..., n, d_in] there")
            captured.append(activations)
            raise _Stop

        handle = self._register(keep)
        try:
            self.model(*args, **kwargs)
        except _Stop:
            return captured[0]
        finally:
            handle.remove()
        raise InputError("hook: the model's forward pass never reached this module")

    def replace(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        """Run the whole model with function(activations) in place of the activations; returns its output."""
        handle = self._register(function)
        try:
            return self.model(*args, **kwargs)
        finally:
            handle.remove()


class ModelBatch(NamedTuple):
    """The kept activations of one batch of contexts, and where each comes from."""

    activations: Tensor  # [n, d_in]
    contexts: Tensor  # [m, L] what went into the model
    context: Tensor  # [n] row of `contexts`
    position: Tensor  # [n] place in that row


class ModelSource(Source):
    """The activations of `model` at `hook`, over batches of inputs. The forward pass ends at the hook point.

    Args:
        model: any nn.Module. It is put in eval mode and called as model(batch, **forward_kwargs) without gradient.
        hook: see the module's docstring.
        batches: a re-iterable of inputs: token ids [m, L] for a language model. Leading dimensions of the
            activations are flattened to rows.
        drop_ids: token ids whose rows are dropped (special tokens).
        sink_ratio: rows with more than this many times the median norm are dropped: attention sinks, a few rows
            of huge norm that would dominate every loss and make any FVU look superb. None keeps them. The median
            is that of the first batch.

    `n_dropped` counts the rows dropped in the last pass, by reason.

    Raises:
        InputError: unknown hook point (near ones are listed), or one that the forward pass never reaches.
    """

    def __init__(
        self,
        model: nn.Module,
        hook: str,
        batches: Iterable[Tensor],
        drop_ids: Iterable[int] = (),
        sink_ratio: float | None = 10.0,
        forward_kwargs: dict[str, Any] | None = None,
    ) -> None:
        check(
            sink_ratio is None or sink_ratio > 0,
            f"sink_ratio: expected a positive number or None, got {sink_ratio}",
        )
        self.model, self.hook_name, self.batches = model.eval(), hook, batches
        self.hook = HookPoint(model, hook)
        self.drop_ids = torch.tensor(sorted(drop_ids), dtype=torch.int64)
        self.sink_ratio, self.forward_kwargs = sink_ratio, forward_kwargs or {}
        self.n_dropped = {"special": 0, "sink": 0}
        self.max_norm: float | None = None if sink_ratio is not None else float("inf")
        first = next(iter(batches), None)
        check(first is not None, "batches: expected at least one batch, got none")
        self.d_in = self._run(first).shape[-1]

    @torch.no_grad()
    def _run(self, batch: Any) -> Tensor:
        activations = self.hook.capture(batch, **self.forward_kwargs)
        if self.max_norm is None and self.sink_ratio is not None:
            self.max_norm = self.sink_ratio * float(activations.flatten(0, -2).norm(dim=1).median())
        return activations

    def model_batches(self, start: int = 0) -> Iterator[ModelBatch]:
        """One pass, batch by batch, from batch number `start` (earlier ones are not run)."""
        self.n_dropped = {"special": 0, "sink": 0}
        for number, batch in enumerate(self.batches):
            if number < start:
                continue
            activations = self._run(batch)
            flat = activations.flatten(0, -2)
            keep = torch.ones(len(flat), dtype=torch.bool, device=flat.device)
            is_tokens = isinstance(batch, Tensor) and not batch.is_floating_point()
            if is_tokens and len(self.drop_ids):
                keep &= ~torch.isin(batch.flatten(), self.drop_ids.to(batch.device)).to(flat.device)
                self.n_dropped["special"] += int((~keep).sum())
            norm = flat.norm(
                dim=1
            )  # NaN and Inf pass: they are no sinks, and the buffer stops or counts them
            is_sink = (norm > (self.max_norm or float("inf"))) & norm.isfinite()
            self.n_dropped["sink"] += int((keep & is_sink).sum())
            keep &= ~is_sink
            row = keep.nonzero().squeeze(1).cpu()
            length = activations.shape[-2]
            yield ModelBatch(flat[keep], batch, row // length, row % length)

    def rows(self, start: int = 0) -> Iterator[Tensor]:
        seen = 0
        for batch in self.model_batches():
            n = len(batch.activations)
            if seen + n > start:
                yield batch.activations[max(0, start - seen) :]
            seen += n

    def describe(self) -> dict[str, Any]:
        return {
            "type": "model",
            "hook": self.hook_name,
            "sink_ratio": self.sink_ratio,
            "max_norm": self.max_norm,
        }


def load_model(path: str, device: str = "cpu") -> tuple[Any, Any]:
    """A Hugging Face causal language model in fp32 and its tokenizer, from a local folder or the Hub.

    Raises:
        InputError: not there, no tokenizer, or the extra `lm` (transformers) is missing.
    """
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError:
        raise InputError("model: a language model needs `pip install saefast[lm]`") from None
    try:
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        model = nn.Module.to(model, device)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError(
            f"model: expected a Hugging Face causal language model at {path!r}, got: {_line(error)}"
        ) from None
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except Exception as error:  # noqa: BLE001 (a corrupt tokenizer.json raises a bare Exception)
        raise InputError(f"model: {path!r} has no usable tokenizer: {_line(error)}") from None
    return model, tokenizer


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


class Texts:
    """Re-iterable of the documents in `path`; see `read_texts`."""

    def __init__(self, path: str | Path) -> None:
        self.path = path

    def __iter__(self) -> Iterator[str]:
        return read_texts(self.path)


def read_texts(path: str | Path) -> Iterator[str]:
    """Documents of a text file, of a folder of them (*.txt, *.md, *.py, *.jsonl, sorted), or a .jsonl with "text".

    Raises:
        InputError: nothing there, no text in it, or a .jsonl line without the field "text".
    """
    path = Path(path)
    check(
        path.exists(),
        f"text: expected a file, a folder or a .jsonl with a text field, found nothing at {path}",
    )
    files = [path]
    if path.is_dir():
        files = sorted(
            f for f in path.rglob("*") if f.suffix in (".txt", ".md", ".py", ".jsonl") and f.is_file()
        )
        check(bool(files), f"text: expected *.txt, *.md, *.py or *.jsonl in {path}, found none")
    empty = True
    for file in files:
        for text in _read_jsonl(file) if file.suffix == ".jsonl" else [_read(file)]:
            if text.strip():
                empty = False
                yield text
    check(not empty, f"text: expected some text, {path} is empty")


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def _read_jsonl(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            try:
                text = json.loads(line)["text"]
            except (json.JSONDecodeError, KeyError, TypeError):
                text = None
            ok = isinstance(text, str)
            check(ok, f'text: {path} line {number}: expected a JSON object with a field "text"')
            yield text


class PackedContexts:
    """Re-iterable of token batches [batch, context_length]: documents one after another, joined by `separator`.

    Every position holds a real token: documents are cut where a context ends, nothing is padded; the tokens
    after the last full batch are left out.
    """

    def __init__(
        self, texts: Iterable[str], tokenizer: Any, context_length: int = 256, batch: int = 4
    ) -> None:
        check(context_length > 0, f"context_length: expected a positive integer, got {context_length}")
        check(batch > 0, f"contexts_per_batch: expected a positive integer, got {batch}")
        self.texts, self.tokenizer, self.shape = texts, tokenizer, (batch, context_length)

    def __iter__(self) -> Iterator[Tensor]:
        separator = self.tokenizer.eos_token_id
        pending: list[int] = []
        size, n_batches = self.shape[0] * self.shape[1], 0
        for text in self.texts:
            pending += self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids
            if separator is not None:
                pending.append(separator)
            whole = len(pending) // size * size
            for i in range(0, whole, size):
                yield torch.tensor(pending[i : i + size]).view(self.shape)
            pending, n_batches = pending[whole:], n_batches + whole // size
        check(n_batches > 0, f"text: expected at least {size} tokens for one batch, got {len(pending)}")
