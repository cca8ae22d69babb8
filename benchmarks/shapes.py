"""The shapes that are compiled, tested and measured. A, B and C are those of the design's cost model; D and E are those of
dictionaries whose training rates others have published, to hold ours against."""

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
    "D": Shape(8192, 1024, 131072, 64),
    "E": Shape(8192, 5120, 65536, 128),
}


class Published(NamedTuple):
    """A rate that others state for a shape, on their hardware with their method; nothing of it was measured here."""

    rows_per_s: float
    hardware: str
    method: str
    source: str
    goal_ms: float  # what we want a step of the shape to take at most on an H200


PUBLISHED = {
    "D": Published(10_700, "one A100", "SAELens, BatchTopK", "nickypro/sonar-saes-large", 6.0),
    "E": Published(
        1_590,
        "a GPU of 96 GB",
        "bound by the language model whose activations it trains on",
        "caiovicentino1/qwen36-27b-sae-papergrade",
        21.0,
    ),
}
