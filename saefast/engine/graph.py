"""The training step as a CUDA graph: recorded once, replayed with one call.

A step is 10 to 20 kernels, and Python needs longer to launch one than a GPU needs to run it on a small SAE. A graph
has fixed shapes and fixed addresses, so x and the numbers of a step are copied into buffers of its own, and whatever
changes from step to step is read from the device.
"""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from saefast.engine.state import State
from saefast.engine.step import Metrics, Plan, train_step


class GraphedStep:
    """`train_step(ops, state, ...)`, called with x, plan and numbers, as often as needed.

    The first step of each plan and batch shape runs kernel by kernel: it compiles them and lets the libraries set
    themselves up, which must not happen while recording. The second is recorded, which runs nothing, and replayed.
    """

    def __init__(self, ops: ModuleType, state: State) -> None:
        self.ops, self.state = ops, state
        self.warm: set[tuple[Plan, torch.Size, torch.dtype]] = set()
        self.recorded: dict[
            tuple[Plan, torch.Size, torch.dtype],
            tuple[torch.cuda.CUDAGraph, Tensor, Tensor, Metrics],
        ] = {}
        self.pool: Any = None  # memory shared by all graphs: only one runs at a time
        # Recorded on a stream of its own: cuBLAS has one workspace per stream, and the graphs of two SAEs may run at once.
        self.stream: torch.cuda.Stream | None = None

    def __call__(self, x: Tensor, plan: Plan, numbers: Tensor) -> Metrics:
        key = plan, x.shape, x.dtype
        if key not in self.warm:
            self.warm.add(key)
            # a clone, as the buffer will be: memory that begins elsewhere may have kernels of its own
            return train_step(self.ops, self.state, x.clone(), plan, numbers)
        if key not in self.recorded:
            self.recorded[key] = self._record(x, plan, numbers)
        graph, x_buffer, numbers_buffer, metrics = self.recorded[key]
        x_buffer.copy_(x, non_blocking=True)
        numbers_buffer.copy_(numbers, non_blocking=True)
        graph.replay()
        return Metrics(
            *torch.stack([value.float() for value in metrics]).unbind()
        )  # the next replay overwrites them

    def _record(
        self, x: Tensor, plan: Plan, numbers: Tensor
    ) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor, Metrics]:
        self.pool = self.pool or torch.cuda.graph_pool_handle()
        self.stream = self.stream or torch.cuda.Stream(x.device)
        x_buffer, numbers_buffer, graph = x.clone(), numbers.clone(), torch.cuda.CUDAGraph()
        # thread_local: a thread that fills a buffer goes on copying meanwhile
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
            metrics = train_step(self.ops, self.state, x_buffer, plan, numbers_buffer)
        return graph, x_buffer, numbers_buffer, metrics
