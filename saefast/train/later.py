"""A number of the device that the host asks for now and reads later, so that nothing waits for it."""

import torch
from torch import Tensor


class Later:
    """value: [] integers on any device, copied to the host behind the work that was given to the device before."""

    def __init__(self, value: Tensor) -> None:
        self._copy = value.to("cpu", non_blocking=True)
        self._arrived = torch.cuda.Event() if value.device.type == "cuda" else None
        if self._arrived is not None:
            self._arrived.record()

    def __int__(self) -> int:
        """Waits until it is there."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return int(self._copy)
