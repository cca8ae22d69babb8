"""Activations of a language model, or of any module, at one or more hook points; packed contexts, and texts."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from saefast.activations.hooks import HookPoint, one_or_all, recorded
from saefast.activations.sources import Source
from saefast.activations.token_rows import TokenRows, norm_of
from saefast.errors import InputError, check

TEXT_FILES = (".txt", ".md", ".py", ".jsonl")


class ModelBatch(NamedTuple):
    """The kept activations of one batch of contexts, and where each comes from: row i is that of the token
    contexts[context[i], position[i]]. Rows of one token (of each attention head) follow each other.

    If the input is no text, `contexts` is the input [m, ...], and `position` counts the rows of each of its m entries.
    """

    activations: Tensor  # [n, d_in]
    contexts: Tensor  # [m, L] token ids, padding included, as the model is given them
    context: Tensor  # [n] row of `contexts`
    position: Tensor  # [n] column of `contexts`


class ModelSource(Source):
    """The activations of `model` at one or more hook points, over batches of inputs. The forward pass ends there.

    Rows of several hook points are those of the same token side by side, in the order of the hook points: the first
    `widths[0]` columns are those of `hooks[0]`, and so on.

    Args:
        model: any nn.Module. It is put in eval mode and called without gradient, as model(batch, **forward_kwargs), or
            model(**batch, **forward_kwargs) if the batches are dicts.
        hook: one or several, all different; see `saefast.activations.hooks`.
        batches: a re-iterable of inputs, see `saefast.activations.inputs`: token ids [m, L] for a language model, or
            dicts as a tokenizer gives them, whose rows at `attention_mask` 0 are dropped (padding). They are moved to the
            device of the model's parameters. Which rows are which tokens is found with the first batch, see
            `saefast.activations.token_rows`.
        drop_ids: token ids whose rows are dropped (special tokens).
        sink_ratio: rows with more than this many times the median norm are dropped: attention sinks, a few rows
            of huge norm that would dominate every loss and make any FVU look superb. None keeps them. The median
            is that of the first batch, without padding. Each hook point has a median of its own, and a row goes if it
            is a sink at any of them.

    `n_dropped` counts the rows dropped in the last pass, by reason: "padding", "special", "sink"; `max_norms` are the
    limits, one per hook point.

    Raises:
        InputError: unknown hook point (near ones are listed), one that the forward pass never reaches, the same one
            twice, hook points that do not have the same tokens, or whose rows are not those of tokens in order; inputs
            that the model cannot take.
    """

    def __init__(
        self,
        model: nn.Module,
        hook: str | Sequence[str],
        batches: Iterable[Any],
        drop_ids: Iterable[int] = (),
        sink_ratio: float | None = 10.0,
        forward_kwargs: dict[str, Any] | None = None,
    ) -> None:
        is_ratio = sink_ratio is None or sink_ratio > 0
        check(is_ratio, f"sink_ratio: expected a positive number or None, got {sink_ratio}")
        self.hooks: list[Any] = list(hook) if isinstance(hook, list | tuple) else [hook]
        is_set = 0 < len(self.hooks) == len(set(self.hooks))
        check(is_set, f"hook: expected one or more different hook points, got {self.hooks}")
        once = iter(batches) is batches
        check(
            not once,
            f"batches: expected what can be read again, such as a list, got {type(batches).__name__}",
        )
        self.points = [HookPoint(model, name) for name in self.hooks]
        self.model, self.batches = model.eval(), batches
        self.drop_ids = torch.tensor(sorted(drop_ids), dtype=torch.int64)
        self.sink_ratio, self.forward_kwargs = sink_ratio, forward_kwargs or {}
        self.n_dropped: Counter[str] = Counter(special=0, sink=0)
        first = next(iter(batches), None)
        check(first is not None, "batches: expected at least one batch, got none")
        self.reader = TokenRows(self.points, first, self.forward_kwargs)
        parts, is_real = self.reader.first.parts, self.reader.first.text.is_real
        self.widths = [part.shape[-1] for part in parts]
        self.d_in = sum(self.widths)
        self.max_norms = [math.inf] * len(parts)
        if sink_ratio is not None:
            some = is_real is None or bool(is_real.any())
            check(some, "batches: expected tokens in the first batch, got padding only")
            rows = [part if is_real is None else part[is_real.to(part.device)] for part in parts]
            medians = [float(norm_of(part.flatten(0, -2)).nanmedian()) for part in rows]
            self.max_norms = [sink_ratio * median or math.inf for median in medians]
        del self.reader.first  # a batch of activations

    @torch.no_grad()
    def model_batches(self, start: int = 0) -> Iterator[ModelBatch]:
        """One pass, batch by batch, from batch number `start` (earlier ones are not run)."""
        self.n_dropped = Counter(special=0, sink=0)
        for number, batch in enumerate(self.batches):
            if number < start:
                continue
            found = self.reader.read(batch)
            tokens, is_real = found.text.tokens, found.text.is_real
            m, length, n_heads = found.parts[0].shape[:-1]
            device = found.parts[0].device
            parts = [part.flatten(0, -2).to(device) for part in found.parts]
            keep = torch.ones(m, length, dtype=torch.bool, device=device)
            if is_real is not None:
                keep &= is_real.to(device)
                self.n_dropped["padding"] += int((~keep).sum()) * n_heads
            if found.text.is_ids and len(self.drop_ids):
                special = torch.isin(tokens, self.drop_ids.to(tokens.device)).to(device)
                self.n_dropped["special"] += int((keep & special).sum()) * n_heads
                keep &= ~special
            keep = keep.flatten().repeat_interleave(n_heads)
            norms = [norm_of(part) for part in parts]
            above = [norm > limit for norm, limit in zip(norms, self.max_norms, strict=True)]
            # rows with NaN or Inf are kept: they are no sinks, and the buffer stops at them or counts them
            finite = torch.stack([norm.isfinite() for norm in norms]).all(dim=0)
            is_sink = torch.stack(above).any(dim=0) & finite
            self.n_dropped["sink"] += int((keep & is_sink).sum())
            keep &= ~is_sink
            token = keep.nonzero().squeeze(1).cpu() // n_heads
            rows = torch.cat([part[keep] for part in parts], dim=1)
            yield ModelBatch(rows, tokens.cpu(), token // length, token % length)

    def rows(self, start: int = 0) -> Iterator[Tensor]:
        seen = 0
        for batch in self.model_batches():
            n = len(batch.activations)
            if seen + n > start:
                yield batch.activations[max(0, start - seen) :]
            seen += n

    @property
    def max_norm(self) -> Any:
        """`max_norms` in the form in which files hold them."""
        return one_or_all(self.max_norms)

    def describe(self) -> dict[str, Any]:
        found = {"type": "model"} | recorded(self.hooks, self.widths)
        return found | {"sink_ratio": self.sink_ratio, "max_norm": self.max_norm}


def load_model(path: str, device: str = "cpu") -> tuple[Any, Any]:
    """A Hugging Face causal language model in fp32 and its tokenizer, from a local folder or the Hub.

    Raises:
        InputError: there is no such model, it has no tokenizer, or the extra `lm` (transformers) is missing.
    """
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError:
        raise InputError("model: a language model needs `pip install saefast[lm]`") from None
    try:
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        model = nn.Module.to(model, device)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        expected = f"model: expected a Hugging Face causal language model at {path!r}"
        raise InputError(f"{expected}, got: {_line(error)}") from None
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
    expected = "text: expected a file, a folder or a .jsonl with a text field"
    check(path.exists(), f"{expected}, found nothing at {path}")
    files = [path]
    if path.is_dir():
        files = sorted(f for f in path.rglob("*") if f.suffix in TEXT_FILES and f.is_file())
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
