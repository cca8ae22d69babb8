"""Texts that a language model writes: the same ones for the same seed, in batches of any size.

Each sample has draws of its own, by the seed, the number of its prompt and its own number. A draw u in [0, 1) chooses the
token at which the cumulative probability, in the order of the ids, passes u. So samples of a steered model and of the model
as it is are made of the same draws. The passes are those of `generate` of Hugging Face, with its keys and values, padding and
positions for every kind of model.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from saefast.activations.hooks import unwrapped
from saefast.activations.inputs import check_length, device_of, vocabulary_size
from saefast.errors import InputError, check
from saefast.interp.vocabulary import Vocabulary

COUNTING = "1,2,3,4,5,6,7,8,9,10"  # the prompt of "Towards Monosemanticity"


class Sample(NamedTuple):
    """What was written after a prompt."""

    prompt: int  # its number
    number: int  # of the sample, from 0
    tokens: list[int]  # the new ones, without the token that ends a text
    text: str  # theirs


class _Choice:
    """A logits processor of Hugging Face that leaves each row one token, the one that its draws choose."""

    def __init__(self, draws: Tensor, temperature: float, first: int) -> None:
        self.draws, self.temperature, self.first = draws, temperature, first

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        good = bool((scores < torch.inf).all())  # not NaN either
        check(good, "model: expected logits that are numbers, got NaN or Inf: an edit that is too large?")
        if self.temperature == 0:
            chosen = scores.argmax(dim=1, keepdim=True)
        else:
            passed = (scores.double() / self.temperature).softmax(dim=1).cumsum(dim=1)
            draw = self.draws[:, input_ids.shape[1] - self.first, None].to(passed.device) * passed[:, -1:]
            chosen = torch.searchsorted(passed, draw, right=True).clamp_max(scores.shape[1] - 1)
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen, 0.0)


@torch.no_grad()
def sample(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[str | Sequence[int]] = (COUNTING,),
    n: int = 1,
    max_new_tokens: int = 60,
    temperature: float = 1.0,
    seed: int = 0,
    batch_size: int = 16,
) -> list[Sample]:
    """n samples of each prompt, by prompts. Inside of `steered` they are those of the steered model.

    Prompts of a batch are padded on the left. A sample ends before a token that ends a text. The model is put in eval mode; its
    own settings for generation (penalties, top-k, ...) do not count, but for which tokens end a text.

    Args:
        prompts: texts, which the tokenizer may put its special tokens around; or token ids.
        temperature: 0 takes the most probable token each time.
        batch_size: samples at once. The samples are the same for each, up to the rounding of the model.

    Raises:
        InputError: a model that cannot generate; a prompt without tokens, or too long with the new ones for the model's
            positions; numbers out of range.
    """
    for name, value in (("n", n), ("max_new_tokens", max_new_tokens), ("batch_size", batch_size)):
        check(value > 0, f"{name}: expected at least 1, got {value}")
    check(0 <= temperature < float("inf"), f"temperature: expected 0 or more, got {temperature}")
    check(seed >= 0, f"seed: expected 0 or more, got {seed}")
    check(not isinstance(prompts, str), f"prompts: expected a list of prompts, got one: {prompts!r}")
    inner = unwrapped(model).eval()
    config: Any = getattr(inner, "generation_config", None)
    can = hasattr(inner, "generate") and config is not None
    check(can, f"model: expected a language model of Hugging Face that generates, got {type(inner).__name__}")
    ids = [_ids(inner, tokenizer, prompt, max_new_tokens) for prompt in prompts]
    ends = config.eos_token_id if config.eos_token_id is not None else tokenizer.eos_token_id
    stops = [] if ends is None else [int(end) for end in (ends if isinstance(ends, list) else [ends])]
    vocabulary, found = Vocabulary(tokenizer), []
    jobs = [(prompt, number) for prompt in range(len(ids)) for number in range(n)]
    for begin in range(0, len(jobs), batch_size):
        some = jobs[begin : begin + batch_size]
        draws = [np.random.default_rng([seed, *job]).random(max_new_tokens) for job in some]
        with _plain_settings(inner, stops, max_new_tokens):
            new = _generated(inner, [ids[prompt] for prompt, _ in some], np.stack(draws), temperature)
        for (prompt, number), tokens in zip(some, new, strict=True):
            end = next((i for i, token in enumerate(tokens) if token in stops), len(tokens))
            found.append(Sample(prompt, number, tokens[:end], _text(vocabulary, tokens[:end])))
    return found


def _ids(model: nn.Module, tokenizer: Any, prompt: str | Sequence[int], more: int) -> list[int]:
    if isinstance(prompt, str):
        ids = list(tokenizer(prompt, verbose=False).input_ids)
        begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        ids = ids or ([] if begin is None else [begin])
    else:
        ids = [int(token) for token in prompt]
    check(bool(ids), f"prompts: expected at least one token in each, got none in {prompt!r}")
    size = vocabulary_size(model)
    known = size is None or 0 <= min(ids) <= max(ids) < size
    check(known, f"prompts: expected token ids from 0 to {(size or 1) - 1}, got {max(ids)}")
    check_length(model, len(ids) + more, "max_new_tokens")
    return ids


@contextmanager
def _plain_settings(model: Any, stops: list[int], max_new_tokens: int) -> Iterator[None]:
    """Without what the model says of how it wants to be sampled."""
    from transformers import GenerationConfig

    own = model.generation_config
    plain = {"do_sample": False, "max_new_tokens": max_new_tokens, "use_cache": True}
    ends = {"eos_token_id": stops or None, "pad_token_id": stops[0] if stops else 0}
    model.generation_config = GenerationConfig(**plain, **ends)
    try:
        yield
    finally:
        model.generation_config = own


def _generated(
    model: Any, prompts: list[list[int]], draws: np.ndarray, temperature: float
) -> list[list[int]]:
    """The new tokens of each, one prompt for each row of draws [m, max_new_tokens]."""
    length = max(map(len, prompts))
    pad = model.generation_config.pad_token_id
    padded = [[pad] * (length - len(ids)) + ids for ids in prompts]
    is_real = [[0] * (length - len(ids)) + [1] * len(ids) for ids in prompts]
    tokens, mask = (
        torch.tensor(rows, dtype=torch.int64, device=device_of(model)) for rows in (padded, is_real)
    )
    choice = _Choice(torch.from_numpy(draws), temperature, length)
    try:
        output = model.generate(tokens, attention_mask=mask, logits_processor=[choice])
    except (InputError, torch.OutOfMemoryError):
        raise
    except (ValueError, RuntimeError, TypeError, NotImplementedError) as error:
        got = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise InputError(f"model: it could not generate a text: {got}") from error
    new: list[list[int]] = output[:, length:].tolist()
    return new


def _text(vocabulary: Vocabulary, tokens: list[int]) -> str:
    """Ids behind the tokenizer's, which a padded embedding has, stand for nothing."""
    return vocabulary.text(token for token in tokens if token < len(vocabulary))
