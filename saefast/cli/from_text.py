"""The flags that say how a language model and a text become rows: of `saefast cache`, `train` and `sweep`."""

from dataclasses import dataclass, fields
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import OmitArgPrefixes, UseAppendAction, arg

from saefast.config.text import Bos, ModelDtype, Separator
from saefast.errors import check

if TYPE_CHECKING:
    from saefast.activations.sources import Source
    from saefast.activations.text_source import TextSource

POSITIVE = ("context_length", "contexts_per_batch")


@dataclass(frozen=True, kw_only=True)
class FromText:
    """How text becomes rows."""

    context_length: int = 256
    """Tokens per context."""
    contexts_per_batch: int = 4
    """Contexts per forward pass."""
    sink_ratio: float | None = 10.0
    """Drop rows whose norm is more than this many times the median norm (attention sinks); None keeps them."""
    text_field: str = "text"
    """The field of JSON objects, or the column of a table, that holds the text."""
    bos: Bos = "auto"
    """Whether each context begins with the token for the beginning of a text; auto: if the tokenizer does so."""
    separator: Separator = "auto"
    """The token after each document; auto: eos if the tokenizer has one."""
    keep_special: bool = False
    """Keep the rows of special tokens (beginning and end of text, ...)."""
    model_dtype: ModelDtype = "fp32"
    """How the model multiplies. bf16 is 1.6 to 1.7 times as fast on a processor with instructions for it, and changes rows by
    about 0.6 %."""

    def open(self, model: str, text: Path, hook: tuple[str, ...], device: str) -> "TextSource":
        from saefast.activations.text_source import TextSource

        for name in POSITIVE:
            value = getattr(self, name)
            check(value > 0, f"{name}: expected a positive integer, got {value}")
        check(bool(hook), "hook: expected at least one --hook, got none")
        options = {f.name: getattr(self, f.name) for f in fields(FromText)}
        return TextSource(model, text, hook, **options, device=device)


@dataclass(frozen=True, kw_only=True)
class Live(FromText):
    """They act with MODEL and TEXT."""

    hook: UseAppendAction[tuple[tuple[str, ...], ...]] = ()
    """Hook points: a module path for its output (model.layers.12), or path:in for its input. Rows hold the activations of
    all of them side by side. (`sweep` trains one set of SAEs for each; of a cache of several too: default all.)"""
    lm_device: str | None = None
    """Where the language model runs; default: where the SAE is trained."""

    @property
    def hooks(self) -> tuple[str, ...]:
        return tuple(chain.from_iterable(self.hook))


TextFlags = Annotated[FromText, arg(name="text"), OmitArgPrefixes]
LiveFlags = Annotated[Live, arg(name="model and text"), OmitArgPrefixes]


def open_rows(source: str, text: Path | None, live: Live, lm_device: str, batch_size: int) -> "Source":
    """What SOURCE holds; or the activations of the model SOURCE on the text. The model then runs beside the steps.

    Raises:
        InputError: as `open_source` and `TextSource`.
    """
    from saefast.activations.live_source import Background
    from saefast.activations.open import open_source

    if text is None:
        return open_source(source)
    found = live.open(source, text, live.hooks, lm_device)
    return Background(found, max(batch_size, 2 * live.contexts_per_batch * live.context_length))


def check_text_flags(text: Path | None, live: Live, but: tuple[str, ...] = ()) -> None:
    """Raise InputError at a flag that acts with MODEL and TEXT alone, if there is no text."""
    for field in fields(live) if text is None else ():
        value = getattr(live, field.name)
        same = value == field.default or field.name in but
        check(same, f"{field.name}: expected {field.default!r} without MODEL and TEXT, got {value!r}")
