"""Counts what one training step launches, and holds it to a budget.

    python -m tests.gates.launch_budget                   every step of the budget; exits with 1 if one is over
    python -m tests.gates.launch_budget --only "topk A"   that step, and what it launches: name and count, then in order

A GPU needs 1.5 to 2 us between two nodes of a CUDA graph, and most small ops take no longer themselves: in case A the 56
launches that a step once had were a tenth of it. The step runs on meta tensors (see compile_gate.py), where every op of torch and every kernel is seen.
Views and fresh memory launch nothing. A `call` is one kernel of ours or one op of torch; `nodes` are what a GPU is given for
it, where torch's source says that it is more than one.
"""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NamedTuple
from unittest import mock

if __name__ == "__main__":
    os.environ.pop("TRITON_INTERPRET", None)

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten
from triton.runtime.jit import JITFunction

from benchmarks import checkout  # noqa: F401
from benchmarks.shapes import SHAPES
from saefast.engine.branch import Branch
from tests.gates.compile_gate import CASES, step_call
from tests.gates.compile_one import Launch, NothingWaits


class Count(NamedTuple):
    calls: int
    nodes: int


# By case of compile_gate.py and shape. A number goes down with the commit that saves a launch, and
# up with a reason. The goal of plain TopK in A is 20 calls.
BUDGET = {
    "topk A": Count(20, 20),
    "topk B": Count(20, 20),
    "topk C": Count(20, 20),
    "topk-clip A": Count(31, 31),
    "topk-auxk A": Count(69, 73),
    "topk-rescore A": Count(21, 21),
    "batch-topk A": Count(37, 40),
    "jumprelu A": Count(154, 160),
}
# Ops without a launch that are no views.
FREE = {"empty", "empty_like", "empty_strided", "new_empty", "_unsafe_view", "_reshape_alias", "detach"}
FREE |= {"squeeze_", "promote_types"}
# Launches of an op of torch 2.13 on a GPU, where they are more than one.
NODES = {
    "cumsum": 2,  # of CUB: it sets up the state of its tiles, then scans
    "constant_pad_nd": 2,  # fill all, copy the inside
    "masked_fill": 2,  # a clone, then in place
}


class Call(NamedTuple):
    """A kernel of ours, an op of torch, or a mark in the list of them (of which it has no operands)."""

    name: str
    launch: Launch | None = None
    tensors: tuple[Tensor, ...] = ()  # what it reads and writes


MARKS = {"branch", "end of branch", "join"}  # of `saefast.engine.branch`


def tensors_in(*values: Any) -> tuple[Tensor, ...]:
    return tuple(value for value in tree_flatten(values)[0] if isinstance(value, Tensor))


class Calls(NothingWaits):
    """What is called inside, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.list: list[Call] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_dispatch__(func, types, args, kwargs)
        name = func.name().removeprefix("aten::").partition(".")[0]
        if not func.is_view and name not in FREE:
            self.list.append(Call(name, None, tensors_in(args, kwargs, result)))
        return result


def recorded(call: Callable[[], object]) -> list[Call]:
    """What `call` would launch, none of it run, with marks where a branch begins, ends and is waited for."""
    calls = Calls()

    def record(kernel: JITFunction, *args: Any, grid: tuple[int, ...], warmup: bool, **kwargs: Any) -> None:
        launch = Launch(kernel, args, kwargs, grid)
        calls.list.append(Call(kernel.__name__.strip("_"), launch, tensors_in(args, kwargs)))

    def mark(name: str) -> Callable[..., None]:
        return lambda *args: calls.list.append(Call(name))

    with ExitStack() as stack:
        for method, name in (("__enter__", "branch"), ("__exit__", "end of branch"), ("join", "join")):
            stack.enter_context(mock.patch.object(Branch, method, mark(name)))
        stack.enter_context(mock.patch.object(JITFunction, "run", record))
        # as on a GPU, where a library product keeps fp32 without copies of its operands
        stack.enter_context(mock.patch.object(Tensor, "is_cuda", True))
        stack.enter_context(calls)
        call()
    return calls.list


def calls_of(call: Callable[[], object]) -> list[str]:
    """The names of what `call` would launch."""
    return [call.name for call in recorded(call) if call.name not in MARKS]


def count(names: list[str]) -> Count:
    return Count(len(names), sum(NODES.get(name, 1) for name in names))


def step_calls(step: str) -> list[str]:
    """step: a case of compile_gate.py and a shape, "topk A"; in bf16."""
    case, shape = step.split()
    return calls_of(step_call(SHAPES[shape], torch.bfloat16, CASES[case]))


def over_budget(found: dict[str, Count], budget: dict[str, Count]) -> list[str]:
    return [
        f"{step}: {now.calls} calls and {now.nodes} nodes, the budget is {budget[step].calls} and {budget[step].nodes}"
        for step, now in found.items()
        if now.calls > budget[step].calls or now.nodes > budget[step].nodes
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", help="one step, with the list of what it launches")
    only = parser.parse_args().only
    steps = [only] if only else list(BUDGET)
    found = {}
    for step in steps:
        names = step_calls(step)
        found[step] = count(names)
        if only:
            for name, n in Counter(names).most_common():
                nodes = "" if name not in NODES else f", {NODES[name]} nodes each"
                print(f"  {n:4} {name}{nodes}")
            print("in order:", *names)
        print(f"{step:16} {found[step].calls:4} calls {found[step].nodes:4} nodes")
    problems = over_budget({step: found[step] for step in steps if step in BUDGET}, BUDGET)
    print(*problems, sep="\n", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
