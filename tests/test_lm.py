"""Activations of models: hook points, what is dropped, packed contexts, texts, and loading a model."""

import json
import sys

import pytest
import tiny_lm
import torch
from torch import nn

from saefast import InputError, lm
from saefast.lm import HookPoint, ModelSource, PackedContexts, Texts, load_model, read_texts


@pytest.fixture(scope="module")
def model():
    return tiny_lm.model()


def tokens(*shape):
    return torch.randint(2, 64, shape, generator=torch.Generator().manual_seed(1))


def record(model, ran):
    """Hooks that append the name of each module that finishes to `ran`."""
    named = model.named_modules()
    return [m.register_forward_hook(lambda *_, name=name: ran.append(name)) for name, m in named]


def seen_by_torch(model, path, batch, side):
    """Oracle: what torch's own hooks show, and the names of all modules that ran."""
    seen, ran = [], []
    handles = record(model, ran)

    def before(module, args, kwargs):
        seen.append(args[0] if args else kwargs["hidden_states"])

    def after(module, args, output):
        seen.append(output if torch.is_tensor(output) else output[0])

    module = model.get_submodule(path)
    if side == "in":
        handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
    else:
        handles.append(module.register_forward_hook(after))
    with torch.no_grad():
        model(batch)
    for handle in handles:
        handle.remove()
    return seen[0], ran


HOOKS = [
    ("model.embed_tokens", ""),
    ("model.layers.1", ""),
    ("model.layers.1", "in"),
    ("model.layers.1.self_attn", ""),  # returns a tuple
    ("model.layers.1.self_attn", "in"),  # called by keyword
    ("model.layers.1.mlp", ""),
    ("model.layers.1.mlp.down_proj", "in"),
    ("lm_head", ""),
]
IDS = [":".join(hook).rstrip(":") for hook in HOOKS]


@pytest.mark.parametrize("path,side", HOOKS, ids=IDS)
def test_capture_and_replace_at_every_kind_of_hook_point(model, path, side):
    batch = tokens(2, 10)
    point = HookPoint(model, f"{path}:{side}" if side else path)
    with torch.no_grad():
        got, clean = point.capture(batch), model(batch).logits
        want, _ = seen_by_torch(model, path, batch, side)
        assert got.ndim == 3 and torch.equal(got, want)
        given = []
        same = point.replace(lambda x: given.append(x) or x.clone(), batch).logits
        assert torch.equal(given[0], want) and torch.equal(same, clean)
        changed = point.replace(torch.zeros_like, batch).logits
        assert (changed - clean).abs().max() > 1e-3
        assert torch.equal(model(batch).logits, clean)  # no hook stays behind


def test_the_residual_stream_is_the_models_own_hidden_state(model):
    batch = tokens(2, 10)
    with torch.no_grad():
        want = model(batch, output_hidden_states=True).hidden_states[2]
    assert torch.equal(HookPoint(model, "model.layers.1").capture(batch), want)


@pytest.mark.parametrize("path,side", HOOKS[:-1], ids=IDS[:-1])
def test_the_forward_pass_stops_at_the_hook_point(model, path, side):
    _, order = seen_by_torch(model, path, tokens(1, 4), side)
    after = order[order.index(path) + (side == "") :]  # the module itself has not run when its input is read
    assert "lm_head" in after and "model.layers.2.mlp" in after
    ran = []
    handles = record(model, ran)
    HookPoint(model, f"{path}:{side}" if side else path).capture(tokens(1, 4))
    for handle in handles:
        handle.remove()
    assert not set(ran) & set(after)


@pytest.mark.parametrize("hook", ["model.layers.9", "layers.1", "model.layers.1:out", "model.layer.1:in"])
def test_an_unknown_hook_point_lists_near_ones(model, hook):
    with pytest.raises(
        InputError, match=f"^hook: expected a module path or path:in, got '{hook}'; near"
    ) as error:
        HookPoint(model, hook)
    assert "model.layers.1" in str(error.value).split("near it: ")[1].split(", ")


def test_the_whole_model_is_no_hook_point(model):
    for hook in ("", ":in"):
        with pytest.raises(InputError, match="^hook: expected a module path or path:in, got"):
            HookPoint(model, hook)


def test_a_module_that_never_runs_or_holds_no_activations_is_refused(model):
    with pytest.raises(InputError, match="^hook: the model's forward pass never reached this module$"):
        ModelSource(model, "model.layers", [tokens(1, 4)])  # a ModuleList is not called
    with pytest.raises(InputError, match="^hook: expected a module with floating-point activations"):
        ModelSource(model, "model.embed_tokens:in", [tokens(1, 4)])


def test_a_model_source_yields_all_rows_in_order_from_any_start(model):
    batches = list(tokens(3, 2, 10))
    source = ModelSource(model, "model.layers.1", batches, sink_ratio=None)
    want = torch.cat(
        [HookPoint(model, "model.layers.1").capture(batch).detach().flatten(0, 1) for batch in batches]
    )
    assert source.d_in == 32 and torch.equal(torch.cat(list(source)), want)
    for start in (0, 1, 19, 20, 45, 59, 60):
        assert torch.equal(torch.cat([want[:0], *source.rows(start)]), want[start:]), start
    assert not any(rows.requires_grad for rows in source)


class Lookup(nn.Module):
    """Activations that are known: row i of the table for token i."""

    def __init__(self):
        super().__init__()
        self.embed, self.dropout = nn.Embedding(8, 4), nn.Dropout(0.9)
        table = torch.arange(1.0, 9)[:, None].expand(8, 4).clone()
        table[7] *= 1000
        self.embed.weight.data.copy_(table)

    def forward(self, ids):
        return self.dropout(self.embed(ids))


def test_special_tokens_and_sinks_are_dropped_and_counted():
    batches = [torch.tensor([[1, 2, 0], [7, 3, 7]]), torch.tensor([[0, 0, 4], [5, 7, 0]])]
    source = ModelSource(Lookup(), "embed", batches, drop_ids=[0], sink_ratio=10.0)
    for _ in range(2):  # counts are those of one pass
        parts = list(source.model_batches())
        assert source.n_dropped == {"special": 4, "sink": 3}
    ids = [part.contexts[part.context, part.position].tolist() for part in parts]
    assert ids == [[1, 2, 3], [4, 5]]
    for part, kept in zip(parts, ids):
        assert (part.activations[:, 0] - 1).tolist() == kept
    # norms of the first batch: 2 * (2, 3, 1, 8000, 4, 8000), lower median 6
    assert source.max_norm == pytest.approx(60)
    assert source.describe() == {
        "type": "model",
        "hook": "embed",
        "sink_ratio": 10.0,
        "max_norm": source.max_norm,
    }
    (last,) = source.model_batches(start=1)
    assert torch.equal(last.activations, parts[1].activations)


def test_sinks_stay_when_asked_and_rows_with_nan_are_left_to_the_buffer():
    model = Lookup()
    model.embed.weight.data[3] = float("nan")
    batch = torch.tensor([[1, 2, 3, 7, 2, 2]])
    assert len(torch.cat(list(ModelSource(model, "embed", [batch], sink_ratio=None)))) == 6
    source = ModelSource(model, "embed", [batch[:, :2], batch], sink_ratio=10.0)
    rows = list(source)[1]
    assert len(rows) == 5 and rows.isnan().any(dim=1).tolist() == [False, False, True, False, False]
    with pytest.raises(InputError, match="^sink_ratio: expected a positive number or None, got -1$"):
        ModelSource(model, "embed", [batch], sink_ratio=-1)


def test_the_model_is_put_in_eval_mode():
    source = ModelSource(Lookup().train(), "dropout", [torch.tensor([[1, 2, 3]])])
    assert torch.equal(next(iter(source))[:, 0], torch.tensor([2.0, 3.0, 4.0]))


def test_any_module_with_any_input_is_a_source():
    mlp = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    batches = list(torch.randn(3, 10, 4, generator=torch.Generator().manual_seed(0)))
    source = ModelSource(mlp, "1", batches, drop_ids=[0], sink_ratio=None)
    assert source.d_in == 8
    assert torch.equal(torch.cat(list(source)), mlp[:2](torch.cat(batches)).detach())


def test_no_batches_are_refused(model):
    with pytest.raises(InputError, match="^batches: expected at least one batch, got none$"):
        ModelSource(model, "model.layers.1", [])


@pytest.mark.parametrize("batch,length", [(1, 5), (2, 3), (3, 7)])
def test_packed_contexts_hold_every_token_once_and_in_order(batch, length):
    texts = [tiny_lm.text(n, seed=n) for n in (50, 3, 1, 40)]
    stream = [token for text in texts for token in [*(int(word[1:]) + 2 for word in text.split()), 0]]
    contexts = PackedContexts(texts, tiny_lm.tokenizer(), length, batch)
    for _ in range(2):  # it can be read again
        got = list(contexts)
        assert {tuple(b.shape) for b in got} == {(batch, length)}
        assert torch.cat(got).flatten().tolist() == stream[: len(stream) // (batch * length) * batch * length]


def test_packed_contexts_refuse_bad_sizes_and_too_little_text():
    for sizes, message in (
        ((0, 1), "context_length: expected a positive integer, got 0"),
        ((4, -1), "contexts_per_batch: expected a positive integer, got -1"),
    ):
        with pytest.raises(InputError, match=f"^{message}$"):
            PackedContexts(["w1"], tiny_lm.tokenizer(), *sizes)
    with pytest.raises(InputError, match="^text: expected at least 8 tokens for one batch, got 5$"):
        list(PackedContexts(["w1 w2", "w3"], tiny_lm.tokenizer(), 4, 2))


def test_texts_of_a_file_a_folder_and_jsonl(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.txt").write_text("text b")
    (tmp_path / "a.md").write_text("text a\n")
    (tmp_path / "sub" / "c.py").write_text("text c")
    (tmp_path / "sub" / "empty.py").write_text("")
    (tmp_path / "d.jsonl").write_text('{"text": "one", "id": 3}\n{"text": ""}\n{"text": "two\\nlines"}\n')
    (tmp_path / "ignored.bin").write_bytes(b"\xff\x00")
    assert list(read_texts(tmp_path / "b.txt")) == ["text b"]
    assert list(read_texts(tmp_path / "d.jsonl")) == ["one", "two\nlines"]
    texts = Texts(str(tmp_path))
    assert list(texts) == list(texts) == ["text a\n", "text b", "one", "two\nlines", "text c"]


@pytest.mark.parametrize(
    "line", ["not json", '{"body": "x"}', '["text"]', '"text"', '{"text": 5}', '{"text": null}']
)
def test_a_bad_jsonl_line_is_named(tmp_path, line):
    (tmp_path / "x.jsonl").write_text(json.dumps({"text": "good"}) + "\n" + line + "\n")
    stream = read_texts(tmp_path / "x.jsonl")
    assert next(stream) == "good"
    with pytest.raises(
        InputError, match='^text: .*x.jsonl line 2: expected a JSON object with a field "text"$'
    ):
        next(stream)


def test_missing_and_empty_texts_are_refused(tmp_path):
    (tmp_path / "folder").mkdir()
    for name in ("empty.txt", "empty.jsonl"):
        (tmp_path / name).write_text("")
    (tmp_path / "blank.txt").write_text(" \n")
    for name, message in (
        ("none.txt", "expected a file, a folder or a .jsonl with a text field, found nothing at "),
        ("folder", r"expected \*.txt, \*.md, \*.py or \*.jsonl in .*folder, found none"),
        *(
            (name, f"expected some text, .*{name} is empty")
            for name in ("empty.txt", "empty.jsonl", "blank.txt")
        ),
    ):
        with pytest.raises(InputError, match=f"^text: {message}"):
            list(read_texts(tmp_path / name))


def test_load_model_reads_a_folder(tmp_path, model):
    loaded, tokenizer = load_model(str(tiny_lm.save(tmp_path)))
    batch = tokenizer("w0 w61 other", return_tensors="pt").input_ids
    assert batch.tolist() == [[2, 63, 1]] and tokenizer.eos_token_id == 0 and not loaded.training
    with torch.no_grad():
        assert torch.equal(loaded(batch).logits, model(batch).logits)


def test_load_model_names_what_is_missing_or_damaged(tmp_path, model):
    with pytest.raises(
        InputError, match="^model: expected a Hugging Face causal language model at '.*nowhere', got: "
    ):
        load_model(str(tmp_path / "nowhere"))
    model.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=f"^model: '{tmp_path}' has no usable tokenizer: "):
        load_model(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=f"^model: '{tmp_path}' has no usable tokenizer: "):
        load_model(str(tmp_path))
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(
        InputError, match=f"^model: expected a Hugging Face causal language model at '{tmp_path}', got: "
    ):
        load_model(str(tmp_path))


def test_load_model_without_transformers_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"^model: a language model needs `pip install saefast\[lm\]`$"):
        lm.load_model("anything")
