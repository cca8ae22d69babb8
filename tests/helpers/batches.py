"""Rows that can be told apart, in memory and in shards, and the batches that a buffer makes of them."""

import time

import torch

from saefast.activations.shards import ShardSource, ShardWriter


def numbered(n, d_in=2):
    """Row i holds the number i."""
    return torch.arange(n, dtype=torch.float32)[:, None].expand(n, d_in).contiguous()


def write(folder, rows, dtype=None, shard_tokens=37, contexts=False):
    writer = ShardWriter(folder, rows.shape[1], dtype or rows.dtype, shard_tokens=shard_tokens)
    for chunk in rows.split(shard_tokens):
        extra = ()
        if contexts:
            place = torch.arange(len(chunk))
            extra = (torch.arange(3 * len(chunk)).view(-1, 3), place, place % 3)
        writer.append(chunk, *extra)
    writer.close()
    return ShardSource(folder)


def wait_for(condition):
    """For what another thread does, in its own time: pytest ends a test that waits for ever."""
    while not condition():
        time.sleep(0.001)


def take(buffer, n_batches):
    batches = iter(buffer)
    return [next(batches).clone() for _ in range(n_batches)]


def same(a, b):
    assert len(a) == len(b)
    for i, (x, y) in enumerate(zip(a, b)):
        assert x.dtype == y.dtype and torch.equal(x.cpu(), y), i
