"""The page of cards: one file without anything outside of it, for any browser, from anywhere, offline."""

import base64
import hashlib
import html
import json
import re
import zlib
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from saefast.errors import InputError, check
from saefast.files import write_atomic
from saefast.interp.look import pack
from saefast.interp.look.tokens import Shown

LOOK = ("theme.js", "core.js", "tokens.js")  # as on the pages of `saefast look`
OWN = ("store.js", "card.js", "form.js", "app.js")


class Page(NamedTuple):
    """What a page shows, and all that it has."""

    commitment: str
    config: dict[str, Any]  # of `BlindConfig`, without the number of units
    logits: bool
    cards: list[
        dict[str, Any]
    ]  # id, examples, levels (where all tokens are shaded), logits, sets: see `shown_of`
    tokens: list[bytes]  # by the number that stands for them in the cards


def digest_of(cards: list[dict[str, Any]]) -> str:
    """SHA-256 of the cards: in the key, so that the key fits one page only."""
    return hashlib.sha256(json.dumps(cards, separators=(",", ":")).encode()).hexdigest()


def write_page(path: Path, title: str, values: dict[str, Any], vocabulary: Shown) -> None:
    """Write it. `values`: commitment, config, logits, rubric and cards."""
    look, own = resources.files("saefast.interp.look") / "assets", resources.files(__package__) / "assets"
    build = values["commitment"][:16]
    data = [pack.pack("vocabulary", build, vocabulary.arrays()), pack.pack("cards", build, {}, values)]
    scripts = [(look / name).read_text(encoding="utf-8") for name in LOOK]
    scripts += [one.decode() for one in data]
    scripts += [(own / name).read_text(encoding="utf-8") for name in OWN]
    style = (look / "base.css").read_text(encoding="utf-8") + (own / "blind.css").read_text(encoding="utf-8")
    parts = {
        "title": html.escape(title),
        "build": build,
        "scripts_allowed": " ".join(map(policy_of, scripts)),
        "style_allowed": policy_of(style),
        "style": style,
        "first": f"<script>{scripts[0]}</script>",
        "scripts": "\n".join(f"<script>{script}</script>" for script in scripts[1:]),
    }
    template = (own / "page.html").read_text(encoding="utf-8")
    page = re.sub(r"\{\{(\w+)\}\}", lambda name: parts[name[1]], template)
    write_atomic(path, lambda temporary: temporary.write_bytes(page.encode()))


def read_page(path: str | Path) -> Page:
    """What the page has, as a program that rates sees it.

    Raises:
        InputError: there is no such page, or it is damaged.
    """
    path = Path(path)
    check(path.is_file(), f"{path}: expected the page of a deal, found none")
    try:
        found = dict(map(_taken, re.findall(r"<script>saefast\.take\((.*)\);\n</script>", path.read_text())))
        values, (raw, lengths) = found["cards"][0], found["vocabulary"][1]
        ends = np.cumsum([0, *lengths.tolist()])
        tokens = [raw.tobytes()[a:b] for a, b in pairwise(ends.tolist())]
        return Page(values["commitment"], values["config"], values["logits"], values["cards"], tokens)
    except (KeyError, TypeError, ValueError, zlib.error):
        raise InputError(f"{path}: expected the page of `saefast blind deal`, got something else") from None


def _taken(arguments: str) -> tuple[str, tuple[Any, Any]]:
    name, _, header, body = json.loads(f"[{arguments}]")
    data, offset, arrays = zlib.decompress(base64.b64decode(body)) if body else b"", 0, {}
    for key, kind, size in header["arrays"]:
        arrays[key] = np.frombuffer(data, pack.TYPES[kind], size, offset)
        offset += -(-arrays[key].nbytes // 8) * 8
    return name, (header["values"], (arrays.get("bytes"), arrays.get("lengths")))


def policy_of(text: str) -> str:
    """What the policy of the page names a script or a style by."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
