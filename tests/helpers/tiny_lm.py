"""A language model of 64 words and its tokenizer, made on the spot: nothing is downloaded."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = ["<eos>", "<unk>", *(f"w{i}" for i in range(62))]


def model() -> LlamaForCausalLM:
    """Three blocks of width 32 with random weights, large enough that every block matters."""
    config = LlamaConfig(
        hidden_size=32,
        num_hidden_layers=3,
        vocab_size=64,
        intermediate_size=48,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(config).eval()


def tokenizer() -> PreTrainedTokenizerFast:
    """Words separated by spaces: "w5" is token 7, unknown words are 1, the end of a text is 0."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", unk_token="<unk>")


def save(folder: Path) -> Path:
    """Save both as a folder that `load_model` takes."""
    model().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def text(n_words: int, seed: int = 0) -> str:
    numbers = torch.randint(0, 62, (n_words,), generator=torch.Generator().manual_seed(seed))
    return " ".join(f"w{i}" for i in numbers.tolist())
