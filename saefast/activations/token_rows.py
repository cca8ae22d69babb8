"""Which row of the activations is which token: certain, or refused.

Modules give activations [m, L, width], flattened [m * L, width] (routers of experts), time first [L, m, width], or by heads
[m, L, H, width], [m, H, L, width]. The shape of one batch can mean several of these (m = L, or a convolution whose channels are as
many as its positions), and rows that are sorted by expert can be as many as there are tokens. So the model runs once more
on a small batch of other sizes, and axes are those that follow the sizes of the input. Where both axes are one, tokens are
changed, too: only rows of their context may change.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from saefast.activations.hooks import HookPoint, capture_all
from saefast.activations.inputs import Inputs, Text, inputs_for
from saefast.activations.model_dtype import products_in, widened
from saefast.config.text import ModelDtype
from saefast.errors import InputError, check

CHANGED = 1e-2  # of the norm: more than what the rest of a batch does to the rounding of a row
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Layout:
    """Where the contexts and the positions of the input are among the axes of activations."""

    context: int  # axis
    position: int | None  # axis; that of the contexts if both are one; None: the input has no tokens

    def in_order(self, activations: Tensor, m: int, length: int | None) -> Tensor:
        """Activations -> [m, L, H, width]: H rows of each token, usually one. Without tokens L = 1."""
        if self.position is None or length is None:
            x = activations.unflatten(self.context, (m, -1)).movedim(self.context, 0)
            return x.reshape(m, -1, 1, x.shape[-1])
        x, position = activations, self.position
        if position == self.context:
            x, position = x.unflatten(self.context, (m, length)), self.context + 1
        x = x.movedim((self.context, position), (0, 1))
        return x.reshape(m, length, -1, x.shape[-1])

    def put_back(self, rows: Tensor, like: Tensor) -> Tensor:
        """`in_order` undone: [m, L, H, width] -> the shape of the activations `like`."""
        assert self.position is not None
        if self.position == self.context:
            return (
                rows.reshape(like.shape)
                if self.context == 0
                else rows.flatten(0, 1).movedim(0, self.context).reshape(like.shape)
            )
        axes = self.context, self.position
        moved = like.movedim(axes, (0, 1)).shape
        return rows.reshape(moved).movedim((0, 1), axes)


def norm_of(rows: Tensor) -> Tensor:
    """rows [..., n, width] -> [..., n], in fp32 at least: in fp16 a norm overflows before its entries do."""
    return rows.norm(dim=-1, dtype=torch.promote_types(rows.dtype, torch.float32))


class Rows(NamedTuple):
    """The activations of one batch at several hook points, as rows of tokens."""

    parts: list[Tensor]  # [m, L, H, width] each
    text: Text
    captured: list[Tensor]  # as the modules gave them


class TokenRows:
    """Reads the activations at hook points of one model as rows of the tokens of its input.

    Args:
        first: a batch; the layout of each hook point is found with it.
        forward_kwargs: what the model is given besides.
        model_dtype: see `saefast.activations.model_dtype`.

    Raises:
        InputError: rows that are not those of tokens in order, named by the hook point; several hook points that do not
            have the same tokens; what `inputs_for` refuses.
    """

    def __init__(
        self,
        points: Sequence[HookPoint],
        first: Any,
        forward_kwargs: dict[str, Any] | None = None,
        model_dtype: ModelDtype = "fp32",
    ) -> None:
        self.model_dtype: ModelDtype = model_dtype
        self.points, self.model, self.forward_kwargs = list(points), points[0].model, forward_kwargs or {}
        with torch.no_grad():
            inputs = self.inputs(first)
            captured = self._capture(inputs)
            self.place, self.layouts = self._find(inputs, captured)
            self.first = self.in_order(inputs, captured)

    def inputs(self, batch: Any) -> Inputs:
        inputs = inputs_for(self.model, batch)
        both = sorted(inputs.kwargs.keys() & self.forward_kwargs.keys())
        check(not both, f"forward_kwargs: expected other names than those of the batches, got {both} in both")
        return inputs

    def read(self, batch: Any) -> Rows:
        """Run the model up to the last hook point."""
        inputs = self.inputs(batch)
        return self.in_order(inputs, self._capture(inputs))

    def _capture(self, inputs: Inputs) -> list[Tensor]:
        with products_in(self.model_dtype, self.model):
            found = capture_all(self.points, *inputs.args, **inputs.kwargs, **self.forward_kwargs)
        return found if self.model_dtype == "fp32" else widened(found)

    def in_order(self, inputs: Inputs, captured: Sequence[Tensor]) -> Rows:
        """What the hook points gave for these inputs, as rows of tokens.

        Raises:
            InputError: other shapes than those of the first batch.
        """
        text = inputs.texts[self.place]
        parts = [self.part(i, activations, text) for i, activations in enumerate(captured)]
        for point, part in zip(self.points, parts, strict=True):
            got, want = list(part.shape[:-1]), list(parts[0].shape[:-1])
            other = f"as at {self.points[0].name!r}"
            check(
                got == want,
                f"hook: expected rows {want} [contexts, positions, heads] at {point.name!r}, {other}, got {got}",
            )
        return Rows(parts, text, list(captured))

    def part(self, i: int, activations: Tensor, text: Text) -> Tensor:
        """What hook point i gave for this text -> [m, L, H, width].

        Raises:
            InputError: another shape than that of the first batch.
        """
        layout, shape = self.layouts[i], activations.shape
        m, length = len(text.tokens), text.length
        if layout.position is None:
            ok = shape[layout.context] % m == 0
        elif layout.position == layout.context:
            ok = shape[layout.context] == m * (length or 0)
        else:
            ok = (shape[layout.context], shape[layout.position]) == (m, length)
        check(ok, _refusal(self.points[i], [text], shape))
        return layout.in_order(activations, m, length)

    def _find(self, inputs: Inputs, captured: list[Tensor]) -> tuple[int, list[Any]]:
        """The text whose tokens the rows are, and the layout of each hook point."""
        small, found = self._small(inputs)
        of_text = []
        for place, text in enumerate(inputs.texts):
            other = None if found is None else small.texts[place]
            probes: Sequence[Tensor | None] = [None] * len(captured) if found is None else found
            pairs = enumerate(zip(captured, probes, strict=True))
            of_text.append([self._layout(i, x, probe, text, other, small) for i, (x, probe) in pairs])
            if all(of_text[-1]):
                return place, of_text[-1]
        for i, layouts in enumerate(zip(*of_text, strict=True)):
            check(any(layouts), _refusal(self.points[i], inputs.texts, captured[i].shape))
        names = [
            inputs.texts[next(p for p, found in enumerate(of) if found)].name
            for of in zip(*of_text, strict=True)
        ]
        got = ", ".join(f"{name} at {point.name!r}" for name, point in zip(names, self.points, strict=True))
        raise InputError(f"hook: expected hook points with rows of the same tokens, got those of {got}")

    def _small(self, inputs: Inputs) -> tuple[Inputs, list[Tensor] | None]:
        """A batch in which the numbers of contexts and, where the model takes that, of positions are others than in this
        one, and the activations there; None if the model takes neither."""
        m, taken = len(inputs.texts[0].tokens), {text.length for text in inputs.texts}
        n = 2 if m != 2 else 3
        lengths: list[int] = []
        for text in inputs.texts:
            sizes = set(range(2, 12)) - {*taken, *lengths, n} - {m * (text.length or 0) // n}
            lengths.append(
                max((size for size in sizes if size <= min(text.length or 1, 5)), default=min(sizes))
            )
        small = inputs.part(n, lengths)
        if (found := self._try(small)) is None:
            small = inputs.part(n, [text.length or 1 for text in inputs.texts])
            found = self._try(small)
        return small, found

    def _try(self, inputs: Inputs) -> list[Tensor] | None:
        """The activations; None if the model does not take these inputs."""
        try:
            return self._capture(inputs)
        except InputError:
            return None

    def _layout(
        self, i: int, activations: Tensor, probe: Tensor | None, text: Text, other: Text | None, small: Inputs
    ) -> Layout | None:
        sizes, m, length = list(activations.shape), len(text.tokens), text.length
        if probe is None or other is None:  # one shape alone: only the usual one, if it can mean nothing else
            usual = len(sizes) == 3 and sizes[:2] == [m, length] and m != length and sizes[2] != length
            return Layout(0, 1) if usual else Layout(0, None) if length is None and sizes[0] == m else None
        if probe.ndim != activations.ndim or probe.shape[-1] != activations.shape[-1]:
            return None  # a row whose width depends on the input: attention patterns, convolutions
        pairs, n = list(zip(sizes[:-1], probe.shape[:-1], strict=True)), len(other.tokens)

        def axes(size: int, of_probe: int) -> list[int]:
            return [axis for axis, pair in enumerate(pairs) if pair == (size, of_probe)]

        if length is None or other.length is None:
            return self._without_tokens(i, activations, probe, m, n, small)
        rest = [axis for axis, (size, of_probe) in enumerate(pairs) if size != of_probe]
        both = axes(m * length, n * other.length)
        if rest == both and len(both) == 1:
            layout = Layout(both[0], both[0])
            return layout if self._follows_tokens(i, layout, small, other, probe) else None
        contexts, positions = axes(m, n), axes(length, other.length)
        ok = len(contexts) == len(positions) == 1 and set(rest) <= {*contexts, *positions}
        # with the same length in both, a width of that size could be the positions of a convolution
        ok = ok and (length != other.length or sizes[-1] != length)
        return Layout(contexts[0], positions[0]) if ok else None

    def _without_tokens(
        self, i: int, activations: Tensor, before: Tensor, m: int, n: int, small: Inputs
    ) -> Layout | None:
        """Images and other inputs: [m, width], [m, rows, width], or [m * rows, width]."""
        pairs = list(zip(activations.shape[:-1], before.shape[:-1], strict=True))
        first, of_probe = pairs[0]
        is_rows = len(pairs) <= 2 and all(size == other for size, other in pairs[1:])
        is_rows = is_rows and first % m == 0 and first // m * n == of_probe
        if not is_rows or (len(pairs) == 2 and self._width_follows_input(i, activations, small)):
            return None
        layout = Layout(0, None)
        in_one = first != m  # contexts and rows are one axis
        return (
            layout if not in_one or self._follows_tokens(i, layout, small, small.texts[0], before) else None
        )

    def _width_follows_input(self, i: int, activations: Tensor, small: Inputs) -> bool:
        """Whether what looks like the width of a row changes with the size of the input, as behind a convolution."""
        text = small.texts[0]
        if isinstance(self.points[i].module, CONVOLUTIONS):
            return True
        if text.tokens.ndim < 3 or text.tokens.shape[-1] < 2:
            return False
        fewer = text.tokens[..., :-1]
        found = self._try(Inputs(small.kwargs | {text.name: fewer} if small.is_dict else fewer))
        return found is not None and found[i].shape[-1] != activations.shape[-1]

    def _follows_tokens(self, i: int, layout: Layout, small: Inputs, text: Text, before: Tensor) -> bool:
        """Whether a token that is changed changes its own row, and none of another context."""
        n, length = len(text.tokens), text.length or 1
        if before.device.type == "meta":
            return True  # there are no values, so nobody can be misled
        for context, position in ((0, length - 1), (1, 0), (n - 1, length // 2)):
            after = self._try(small.changed(text, context, position))
            if after is None:
                return False
            old, new = (layout.in_order(x.float(), n, text.length) for x in (before, after[i]))
            moved = (new - old).flatten(2).norm(dim=2) > CHANGED * old.flatten(2).norm(dim=2)  # [n, L]
            own = moved[context] if text.length is None else moved[context, position]
            others = torch.cat([moved[:context], moved[context + 1 :]])
            if not own.any() or others.any():
                return False
        return True


def _refusal(point: HookPoint, texts: Sequence[Text], shape: torch.Size) -> str:
    """One line: what was expected at a hook point, what came, and what to hook in its place."""
    got, path = list(shape), point.name.partition(":")[0]
    first = texts[0]
    if first.length is None:
        m = len(first.tokens)
        want = f"activations [{m}, width] or [{m}, rows, width] of {m} inputs"
        return f"hook: expected {want} at {point.name!r}, got {got}: {_CHANNELS}"
    wants = " or ".join(f"[{len(text.tokens)}, {text.length}, width]" for text in texts)
    m, why = len(first.tokens), "its rows are not those of the tokens in order"
    if isinstance(point.module, CONVOLUTIONS):
        why = _CHANNELS
    elif experts := re.match(r"(.*\bexperts?)[._]", path):
        parent = experts[1].rpartition(".")[0]
        why = (
            f"rows of experts are sorted by expert; hook {parent} or {experts[1]}, whose rows are the tokens"
        )
    elif len(shape) == 2 and shape[0] == m:
        why = "one row for a whole context belongs to no token"
    elif shape[-1] in {text.length for text in texts}:
        why = "attention patterns and convolutions have positions where the width of a row should be"
    return f"hook: expected activations {wants} of the tokens at {point.name!r}, got {got}: {why}"


_CHANNELS = "a convolution has its channels before its positions; hook a module that has them last"
