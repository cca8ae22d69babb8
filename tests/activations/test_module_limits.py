"""What a model or module can do is found before work starts and said in one line."""

import logging

import pytest
import torch
import transformers as hf
from torch import nn

from saefast import InputError
from saefast.activations import inputs
from saefast.activations.lm import ModelSource
from tests.helpers import tiny_models
from tests.helpers.tiny_models import tokens


@pytest.mark.parametrize(
    "kind,hook,limit",
    [("gpt2", "transformer.h.0", 16), ("opt", "model.decoder.layers.0", 16), ("bert", "encoder.layer.0", 16)]
    + [("roberta", "encoder.layer.0", 14)],  # two of the 16 rows of its table are for padding
)
def test_contexts_longer_than_a_table_of_positions_are_refused(kind, hook, limit):
    model = tiny_models.model(kind)
    (batch,) = ModelSource(model, hook, [tokens(2, limit)], sink_ratio=None).model_batches()
    assert len(batch.activations) == 2 * limit
    ran = []
    handle = model.register_forward_pre_hook(lambda *args: ran.append(1))
    for given in (tokens(2, limit + 1), {"input_ids": tokens(2, limit + 1)}):
        with pytest.raises(
            InputError,
            match=f"^batches: expected contexts of at most {limit} tokens, the positions of the model, got {limit + 1}$",
        ):
            ModelSource(model, hook, [given])
    handle.remove()
    assert not ran


def test_the_table_of_an_image_is_no_limit_of_a_text():
    text = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = hf.CLIPConfig(
        text_config=text | {"vocab_size": 64, "max_position_embeddings": 12},
        vision_config=text | {"image_size": 16, "patch_size": 8},
    )
    assert inputs.table_of_positions(hf.CLIPModel(config)) == 12


def test_rotary_positions_beyond_those_of_the_config_are_a_warning(caplog, monkeypatch):
    monkeypatch.setattr(inputs, "_warned", set())
    config = hf.LlamaConfig(**tiny_models.BASE, max_position_embeddings=8)
    with caplog.at_level(logging.WARNING, logger="saefast"):
        ModelSource(hf.LlamaForCausalLM(config), "model.layers.0", [tokens(2, 8)])
        assert not caplog.records
        source = ModelSource(hf.LlamaForCausalLM(config), "model.layers.0", [tokens(2, 9), tokens(2, 9)])
        assert sum(len(rows) for rows in source) == 36
    (record,) = caplog.records  # once
    assert "contexts of 9 tokens are longer than the 8 that the model was made for" in record.getMessage()
    caplog.clear()
    scaled = hf.LlamaConfig(**tiny_models.BASE, max_position_embeddings=8)
    scaled.rope_parameters = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    ModelSource(hf.LlamaForCausalLM(scaled), "model.layers.0", [tokens(2, 10)])
    ModelSource(tiny_models.model("mamba"), "backbone.layers.0", [tokens(2, 100)])
    ModelSource(tiny_models.model("bloom"), "transformer.h.0", [tokens(2, 100)])
    assert not [record for record in caplog.records if record.name == "saefast"]


@pytest.mark.parametrize("bad", [64, 1000, -1])
def test_token_ids_outside_of_the_vocabulary_are_refused(bad):
    ids = tokens(2, 6)
    ids[1, 3] = bad
    for kind, hook in (("llama", "model.layers.0"), ("gpt2", "transformer.h.0"), ("bert", "encoder.layer.0")):
        with pytest.raises(
            InputError,
            match=f"^batches: expected token ids from 0 to 63, the vocabulary of the model, got {bad}$",
        ):
            ModelSource(tiny_models.model(kind), hook, [ids])


def test_what_the_model_does_not_take_is_one_line():
    for kind, hook, batch, options, message in (
        ("t5", "decoder.block.0", tokens(2, 6), {}, "You must specify exactly one of input_ids or"),
        ("vit", "layers.0", torch.randn(2, 3, 9, 9), {}, "ValueError: Input image size"),
        ("llama", "model.layers.0", {"input_ids": tokens(2, 6), "position_ids": tokens(2, 5)}, {}, "Error: "),
        ("switch", "decoder.block.0", tokens(2, 6), {"nosuch": 1}, "Error: "),
    ):
        with pytest.raises(InputError, match=f"^model: its forward pass failed on .*{message}") as error:
            ModelSource(tiny_models.model(kind), hook, [batch], forward_kwargs=options)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_model_in_half_precision_gives_rows_in_it(dtype):
    model = hf.LlamaForCausalLM(hf.LlamaConfig(**tiny_models.BASE)).to(dtype)
    source = ModelSource(model, "model.layers.1", [tokens(3, 6)])
    (batch,) = source.model_batches()
    assert batch.activations.dtype == dtype and len(batch.activations) == 18


def test_a_norm_that_overflows_half_precision_is_a_sink():
    """300 in 100,000 columns is a norm above 65504, the largest number of fp16."""

    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(8, 50_000, dtype=torch.float16)
            self.embed.weight.data.copy_(
                torch.tensor([1, 1, 1, 1, 1, 1, 1, 300.0])[:, None].expand(8, 50_000)
            )

        def forward(self, ids):
            return self.embed(ids)

    source = ModelSource(Wide(), "embed", [torch.tensor([[1, 2, 7, 3]])])
    (batch,) = source.model_batches()
    assert source.n_dropped["sink"] == 1 and batch.position.tolist() == [0, 1, 3]
    assert source.max_norm == pytest.approx(10 * 50_000**0.5, rel=1e-3)
