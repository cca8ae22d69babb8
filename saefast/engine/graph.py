"""The training step as a CUDA graph: recorded once, replayed with one call.

A step is 10 to 20 kernels, and Python needs longer to launch one than a GPU needs to run it on a small SAE. A graph
has fixed shapes and fixed addresses, so x and the numbers of a step are copied into buffers of its own, and whatever
changes from step to step is read from the device.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from saefast.engine.plan import Plan
from saefast.engine.stages import Metrics

Key = tuple[Plan, torch.Size, torch.dtype]


@dataclass
class Recording:
    """A step that runs kernel by kernel, or is recorded while it is called: on which tensors, and what came of it."""

    x: Tensor
    numbers: Tensor
    graph: torch.cuda.CUDAGraph | None = None
    metrics: Metrics | None = None

    def replay(self, x: Tensor, numbers: Tensor) -> Metrics:
        assert self.graph is not None and self.metrics is not None
        self.x.copy_(x, non_blocking=True)
        self.numbers.copy_(numbers, non_blocking=True)
        self.graph.replay()
        # the next replay overwrites them
        return Metrics(*torch.stack([value.float() for value in self.metrics]).unbind())

    def result(self) -> Metrics:
        """What the step found; one that was recorded ran nothing yet."""
        assert self.metrics is not None
        return self.metrics if self.graph is None else self.replay(self.x, self.numbers)


class GraphedSteps:
    """The graphs of one trainer, by plan and batch shape.

    The first step of each runs kernel by kernel: it compiles them and lets the libraries set themselves up, which must
    not happen while recording. The second is recorded, which runs nothing, and replayed.
    """

    def __init__(self) -> None:
        self.warm: set[Key] = set()
        self.recorded: dict[Key, Recording] = {}
        self.pool: Any = None  # memory shared by all graphs: only one runs at a time
        # Recorded on a stream of its own: cuBLAS has one workspace per stream, and the graphs of two SAEs may run at once.
        self.stream: torch.cuda.Stream | None = None

    def find(self, plan: Plan, x: Tensor) -> Recording | None:
        """The graph of such a step; None if it is not recorded yet."""
        return self.recorded.get((plan, x.shape, x.dtype))

    @contextmanager
    def first(self, plan: Plan, x: Tensor, numbers: Tensor) -> Iterator[Recording]:
        """One of the first two steps of its kind: the caller runs it on what this yields and leaves the metrics there."""
        key = plan, x.shape, x.dtype
        # a clone, as the buffer will be: memory that begins elsewhere may have kernels of its own
        found = Recording(x.clone(), numbers.clone())
        if key not in self.warm:
            self.warm.add(key)
            yield found
            return
        self.pool = self.pool or torch.cuda.graph_pool_handle()
        self.stream = self.stream or torch.cuda.Stream(x.device)
        found.graph = torch.cuda.CUDAGraph()
        # thread_local: a thread that fills a buffer goes on copying meanwhile
        with torch.cuda.graph(
            found.graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"
        ):
            yield found
        self.recorded[key] = found
