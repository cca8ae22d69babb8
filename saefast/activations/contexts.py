"""Contexts for a language model: the tokens of documents one after another, cut to one length."""

import io
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from saefast.activations.texts import Pieces, Texts, checked, text_of
from saefast.activations.tokens import encode, token_ids
from saefast.config.text import Bos, Separator
from saefast.errors import InputError, check


class PackedContexts:
    """Re-iterable of token batches [batch, context_length] int64: documents one after another, each followed by a separator.

    Every position holds a real token: documents are cut where a context ends, nothing is padded; the tokens
    after the last full batch are left out. Models that were trained with a token for the beginning of a text in front
    of every context (Gemma, Llama) get it at position 0.

    Args:
        texts: the documents: `Texts(path)`, a list of strings, a dataset of Hugging Face, or anything else that gives
            strings, or dicts with the field `field`, each time it is iterated over. An iterator is good for one pass;
            it may be begun once more as long as nobody has asked for a second batch (a source looks at the first).
        batch: contexts in a batch.
        bos: whether each context begins with the tokenizer's bos token, which counts as one of its tokens. "auto": if
            the tokenizer puts it before a text by itself. A context whose text begins with it does not get it twice.
        separator: the token after each document. "auto": eos if there is one, as in sparsify. SAELens uses "bos".
        n_vocab: rows of the model's embedding; a token beyond them is refused before the model sees it.

    Attributes:
        bos, separator: the token ids, or None.
        special_ids: ids of tokens that are no text, sorted: those that the tokenizer calls special, and the two above.

    Raises:
        InputError: `texts` does not give documents; a token that the tokenizer does not have; while it is read: see
            `Texts`, a token beyond `n_vocab`, too few tokens for one batch, or a second pass over an iterator.
    """

    def __init__(
        self,
        texts: Iterable[Any],
        tokenizer: Any,
        context_length: int = 256,
        batch: int = 4,
        bos: Bos = "auto",
        separator: Separator = "auto",
        field: str = "text",
        n_vocab: int | None = None,
    ) -> None:
        for name, size in (("context_length", context_length), ("contexts_per_batch", batch)):
            is_size = isinstance(size, int) and size > 0
            check(is_size, f"{name}: expected a positive integer, got {size}")
        for name, value, choices in (("bos", bos, Bos), ("separator", separator, Separator)):
            names = list(get_args(choices))
            check(value in names, f"{name}: expected one of {names}, got {value!r}")
        self.texts, self.tokenizer, self.shape = (
            _documents_of(texts, field),
            tokenizer,
            (batch, context_length),
        )
        self.field, self.n_vocab = field, n_vocab
        adds_bos = bos == "always" or (bos == "auto" and _begins_with_bos(tokenizer))
        self.bos = _token(tokenizer, "bos", "bos") if adds_bos else None
        if separator == "auto":
            self.separator = getattr(tokenizer, "eos_token_id", None)
        else:
            self.separator = None if separator == "none" else _token(tokenizer, separator, "separator")
        is_long = self.bos is None or context_length > 1
        check(is_long, "context_length: expected 2 or more, a bos token and one of the text, got 1")
        own = [id for id in (self.bos, self.separator) if id is not None]
        self.special_ids = sorted({*tokenizer.all_special_ids, *own})
        self._check_ids(own)
        self.notes: dict[str, Any] = {"bos": self.bos} if adds_bos else {}
        self.notes |= {} if separator == "auto" else {"separator": self.separator}

    def __iter__(self) -> Iterator[Tensor]:
        (batch, length), n_batches = self.shape, 0
        rows: list[list[int]] = []
        pending: list[int] = []
        for ids, ends in token_ids(_documents(self.texts, self.field), self.tokenizer):
            self._check_ids(ids)
            pending += ids
            if ends and self.separator is not None:
                pending.append(self.separator)
            at = 0
            while at < len(pending):
                begin = [] if self.bos is None or pending[at] == self.bos else [self.bos]
                end = at + length - len(begin)
                if end > len(pending):
                    break
                rows.append(begin + pending[at:end])
                at = end
                if len(rows) == batch:
                    if n_batches == 1 and isinstance(self.texts, _Once):
                        self.texts.kept = None
                    yield torch.tensor(rows, dtype=torch.int64, device="cpu")
                    rows, n_batches = [], n_batches + 1
            del pending[:at]
        size, got = batch * length, len(rows) * length + len(pending)
        check(n_batches > 0, f"text: expected at least {size} tokens for one batch, got {got}")

    def _check_ids(self, ids: list[int]) -> None:
        if self.n_vocab is None or not ids or max(ids) < self.n_vocab:
            return
        largest = max(ids)
        token = self.tokenizer.convert_ids_to_tokens(largest)
        limit = f"model: its embedding has {self.n_vocab} rows, but its tokenizer"
        raise InputError(f"{limit} gives token {largest} ({token!r}): they do not belong together")


def _token(tokenizer: Any, name: str, option: str) -> int:
    found = getattr(tokenizer, f"{name}_token_id", None)
    if found is None:
        raise InputError(f"{option}: the tokenizer has no {name} token; --{option} chooses another way")
    return int(found)


def _begins_with_bos(tokenizer: Any) -> bool:
    """Whether the tokenizer puts its bos token before a text if nobody tells it not to."""
    bos = getattr(tokenizer, "bos_token_id", None)
    if bos is None:
        return False
    return list(tokenizer("x").input_ids[:1]) == [bos] != encode(tokenizer, "x")[:1]


class _Once:
    """An iterator of documents. What it has given is kept, for it to be begun again, until `kept` is None."""

    def __init__(self, documents: Iterator[Any]) -> None:
        self.documents = documents
        self.kept: list[Any] | None = []

    def __iter__(self) -> Iterator[Any]:
        name = type(self.documents).__name__
        again = f"texts: a {name} can be read only once, and a second pass has begun: give a list, a dataset, or Texts(path)"
        check(self.kept is not None, again)
        yield from list(self.kept or [])
        for document in self.documents:
            if self.kept is not None:
                self.kept.append(document)
            yield document


def _documents_of(texts: Any, field: str) -> Any:
    """`texts` if it is a collection of documents; what only looks like one is refused."""
    expected = "texts: expected documents: Texts(path), a list of strings, a dataset of Hugging Face; got"
    if isinstance(texts, str | bytes | Path | io.IOBase):
        one = f"{expected} one {type(texts).__name__}"
        raise InputError(f"{one}: give [text] for one document, Texts(path) for a file")
    if isinstance(texts, Mapping):
        names = ", ".join(map(str, list(texts)[:10]))
        raise InputError(f"{expected} a {type(texts).__name__} of {names}: give one of its values")
    is_frame = hasattr(texts, "columns") and hasattr(texts, "shape")
    check(not is_frame, f"{expected} a {type(texts).__name__}: give one column, table[{field!r}]")
    columns = getattr(texts, "column_names", None)
    if isinstance(columns, list):  # a dataset of Hugging Face; one that streams may not know its columns
        names = ", ".join(map(str, columns[:20]))
        check(field in columns, f'texts: expected a column "{field}" (field), it has {names}')
        return texts.select_columns([field]) if hasattr(texts, "select_columns") else texts
    try:
        once = iter(texts) is iter(texts)
    except TypeError:
        raise InputError(f"{expected} {type(texts).__name__}") from None
    return _Once(iter(texts)) if once else texts


def _documents(texts: Any, field: str) -> Pieces:
    if isinstance(texts, Texts):
        yield from texts.pieces()
        return
    number = 0
    for number, document in enumerate(texts, 1):
        where = f"texts: document {number}"
        if isinstance(document, str):
            yield checked(document, where), True
        else:
            yield text_of(document, field, where, "a string, or a dict"), True
    check(number > 0, "texts: expected documents, got none")
