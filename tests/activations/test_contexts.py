"""Contexts: every token once and in order, bos and separator, documents from Python, and models that do not take them."""

import json

import pytest
import torch
from tokenizers import processors
from transformers import GPT2Config, GPT2LMHeadModel, RobertaConfig, RobertaForCausalLM

from saefast import InputError, open_source
from saefast.activations.lm import ModelSource, PackedContexts, model_contexts, n_positions
from saefast.files import read_json_checked, write_json_checked
from tests.helpers import tiny_lm
from tests.helpers.tiny_world import CACHE, run

EOS, BOS = 0, 63  # ids of "<eos>", and of "w61", which serves as the beginning of a text


def with_bos(adds=True):
    """A tokenizer with a bos token, which it puts before a text by itself if `adds`, as that of Llama does."""
    tokenizer = tiny_lm.tokenizer()
    tokenizer.add_special_tokens({"bos_token": "w61"})
    if adds:
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="w61 $A", special_tokens=[("w61", BOS)]
        )
    return tokenizer


def stream(texts, separator=(EOS,)):
    """The tokens of documents one after another."""
    return [token for text in texts for token in [*(int(word[1:]) + 2 for word in text.split()), *separator]]


def texts_of(*sizes):
    return [tiny_lm.text(n, seed=n).replace("w61", "w0") for n in sizes]


def rows(contexts):
    return [row for batch in contexts for row in batch.tolist()]


@pytest.mark.parametrize("batch,length", [(1, 5), (2, 3), (3, 7)])
def test_packed_contexts_hold_every_token_once_and_in_order(batch, length):
    texts = [tiny_lm.text(n, seed=n) for n in (50, 3, 1, 40)]
    contexts = PackedContexts(texts, tiny_lm.tokenizer(), length, batch)
    for _ in range(2):  # it can be read again
        got = list(contexts)
        assert {tuple(b.shape) for b in got} == {(batch, length)} and {b.dtype for b in got} == {torch.int64}
        want = stream(texts)
        assert torch.cat(got).flatten().tolist() == want[: len(want) // (batch * length) * batch * length]


def test_packed_contexts_refuse_bad_sizes_and_too_little_text():
    for sizes, message in (
        ((0, 1), "context_length: expected a positive integer, got 0"),
        ((4, -1), "contexts_per_batch: expected a positive integer, got -1"),
    ):
        with pytest.raises(InputError, match=f"^{message}$"):
            PackedContexts(["w1"], tiny_lm.tokenizer(), *sizes)
    with pytest.raises(InputError, match="^text: expected at least 8 tokens for one batch, got 5$"):
        list(PackedContexts(["w1 w2", "w3"], tiny_lm.tokenizer(), 4, 2))


@pytest.mark.parametrize("separator,between", [("auto", [EOS]), ("eos", [EOS]), ("bos", [BOS]), ("none", [])])
@pytest.mark.parametrize("bos", ["auto", "always", "never"])
@pytest.mark.parametrize("adds", [True, False])
def test_every_context_begins_with_bos_where_it_should_and_no_token_is_lost(separator, between, bos, adds):
    texts = texts_of(50, 3, 1, 40, 200)
    contexts = PackedContexts(texts, with_bos(adds), 7, 2, bos=bos, separator=separator)
    begins = bos == "always" or (bos == "auto" and adds)
    assert contexts.bos == (BOS if begins else None) and contexts.separator == (between or [None])[0]
    assert contexts.special_ids == [EOS, 1, BOS]
    assert contexts.notes == ({"bos": BOS} if begins else {}) | (
        {} if separator == "auto" else {"separator": contexts.separator}
    )
    got, want = rows(contexts), stream(texts, between)
    assert len(got) > 30 and {len(row) for row in got} == {7}
    if begins:
        assert {row[0] for row in got} == {BOS} and all(row[1] != BOS or row[0] != row[1] for row in got)
    at = 0
    for row in got:  # a bos that is a separator already is not put there twice
        own = row[1:] if begins and want[at] != BOS else row
        assert own == want[at : at + len(own)]
        at += len(own)
    assert len(want) - at < 14


def test_a_tokenizer_without_the_token_that_is_asked_for_is_refused():
    none = tiny_lm.tokenizer()
    assert PackedContexts(["w1"], none).bos is None and PackedContexts(["w1"], none).separator == EOS
    none.eos_token = None
    plain = PackedContexts(["w1 w2", "w3"], none, 3, 1)
    assert plain.separator is None and rows(plain) == [[3, 4, 5]]
    for options, message in (
        ({"bos": "always"}, "bos: the tokenizer has no bos token"),
        ({"separator": "eos"}, "separator: the tokenizer has no eos token"),
        ({"separator": "bos"}, "separator: the tokenizer has no bos token"),
        ({"bos": "yes"}, r"bos: expected one of \['auto', 'always', 'never'\], got 'yes'"),
        ({"separator": 5}, r"separator: expected one of \['auto', 'eos', 'bos', 'none'\], got 5"),
    ):
        with pytest.raises(InputError, match=f"^{message}"):
            PackedContexts(["w1"], none, **options)
    with pytest.raises(
        InputError, match="^context_length: expected 2 or more, a bos token and one of the text"
    ):
        PackedContexts(["w1"], with_bos(), 1)


@pytest.mark.parametrize("pad", ["<eos>", "<unk>", "w61"])
def test_rows_of_special_tokens_and_of_bos_are_dropped_whatever_the_pad_token_is(pad):
    tokenizer = with_bos()
    tokenizer.pad_token = pad
    contexts = PackedContexts(texts_of(20, 30), tokenizer, 8, 2)
    assert contexts.special_ids == [EOS, 1, BOS]
    source = ModelSource(tiny_lm.model(), "model.layers.0", contexts, contexts.special_ids, None)
    for part in source.model_batches():
        kept = part.contexts[part.context, part.position].tolist()
        assert kept == [token for token in part.contexts.flatten().tolist() if token not in (EOS, 1, BOS)]
        assert 0 not in part.position
    assert source.n_dropped["special"] >= 6 * 1 + 1


class Again:
    """Documents as those of a dataset of Hugging Face: dicts, names of columns, other columns that cost time."""

    def __init__(self, texts, columns=("id", "text")):
        self.texts, self.columns, self.column_names = texts, columns, list(columns)

    def select_columns(self, names):
        return Again(self.texts, tuple(names))

    def __iter__(self):
        assert self.columns == ("text",)
        return iter([{"text": text} for text in self.texts])


TEXTS = texts_of(9, 2, 30)
COLLECTIONS = {
    "list": TEXTS,
    "tuple": tuple(TEXTS),
    "dicts": [{"id": 1, "text": text} for text in TEXTS],
    "dataset": Again(TEXTS),
}


@pytest.mark.parametrize("name", COLLECTIONS)
def test_documents_come_from_lists_dicts_and_datasets(name):
    want = rows(PackedContexts(list(TEXTS), tiny_lm.tokenizer(), 4, 2))
    contexts = PackedContexts(COLLECTIONS[name], tiny_lm.tokenizer(), 4, 2)
    assert rows(contexts) == rows(contexts) == want and len(want) == 10


@pytest.mark.parametrize(
    "made", [lambda: iter(TEXTS), lambda: (text for text in TEXTS), lambda: map(str, TEXTS)]
)
def test_an_iterator_is_good_for_one_pass_and_a_look_at_its_first_batch(made):
    want = rows(PackedContexts(TEXTS, tiny_lm.tokenizer(), 4, 2))
    contexts = PackedContexts(made(), tiny_lm.tokenizer(), 4, 2)
    source = ModelSource(
        tiny_lm.model(), "model.layers.0", contexts, sink_ratio=None
    )  # takes the first batch
    next(iter(contexts))
    assert [row for part in source.model_batches() for row in part.contexts.tolist()] == want
    with pytest.raises(
        InputError, match="^texts: a .* can be read only once, and a second pass has begun: give a list"
    ):
        next(iter(contexts))


class Table(list):
    """What pandas gives for one: it is iterated over by the names of its columns."""

    def __init__(self, rows):
        super().__init__(rows)
        self.columns, self.shape = ["text"], (len(rows), 1)


@pytest.mark.parametrize(
    "texts,message",
    [
        ("w1 w2", r"got one str: give \[text\] for one document, Texts\(path\) for a file"),
        (b"w1", "got one bytes: "),
        ({"train": TEXTS, "test": TEXTS}, "got a dict of train, test: give one of its values"),
        (Table(TEXTS), r"got a Table: give one column, table\['text'\]"),
        (5, "got int"),
        (None, "got NoneType"),
        ([TEXTS], 'texts: document 1: expected a string, or a dict with a field "text" .* got list'),
        (["w1", {"body": "w2"}], "texts: document 2: expected a string, or a dict .* got one with body"),
        (["w1", {"text": None}], 'texts: document 2, field "text": expected a string, got null'),
        (["\ud800"], "texts: document 1: expected text, got half a surrogate pair"),
        ([], "texts: expected documents, got none"),
    ],
)
def test_what_is_no_collection_of_documents_is_refused(texts, message):
    with pytest.raises(InputError, match=message):
        list(PackedContexts(texts, tiny_lm.tokenizer(), 4, 1))


def test_a_dataset_without_the_column_lists_its_columns():
    with pytest.raises(InputError, match='^texts: expected a column "body" .field., it has id, text$'):
        PackedContexts(Again(TEXTS), tiny_lm.tokenizer(), field="body")


def test_tokens_beyond_the_embedding_are_refused_before_the_model_sees_them():
    model = tiny_lm.model()
    model.resize_token_embeddings(32)
    limit = "^model: its embedding has 32 rows, but its tokenizer gives token"
    contexts = model_contexts(model, tiny_lm.tokenizer(), ["w1 w2 w29", "w1 w30 w40"], 2, 1)
    with pytest.raises(InputError, match=rf"{limit} 42 \('w40'\): they do not belong together$"):
        list(contexts)
    with pytest.raises(InputError, match=rf"{limit} 63 \('w61'\)"):
        model_contexts(model, with_bos(), ["w1"], 2, 1)


def test_contexts_longer_than_the_positions_of_the_model_are_refused():
    gpt = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=12, n_embd=8, n_layer=1, n_head=1))
    sizes = {"vocab_size": 64, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    roberta = RobertaConfig(**sizes, max_position_embeddings=14, pad_token_id=1, is_decoder=True)
    for model, positions in ((tiny_lm.model(), 64), (gpt, 12), (RobertaForCausalLM(roberta).eval(), 12)):
        assert n_positions(model) == positions
        (batch,) = model_contexts(model, tiny_lm.tokenizer(), texts_of(positions), positions, 1)
        model(batch)  # it takes that many
        want = (
            f"^context_length: expected at most {positions}, the positions of the model, got {positions + 1}$"
        )
        with pytest.raises(InputError, match=want):
            model_contexts(model, tiny_lm.tokenizer(), ["w1"], positions + 1)
    assert n_positions(torch.nn.Linear(2, 2)) is None


def test_a_cache_notes_bos_and_separator_and_goes_on_only_with_the_same(world, tmp_path, capsys):
    with_bos().save_pretrained(tmp_path / "model")
    tiny_lm.model().save_pretrained(tmp_path / "model")
    (tmp_path / "text.jsonl").write_text(
        "".join(json.dumps({"body": text}) + "\n" for text in texts_of(300, 200))
    )
    command = f"cache {tmp_path}/model {tmp_path}/text.jsonl --text-field body {CACHE} --sink-ratio None"
    run(f"{command} --out {tmp_path}/auto")
    source = open_source(tmp_path / "auto")
    notes = source.index["notes"]
    assert notes["bos"] == BOS and notes["dropped_ids"] == [EOS, 1, BOS] and notes["text_field"] == "body"
    shard = source.shard(0)
    assert (shard["contexts"][:, 0] == BOS).all() and (shard["position"] > 0).all()
    run(f"{command} --out {tmp_path}/never --bos never --separator bos --keep-special")
    notes = open_source(tmp_path / "never").index["notes"]
    assert "bos" not in notes and notes["separator"] == BOS and notes["dropped_ids"] == []
    path = tmp_path / "auto" / "index.json"
    write_json_checked(path, read_json_checked(path) | {"complete": False})  # as if it had been interrupted
    with pytest.raises(SystemExit):
        run(f"{command} --out {tmp_path}/auto --bos never")
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert "was begun with notes = " in message and "'bos': 63" in message
    run(f"{command} --out {tmp_path}/auto")
    assert len(open_source(tmp_path / "auto")) == len(source)


def test_a_cache_of_before_goes_on_where_nothing_has_changed(world):
    """Its notes have no bos and no separator, and neither do those of a tokenizer that puts no bos before a text."""
    notes = open_source(world / "cache").index["notes"]
    assert notes.keys() == {
        "text",
        "skip_tokens",
        "context_length",
        "contexts_per_batch",
        "sink_ratio",
        "max_norm",
        "dropped_ids",
    }
