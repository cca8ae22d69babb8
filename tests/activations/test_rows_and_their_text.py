"""Rows and their text: the context and position of a row are right for every module that reshapes, or it is refused.

Oracle for causal models: the row of contexts[c, p] is the last one that the module gives, by a hook of torch's own, when
the model sees contexts[c, : p + 1] alone.
"""

import pytest
import torch
from torch import nn

from saefast import InputError
from saefast.activations.lm import ModelSource
from tests.helpers import tiny_models
from tests.helpers.tiny_models import tokens


def first(value):
    while not torch.is_tensor(value):
        value = next(iter(value.values())) if hasattr(value, "values") else value[0]
    return value


def seen(model, hook, *args, **kwargs):
    """What torch's own hooks show at a hook point."""
    path, _, side = hook.partition(":")
    found = []

    def before(module, args, kwargs):
        found.append(args[0] if args else kwargs["hidden_states"])

    module = model.get_submodule(path)
    if side:
        handle = module.register_forward_pre_hook(before, with_kwargs=True)
    else:
        handle = module.register_forward_hook(lambda module, args, output: found.append(first(output)))
    with torch.no_grad():
        model(*args, **kwargs)
    handle.remove()
    return found[0]


def read(model, hook, *batches, **options):
    source = ModelSource(model, hook, batches, **({"sink_ratio": None} | options))
    return source, list(source.model_batches())


# hook point, and where the last token's row is in what the module gives for one context
CAUSAL = [
    ("llama", "model.layers.1", lambda x: x[0, -1]),
    ("llama", "model.layers.0.mlp.down_proj:in", lambda x: x[0, -1]),
    ("llama", "model", lambda x: x[0, -1]),  # a ModelOutput
    ("qwen3_moe", "model.layers.0.mlp.gate", lambda x: x[-1]),  # [m L, experts], of a tuple
    ("qwen3_moe", "model.layers.1.mlp.gate:in", lambda x: x[-1]),
    ("qwen3_moe", "model.layers.0.mlp.experts", lambda x: x[-1]),
    ("qwen3_moe", "model.layers.0.mlp", lambda x: x[0, -1]),
    ("mixtral", "model.layers.1.mlp.gate", lambda x: x[-1]),
    ("mixtral_top1", "model.layers.1.mlp.gate", lambda x: x[-1]),
    ("gpt_oss", "model.layers.1.mlp.router", lambda x: x[-1]),
    ("gpt_oss", "model.layers.1.mlp", lambda x: x[0, -1]),
    ("deepseek", "model.layers.1.mlp.gate", lambda x: x[-1]),
    ("deepseek", "model.layers.1.self_attn.kv_b_proj", lambda x: x[0, 0, -1]),  # [m, 1, L, width]
    ("opt", "model.decoder.layers.1.fc2", lambda x: x[-1] if x.ndim == 2 else x[0, -1]),
    ("gpt2", "transformer.h.1.mlp", lambda x: x[0, -1]),
    ("mamba", "backbone.layers.1.mixer", lambda x: x[0, -1]),
    ("bloom", "transformer.h.1", lambda x: x[0, -1]),
]


@pytest.mark.parametrize("shape", [(3, 7), (4, 4), (1, 6), (5, 2)], ids=str)
@pytest.mark.parametrize("kind,hook,last", CAUSAL, ids=[f"{kind} {hook}" for kind, hook, _ in CAUSAL])
def test_a_row_is_that_of_its_token(kind, hook, last, shape):
    model, ids = tiny_models.model(kind), tokens(*shape)
    _, (batch,) = read(model, hook, ids)
    assert torch.equal(batch.contexts, ids) and len(batch.activations) == ids.numel()
    assert batch.context.tolist() == [c for c in range(shape[0]) for _ in range(shape[1])]
    assert batch.position.tolist() == list(range(shape[1])) * shape[0]
    for row, c, p in zip(batch.activations, batch.context.tolist(), batch.position.tolist()):
        assert torch.allclose(row, last(seen(model, hook, ids[c : c + 1, : p + 1])), atol=1e-4, rtol=1e-3)


def test_special_tokens_of_a_router_are_those_of_its_text():
    model, ids = tiny_models.model("qwen3_moe"), tokens(3, 7)
    special = int(ids[1, 4])
    source, (batch,) = read(model, "model.layers.0.mlp.gate", ids, drop_ids=[special])
    n = int((ids == special).sum())
    assert source.n_dropped["special"] == n > 0 and len(batch.activations) == 21 - n
    assert not (ids[batch.context, batch.position] == special).any()


@pytest.mark.parametrize("path,heads", [("q_norm", 4), ("k_norm", 2)])
def test_a_module_of_heads_gives_rows_of_each_head_of_a_token(path, heads):
    model, ids = tiny_models.model("qwen3_moe"), tokens(3, 7)
    hook = f"model.layers.1.self_attn.{path}"
    special = int(ids[2, 3])
    source, (batch,) = read(model, hook, ids, drop_ids=[special])
    raw = seen(model, hook, ids)
    assert raw.shape == (3, 7, heads, 8)
    keep = ids != special
    assert torch.equal(batch.activations, raw[keep].flatten(0, 1))
    places = keep.nonzero().repeat_interleave(heads, dim=0)
    assert torch.equal(torch.stack([batch.context, batch.position], dim=1), places)
    assert source.n_dropped["special"] == heads * int((~keep).sum())


@pytest.mark.parametrize("shape", [(3, 7), (5, 5), (1, 4)], ids=str)
def test_time_first_modules(shape):
    """XLNet's layers give [L, m, width]."""
    model, ids = tiny_models.model("xlnet"), tokens(*shape)
    _, (batch,) = read(model, "transformer.layer.0.ff", ids)
    raw = seen(model, "transformer.layer.0.ff", ids)
    assert raw.shape == (shape[1], shape[0], 32)
    assert torch.equal(batch.activations, raw[batch.position, batch.context])
    assert torch.equal(batch.contexts[batch.context, batch.position], ids.flatten())


class HeadsFirst(nn.Module):
    """[m, L] -> [m, H, L, width]: the value is 100 h + token."""

    def __init__(self):
        super().__init__()
        self.heads = nn.Identity()

    def forward(self, ids):
        heads = 100 * torch.arange(3.0)[None, :, None, None]
        return self.heads((heads + ids[:, None, :, None]).expand(-1, -1, -1, 5))


@pytest.mark.parametrize("shape", [(2, 3), (3, 3), (3, 5), (1, 3)], ids=str)
def test_heads_before_positions(shape):
    _, (batch,) = read(HeadsFirst(), "heads", tokens(*shape))
    ids = tokens(*shape)[batch.context, batch.position]
    assert torch.equal(batch.activations[:, 0], ids + 100.0 * (torch.arange(len(ids)) % 3))


def test_a_batch_of_other_sizes_and_one_context_without_its_axis():
    model = tiny_models.model("qwen3_moe")
    sizes = [(3, 7), (1, 7), (4, 2)]
    _, batches = read(model, "model.layers.0.mlp.gate", *(tokens(*size) for size in sizes), tokens(6))
    for batch, (m, length) in zip(batches, [*sizes, (1, 6)]):
        assert batch.contexts.shape == (m, length) and batch.position.tolist() == list(range(length)) * m


# --- padding, and inputs that are dicts


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_of_padding_are_dropped_and_counted(side):
    model, ids = tiny_models.model("llama"), tokens(3, 7)
    mask = torch.ones(3, 7, dtype=torch.int64)
    for context, n in enumerate((0, 2, 5)):
        mask[context, slice(0, n) if side == "left" else slice(7 - n, 7)] = 0
    ids[mask == 0] = 1
    special = int(ids[0, 3])
    batch = {"input_ids": ids, "attention_mask": mask}
    source, (found,) = read(model, "model.layers.1", batch, drop_ids=[1, special])
    keep = (mask == 1) & (ids != special)
    assert torch.equal(found.contexts, ids)
    assert torch.equal(torch.stack([found.context, found.position], dim=1), keep.nonzero())
    assert torch.equal(found.activations, seen(model, "model.layers.1", **batch)[keep])
    assert source.n_dropped == {"padding": 7, "special": 14 - int(keep.sum()), "sink": 0}


def test_what_a_tokenizer_gives_is_a_batch():
    from tests.helpers import tiny_lm

    tokenizer = tiny_lm.tokenizer()
    tokenizer.pad_token, tokenizer.padding_side = "<eos>", "left"
    batch = tokenizer(["w1 w2 w3", "w4"], padding=True, return_tensors="pt")
    source, (found,) = read(tiny_lm.model(), "model.layers.1", batch)
    assert found.contexts[found.context, found.position].tolist() == [3, 4, 5, 6]
    assert found.position.tolist() == [0, 1, 2, 2] and source.n_dropped["padding"] == 2
    batch = tokenizer(["w1 w2 w3"])
    with pytest.raises(
        InputError, match=r"^batches: input_ids: expected a tensor \(tokenizers: return_tensors='pt'"
    ):
        read(tiny_lm.model(), "model.layers.1", batch)


def test_padding_takes_no_part_in_the_median():
    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(8, 4)
            self.embed.weight.data.copy_(torch.tensor([1e4, 1, 1, 1, 1, 1, 1, 50.0])[:, None].expand(8, 4))

        def forward(self, input_ids, attention_mask):
            return self.embed(input_ids)

    ids = torch.tensor([[1, 2, 7, 0, 0, 0, 0]])
    source, (found,) = read(
        Table(), "embed", {"input_ids": ids, "attention_mask": (ids > 0).int()}, sink_ratio=10.0
    )
    assert source.max_norm == pytest.approx(20) and source.n_dropped == {
        "padding": 4,
        "sink": 1,
        "special": 0,
    }
    assert found.position.tolist() == [0, 1]


def test_embeddings_with_a_mask():
    model, x = tiny_models.model("gpt2"), torch.randn(3, 7, 32, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(3, 7, dtype=torch.int64)
    mask[1, 4:] = 0
    batch = {"inputs_embeds": x, "attention_mask": mask}
    source, (found,) = read(model, "transformer.h.0", batch, drop_ids=[0])
    assert torch.equal(found.activations, seen(model, "transformer.h.0", **batch)[mask == 1])
    assert torch.equal(torch.stack([found.context, found.position], dim=1), mask.nonzero())
    assert source.n_dropped == {"padding": 3, "special": 0, "sink": 0}


# --- an encoder and a decoder have texts of their own


@pytest.mark.parametrize("lengths", [(7, 5), (6, 6), (3, 5)], ids=str)
@pytest.mark.parametrize("kind", ["t5", "switch"])
def test_rows_of_a_decoder_are_those_of_its_own_tokens(kind, lengths):
    model = tiny_models.model(kind)
    given = {"input_ids": tokens(3, lengths[0]), "decoder_input_ids": tokens(3, lengths[1], seed=1)}
    given["attention_mask"] = torch.ones_like(given["input_ids"])
    given["attention_mask"][0, -1] = 0
    for hook, name in (
        ("encoder.block.1", "input_ids"),
        ("decoder.block.1", "decoder_input_ids"),
        (
            "decoder.block.1.layer.1.EncDecAttention.k",
            "input_ids",
        ),  # of the decoder, about the encoder's tokens
        ("decoder.block.1.layer.1.EncDecAttention", "decoder_input_ids"),
    ):
        _, (found,) = read(model, hook, given)
        mask = given["attention_mask"] == 1 if name == "input_ids" else torch.ones_like(given[name]) == 1
        assert torch.equal(found.contexts, given[name]), hook
        assert torch.equal(torch.stack([found.context, found.position], dim=1), mask.nonzero()), hook
        assert torch.equal(found.activations, seen(model, hook, **given)[mask]), hook
    both = ["encoder.block.0", "decoder.block.0"]
    with pytest.raises(
        InputError, match="^hook: expected hook points with rows of the same tokens, got those of inp"
    ):
        read(model, both, given)


# --- inputs that are no text


def test_rows_of_images_are_patches_and_rows_of_vectors_are_samples():
    model, images = (
        tiny_models.model("vit"),
        torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)),
    )
    for batch in (images, {"pixel_values": images}):
        _, (found,) = read(model, "layers.1", batch)
        assert torch.equal(found.activations, seen(model, "layers.1", images).flatten(0, 1))
        assert found.context.tolist() == [
            i for i in range(3) for _ in range(5)
        ]  # 4 patches and the class token
        assert found.position.tolist() == list(range(5)) * 3 and torch.equal(found.contexts, images)
    _, (found,) = read(model, "pooler", images)
    assert (found.context.tolist(), found.position.tolist()) == ([0, 1, 2], [0, 0, 0])
    mlp, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU()), torch.randn(6, 4)
    _, (found,) = read(mlp, "1", x)
    assert (found.context.tolist(), found.position.tolist()) == (list(range(6)), [0] * 6)


def test_sounds_of_a_model_that_writes_text():
    model, ids = tiny_models.model("whisper"), tokens(3, 7)
    sounds = torch.randn(3, 8, 40, generator=torch.Generator().manual_seed(0))
    given = {"input_features": sounds, "decoder_input_ids": ids}
    _, (found,) = read(model, "encoder.layers.0", given)
    assert torch.equal(found.contexts, sounds) and found.position.tolist() == list(range(20)) * 3
    _, (found,) = read(model, "decoder.layers.0", given)
    assert torch.equal(found.contexts, ids) and found.position.tolist() == list(range(7)) * 3
