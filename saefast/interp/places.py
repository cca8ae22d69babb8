"""Where an SAE is in a model: the hook points where it is read and where its reconstruction is put, and the rows there."""

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from saefast.activations.hooks import HookPoint, called, described
from saefast.activations.inputs import Inputs, Text
from saefast.activations.shards import ShardSource
from saefast.activations.token_rows import Layout, TokenRows, norm_of
from saefast.config.sae import SAEConfig
from saefast.errors import check
from saefast.sae import SAE


class Read(NamedTuple):
    """The rows of one batch that an SAE replaces."""

    x: Tensor  # [n, d_in]
    target: Tensor  # [n, width_out], what is there now; x itself unless it is a transcoder
    chosen: Tensor  # [m, L, H] bool: which rows of the batch these are; H rows of each token, usually one


class Places:
    """The hook points of SAEs of the same widths in one model.

    Attributes:
        points: where the model is read: the inputs, and after them the outputs of a transcoder.
        outputs: those where the reconstruction is put; all of them, or a transcoder's outputs.
        kwargs: what the model is called with besides its inputs.
    """

    def __init__(
        self,
        saes: Sequence[SAE],
        model: nn.Module,
        hook: str | Sequence[str],
        output_hook: str | Sequence[str] | None,
        first: Any,
    ) -> None:
        config = saes[0].config
        widths = [(sae.config.d_in, sae.config.d_out) for sae in saes]
        check(len(set(widths)) == 1, f"saes: expected the same d_in and d_out, got {widths}")
        names, outputs = _names(hook), [] if output_hook is None else _names(output_hook)
        self.n_named = len(names)
        if config.d_out is None:
            check(not outputs, f"output_hook: expected None for an SAE that is no transcoder, got {outputs}")
        elif len(names) == 1 and not outputs:
            module, colon, side = str(names[0]).partition(":")
            is_input = (colon, side) == (":", "in")
            want = "where the output of the transcoder goes (by default that of the module whose input is the hook)"
            check(is_input, f"output_hook: expected a hook point, {want}, got None with hook {names[0]!r}")
            outputs = [module]
        self.points = [HookPoint(model, name) for name in names + outputs]
        self.model, self.config = self.points[0].model, config
        own = Inputs(first).kwargs
        self.kwargs = {key: value for key, value in call_kwargs(self.model).items() if key not in own}
        self.reader = TokenRows(self.points, first, self.kwargs)
        self.widths = [part.shape[-1] for part in self.reader.first.parts]
        del self.reader.first  # a batch of activations
        given = list(zip((point.name for point in self.points), self.widths, strict=True))
        self.n_inputs = n_inputs(config, given, len(names) if outputs else None)
        self.outputs = self.points if config.d_out is None else self.points[self.n_inputs :]
        self.limits, self.drop_ids = (
            [float("inf")] * len(self.points),
            torch.zeros(0, dtype=torch.int64, device="cpu"),
        )

    def set_limits(self, max_norm: float | Sequence[float], drop_ids: Iterable[int]) -> None:
        """Which rows stay as they are; see `saefast.interp.splice.evaluate_all_in_model`."""
        n = len(self.points)
        if isinstance(max_norm, Sequence):
            check(
                len(max_norm) == n,
                f"max_norm: expected one number, or one for each of {n} hook points, got {max_norm}",
            )
            self.limits = [float(limit) for limit in max_norm]
        else:
            self.limits = [float(max_norm)] * self.n_named + [float("inf")] * (n - self.n_named)
        self.drop_ids = torch.tensor(sorted(drop_ids), dtype=torch.int64, device="cpu")

    def stays(self, parts: Sequence[Tensor], text: Text) -> Tensor:
        """[m, L, H] bool: rows that stay as they are, by what the first of the hook points gave, one of `parts` for each."""
        device = parts[0].device
        stays = torch.zeros(parts[0].shape[:-1], dtype=torch.bool, device=device)
        for part, limit in zip(parts, self.limits, strict=False):
            stays |= (norm_of(part) > limit).to(device)
        if text.is_real is not None:
            stays |= ~text.is_real.to(device)[..., None]
        if text.is_ids and len(self.drop_ids):
            stays |= torch.isin(text.tokens, self.drop_ids.to(text.tokens.device)).to(device)[..., None]
        return stays

    def rows(self, inputs: Inputs, captured: Sequence[Tensor]) -> Read:
        """Of what the hook points gave for these inputs, the rows that the SAE replaces."""
        found = self.reader.in_order(inputs, captured)
        parts = found.parts
        device = parts[0].device
        stays = self.stays(parts, found.text)
        read = torch.cat([part.to(device) for part in parts], dim=-1)[~stays]
        finite = bool(read.isfinite().all())
        names = ", ".join(repr(point.name) for point in self.points)
        check(finite, f"batches: expected finite activations at {names}, got NaN or Inf in {read.dtype}")
        x = read[:, : self.config.d_in]
        return Read(x, read[:, -self.config.width_out :], ~stays)

    @contextmanager
    def replaced(self, inputs: Inputs, read: Read, rows: Tensor) -> Iterator[None]:
        """While it lasts, a pass over these inputs has `rows` [n, width_out] in place of those that were read."""
        text, first = inputs.texts[self.reader.place], len(self.points) - len(self.outputs)
        widths = self.widths[first:]

        def put(columns: Tensor, layout: Layout, activations: Tensor) -> Tensor:
            part = layout.in_order(activations, len(text.tokens), text.length).clone()
            part[read.chosen.to(part.device)] = columns.to(part)
            return layout.put_back(part, activations)

        with ExitStack() as stack:
            layouts = self.reader.layouts[first:]
            for point, columns, layout in zip(self.outputs, rows.split(widths, dim=1), layouts, strict=True):
                stack.enter_context(point.attached(partial(put, columns, layout)))
            yield

    def logits(self, inputs: Inputs) -> Tensor:
        """The whole pass -> [m, L, vocabulary]."""
        return next_token_logits(self.model, *inputs.args, **inputs.kwargs, **self.kwargs)


def call_kwargs(model: nn.Module) -> dict[str, Any]:
    """What a language model is called with besides its inputs: no keys and values are kept, if it has a word for that."""
    parameters = inspect.signature(model.forward).parameters
    takes = "use_cache" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return {"use_cache": False} if takes else {}


def next_token_logits(model: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
    """A whole pass -> [m, L, vocabulary].

    Raises:
        InputError: the model has no such output.
    """
    output = called(model, *args, **kwargs)
    logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    got = described(logits) if isinstance(logits, Tensor) else f"{type(output).__name__} without .logits"
    ok = isinstance(logits, Tensor) and logits.ndim == 3
    check(ok, f"model: expected next-token logits [contexts, length, vocabulary] from it, got {got}")
    assert isinstance(logits, Tensor)
    return logits


def n_inputs(config: SAEConfig, hooks: Sequence[tuple[str, int]], n: int | None = None) -> int:
    """How many of these hook points, with their widths, such an SAE reads: all of them, or the inputs of a transcoder.

    Args:
        n: if it is known; else the inputs are the first ones, whose widths add up to d_in, as a cache names them.

    Raises:
        InputError: other widths.
    """
    d_in, d_out, widths = config.d_in, config.d_out, [width for _, width in hooks]
    if n is None:
        ends = list(accumulate(widths))
        n = ends.index(d_in) + 1 if d_out is not None and d_in in ends else len(hooks)
    fits = sum(widths[:n]) == d_in and sum(widths[n:]) == (d_out or 0)
    got = ", ".join(f"{width} at {name!r}" for name, width in hooks)
    want = f"width d_in = {d_in}" + ("" if d_out is None else f" and, behind them, d_out = {d_out}")
    check(fits, f"hook: expected activations of {want}, got {got}")
    return n


class Cached(NamedTuple):
    """What a cache knows of the place that its columns come from, as `evaluate_in_model` takes it."""

    hooks: tuple[str, ...]
    limits: tuple[float, ...]  # the max_norm of each
    drop_ids: tuple[int, ...]

    @classmethod
    def of(
        cls, source: Any, config: SAEConfig, name: str, columns: tuple[int, int] | None = None
    ) -> "Cached":
        """The hook points whose activations are these columns of a cache; None: all of them.

        Args:
            source: a shard folder of `saefast cache`.
            config: of an SAE that was trained on these columns.
            name: the argument that asks for the evaluation in the model, for the message.

        Raises:
            InputError: activations of another origin or width, or columns that are not those of whole hook points.
        """
        of_model = isinstance(source, ShardSource) and source.index["model"] and all(source.hooks)
        ok = bool(of_model) and "contexts" in source.shard(0)
        want = "a shard folder of `saefast cache`, with the model, the hook points and the text"
        check(ok, f"{name}: expected {want}, these are other activations")
        return cls._cut(source.hooks, source.widths, source.index["notes"], config, columns)

    @classmethod
    def described(cls, source: Mapping[str, Any], config: SAEConfig) -> "Cached":
        """The same, of a source as it described itself: `Records.index["source"]`, or "source" in run.json.

        Raises:
            InputError: activations of no known hook point, or of another width.
        """
        hooks = source.get("hook")
        hooks = hooks if isinstance(hooks, list) else [hooks]
        known = all(isinstance(hook, str) for hook in hooks)
        check(
            known,
            f"hook: expected the hook points of a language model, the source has {source.get('hook')!r}",
        )
        widths = source.get("widths") or [config.row_width]
        return cls._cut(hooks, widths, source.get("notes") or source, config, source.get("columns"))

    @classmethod
    def _cut(
        cls,
        hooks: Sequence[Any],
        widths: Sequence[int],
        notes: Mapping[str, Any],
        config: SAEConfig,
        columns: Sequence[int] | None,
    ) -> "Cached":
        have, ends = list(zip(hooks, widths, strict=True)), [0, *accumulate(widths)]
        first, end = columns or (0, ends[-1])
        check({first, end} <= {*ends}, f"columns: expected those of hook points of {have}, got {columns}")
        part = slice(ends.index(first), ends.index(end))
        n_inputs(config, have[part])
        limits = notes.get("max_norm")  # a list where there are several hook points
        limits = limits if isinstance(limits, list) else [limits] * len(hooks)
        drop_ids = notes.get("dropped_ids") or ()
        return cls(
            tuple(hooks[part]), tuple(limit or float("inf") for limit in limits[part]), tuple(drop_ids)
        )


def _names(hook: str | Sequence[str]) -> list[Any]:
    names = list(hook) if isinstance(hook, list | tuple) else [hook]
    check(bool(names), "hook: expected a hook point, got none")
    return names
