"""The key: which card is which unit. It is sealed until all is rated, behind a commitment that the page prints.

key.json cannot be read at a glance, but is not encrypted: the commitment shows that it is the key of before the rating, not that
nobody has looked into it. `sha256sum key.json` is the commitment, which the page, every file of ratings and the terminal have. A
salt in the key keeps anyone from finding it by trying all keys.
"""

import base64
import hashlib
import json
import zlib
from pathlib import Path
from typing import Any

from saefast.errors import InputError, check
from saefast.files import read_json, write_json

KEY, PAGE, FORMAT = "key.json", "cards.html", "saefast-blind-key"


def seal(path: Path, key: dict[str, Any]) -> str:
    """Write the key; returns its commitment, the SHA-256 of the file."""
    sealed = base64.b64encode(zlib.compress(json.dumps(key).encode(), 9)).decode()
    write_json(path, {"format": FORMAT, "version": 1, "sealed": sealed})
    return commitment_of(path)


def commitment_of(path: Path) -> str:
    check(path.is_file(), f"{path}: expected the key of a deal, found none")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def opened(path: Path) -> dict[str, Any]:
    """What was sealed.

    Raises:
        InputError: the file is no key.
    """
    found = read_json(path)
    ok = isinstance(found, dict) and found.get("format") == FORMAT and found.get("version") == 1
    check(ok, f"{path}: expected the key of `saefast blind deal`, got something else")
    try:
        key = json.loads(zlib.decompress(base64.b64decode(found["sealed"])))
        return {name: key[name] for name in ("salt", "seed", "config", "logits", "sets", "cards", "page")}
    except (KeyError, TypeError, ValueError, zlib.error):
        raise InputError(f"{path}: the key is damaged") from None
