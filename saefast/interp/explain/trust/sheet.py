"""A sheet on which people say of 50 explanations whether they hold: what scores of judges must be read beside.

    dealt = deal_sheet("runs/demo/records", read_explanations("runs/demo/records"), "sheet.html", vocabulary)
    # sheet.html goes to the person; sheet.key.json, which says what was explained how, stays here
    read_sheet("sheet-AB-50-of-50.json", "sheet.html").wrong

Explanations of all methods are shuffled, and nothing on the page says by which method one was made, of which unit, or how it scored. The
windows of text are from documents of the split "score", which no explainer has seen.
"""

import html
import json
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from saefast.errors import check, shown
from saefast.files import read_json, write_atomic
from saefast.interp.blind.page import LOOK, digest_of, policy_of, read_page
from saefast.interp.blind.seal import commitment_of, opened, seal
from saefast.interp.explain.examples import Examples, Tiles, inactive, joined
from saefast.interp.look import pack
from saefast.interp.look.tokens import Shown
from saefast.interp.records import Records
from saefast.interp.steering.intervals import Share, wilson
from saefast.interp.vocabulary import Vocabulary, pieces

FORMAT = "saefast-explanation-sheet"
CHOICES = ("holds", "part", "wrong")
SHADES = 20  # steps from 0 to the largest activation
N_TOP, N_ACTIVE, N_INACTIVE = 5, 5, 3


class DealtSheet(NamedTuple):
    page: Path
    key: Path
    commitment: str
    n: int
    skipped: int  # explanations that were drawn, of units that are never active in the split "score"


class SheetResult(NamedTuple):
    rater: str
    wrong: Share  # the failure rate, with Wilson's 95 % interval
    part: Share  # "holds in part"
    wrong_by_method: dict[str, Share]
    answers: tuple[
        dict[str, Any], ...
    ]  # latent, method, model, explanation, choice, note: in the order of the page


def deal_sheet(
    folder: str | Path,
    explanations: Sequence[Mapping[str, Any]],
    out: str | Path,
    vocabulary: Vocabulary,
    n: int = 50,
    seed: int = 0,
    length: int = 64,
) -> DealtSheet:
    """Draw n explanations at random and write OUT, a page for any browser, and beside it the key.

    Of each explanation the page has its sentence, the 5 windows of the largest activations, 5 random ones in which the unit is active,
    and 3 in which it is not, each token shaded by its activation relative to the unit's largest. A unit that is active in few windows has
    fewer.

    Args:
        folder: of records.
        explanations: as `read_explanations` gives them, of one method or of several.
        n: how many are drawn.
        length: tokens of a window.

    Raises:
        InputError: fewer than n explanations of units that are active in the split, an explanation of a unit that is not there, or a key
            of an earlier sheet at the same place, without which its answers could not be read.
    """
    check(n > 0, f"n: expected at least 1, got {n}")
    page, records = Path(out).absolute(), Records(folder)
    key_file = key_of(page)
    check(not key_file.exists(), f"out: expected a new sheet, there is the key of an earlier one, {key_file}")
    tiles, rng = Tiles(records, "score", length), np.random.default_rng(seed)
    drawn: list[tuple[Mapping[str, Any], Examples]] = []
    skipped = 0
    for i in rng.permutation(len(explanations)).tolist():
        if len(drawn) == n:
            break
        windows = _windows(tiles, explanations[i]["latent"], seed)
        if windows.active.any():
            drawn.append((explanations[i], windows))
        else:
            skipped += 1
    found = f"found {len(drawn)} of {len(explanations)}"
    check(len(drawn) == n, f"explanations: expected {n} of units that are active in the texts, {found}")
    tokens = Shown(vocabulary, [windows.tokens for _, windows in drawn])
    cards = [_card(str(i + 1), *one, tokens) for i, one in enumerate(drawn)]
    keys = ("latent", "method", "model", "explanation")
    of_card = {
        card["id"]: {key: one.get(key) for key in keys} for card, (one, _) in zip(cards, drawn, strict=True)
    }
    config = {"n": n, "length": length, "shades": SHADES}
    key = {"salt": rng.bytes(32).hex(), "seed": seed, "config": config, "logits": False, "sets": {}}
    commitment = seal(key_file, key | {"cards": of_card, "page": digest_of(cards)})
    values = {"commitment": commitment, "config": config, "logits": False, "cards": cards}
    text = _page("Do these explanations hold?", values, tokens)
    write_atomic(page, lambda temporary: temporary.write_bytes(text.encode()))
    return DealtSheet(page, key_file, commitment, n, skipped)


def key_of(page: str | Path) -> Path:
    """Where the key of a sheet is."""
    return Path(page).with_suffix(".key.json")


def read_sheet(path: str | Path, page: str | Path) -> SheetResult:
    """What a person said, joined with the key that is beside the page.

    Args:
        path: the file that the page saved.

    Raises:
        InputError: something else, answers to another sheet, one that is missing, there twice or unknown, or a page that is not the
            key's.
    """
    path, page = Path(path), Path(page)
    sheet, key = read_page(page), opened(key_of(page))
    ours = sheet.commitment == commitment_of(key_of(page)) and digest_of(sheet.cards) == key["page"]
    check(ours, f"{page}: edited, or not the page of {key_of(page)}")
    found = read_json(path)
    ok = isinstance(found, dict) and found.get("format") == FORMAT and found.get("version") == 1
    ok = ok and isinstance(found.get("answers"), list) and isinstance(found.get("rater"), str)
    check(ok, f"{path}: expected a file that the page of a sheet saved, got something else")
    check(
        found.get("commitment") == sheet.commitment, f"{path}: these are answers to another sheet than {page}"
    )
    answers: dict[str, dict[str, Any]] = {}
    for one in found["answers"]:
        ok = isinstance(one, dict) and one.get("choice") in CHOICES and isinstance(one.get("note"), str)
        ok = ok and isinstance(one.get("id"), str)
        check(
            ok,
            f'{path}: expected {{"id": ..., "choice": {" | ".join(CHOICES)}, "note": ...}}, got {shown(one)}',
        )
        name = one["id"]
        check(name in key["cards"], f"{path}: the sheet has no explanation {shown(name)}")
        check(name not in answers, f"{path}: expected one answer to each explanation, {name} has two")
        answers[name] = {"choice": one["choice"], "note": one["note"]}
    missing = [name for name in key["cards"] if name not in answers]
    said = f"missing are {len(missing)}: {', '.join(missing[:10])}{', ...' if len(missing) > 10 else ''}"
    check(not missing, f"{path}: expected an answer to each of {len(key['cards'])} explanations, {said}")
    rows = tuple({**of_card, **answers[name]} for name, of_card in key["cards"].items())
    by_method: dict[str, list[str]] = {}
    for row in rows:
        model = f" ({row['model']})" if row["model"] else ""
        by_method.setdefault(f"{row['method'] or 'no method'}{model}", []).append(row["choice"])
    shares = {name: _share(choices, "wrong") for name, choices in sorted(by_method.items())}
    choices = [row["choice"] for row in rows]
    return SheetResult(found["rater"], _share(choices, "wrong"), _share(choices, "part"), shares, rows)


def _share(choices: Sequence[str], choice: str) -> Share:
    return wilson(choices.count(choice), len(choices))


def _windows(tiles: Tiles, latent: int, seed: int) -> Examples:
    """Those of the unit's largest activations first, then random ones in which it is active, then others."""
    active, peaks = tiles.peaks(latent)
    top = active[np.argsort(-peaks, kind="stable")[:N_TOP]]
    is_active = np.zeros(len(tiles), bool)
    is_active[active] = True
    some = tiles.random(latent, N_ACTIVE, seed, top, is_active)
    return joined(
        tiles.examples(latent, [("top", -1, top), ("random", -1, some)]),
        inactive(tiles, latent, N_INACTIVE, seed),
    )


def _card(name: str, one: Mapping[str, Any], windows: Examples, tokens: Shown) -> dict[str, Any]:
    """Shades are rounded up, so that a token on which the unit is active at all is not white."""
    shades = np.ceil(SHADES * np.minimum(windows.acts / (windows.largest or 1.0), 1.0)).astype(np.int64)
    sentence = " ".join(one["explanation"].split())
    return {
        "id": name,
        "sentence": [[text, named] for text, named in pieces(sentence.encode())],
        "groups": [
            int((windows.of(*names)).tokens.shape[0]) for names in (("top",), ("random",), ("inactive",))
        ],
        "tokens": tokens(windows.tokens).tolist(),
        "shades": shades.tolist(),
    }


def _page(title: str, values: dict[str, Any], tokens: Shown) -> str:
    """One file without anything outside of it; its policy lets nothing run but the scripts that are named in it."""
    build = values["commitment"][:16]
    look, own = resources.files("saefast.interp.look") / "assets", resources.files(__package__) / "assets"
    scripts = [(look / name).read_text(encoding="utf-8") for name in LOOK]
    scripts += [
        pack.pack("vocabulary", build, tokens.arrays()).decode(),
        pack.pack("cards", build, {}, values).decode(),
        (own / "sheet.js").read_text(encoding="utf-8"),
    ]
    style = (look / "base.css").read_text(encoding="utf-8") + (own / "sheet.css").read_text(encoding="utf-8")
    parts = {
        "title": html.escape(title),
        "build": build,
        "scripts_allowed": " ".join(map(policy_of, scripts)),
        "style_allowed": policy_of(style),
        "style": style,
        "scripts": "\n".join(f"<script>{script}</script>" for script in scripts),
    }
    template = (own / "sheet.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda name: parts[name[1]], template)


def write_answers(path: Path, page: str | Path, rater: str, answers: Sequence[Mapping[str, str]]) -> Path:
    """The file that the page saves: for raters that are programs."""
    values = {"format": FORMAT, "version": 1, "commitment": read_page(page).commitment, "rater": rater}
    text = json.dumps(values | {"answers": [dict(one) for one in answers]}, indent=1)
    write_atomic(path, lambda temporary: temporary.write_text(text + "\n"))
    return path
