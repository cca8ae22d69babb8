"""Latents in a notebook: what is in the HTML, and that hostile text can do nothing."""

import json
import os
from html.parser import HTMLParser

import pytest
import torch

from saefast import SAE, InputError, SAEConfig
from saefast.interp import show
from saefast.interp.effects import Alignment, Effects, LogitWeights, Neighbours
from saefast.interp.effects.ablation_file import write_ablations
from saefast.interp.neurons import neurons
from saefast.interp.notebook import ActiveText
from saefast.interp.records import Records
from tests.helpers import tiny_lm
from tests.helpers.small_records import small_records

VOID, D_IN = {"br", "hr"}, 6
TAGS = {
    "b",
    "bdi",
    "br",
    "details",
    "div",
    "h3",
    "h4",
    "hr",
    "i",
    "p",
    "rect",
    "span",
    "style",
    "summary",
    "svg",
}
TAGS |= {"table", "td", "text", "th", "title", "tr"}
HOSTILE = [
    "<script>alert(1)</script>",
    "</style><img src=x onerror=alert(1)>",
    '" onmouseover="alert(1)" x="',
    "' onfocus=alert(1) '",
    "<!--",
    "]]>",
    "</bdi></div></svg>",
    "&lt;b&gt;&#60;",
    "javascript:alert(1)",
    "{{7*7}}${7*7}`",
    "\u202eright to left\u202c",
    "nul\x00esc\x1b[31m\x07",
    "\ud800",
    "שלום",
    "a" * 100_000,
    "",
]


class Page(HTMLParser):
    """The elements of a page as (tag, attributes), its text, and whether it is well nested."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.open, self.text = [], [], ""
        self.bdi: list[tuple[dict, str]] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names))
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "bdi":
            self.bdi.append((dict(attrs), ""))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data
        if "bdi" in self.open:
            self.bdi[-1] = (self.bdi[-1][0], self.bdi[-1][1] + data)

    def handle_comment(self, data):
        raise AssertionError(f"a comment: {data}")


class Words:
    """A tokenizer of these words, as slow ones are."""

    all_special_ids, name_or_path = [], "words"

    def __init__(self, words):
        self.words = words

    def __len__(self):
        return len(self.words)

    def convert_ids_to_tokens(self, ids):
        return [f"{i}" for i in ids]

    def convert_tokens_to_ids(self, names):
        return [int(name) for name in names]

    def decode(self, ids):
        return "".join(self.words[i] for i in ids)


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    torch.manual_seed(0)
    contexts = torch.randint(2, 64, (8, 20))
    x = torch.randn(160, D_IN) * torch.tensor([1.0, 2.0, 0.0, 3.0, 1.0, 1.0])
    return small_records(tmp_path_factory.mktemp("notebook"), neurons(D_IN), contexts, x)


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_lm.tokenizer()


def effects():
    order = torch.stack([torch.arange(D_IN).roll(-i)[1:4] for i in range(D_IN)]).int()
    order[:, 2] = -1
    values = torch.tensor([0.75, 0.5, 0.0]).repeat(D_IN, 1)
    near = [Neighbours(order.clone(), values.clone()) for _ in range(4)]  # a file holds no tensor twice
    tokens = torch.tensor([[5, 6, 70]] * D_IN).int()
    weights = torch.tensor([[2.5, 1.5, 0.125]] * D_IN)
    counts, bounds = torch.ones(D_IN, 4).int(), torch.ones(D_IN)
    logits = LogitWeights(tokens, weights, tokens.flip(1), -weights.flip(1), counts, -bounds, bounds)
    return Effects(logits, *near, Alignment(order.clamp_min(0), values, values.clone()))


def test_the_numbers_are_those_of_the_records(records, tokenizer):
    latent = records.latent(3)
    view = show(latent, tokenizer, n=100)
    page = Page(view._repr_html_())
    for name in ("count", "density", "max", "mean", "variance", "skewness", "kurtosis", "energy"):
        value = getattr(latent, name)
        assert f"{name}{value if name == 'count' else format(value, '.4g')}" in page.text
    heights = [float(at["height"]) for tag, at in page.tags if tag == "rect"]
    assert [bool(height) for height in heights] == [bool(count) for count in latent.histogram]
    assert heights.index(max(heights)) == latent.histogram.index(max(latent.histogram))
    shown = iter(page.bdi)
    n_examples = 0
    for group in ("top", "interval", "quantile", "random", "inactive"):
        some = latent.examples[group]
        for example in sorted(some, key=lambda one: -one.bin):
            n_examples += 1
            for i, (token, act) in enumerate(zip(example.tokens, example.acts)):
                attributes, text = next(shown)
                assert text == tiny_lm.WORDS[token]
                assert (attributes.get("class") == "saefast-at") == (i == example.at)
                assert ("background" in attributes.get("style", "")) == (act > 0)
                if act > 0:
                    assert attributes["title"] == f"activation {act:.4g}, token {token}"
    assert n_examples > 15 and next(shown, None) is None


def test_effects_explanations_and_ablations_are_shown(records, tokenizer, tmp_path):
    folder = tmp_path / "records"
    folder.mkdir()
    for path in records.folder.iterdir():
        os.link(path, folder / path.name)
    effects().save(folder)
    lines = [
        {"latent": 3, "explanation": "about <b>", "method": "m", "model": None, "scores": {"fuzzing": 0.75}}
    ]
    lines.append(lines[0] | {"latent": 4, "explanation": "another"})
    (folder / "explanations.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    example = records.latent(3).examples["top"][0]
    changes = [None, *(-0.5 for _ in example.tokens[1:])]
    row = {"latent": 3, "group": "top", "bin": 0, "rank": 0, "effects": changes}
    write_ablations(folder, [row], {})
    view = show(Records(folder), tokenizer, latent=3)
    page = Page(view.html)
    assert "about <b> m, fuzzing 0.75" in page.text and "another" not in page.text
    assert "Positive logitsw3+2.5w4+1.5#70+0.125" in page.text
    assert "Negative logits#70-0.125w4-1.5w3-2.5" in page.text
    assert (
        "Similar decoder rows (cosine)40.7550.5" in page.text
        and "-1" not in page.text.split("Strongest")[0].split("w3-2.5")[1]
    )
    assert page.bdi[6][0].get("title") == (
        f"activation {example.acts[0]:.4g}, token {example.tokens[0]}" if example.acts[0] else None
    )
    assert "log-likelihood -0.5 without the latent" in page.bdi[7][0]["title"]
    assert "border-bottom" in page.bdi[7][0]["style"] and "border-bottom" not in page.bdi[6][0].get(
        "style", ""
    )
    assert "about <b>" in repr(view) and "positive logits: w3 +2.5; w4 +1.5; <#70> +0.125" in repr(view)
    (folder / "explanations.jsonl").write_text('{"latent": 3, "explanation": ""}\n[]\n')
    with pytest.raises(InputError, match=r"explanations\.jsonl, line 2"):
        show(Records(folder), tokenizer, latent=3)


def test_several_latents_those_that_never_fire_and_the_strongest(records, tokenizer):
    page = Page(show(records, tokenizer, latent=[2, 3]).html)
    assert "Latent 2" in page.text and "Latent 3" in page.text and "Never active on this text." in page.text
    same = show([records.latent(2), records.latent(3)], tokenizer)
    assert same.html == show(records, tokenizer, latent=range(2, 4)).html
    assert show(records, tokenizer).text.startswith("latent 3\n")
    assert f"<#{records.latent(3).examples['top'][0].tokens[0]}>" not in show(records, tokenizer).text
    assert Page(show(records).html).bdi[0][1].startswith("#")  # without a tokenizer, ids


def test_a_text_and_its_active_latents(tmp_path, tokenizer):
    torch.manual_seed(1)
    sae = SAE(SAEConfig(d_in=D_IN, d_sae=24, k=3))
    contexts, x = torch.randint(2, 64, (8, 20)), torch.randn(160, D_IN)
    records = small_records(tmp_path, sae, contexts, x)
    acts, indices = sae.encode(x[60:80])
    given = ActiveText.of(contexts[3], acts, indices)
    assert given == ActiveText.recorded(records, 3)
    page = Page(show(records, tokenizer, context=3, n=2).html)
    assert [text for _, text in page.bdi[:20]] == [tiny_lm.WORDS[i] for i in contexts[3].tolist()]
    for (attributes, _), active in zip(page.bdi[:20], given.active):
        for latent, act in active:
            assert f"{latent} ({act:.4g})" in attributes["title"]
    assert (
        "and 1 more" in page.text
        and show(given, tokenizer, n=2).html == show(records, tokenizer, context=3, n=2).html
    )
    with pytest.raises(InputError, match="20 tokens"):
        ActiveText.of(contexts[3], acts[1:], indices[1:])


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_is_text(tmp_path, text):
    sae = neurons(2)
    records = small_records(tmp_path, sae, torch.randint(0, 3, (4, 6)), torch.rand(24, 2))
    safe = text.encode("utf-8", "replace").decode()
    tokenizer = Words(["plain", safe, f"{safe}\n\t"])
    for view in (show(records, tokenizer, latent=[0, 1]), show(records, tokenizer, context=0)):
        page = Page(view.html)
        tags = {tag for tag, _ in page.tags}
        assert tags <= TAGS
        names = {name for _, attributes in page.tags for name in attributes}
        assert not any(name.startswith("on") or name in ("href", "src") for name in names)
        for bad in ("\x00", "\x1b", "\u202e", "\u202c", "\x07"):
            assert bad not in view.html and bad not in repr(view)
        shown = {text for _, text in page.bdi}
        signs = {"\x00": "U+0000", "\x1b": "U+001B", "\x07": "U+0007", "\u202e": "U+202E", "\u202c": "U+202C"}
        want = "".join(signs.get(char, char) for char in safe)
        assert shown & {want or "#1", f"{want}\\n\\t"}


def test_hostile_explanations_are_text(tmp_path):
    records = small_records(tmp_path, neurons(2), torch.zeros(4, 6).int(), torch.rand(24, 2))
    hostile = "".join(HOSTILE[:9])
    entry = {"latent": 0, "explanation": hostile, "method": hostile, "scores": {hostile: 1.0}}
    (records.folder / "explanations.jsonl").write_text(json.dumps(entry))
    page = Page(show(records, latent=0).html)
    assert not {"script", "img"} & {tag for tag, _ in page.tags} and page.text.count(hostile) == 3


@pytest.mark.parametrize(
    "change, message",
    [
        ({"latent": 6}, "latent: expected 0 to 5"),
        ({"context": 8}, "context: expected 0 to 7"),
        ({"latent": 1, "context": 1}, "got both"),
        ({"what": ["x"]}, "expected records, latents or an ActiveText, got str"),
        ({"tokenizer": 3}, "tokenizer: expected a tokenizer"),
        ({"n": 0}, "n: expected a positive integer"),
    ],
)
def test_what_is_refused(records, change, message):
    with pytest.raises(InputError, match=message):
        show(**{"what": records} | change)


def test_tables_are_ready_for_pandas(records):
    pandas = pytest.importorskip("pandas")
    table = records.table().to_pandas()
    assert isinstance(table, pandas.DataFrame) and len(table) == D_IN
    assert table.set_index("latent").loc[3, "count"] == records.latent(3).count
    examples = records.examples_table(range(3, 4)).to_pandas()
    top = examples[(examples.latent == 3) & (examples.group == "top")]
    assert top.act.tolist() == [one.act for one in records.latent(3).examples["top"]]


def test_a_real_notebook_shows_it(records, tmp_path):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    nbconvert = pytest.importorskip("nbconvert")
    pytest.importorskip("ipykernel")
    code = f"from saefast.interp import show\nfrom saefast.interp.records import Records\nshow(Records({str(records.folder)!r}), latent=3)"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    nbclient.NotebookClient(notebook, timeout=60, resources={"metadata": {"path": str(tmp_path)}}).execute()
    data = notebook.cells[0].outputs[0]["data"]
    assert data["text/html"] == show(records, latent=3).html
    assert data["text/plain"] == repr(show(records, latent=3))
    page, _ = nbconvert.HTMLExporter().from_notebook_node(notebook)
    for part in ("<bdi", "<rect", "<h3>Latent 3</h3>"):
        assert page.count(part) == show(records, latent=3).html.count(part) > 0
