"""The largest of a row, with a rule for ties."""

import torch
from torch import Tensor


def top_of(x: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """x [r, c] -> the n largest of each row, values [r, n] and indices [r, n] int64; of equal ones the smaller index first.

    -inf is left out; where there are fewer than n, the index is -1 and the value 0.
    """
    values, indices = x.new_zeros(len(x), n), torch.full((len(x), n), -1, dtype=torch.int64, device=x.device)
    m = min(n, x.shape[1])
    if not m or not len(x):
        return values, indices
    least = x.topk(m, dim=1).values[:, -1:]
    # topk has no rule for ties: what is as large as the last of it may be in its place
    row, column = ((x >= least) & (x > -torch.inf)).nonzero(as_tuple=True)
    found = x[row, column]
    order = found.sort(descending=True, stable=True).indices
    order = order[row[order].sort(stable=True).indices]
    row, column, found = row[order], column[order], found[order]
    n_of_row = torch.bincount(row, minlength=len(x))
    rank = torch.arange(len(row), dtype=torch.int64, device=x.device) - (n_of_row.cumsum(0) - n_of_row)[row]
    row, column, found, rank = (part[rank < n] for part in (row, column, found, rank))
    values[row, rank], indices[row, rank] = found, column
    return values, indices
