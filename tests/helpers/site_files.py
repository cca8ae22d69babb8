"""The data files of a site, read as its page reads them."""

import base64
import json
import zlib

import numpy as np

TYPES = {"u1": "u1", "u2": "<u2", "u4": "<u4", "i4": "<i4", "f4": "<f4", "f8": "<f8"}


def read(path):
    """What assets/core.js makes of a file of data: name, build, arrays and values."""
    text = path.read_text(encoding="ascii")
    assert text.startswith("saefast.take(") and text.endswith(");\n")
    name, build, header, body = json.loads(f"[{text[13:-3]}]")
    data, offset, found = zlib.decompress(base64.b64decode(body)) if body else b"", 0, dict(header["values"])
    for key, kind, size in header["arrays"]:
        found[key] = np.frombuffer(data, TYPES[kind], size, offset)
        offset += -(-found[key].nbytes // 8) * 8
    assert offset == len(data) or not body
    return name, build, found
