"""The rows that a run looks at before its first step and after its last."""

from collections.abc import Callable

import torch
from torch import Tensor

from saefast.activations.buffer import ShuffleBuffer
from saefast.errors import InputError

INIT_ROWS = 32_768  # for b_dec and the input scale; what OpenAI uses for the geometric median
CALIBRATION_ROWS = 8192  # for `Prepared.calibrate`

Columns = tuple[int, int] | None  # first and last + 1 of the columns of a row that are a run's own; None: all


def take(rows: Tensor, columns: Columns) -> Tensor:
    return rows if columns is None else rows[:, columns[0] : columns[1]].contiguous()


def once(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """`function`, called once for the same rows. They are kept, so that no others can have their address."""
    found: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}

    def call(rows: Tensor) -> Tensor:
        key = (rows.data_ptr(), *rows.shape)
        if key not in found:
            found[key] = rows, function(rows)
        return found[key][1]

    return call


def calibration_rows(buffer: ShuffleBuffer, at_least: int) -> Tensor:
    """[n, d_in]: random rows of the source where they can be taken, else those that wait in the buffer. None where the
    source has ended, or a shard is damaged. Rows that are not finite are left out."""
    n, source = max(CALIBRATION_ROWS, at_least), buffer.source
    try:
        if source.random_access:
            generator, many = torch.Generator("cpu").manual_seed(buffer.seed), len(source)  # type: ignore[arg-type]
            index = torch.randint(many, (n,), generator=generator, dtype=torch.int64, device="cpu")
            rows = source.take(index.sort().values)
        else:
            rows = buffer.sample(n)[:n]
    except InputError:
        return torch.empty(0, source.d_in, dtype=torch.float32, device="cpu")
    return rows[rows.isfinite().all(dim=1)]
