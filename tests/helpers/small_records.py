"""Small records, of activations that are written on the spot."""

import torch

from saefast.activations.shards import ShardSource, ShardWriter
from saefast.interp.records import RecordsConfig, record

CONFIG = RecordsConfig(n_top=4, n_intervals=3, per_interval=2, n_quantiles=2, per_quantile=2, n_random=3)


def shards(folder, x, contexts, left_out=0):
    """A shard folder in which row i of x [n, d_in] is token i of contexts [m, L], but for the first `left_out` tokens of each."""
    place = torch.arange(contexts.numel()).view(contexts.shape)[:, left_out:].flatten()
    writer = ShardWriter(folder, x.shape[1], torch.float32, shard_tokens=100)
    length = contexts.shape[1]
    writer.append(x[place], contexts, place // length, place % length)
    writer.close()
    return ShardSource(folder)


def small_records(folder, sae, contexts, x=None, separators=(), config=CONFIG):
    """Of sparse random activations, or of those that are given."""
    if x is None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            x = torch.randn(contexts.numel(), sae.config.d_in)
    return record(
        sae, shards(folder / "shards", x, contexts), folder / "records", config, separators=separators
    )
