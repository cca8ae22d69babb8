"""What is shown of a latent and of a text, as HTML without scripts and as plain text."""

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

from saefast.interp.effects import Alignment, Effects, LogitWeights, Neighbours
from saefast.interp.notebook.active import ActiveText
from saefast.interp.notebook.tokens import Token, line_html, token_html, token_text
from saefast.interp.records import Example, LatentRecord
from saefast.interp.strongest import example_text
from saefast.interp.vocabulary import Vocabulary, visible

TITLES = {
    "top": "Strongest",
    "interval": "Interval",
    "quantile": "Quantile",
    "random": "Random",
    "inactive": "Not active",
}
STYLE = """<style>
.saefast{font:14px/1.6 system-ui,sans-serif;max-width:72em;overflow-wrap:anywhere;color:inherit}
.saefast h3,.saefast h4{margin:.8em 0 .3em;font-weight:600}
.saefast h3{font-size:16px}.saefast h4{font-size:13px}
.saefast table{border-collapse:collapse;font-variant-numeric:tabular-nums}
.saefast td,.saefast th{padding:.1em .9em .1em 0;text-align:left;vertical-align:top;background:none;color:inherit}
.saefast svg{display:block;max-width:100%;color:inherit}
.saefast details{margin:.3em 0}.saefast summary{cursor:pointer}
.saefast p{margin:.2em 0}.saefast .saefast-columns{display:flex;flex-wrap:wrap;gap:0 3em}
.saefast bdi{white-space:pre-wrap;border-radius:2px}
.saefast .saefast-at{font-weight:600;outline:1px solid currentColor}
.saefast .saefast-sign{font-style:normal;font-family:monospace;font-size:.8em;opacity:.7;border:1px dotted}
.saefast .saefast-note{opacity:.75;font-variant-numeric:tabular-nums}
</style>"""


class Shown(NamedTuple):
    """A latent with all that is known about it."""

    record: LatentRecord
    vocabulary: Vocabulary | None
    effects: Effects
    explanations: Sequence[Mapping[str, Any]]  # lines of explanations.jsonl that are about it
    ablations: Mapping[tuple[str, int, int], Sequence[float | None]]  # by group, bin and rank
    n: int  # examples of each group, interval and quantile; rows of a table


def number(value: float) -> str:
    """Four digits."""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def statistics(record: LatentRecord) -> dict[str, str]:
    """Name -> number as it is shown."""
    names = ("count", "density", "max", "mean", "variance", "skewness", "kurtosis", "energy")
    return {name: number(getattr(record, name)) for name in names}


def latent_html(shown: Shown) -> str:
    record = shown.record
    cells = "".join(f"<td>{name}<br><b>{value}</b></td>" for name, value in statistics(record).items())
    parts = [f"<h3>Latent {record.latent}</h3>", *_explanations(shown.explanations)]
    parts += [f"<table><tr>{cells}</tr></table>", histogram_svg(record.histogram, record.max)]
    tables = [*_logits(shown), *_others(shown)]
    parts += [f'<div class="saefast-columns">{"".join(tables)}</div>'] if tables else []
    parts += [_examples(shown, group, some) for group, some in record.examples.items() if some]
    if not record.count:
        parts.append("<p>Never active on this text.</p>")
    return "".join(parts)


def latent_text(shown: Shown) -> str:
    """The same in a few lines of plain text."""
    record, vocabulary = shown.record, shown.vocabulary
    lines = [f"latent {record.latent}"]
    lines += [f"  {visible(str(one.get('explanation', '')).encode())}" for one in shown.explanations]
    lines.append("  " + ", ".join(f"{name} {value}" for name, value in statistics(record).items()))
    for sign, tokens, values in _logit_lists(shown):
        some = (
            f"{token_text(token, vocabulary)} {value:+.3g}"
            for token, value in zip(tokens, values, strict=True)
        )
        lines.append(f"  {sign} logits: " + "; ".join(some))
    for example in record.examples.get("top", [])[: shown.n]:
        text = example_text(example, vocabulary) if vocabulary else " ".join(map(str, example.tokens))
        lines.append(f"  {example.act:8.4g}  {text}")
    return "\n".join(lines)


def text_html(text: ActiveText, vocabulary: Vocabulary | None, n: int) -> str:
    """All tokens, coloured by the sum of activations, and a table of the n strongest latents of each."""
    sums = [sum(act for _, act in active) for active in text.active]
    largest = max(sums, default=0.0) or 1.0
    tokens = [
        Token(
            token,
            total / largest,
            f"{i}: " + (", ".join(f"{latent} ({number(act)})" for latent, act in active) or "none"),
        )
        for i, (token, total, active) in enumerate(zip(text.tokens, sums, text.active, strict=True))
    ]
    rows = "".join(
        f"<tr><td>{i}</td><td>{line_html([token], vocabulary)}</td><td>{_few(active, n)}</td></tr>"
        for i, (token, active) in enumerate(zip(tokens, text.active, strict=True))
    )
    head = "<tr><th>place</th><th>token</th><th>active latents, the strongest first</th></tr>"
    table = f"<details><summary>Latents of each token</summary><table>{head}{rows}</table></details>"
    return f"<h3>Active latents</h3><p>{line_html(tokens, vocabulary)}</p>{table}"


def text_text(text: ActiveText, vocabulary: Vocabulary | None, n: int) -> str:
    return "\n".join(
        f"{i:5}  {token_text(token, vocabulary):16}  {_few(active, n)}"
        for i, (token, active) in enumerate(zip(text.tokens, text.active, strict=True))
    )


def histogram_svg(histogram: Sequence[int], largest: float) -> str:
    """Bars as high as log(1 + count), with bounds and counts in titles."""
    if not sum(histogram):
        return ""
    high, width, step = 60, 440, 440 / len(histogram)
    top, bars = math.log1p(max(histogram)), []
    for i, count in enumerate(histogram):
        tall = high * math.log1p(count) / top
        bounds = f"{number(largest * i / len(histogram))} to {number(largest * (i + 1) / len(histogram))}"
        place = f'x="{i * step:.2f}" y="{high - tall:.2f}" width="{step * 0.9:.2f}" height="{tall:.2f}"'
        bars.append(f"<rect {place}><title>{bounds}: {count:,} tokens</title></rect>")
    label = (
        f"Histogram of {sum(histogram):,} activations from 0 to {number(largest)}, logarithm of the counts"
    )
    ends = f'<text x="0" y="{high + 14}">0</text><text x="{width}" y="{high + 14}" text-anchor="end">{number(largest)}</text>'
    box = f'width="{width}" height="{high + 18}" viewBox="0 0 {width} {high + 18}" fill="currentColor" font-size="11"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{label}" {box}>{"".join(bars)}{ends}</svg>'


def _explanations(explanations: Iterable[Mapping[str, Any]]) -> list[str]:
    found = []
    for one in explanations:
        scores = one.get("scores") or {}
        said = [f"{name} {number(score)}" for name, score in scores.items() if isinstance(score, int | float)]
        by = [str(one[key]) for key in ("method", "model") if one.get(key)]
        note = escape(", ".join(by + said))
        found.append(
            f'<p dir="auto">{escape(str(one.get("explanation", "")))} <span class="saefast-note">{note}</span></p>'
        )
    return found


def _examples(shown: Shown, group: str, examples: Sequence[Example]) -> str:
    largest = shown.record.max or 1.0
    lines, seen = [], dict.fromkeys((one.bin for one in examples), 0)
    for part in sorted(seen, reverse=True):  # the strongest interval first
        some = [one for one in examples if one.bin == part][: shown.n]
        if len(seen) > 1:
            lines.append(f'<p class="saefast-note">{TITLES[group].lower()} {part}</p>')
        for one in some:
            tokens, effects = _tokens(one, largest, shown.ablations.get((one.group, one.bin, one.rank)))
            note = f"{number(one.act)} · context {one.context}, token {one.position} · {one.split}{effects}"
            lines.append(
                f'<p>{line_html(tokens, shown.vocabulary)} <span class="saefast-note">{note}</span></p>'
            )
    opened = " open" if group == "top" else ""
    return f"<details{opened}><summary>{TITLES[group]} ({len(examples)})</summary>{''.join(lines)}</details>"


def _tokens(
    example: Example, largest: float, effects: Sequence[float | None] | None
) -> tuple[list[Token], str]:
    changes: list[float | None] = list(effects or ())
    changes += [None] * (len(example.tokens) - len(changes))
    scale = max((abs(change) for change in changes if change is not None), default=0.0) or 1.0
    found = []
    for i, (token, act, change) in enumerate(zip(example.tokens, example.acts, changes, strict=False)):
        title = f"activation {number(act)}, token {token}" if act or i == example.at else ""
        if change is not None:
            title += f" log-likelihood {change:+.4g} without the latent"
        found.append(Token(token, act / largest, title, (change or 0.0) / scale, i == example.at))
    return found, f" · underlined by effect, up to {number(scale)}" if effects else ""


def _logit_lists(shown: Shown) -> list[tuple[str, list[int], list[float]]]:
    logits, i, n = shown.effects.logits, shown.record.latent, shown.n
    if not isinstance(logits, LogitWeights):
        return []
    found = []
    for sign in ("positive", "negative"):
        tokens, values = (
            getattr(logits, f"{sign}_tokens")[i, :n].tolist(),
            getattr(logits, sign)[i, :n].tolist(),
        )
        found.append((sign, tokens, values))
    return found


def _logits(shown: Shown) -> list[str]:
    found = []
    for sign, tokens, values in _logit_lists(shown):
        rows = [
            (
                f"<bdi>{token_html(token, shown.vocabulary)}</bdi>",
                f"{value:+.4g}",
            )
            for token, value in zip(tokens, values, strict=True)
        ]
        found.append(_table(f"{sign.capitalize()} logits", rows))
    return found


def _others(shown: Shown) -> list[str]:
    titles = {
        "decoder": "Similar decoder rows (cosine)",
        "encoder": "Similar encoder rows (cosine)",
        "correlated": "Active together (correlation)",
        "correlated_neurons": "Correlated neurons",
        "alignment": "Aligned neurons (weight)",
    }
    found = []
    for name, title in titles.items():
        table = getattr(shown.effects, name)
        if isinstance(table, Neighbours | Alignment):
            i, n = shown.record.latent, shown.n
            pairs = zip(table.indices[i, :n].tolist(), table.values[i, :n].tolist(), strict=True)
            found.append(
                _table(title, [(str(other), f"{value:.4g}") for other, value in pairs if other >= 0])
            )
    return found


def _table(title: str, rows: Sequence[tuple[str, str]]) -> str:
    body = "".join(f"<tr><td>{left}</td><td>{right}</td></tr>" for left, right in rows)
    return f"<div><h4>{title}</h4><table>{body}</table></div>"


def _few(active: Sequence[tuple[int, float]], n: int) -> str:
    more = f" and {len(active) - n} more" if len(active) > n else ""
    return ", ".join(f"{latent} ({number(act)})" for latent, act in active[:n]) + more
