"""What a model is given: token ids, images, or keyword arguments; with padding; and whether it can take them.

A batch is a tensor, for model(batch), or a dict of tensors (also a BatchEncoding of a tokenizer), for model(**batch).
Token ids are a tensor of integers [m, L] (or [L], which the model is given as [1, L]), or the entry "input_ids" or "decoder_input_ids". Where
"attention_mask" (or "decoder_attention_mask") [m, L] is 0, there is padding.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from saefast.activations.hooks import described
from saefast.errors import check

log = logging.getLogger("saefast")
TEXTS = {  # entries of a dict with an axis of contexts and one of positions, and where their padding is told
    "input_ids": "attention_mask",
    "inputs_embeds": "attention_mask",
    "decoder_input_ids": "decoder_attention_mask",
    "decoder_inputs_embeds": "decoder_attention_mask",
}
_warned: set[str] = set()


@dataclass(frozen=True)
class Text:
    """One of the inputs that have a row of the activations for each of their tokens."""

    name: str
    tokens: (
        Tensor  # [m, L] ids; [m, L, width] if they are embeddings already; [m, ...] images and other inputs
    )
    is_real: Tensor | None  # [m, L] bool, False at padding; None: there is none
    length: int | None  # L; None: an input without tokens, of which only the number of contexts is known

    @property
    def is_ids(self) -> bool:
        return self.length is not None and self.tokens.ndim == 2


class Inputs:
    """One batch, as the model is called with it.

    Args:
        device: where its tensors go; None leaves them.

    Attributes:
        args, kwargs: model(*args, **kwargs) is the pass.
        texts: what activations can be rows of; at least one.

    Raises:
        InputError: neither a tensor nor a dict of tensors, or a mask of another shape than its tokens.
    """

    def __init__(self, batch: Any, device: torch.device | None = None) -> None:
        entries = dict(batch) if isinstance(batch, Mapping) else {"batch": batch}
        for name, value in entries.items():
            given = isinstance(value, Tensor) or (
                name != "batch" and isinstance(value, bool | int | str | None)
            )
            want = (
                "a tensor, or a dict of tensors"
                if name == "batch"
                else "a tensor (tokenizers: return_tensors='pt')"
            )
            check(given, f"{_named(name)}: expected {want}, got {described(value)}")
        self.is_dict = isinstance(batch, Mapping)
        moved = {k: v.to(device) if isinstance(v, Tensor) and device else v for k, v in entries.items()}
        self.kwargs: dict[str, Any] = moved if self.is_dict else {}
        self.texts = self._texts() if self.is_dict else [_text("batch", moved["batch"], None)]
        self.args: tuple[Any, ...] = () if self.is_dict else (self.texts[0].tokens,)

    def _texts(self) -> list[Text]:
        """Those with tokens, then images, sounds and other floats, of which a model may have rows before they meet text."""
        kwargs = self.kwargs
        names = [name for name, value in kwargs.items() if isinstance(value, Tensor) and value.ndim > 0]
        check(bool(names), f"batches: expected a dict with tensors, got the entries {list(kwargs)}")
        texts = [_text(name, kwargs[name], kwargs.get(TEXTS[name])) for name in TEXTS if name in names]
        others = [name for name in names if name not in {*TEXTS, *TEXTS.values()}]
        floats = [name for name in others if kwargs[name].is_floating_point() and kwargs[name].ndim > 1]
        if not texts:  # a model with names of its own
            floats = [name for name in others if kwargs[name].ndim == 2 and name not in floats] + floats
        return texts + [_text(name, kwargs[name], None) for name in floats or ([] if texts else others[:1])]

    def part(self, n: int, lengths: Sequence[int]) -> "Inputs":
        """n contexts of this batch, `lengths` positions of each of its texts, again from the start where it has fewer.

        Without padding. Of inputs without tokens only the number of contexts changes.
        """
        if not self.is_dict:
            return Inputs(_part(self.texts[0].tokens, self.texts[0], n, lengths[0]))
        parts = {}
        for name, value in self.kwargs.items():
            places = [i for i, text in enumerate(self.texts) if name in (text.name, TEXTS.get(text.name))]
            place = places[0] if places else 0
            parts[name] = _part(value, self.texts[place], n, lengths[place], name in TEXTS.values())
        return Inputs(parts)

    def changed(self, text: Text, context: int, position: int) -> "Inputs":
        """This batch with another token at one place; of an input without tokens, with the whole context changed."""
        tokens = text.tokens.clone()
        place = (context,) if text.length is None else (context, position)
        if tokens.is_floating_point():
            tokens[place] += 1 + tokens[place].abs().mean()
        else:  # an id that is in the vocabulary whatever that is
            tokens[place] = torch.where(tokens[place] > 0, tokens[place] - 1, 1)
        return Inputs(self.kwargs | {text.name: tokens} if self.is_dict else tokens)


def _part(value: Any, text: Text, n: int, length: int, is_mask: bool = False) -> Any:
    """What `Inputs.part` takes of one of its entries."""
    m = len(text.tokens)
    if not isinstance(value, Tensor) or value.ndim == 0 or len(value) not in (m, 1):
        return value
    rows = (
        torch.arange(n, dtype=torch.int64, device="cpu") % m
        if len(value) == m
        else torch.zeros(1, dtype=torch.int64, device="cpu")
    )
    if text.length is None or value.ndim == 1 or value.shape[1] != text.length:
        return value[rows.to(value.device)]
    if is_mask:
        return torch.ones(len(rows), length, dtype=value.dtype, device=value.device)
    # contexts that come again are turned, so that no two are equal
    columns = (
        torch.arange(length, dtype=torch.int64, device="cpu")
        + torch.arange(len(rows), dtype=torch.int64, device="cpu")[:, None] // m
    ) % text.length
    return value[rows[:, None].to(value.device), columns.to(value.device)]


def _named(name: str) -> str:
    return "batches" if name == "batch" else f"batches: {name}"


def _text(name: str, tokens: Tensor, mask: Tensor | None) -> Text:
    check(tokens.ndim > 0 and tokens.numel() > 0, f"{_named(name)}: expected inputs, got {described(tokens)}")
    is_integer = not (tokens.is_floating_point() or tokens.dtype == torch.bool)
    if name in ("input_ids", "decoder_input_ids"):
        ok = is_integer and tokens.ndim == 2
        check(ok, f"{_named(name)}: expected token ids [contexts, length], got {described(tokens)}")
    if name == "batch" and is_integer and tokens.ndim == 1:
        tokens = tokens[None]
    if name in TEXTS or (is_integer and tokens.ndim == 2):
        shape = tokens.shape[:2]
        if mask is not None:
            ok = mask.shape == shape
            want = f"the mask [contexts, length] of {name}, {list(shape)}"
            check(ok, f"batches: {TEXTS[name]}: expected {want}, got {list(mask.shape)}")
            ok = bool(((mask == 0) | (mask == 1)).all())
            check(ok, f"batches: {TEXTS[name]}: expected 0 at padding and 1 elsewhere, got other numbers")
            mask = mask != 0
        return Text(name, tokens, mask, shape[1])
    return Text(name, tokens, None, None)


def device_of(model: nn.Module) -> torch.device | None:
    """That of the model's parameters; None if it has none."""
    weight = next(model.parameters(), None)
    return None if weight is None else weight.device


def inputs_for(model: nn.Module, batch: Any) -> Inputs:
    """The batch on the model's device, after it was seen that the model has an embedding for each id and position.

    Raises:
        InputError: what `Inputs` refuses; token ids outside of the vocabulary; contexts longer than the model's table
            of positions. A model with rotary positions runs beyond the length it was trained for: that is a warning.
    """
    given = Inputs(batch)
    for text in given.texts:
        if text.is_ids and text.tokens.device.type != "meta" and (size := vocabulary_size(model)):
            for id in (int(text.tokens.min()), int(text.tokens.max())):
                want = f"token ids from 0 to {size - 1}, the vocabulary of the model"
                check(0 <= id < size, f"{_named(text.name)}: expected {want}, got {id}")
        if text.length is not None:
            check_length(model, text.length)
    return Inputs(batch, device_of(model))


def vocabulary_size(model: nn.Module) -> int | None:
    """Of a Hugging Face model; None where it is not known."""
    try:
        embedding = model.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError, TypeError):
        return None
    return embedding.num_embeddings if isinstance(embedding, nn.Embedding) else None


def table_of_positions(model: nn.Module) -> int | None:
    """The number of positions for which a model has learned embeddings, as GPT-2 and BERT have; None without a table."""
    found = []
    for path, module in model.named_modules():
        is_table = path.endswith(("wpe", "position_embeddings", "position_embedding", "embed_positions"))
        if isinstance(module, nn.Embedding) and is_table and "vision" not in path:
            # some tables begin with rows for padding: those up to padding_idx (RoBERTa), or an offset (OPT, BART)
            before = 0 if module.padding_idx is None else module.padding_idx + 1
            found.append(module.num_embeddings - max(before, int(getattr(module, "offset", 0))))
    return min(found, default=None)


def check_length(model: nn.Module, length: int, name: str = "batches") -> None:
    """Raise InputError if a context of this length has positions for which the model has no embeddings."""
    table = table_of_positions(model)
    want = f"contexts of at most {table} tokens, the positions of the model"
    check(table is None or length <= table, f"{name}: expected {want}, got {length}")
    config = getattr(model, "config", None)
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
    trained = getattr(config, "max_position_embeddings", None)
    is_plain = isinstance(rope, dict) and rope.get("rope_type", rope.get("type", "default")) == "default"
    if is_plain and table is None and isinstance(trained, int) and length > trained > 0:
        said = (
            f"{name}: contexts of {length} tokens are longer than the {trained} that the model was made for"
        )
        if said not in _warned:
            _warned.add(said)
            log.warning("%s: activations at later positions are unlike those before", said)
