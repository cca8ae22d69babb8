"""Activations of a language model, or of any module, at one or more hook points; packed contexts, and texts."""

import math
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from saefast.activations.contexts import PackedContexts
from saefast.activations.hooks import HookPoint, one_or_all, recorded
from saefast.activations.inputs import table_of_positions, vocabulary_size
from saefast.activations.model_dtype import checked
from saefast.activations.sources import Source
from saefast.activations.texts import Texts, read_texts
from saefast.activations.token_rows import TokenRows, norm_of
from saefast.config.text import Bos, ModelDtype, Separator
from saefast.errors import InputError, check

__all__ = [
    "ModelBatch",
    "ModelSource",
    "PackedContexts",
    "Texts",
    "load_model",
    "model_contexts",
    "read_texts",
]


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
        model_dtype: "bf16" takes the model's products in bf16, see `saefast.activations.model_dtype`; rows are fp32 then.
            "fp32" leaves the model as it is.

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
        model_dtype: ModelDtype = "fp32",
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
        model_dtype = checked(model_dtype, model)
        self.drop_ids = torch.tensor(sorted(drop_ids), dtype=torch.int64, device="cpu")
        self.sink_ratio, self.forward_kwargs = sink_ratio, forward_kwargs or {}
        self.n_dropped: Counter[str] = Counter(special=0, sink=0)
        first = next(iter(batches), None)
        check(first is not None, "batches: expected at least one batch, got none")
        self.reader = TokenRows(self.points, first, self.forward_kwargs, model_dtype)
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
        # the first row of each batch from number `_from` on, as far as a pass has come
        self._from, self._starts = 0, array("q", [0])

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
        if start < self._starts[0]:  # a new pass, after a resume
            self.go_on({})
        place = bisect_right(self._starts, start) - 1
        seen = self._starts[place]
        for following, batch in enumerate(self.model_batches(self._from + place), place + 1):
            n = len(batch.activations)
            if following == len(self._starts):
                self._starts.append(seen + n)
            if seen + n > start:
                yield batch.activations[max(0, start - seen) :]
            seen += n

    def mark(self, row: int) -> dict[str, int]:
        place = bisect_right(self._starts, row) - 1
        return {"batch": self._from + place, "row": self._starts[place]}

    def go_on(self, mark: dict[str, Any]) -> None:
        found = {"batch": 0, "row": 0} | (mark if isinstance(mark, dict) else {"batch": mark})
        whole = all(type(found[name]) is int and found[name] >= 0 for name in ("batch", "row"))
        check(whole, f"resume: expected numbers of 0 or more, got {mark}")
        self._from, self._starts = found["batch"], array("q", [found["row"]])

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


def model_contexts(
    model: nn.Module,
    tokenizer: Any,
    texts: Iterable[Any],
    context_length: int = 256,
    batch: int = 4,
    bos: Bos = "auto",
    separator: Separator = "auto",
    field: str = "text",
) -> PackedContexts:
    """`PackedContexts` that the model can take: no longer than it has positions, of tokens that its embedding has.

    Raises:
        InputError: contexts that are longer than the model has positions; also as `PackedContexts`.
    """
    positions = n_positions(model)
    fits = positions is None or context_length <= positions
    check(
        fits,
        f"context_length: expected at most {positions}, the positions of the model, got {context_length}",
    )
    return PackedContexts(
        texts, tokenizer, context_length, batch, bos, separator, field, vocabulary_size(model)
    )


def n_positions(model: nn.Module) -> int | None:
    """The largest number of tokens that a model takes at once: those it has embeddings for, or by its configuration of Hugging
    Face; None if it says none."""
    if (table := table_of_positions(model)) is not None:
        return table
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    names = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length")
    found = (getattr(config, name, None) for name in names)
    return next((value for value in found if isinstance(value, int) and value > 0), None)
