"""Some rows of a shard folder as another one, small enough to travel to a machine without network.

python -m benchmarks.gpu.flight_rows data/acts-corpus runs/acts-corpus
"""

import sys

import torch

from benchmarks import checkout  # noqa: F401
from saefast import open_source
from saefast.activations.shards import ShardWriter

ROWS = 36_864  # 42 MB at d_in = 576 in fp16


def main(source: str, target: str) -> None:
    rows = torch.cat([part.half() for part in open_source(source).rows()])
    some = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:ROWS]]
    writer = ShardWriter(target, some.shape[1], torch.float16, shard_tokens=len(some))
    writer.append(some)
    writer.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
