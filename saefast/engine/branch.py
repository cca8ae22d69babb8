"""Work beside the main line of a step, where a CUDA graph of it is recorded: a branch of the graph.

    branch = Branch(x)
    with branch:
        groups = ...    # small launches that need a code, beside the decoder, which needs it too
    branch.join()       # what follows needs the groups

A step that is not being recorded runs in one line. So no memory of one stream is ever given back while another one reads
it: what a graph allocates stays its own, and its replays follow each other.
"""

from types import TracebackType

import torch
from torch import Tensor


class Branch:
    """Begins at the work that was given to the device before `with`."""

    def __init__(self, like: Tensor) -> None:
        recording = like.device.type == "cuda" and torch.cuda.is_current_stream_capturing()
        self.stream = torch.cuda.Stream(like.device) if recording else None

    def __enter__(self) -> None:
        if self.stream is not None:
            self.stream.wait_stream(torch.cuda.current_stream(self.stream.device))
            self._within = torch.cuda.stream(self.stream)
            self._within.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.stream is not None:
            self._within.__exit__(kind, value, trace)

    def join(self) -> None:
        """What follows waits for the branch."""
        if self.stream is not None:
            torch.cuda.current_stream(self.stream.device).wait_stream(self.stream)
