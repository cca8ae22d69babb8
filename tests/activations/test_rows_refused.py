"""Rows that are not those of tokens in order are refused in one line, whatever the sizes of one batch would allow."""

import pytest
import torch
from torch import nn

from saefast import InputError
from saefast.activations.lm import ModelSource
from tests.helpers import tiny_models
from tests.helpers.tiny_models import tokens


def read(model, hook, *batches, **options):
    source = ModelSource(model, hook, batches, **({"sink_ratio": None} | options))
    return source, list(source.model_batches())


REFUSED = [
    (
        "mixtral",
        "model.layers.0.mlp.experts.act_fn",
        r"\[42, 48\]: rows of experts are sorted by expert; hook model.layers.0.mlp or",
    ),
    (
        "mixtral_top1",
        "model.layers.0.mlp.experts.act_fn",
        r"\[21, 48\]: rows of experts are sorted by expert; hook",
    ),
    (
        "switch",
        "encoder.block.1.layer.1.mlp.experts.expert_2",
        r"\[\d+, 32\]: rows of experts are sorted by expert; hook",
    ),
    ("bert", "pooler", r"\[3, 32\]: one row for a whole context belongs to no token$"),
    ("albert", "pooler_activation", r"\[3, 32\]: one row for a whole context"),
    ("gpt2", "transformer.wpe", r"\[1, 7, 32\]: its rows are not those of the tokens"),
    ("llama", "model.rotary_emb", r"\[1, 7, 8\]: its rows are not those of the tokens"),
    (
        "bloom",
        "transformer.h.0.self_attention.attention_dropout",
        r"\[3, 4, 7, 7\]: attention patterns and conv",
    ),
    ("t5", "encoder.block.0.layer.0.SelfAttention.relative_attention_bias", r"\[7, 7, 4\]: its rows are not"),
]


@pytest.mark.parametrize("kind,hook,message", REFUSED, ids=[kind for kind, _, _ in REFUSED])
def test_rows_that_are_not_those_of_tokens_are_refused(kind, hook, message):
    batch = {"input_ids": tokens(3, 7)}
    if kind in ("t5", "switch"):
        batch["decoder_input_ids"] = tokens(3, 7)
    with pytest.raises(
        InputError, match=rf"^hook: expected activations \[3, 7, width\].* at '{hook}', got {message}"
    ):
        read(tiny_models.model(kind), hook, batch)


@pytest.mark.parametrize(
    "kind,hook", [(kind, hook) for kind, hook, _ in REFUSED if kind not in ("t5", "switch")]
)
def test_they_are_refused_too_where_the_sizes_of_one_batch_would_fit(kind, hook):
    for shape in ((7, 7), (4, 4), (1, 7), (32, 4)):
        with pytest.raises(InputError, match=f"^hook: expected activations .* at '{hook}'"):
            read(tiny_models.model(kind), hook, tokens(*shape))


def test_convolutions_are_refused():
    embed = nn.Embedding(64, 9)

    class Turned(nn.Module):
        """[m, L] -> [m, channels, L]; with 9 channels and contexts of 9 the shape is that of rows of tokens."""

        def __init__(self):
            super().__init__()
            self.embed, self.conv, self.act = embed, nn.Conv1d(9, 9, 3, padding=1), nn.ReLU()

        def forward(self, ids):
            return self.act(self.conv(self.embed(ids).transpose(1, 2)))

    for hook in ("conv", "act"):
        for length in (9, 6):
            with pytest.raises(
                InputError, match=rf"^hook: expected activations \[2, {length}, width\] .* at '{hook}', got"
            ):
                read(Turned(), hook, tokens(2, length))
    images = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Flatten(2), nn.Flatten(1))
    for hook in ("0", "1", "2"):
        with pytest.raises(
            InputError,
            match=rf"^hook: expected activations \[4, width\] .* at '{hook}', .*: a convolution has",
        ):
            read(images, hook, torch.randn(4, 3, 8, 8))
    _, (found,) = read(images, "3", torch.randn(4, 3, 8, 8))
    assert found.activations.shape == (4, 5 * 6 * 6) and found.context.tolist() == [0, 1, 2, 3]
    sounds = nn.Sequential(nn.Conv1d(2, 5, 3), nn.ReLU())
    for hook in ("0", "1"):
        with pytest.raises(InputError, match="a convolution has its channels before its positions"):
            read(sounds, hook, torch.randn(4, 2, 8))


def test_convolutions_are_refused_too_in_a_model_for_inputs_of_one_size_only():
    """There is no other size to compare with."""
    sounds = nn.Sequential(nn.Linear(8, 8), nn.Conv1d(2, 5, 3))
    with pytest.raises(
        InputError, match="at '1', got .*: a convolution has its channels before its positions"
    ):
        read(sounds, "1", torch.randn(4, 2, 8))

    class Fixed(nn.Module):
        """[m, 6] -> [m, 6 channels, 6 positions]"""

        def __init__(self):
            super().__init__()
            self.embed, self.table, self.act = nn.Embedding(64, 6), nn.Parameter(torch.randn(6, 6)), nn.ReLU()

        def forward(self, ids):
            return self.act((self.embed(ids) + self.table).transpose(1, 2))

    with pytest.raises(
        InputError, match=r"^hook: expected activations \[3, 6, width\] .* at 'act', got \[3, 6, 6\]"
    ):
        read(Fixed(), "act", tokens(3, 6))


def test_a_model_for_contexts_of_one_length_only():
    class Fixed(nn.Module):
        def __init__(self, length):
            super().__init__()
            self.embed, self.table, self.out = (
                nn.Embedding(64, 5),
                nn.Parameter(torch.randn(length, 5)),
                nn.Linear(5, 6),
            )

        def forward(self, ids):
            return self.out(self.embed(ids) + self.table)

    for shape in ((3, 7), (4, 4), (1, 3)):
        model, ids = Fixed(shape[1]), tokens(*shape)
        _, (found,) = read(model, "out", ids)
        assert torch.equal(found.activations, model(ids).detach().flatten(0, 1))


def test_a_later_batch_of_other_rows_is_refused():
    class Pools(nn.Module):
        """Takes every second position of long contexts."""

        def __init__(self):
            super().__init__()
            self.embed, self.out = nn.Embedding(64, 5), nn.Identity()

        def forward(self, ids):
            x = self.embed(ids)
            return self.out(x[:, ::2] if ids.shape[1] > 8 else x)

    source = ModelSource(Pools(), "out", [tokens(2, 6), tokens(2, 10)])
    with pytest.raises(
        InputError, match=r"^hook: expected activations \[2, 10, width\] .* at 'out', got \[2, 5, 5\]"
    ):
        list(source)


def test_batches_of_other_kinds_are_refused():
    model = tiny_models.model("llama")
    for batch, message in (
        ([[1, 2]], "batches: expected a tensor, or a dict of tensors, got list"),
        ({}, r"batches: expected a dict with tensors, got the entries \[\]"),
        (
            {"input_ids": torch.ones(2, 3)},
            r"batches: input_ids: expected token ids \[contexts, length\], got \[2, 3\] in",
        ),
        (
            {"input_ids": tokens(2, 3), "attention_mask": torch.ones(2, 4)},
            r"batches: attention_mask: expected the mask \[contexts, length\] of input_ids, \[2, 3\], got \[2, 4\]",
        ),
        (
            {"input_ids": tokens(2, 3), "attention_mask": torch.tensor([[0, 0, -1e9]] * 2)},
            "batches: attention_mask: expected 0 at padding and 1 elsewhere, got other numbers",
        ),
        (
            {"input_ids": tokens(2, 3), "use_cache": False},
            r"forward_kwargs: expected other .* got \['use_cache'\] in both",
        ),
        (torch.zeros(0, 3).long(), r"batches: expected inputs, got \[0, 3\] in torch.int64"),
    ):
        with pytest.raises(InputError, match=f"^{message}"):
            read(model, "model.layers.0", batch, forward_kwargs={"use_cache": False})
    padding = {"input_ids": tokens(2, 3), "attention_mask": torch.zeros(2, 3)}
    with pytest.raises(InputError, match="^batches: expected tokens in the first batch, got padding only$"):
        read(model, "model.layers.0", padding, sink_ratio=10.0)
    with pytest.raises(
        InputError, match="^batches: expected what can be read again, such as a list, got generator$"
    ):
        ModelSource(model, "model.layers.0", (tokens(2, 3) for _ in range(2)))
