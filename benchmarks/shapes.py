"""The shapes that are compiled, tested and measured. A, B and C are those of the design's cost model."""

from typing import NamedTuple


class Shape(NamedTuple):
    """Tokens, d_in, d_sae, k."""

    B: int
    D: int
    F: int
    K: int


SHAPES = {
    "small": Shape(1024, 576, 4608, 32),
    "A": Shape(8192, 768, 24576, 32),
    "B": Shape(8192, 2304, 65536, 64),
    "C": Shape(8192, 4096, 262144, 64),
}
