"""The site's data as scripts: a page that was opened from the file system may run scripts, but may not fetch.

A file of data is one call of the page's `take` with its name, the token of the build, a header and a body: base64 of deflated
bytes, the arrays of the header one after another, each begun at a multiple of 8 bytes. assets/core.js reads what `pack` writes.
"""

import base64
import json
import zlib
from typing import Any

import numpy as np

TYPES = {"u1": "u1", "u2": "<u2", "u4": "<u4", "i4": "<i4", "f4": "<f4", "f8": "<f8"}
LEVEL = 4  # of deflate: within 3 % of the smallest at half its time


def literal(value: Any) -> str:
    """JSON that is safe in a script and in HTML around it: ASCII without < and &, so nothing ends a script or begins a comment.

    NaN and the infinities, which JSON does not have, are null."""
    text = json.dumps(_finite(value), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def pack(name: str, build: str, arrays: dict[str, np.ndarray], values: dict[str, Any] | None = None) -> bytes:
    """The script with these arrays, of dtypes in `TYPES`, and with `values`, which are JSON."""
    layout, body = [], bytearray()
    for key, array in arrays.items():
        kind = next(kind for kind, dtype in TYPES.items() if array.dtype == np.dtype(dtype))
        layout.append([key, kind, array.size])
        body += np.ascontiguousarray(array, TYPES[kind]).tobytes()
        body += bytes(-len(body) % 8)
    header = literal({"arrays": layout, "values": values or {}})
    text = base64.b64encode(zlib.compress(bytes(body), LEVEL)).decode() if body else ""
    return f'saefast.take({literal(name)},{literal(build)},{header},"{text}");\n'.encode("ascii")


def bfloat16(values: np.ndarray) -> np.ndarray:
    """float32 as the upper half of its bits, rounded; NaN stays NaN. [n] -> [n] u2."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = ((bits.astype(np.uint64) + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return value
