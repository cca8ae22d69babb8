"""Activations of models: what is dropped, several hook points, and loading a model."""

import sys

import pytest
import torch
from torch import nn

from saefast import InputError
from saefast.activations import lm
from saefast.activations.hooks import HookPoint
from saefast.activations.lm import ModelSource, load_model
from tests.helpers import tiny_lm


@pytest.fixture(scope="module")
def model():
    return tiny_lm.model()


def tokens(*shape):
    return torch.randint(2, 64, shape, generator=torch.Generator().manual_seed(1))


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
    assert source.max_norms == [source.max_norm] == [pytest.approx(60)]
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


class TwoTables(nn.Module):
    """`low` gives row i of a table for token i, `high` a table of another width; each has a sink of its own."""

    def __init__(self):
        super().__init__()
        self.low, self.high = Lookup(), nn.Embedding(8, 3)
        self.high.weight.data.copy_(torch.arange(8.0, 16)[:, None].expand(8, 3))
        self.high.weight.data[6] *= 100

    def forward(self, ids):
        return self.high(ids), self.low(ids)


def test_rows_of_several_hook_points_are_side_by_side_and_a_sink_in_any_goes():
    batches = [torch.tensor([[1, 2, 0], [7, 3, 2]]), torch.tensor([[6, 0, 4], [5, 7, 6]])]
    source = ModelSource(TwoTables(), ["low.embed", "high"], batches, drop_ids=[0], sink_ratio=10.0)
    assert source.hooks == ["low.embed", "high"] and source.widths == [4, 3] and source.d_in == 7
    parts = list(source.model_batches())
    ids = [part.contexts[part.context, part.position].tolist() for part in parts]
    assert ids == [[1, 2, 3, 2], [4, 5]]  # 7 is a sink of the first, 6 of the second, 0 is special
    assert source.n_dropped == {"special": 2, "sink": 4}
    for part, kept in zip(parts, ids):
        assert (part.activations[:, :4] - 1).tolist() == [[i] * 4 for i in kept]
        assert (part.activations[:, 4:] - 8).tolist() == [[i] * 3 for i in kept]
    # norms of the first batch: 2 * (2, 3, 1, 8000, 4, 3) and sqrt(3) * (9, 10, 8, 15, 11, 10), lower medians
    assert source.max_norms == [pytest.approx(60), pytest.approx(100 * 3**0.5)]
    assert source.describe() == {
        "type": "model",
        "hook": ["low.embed", "high"],
        "widths": [4, 3],
        "sink_ratio": 10.0,
        "max_norm": source.max_norms,
    }


def test_a_row_with_nan_at_any_hook_point_is_left_to_the_buffer():
    model = TwoTables()
    model.low.embed.weight.data[6] = float("nan")  # 6 is a sink of the other table
    (rows,) = ModelSource(model, ["low.embed", "high"], [torch.tensor([[1, 6, 2, 7, 3]])])
    assert rows.isnan().any(dim=1).tolist() == [False, True, False, False]


def test_bad_sets_of_hook_points_are_refused(model):
    for hooks, got in (([], r"\[\]"), (["lm_head", "lm_head"], r"\['lm_head', 'lm_head'\]")):
        with pytest.raises(
            InputError, match=f"^hook: expected one or more different hook points, got {got}$"
        ):
            ModelSource(model, hooks, [tokens(1, 4)])
    hooks = ["model.layers.1", "model.rotary_emb"]  # cosines [1, 4, 8], one row of tokens for all contexts
    want = r"^hook: expected activations \[2, 4, width\] of the tokens at 'model.rotary_emb', got \[1, 4, 8\]: its"
    with pytest.raises(InputError, match=want):
        ModelSource(model, hooks, [tokens(2, 4)])


def test_inputs_go_to_the_device_of_the_model():
    model = nn.Sequential(nn.Embedding(8, 4), nn.Linear(4, 3)).to("meta")  # it has no values, but a device
    devices = []
    model[0].register_forward_pre_hook(lambda module, args: devices.append(args[0].device.type))
    assert ModelSource(model, ["0", "1"], [tokens(2, 3) % 8], sink_ratio=None).widths == [4, 3]
    assert set(devices) == {"meta"}


def test_no_batches_are_refused(model):
    with pytest.raises(InputError, match="^batches: expected at least one batch, got none$"):
        ModelSource(model, "model.layers.1", [])


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
