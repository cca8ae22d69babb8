"""Hook points: reading the activations at places in a model, and putting others there.

A hook point is the path of a module, as `named_modules()` spells it, for its output, or `path:in` for its input.
In a Llama-like model of Hugging Face:

    residual stream after block 12   model.layers.12
    attention out                    model.layers.12.self_attn
    MLP out                          model.layers.12.mlp
    MLP hidden                       model.layers.12.mlp.down_proj:in

Where a module gives or takes more than one tensor, the activations are the first: of a tuple, a list or a dataclass its
first entry, of a dict (a ModelOutput) its first value, of a call its first argument that is not None. What is put there
goes back into a container of the same type, and everything else in it stays. A module that runs several times in one
pass (layers that share weights) counts the first time, when it is read and when it is replaced.
"""

import copy
import dataclasses
import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn

from saefast.errors import InputError, check


class _Stop(Exception):
    """Ends a forward pass once the hooked activations are there."""


class HookPoint:
    """A place in a model: `capture` reads the activations there, `replace` puts others in.

    `model` is what runs: the model itself, or what `torch.compile` and `DataParallel` have wrapped, since hooks do not
    act in what is compiled, and a module that runs in parts on several devices sees only some of the rows.

    Raises:
        InputError: no such module (near ones are listed), or a part of the model that is compiled.
    """

    def __init__(self, model: nn.Module, hook: str) -> None:
        model = unwrapped(model)
        check(isinstance(hook, str), f"hook: expected a module path or path:in, got {hook!r}")
        path, colon, side = hook.partition(":")
        modules = dict(model.named_modules(remove_duplicate=False))  # a shared module has several paths
        if path not in modules or not path or (colon and side != "in"):
            expected = f"hook: expected a module path or path:in, got {hook!r}"
            raise InputError(f"{expected}; near it: {', '.join(_near(path, list(modules)))}")
        self.model, self.module, self.is_input, self.name = model, modules[path], side == "in", hook
        self.earlier_blocks = _blocks_before(model, path, include_last=side == "")

    @contextmanager
    def attached(
        self, function: Callable[[Tensor], Tensor | None], every_pass: bool = False
    ) -> Iterator[None]:
        """While it lasts, a pass calls function(activations); what it returns, if not None, takes their place.

        It is for one pass of the thread that is here: only the first time that the module runs in it counts. With
        `every_pass`, for each pass of `model`, as when it generates a text token by token.
        """
        ran, thread = False, get_ident()

        def ended(*_: Any) -> None:
            nonlocal ran
            ran = ran and get_ident() != thread

        def changed(value: Any) -> Any:
            """`value` with other activations; None: it stays."""
            nonlocal ran
            if ran or get_ident() != thread:
                return None
            ran = True
            activations = first_of(value)
            self.check_activations(activations)
            new = function(activations)
            return None if new is None else with_first(value, new)

        def on_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            given = args if args else {name: value for name, value in kwargs.items() if value is not None}
            new = changed(given)  # Hugging Face blocks call attention by keyword
            if new is None:
                return None
            return (new, kwargs) if args else (args, kwargs | new)

        def on_output(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            return changed(output)

        with ExitStack() as stack:
            if every_pass:
                stack.callback(self.model.register_forward_hook(ended, always_call=True).remove)
            if self.is_input:
                handle = self.module.register_forward_pre_hook(on_input, with_kwargs=True)
            else:
                handle = self.module.register_forward_hook(on_output)
            stack.callback(handle.remove)
            yield

    def check_activations(self, activations: Any) -> None:
        """Raise InputError unless they are [..., n, d_in] in a floating-point dtype."""
        is_matrix = isinstance(activations, Tensor) and activations.ndim > 1
        expected = "hook: expected a module with floating-point activations [..., n, d_in]"
        ok = is_matrix and activations.is_floating_point()
        check(ok, f"{expected} at {self.name!r}, got {described(activations)}")

    def capture(self, *args: Any, **kwargs: Any) -> Tensor:
        """Run the model up to the hook point only and return the activations there."""
        return capture_all([self], *args, **kwargs)[0]

    def replace(self, function: Callable[[Tensor], Tensor | None], *args: Any, **kwargs: Any) -> Any:
        """Run the whole model with function(activations) in place of the activations; returns its output."""
        with self.attached(function):
            return self.model(*args, **kwargs)


def first_of(value: Any) -> Any:
    """The activations in what a module gives or takes; see the top of this file."""
    while not isinstance(value, Tensor) and (key := _first_key(value)) is not None:
        value = getattr(value, key) if _is_dataclass(value) else value[key]
    return value


def with_first(value: Any, new: Tensor) -> Any:
    """`value`, of the same type and otherwise unchanged, with `new` where `first_of` finds the activations."""
    if isinstance(value, Tensor):
        return new
    key = _first_key(value)
    inner = with_first(getattr(value, key) if _is_dataclass(value) else value[key], new)
    if isinstance(value, tuple):
        entries = [inner, *value[1:]]
        return type(value)(*entries) if hasattr(value, "_fields") else type(value)(entries)
    value = copy.copy(value)
    if _is_dataclass(value):
        object.__setattr__(value, key, inner)  # also where it is frozen
    else:
        value[key] = inner
    return value


def _is_dataclass(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type | Mapping)  # a ModelOutput is both


def _first_key(value: Any) -> Any:
    """The name or number of the first entry of a container; None of anything else, or of an empty one."""
    if _is_dataclass(value):
        return next((field.name for field in dataclasses.fields(value)), None)
    if isinstance(value, Mapping):
        return next(iter(value), None)
    return 0 if isinstance(value, tuple | list) and value else None


def described(value: Any) -> str:
    """What a message says of something that should have been a tensor of floats."""
    return f"{list(value.shape)} in {value.dtype}" if isinstance(value, Tensor) else type(value).__name__


def unwrapped(model: nn.Module) -> nn.Module:
    """The module that hooks act in: without the wrappers of torch.compile and of data-parallel training.

    Raises:
        InputError: not a module, or a part of it is compiled.
    """
    check(isinstance(model, nn.Module), f"model: expected a torch.nn.Module, got {type(model).__name__}")
    wrappers = nn.DataParallel, nn.parallel.DistributedDataParallel
    while hasattr(model, "_orig_mod") or isinstance(model, wrappers):
        inner: Any = model._orig_mod if hasattr(model, "_orig_mod") else model.module
        model = inner
    for name, module in model.named_modules():
        is_compiled = hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None
        where = f"{name!r}, in which hooks do not act" if name else "the whole of it, where hooks do not act"
        check(not is_compiled, f"model: expected modules that are not compiled, got {where}")
    return model


def _near(path: str, modules: list[str]) -> list[str]:
    """Paths that may have been meant: of the same ending (a wrapper puts its own name before them), then alike."""
    ending = [name for name in modules if path and (name.endswith(f".{path}") or path.endswith(f".{name}"))]
    alike = difflib.get_close_matches(path, modules, n=4, cutoff=0.3)
    found = [name for name in dict.fromkeys([*sorted(ending, key=len, reverse=True), *alike]) if name]
    return found[:4] or [name for name in modules if name][:4]


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
        if len(captured) + 1 < len(points):
            activations = activations.clone()  # the pass goes on, and may change them in place
        captured[place] = activations
        if len(captured) == len(points):
            raise _Stop

    with ExitStack() as stack:
        for place, point in enumerate(points):
            stack.enter_context(point.attached(partial(keep, place)))
        try:
            called(points[0].model, *args, **kwargs)
        except _Stop:
            return [captured[place] for place in range(len(points))]
    missed = ", ".join(repr(point.name) for place, point in enumerate(points) if place not in captured)
    raise InputError(f"hook: the model's forward pass never reached {missed}")


def called(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """model(*args, **kwargs). What the model itself raises becomes InputError: it does not take this input."""
    try:
        return model(*args, **kwargs)
    except (_Stop, InputError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        given = [described(value) for value in args] + [
            f"{key} {described(value)}" for key, value in kwargs.items()
        ]
        got = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise InputError(f"model: its forward pass failed on {', '.join(given)}: {got}") from error


def capture_and_record(
    points: Sequence[HookPoint], blocks: Sequence[nn.Module], *args: Any, **kwargs: Any
) -> tuple[list[Tensor], Any]:
    """`capture_all`, and the output of the last of `blocks` (see `earlier_blocks`), with which later passes skip them.

    The output is None if not each of these blocks ran once and in order.
    """
    ran: list[tuple[nn.Module, Any]] = []
    with ExitStack() as stack:
        for block in blocks:
            handle = block.register_forward_hook(lambda block, args, output: ran.append((block, output)))
            stack.callback(handle.remove)
        activations = capture_all(points, *args, **kwargs)
    in_order = bool(ran) and [block for block, _ in ran] == list(blocks)
    return activations, ran[-1][1] if in_order else None


def earlier_blocks(points: Sequence[HookPoint]) -> list[nn.Module]:
    """The blocks that end before every one of these hook points, of one list of blocks."""
    blocks = min((point.earlier_blocks for point in points), key=len)
    shared = all(point.earlier_blocks[: len(blocks)] == blocks for point in points)
    return blocks if shared else []  # as of an encoder and its decoder


@contextmanager
def blocks_skipped(blocks: Sequence[nn.Module], output: Any) -> Iterator[None]:
    """While it lasts, `blocks` compute nothing in this thread and return `output`, unless it is None. One thread at a time."""
    blocks = blocks if output is not None else []
    own, thread = [vars(block).get("forward") for block in blocks], get_ident()

    def skipped(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return output if get_ident() == thread else forward(*args, **kwargs)

    for block in blocks:
        block.forward = partial(skipped, block.forward)
    try:
        yield
    finally:
        for block, forward in zip(blocks, own, strict=True):
            del block.forward  # the method of the class is there again
            if forward is not None:
                block.forward = forward


def one_or_all(values: Sequence[Any]) -> Any:
    """The form in which files hold values: the value itself if there is one hook point, otherwise a list."""
    return values[0] if len(values) == 1 else list(values)


def recorded(hooks: Sequence[str | None], widths: Sequence[int]) -> dict[str, Any]:
    """What files record about the origin of activations: "hook", and "widths" too if there are several hook points."""
    return {"hook": one_or_all(hooks)} | ({} if len(hooks) == 1 else {"widths": list(widths)})
