"""Hook points: reading the activations at places in a model, and putting others there.

A hook point is the path of a module, as `named_modules()` spells it, for its output, or `path:in` for its input.
In a Llama-like model of Hugging Face:

    residual stream after block 12   model.layers.12
    attention out                    model.layers.12.self_attn
    MLP out                          model.layers.12.mlp
    MLP hidden                       model.layers.12.mlp.down_proj:in
"""

import difflib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from saefast.errors import InputError, check


class _Stop(Exception):
    """Ends a forward pass once the hooked activations are there."""


class HookPoint:
    """A place in a model: `capture` reads the activations there, `replace` puts others in."""

    def __init__(self, model: nn.Module, hook: str) -> None:
        path, _, side = hook.partition(":")
        modules = dict(model.named_modules())
        if path not in modules or side not in ("", "in") or not path:
            near = difflib.get_close_matches(path, modules, n=4, cutoff=0.3)
            expected = f"hook: expected a module path or path:in, got {hook!r}"
            raise InputError(f"{expected}; near it: {', '.join(near)}")
        self.model, self.module, self.is_input, self.name = model, modules[path], side == "in", hook
        self.earlier_blocks = _blocks_before(model, path, include_last=side == "")

    @contextmanager
    def attached(self, function: Callable[[Any], Tensor | None]) -> Iterator[None]:
        """While it lasts, every pass calls function(activations); what it returns, if not None, takes their place."""

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
            handle = self.module.register_forward_pre_hook(on_input, with_kwargs=True)
        else:
            handle = self.module.register_forward_hook(on_output)
        try:
            yield
        finally:
            handle.remove()

    def check_activations(self, activations: Any) -> None:
        """Raise InputError unless they are [..., n, d_in] in a floating-point dtype."""
        is_matrix = isinstance(activations, Tensor) and activations.ndim > 1
        expected = "hook: expected a module with floating-point activations [..., n, d_in]"
        check(is_matrix and activations.is_floating_point(), f"{expected} at {self.name!r}")

    def capture(self, *args: Any, **kwargs: Any) -> Tensor:
        """Run the model up to the hook point only and return the activations there."""
        return capture_all([self], *args, **kwargs)[0]

    def replace(self, function: Callable[[Tensor], Tensor | None], *args: Any, **kwargs: Any) -> Any:
        """Run the whole model with function(activations) in place of the activations; returns its output."""
        with self.attached(function):
            return self.model(*args, **kwargs)

    def capture_and_record(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Any]:
        """`capture`, and the output of the last of `earlier_blocks`, with which later passes skip all of them.

        The output is None if not each of these blocks ran once and in order.
        """
        ran: list[tuple[nn.Module, Any]] = []
        with ExitStack() as stack:
            for block in self.earlier_blocks:
                handle = block.register_forward_hook(lambda block, args, output: ran.append((block, output)))
                stack.callback(handle.remove)
            activations = self.capture(*args, **kwargs)
        in_order = bool(ran) and [block for block, _ in ran] == self.earlier_blocks
        return activations, ran[-1][1] if in_order else None

    @contextmanager
    def earlier_blocks_skipped(self, output: Any) -> Iterator[None]:
        """While it lasts, `earlier_blocks` compute nothing and return `output`, unless it is None."""
        blocks = self.earlier_blocks if output is not None else []
        own = [vars(block).get("forward") for block in blocks]
        for block in blocks:
            block.forward = lambda *args, **kwargs: output
        try:
            yield
        finally:
            for block, forward in zip(blocks, own, strict=True):
                del block.forward  # the method of the class is there again
                if forward is not None:
                    block.forward = forward


def _blocks_before(model: nn.Module, path: str, include_last: bool) -> list[nn.Module]:
    """The blocks that end before the hook point, of the outermost list of blocks on its path; none without a list."""
    module, names = model, path.split(".")
    for depth, name in enumerate(names, 1):
        if isinstance(module, nn.ModuleList):
            return list(module)[: int(name) + (include_last and depth == len(names))]
        module = getattr(module, name)
    return []


def capture_all(points: Sequence[HookPoint], *args: Any, **kwargs: Any) -> list[Tensor]:
    """The activations at several hook points of one model in one forward pass, which ends when the last is there."""
    captured: dict[int, Tensor] = {}

    def keep(place: int, activations: Tensor) -> None:
        if place in captured:
            return  # a module that runs twice: the first time counts, as for a single hook point
        points[place].check_activations(activations)
        if len(captured) + 1 < len(points):
            activations = activations.clone()  # the pass goes on, and may change them in place
        captured[place] = activations
        if len(captured) == len(points):
            raise _Stop

    with ExitStack() as stack:
        for place, point in enumerate(points):
            stack.enter_context(point.attached(partial(keep, place)))
        try:
            points[0].model(*args, **kwargs)
        except _Stop:
            return [captured[place] for place in range(len(points))]
    missed = ", ".join(repr(point.name) for place, point in enumerate(points) if place not in captured)
    raise InputError(f"hook: the model's forward pass never reached {missed}")


def one_or_all(values: Sequence[Any]) -> Any:
    """The form in which files hold values: the value itself if there is one hook point, otherwise a list."""
    return values[0] if len(values) == 1 else list(values)


def recorded(hooks: Sequence[str | None], widths: Sequence[int]) -> dict[str, Any]:
    """What files record about the origin of activations: "hook", and "widths" too if there are several hook points."""
    return {"hook": one_or_all(hooks)} | ({} if len(hooks) == 1 else {"widths": list(widths)})
