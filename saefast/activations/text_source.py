"""A language model on text as a source: what `saefast cache` writes, and what `saefast train MODEL TEXT` trains on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from saefast.activations.hooks import recorded
from saefast.activations.lm import ModelSource, load_model, model_contexts
from saefast.activations.texts import Texts, bytes_of
from saefast.config.text import Bos, ModelDtype, Separator
from saefast.files import digest


class TextSource(ModelSource):
    """The activations of a language model on text, in fp32, as the model gives them.

    Args:
        model: Hugging Face causal language model: a local folder, or a name on the Hub. It is loaded in fp32.
        text: see `saefast.activations.texts.Texts`, with `text_field`.
        hook: see `ModelSource`, with `sink_ratio` and `model_dtype`.
        context_length, contexts_per_batch, bos, separator: see `saefast.activations.contexts.PackedContexts`.
        keep_special: keep the rows of special tokens.
        device: where the model runs.

    Raises:
        InputError: there is no such text, model, tokenizer or hook point, or they do not go together.
    """

    def __init__(
        self,
        model: str,
        text: str | Path,
        hook: str | Sequence[str],
        *,
        text_field: str = "text",
        context_length: int = 256,
        contexts_per_batch: int = 4,
        bos: Bos = "auto",
        separator: Separator = "auto",
        keep_special: bool = False,
        sink_ratio: float | None = 10.0,
        model_dtype: ModelDtype = "fp32",
        device: str = "cpu",
    ) -> None:
        texts = Texts(text, text_field)
        next(texts.pieces(), None)  # a missing text is reported before a model is loaded
        loaded, tokenizer = load_model(model, device)
        contexts = model_contexts(
            loaded, tokenizer, texts, context_length, contexts_per_batch, bos, separator
        )
        drop = () if keep_special else contexts.special_ids
        super().__init__(loaded, hook, contexts, drop, sink_ratio, {"use_cache": False}, model_dtype)
        self.name, self.text, self.field, self.contexts = model, Path(text), text_field, contexts
        notes: dict[str, Any] = {} if model_dtype == "fp32" else {"model_dtype": model_dtype}
        notes |= {"context_length": context_length, "contexts_per_batch": contexts_per_batch}
        notes |= {"sink_ratio": sink_ratio, "max_norm": self.max_norm if sink_ratio else None}
        notes |= {"dropped_ids": sorted(drop)} | contexts.notes
        self.notes = notes | ({} if text_field == "text" else {"text_field": text_field})

    def describe(self) -> dict[str, Any]:
        """As of a shard folder of the same rows; and all that would make them others: a run goes on with the same ones."""
        found = {"type": "text", "model": self.name} | recorded(self.hooks, self.widths)
        notes = {"text": str(self.text), "text_field": self.field} | self.notes
        notes |= {"bos": self.contexts.bos, "separator": self.contexts.separator}
        first = next(iter(self.contexts))
        notes |= {"text_bytes": bytes_of(self.text), "first_tokens": digest({"first": first})}
        return found | {"notes": notes}
