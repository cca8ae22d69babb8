"""The subject of "Towards Monosemanticity": a transformer of one block, whose MLP has 512 neurons with ReLU.

Residual stream 128, MLP 512 and one block are the paper's; it does not give heads, context length, vocabulary and learning
rate, which are ours (4 heads, 256 tokens, 4096 tokens, 2e-3). It is a GPT-2 of Hugging Face, so that every tool can read it.
"""

import copy
import math
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from saefast.activations.contexts import PackedContexts
from saefast.activations.texts import Texts
from saefast.errors import InputError, check
from saefast.files import write_atomic

HOOK = "transformer.h.0.mlp.c_proj:in"
"""The 512 neurons after ReLU: what goes into the last linear map of the MLP."""
END = "<|endoftext|>"
ROWS_AT_ONCE = 512  # of logits: 8 MB for 4096 tokens
TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True, kw_only=True)
class SubjectConfig:
    """One subject, and how it is trained."""

    tokens: int
    """Of training text, each read once."""
    n_vocab: int = 4096
    """Tokens of the byte-level BPE."""
    d_model: int = 128
    """Width of the residual stream."""
    d_mlp: int = 512
    """Neurons."""
    n_heads: int = 4
    context_length: int = 256
    batch: int = 32
    """Contexts in a step."""
    lr: float = 2e-3
    """Reached after 5 % of the steps; falls as a cosine to a tenth."""
    seed: int = 0
    """Of the initial weights: subjects A and B differ in it alone."""

    @property
    def steps(self) -> int:
        return max(1, self.tokens // (self.batch * self.context_length))

    def lr_at(self, step: int) -> float:
        warmup = max(1, self.steps // 20)
        if step < warmup:
            return self.lr * (step + 1) / warmup
        done = (step - warmup) / max(1, self.steps - warmup)
        return self.lr * (0.55 + 0.45 * math.cos(math.pi * done))


def train_tokenizer(texts: Texts, folder: Path, n_vocab: int, most_bytes: int = 8_000_000) -> Any:
    """A byte-level BPE of the first `most_bytes` of the text, saved in `folder` as Hugging Face has it.

    Raises:
        InputError: transformers is not installed; the text is too small for so many tokens.
    """
    try:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
        from transformers import PreTrainedTokenizerFast
    except ImportError:
        raise InputError("model: a subject needs `pip install saefast[lm]`") from None

    def beginning() -> Iterator[str]:
        seen = 0
        for piece, _ in texts.pieces():
            yield piece
            seen += len(piece.encode())
            if seen >= most_bytes:
                return

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=n_vocab, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(beginning(), trainer)
    found = bpe.get_vocab_size()
    check(found == n_vocab, f"text: expected enough for a vocabulary of {n_vocab} tokens, got {found}")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=END, clean_up_tokenization_spaces=False
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def new_subject(config: SubjectConfig, end: int) -> nn.Module:
    """The model before its first step. end: id of the token after a document."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(config.seed)
    shape = GPT2Config(
        vocab_size=config.n_vocab,
        n_positions=config.context_length,
        n_embd=config.d_model,
        n_layer=1,
        n_head=config.n_heads,
        n_inner=config.d_mlp,
        activation_function="relu",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        tie_word_embeddings=False,
        bos_token_id=end,
        eos_token_id=end,
    )
    return GPT2LMHeadModel(shape)


def train_subject(
    texts: Texts,
    tokenizer: Any,
    folder: Path,
    config: SubjectConfig,
    progress: Callable[[int], object] = lambda n_tokens: None,
    *,
    device: str = "cpu",
    checkpoint_seconds: float = 60.0,
) -> float:
    """Train a subject, and save it with its tokenizer as `folder`, which is whole or not there; an interrupted training goes on
    where it stopped, from a checkpoint beside it.

    Returns:
        Tokens per second of this call; 0 if there was nothing left to do.

    Raises:
        InputError: the text ends before config.tokens, another training is there, or the loss is no number.
    """
    model: Any = new_subject(config, tokenizer.eos_token_id).train().to(device)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.98), fused=True)
    checkpoint = folder.with_name(f"{folder.name}.training.pt")
    folder.parent.mkdir(parents=True, exist_ok=True)
    done = _load(checkpoint, model, optimizer, config)
    progress(done * config.batch * config.context_length)
    contexts = PackedContexts(texts, tokenizer, config.context_length, config.batch)
    started = saved = time.perf_counter()
    step = first = done
    for step, tokens in enumerate(contexts, 1):
        if step <= first:
            continue
        if step > config.steps:
            break
        for group in optimizer.param_groups:
            group["lr"] = config.lr_at(step - 1)
        optimizer.zero_grad()
        loss = next_token_loss(model, tokens.to(device))
        value = loss.item()
        check(math.isfinite(value), f"lr: the loss of step {step} is {value}, with lr {config.lr}")
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        done = step
        progress(tokens.numel())
        if time.perf_counter() - saved > checkpoint_seconds:
            _save(checkpoint, model, optimizer, config, done)
            saved = time.perf_counter()
    per_step = config.batch * config.context_length
    whole = done == config.steps
    check(whole, f"text: expected {config.tokens} tokens of training text, got {done * per_step}")
    seconds = time.perf_counter() - started
    save_subject(model.eval().cpu(), tokenizer, folder)
    checkpoint.unlink(missing_ok=True)
    return (done - first) * per_step / seconds


def save_subject(model: Any, tokenizer: Any, folder: Path) -> None:
    """As Hugging Face has a model, in a folder that is whole or not there."""
    scratch = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    model.save_pretrained(scratch)
    tokenizer.save_pretrained(scratch)
    scratch.rename(folder)


class NextTokenLoss(torch.autograd.Function):
    """hidden [n, d], unembedding [V, d], targets [n] -> mean negative log-likelihood in nats. The gradients are made with the
    loss, a thousand rows at a time: [n, V] logits would be 128 MB a step, and moving them takes longer than the products."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, unembedding: Tensor, targets: Tensor) -> Tensor:
        n, total = len(targets), torch.zeros((), dtype=torch.float64, device=hidden.device)
        grad_hidden, grad_unembedding = torch.empty_like(hidden), torch.zeros_like(unembedding)
        buffer = hidden.new_empty(ROWS_AT_ONCE, len(unembedding))
        for rows, wanted, gradient in zip(
            hidden.split(ROWS_AT_ONCE),
            targets.split(ROWS_AT_ONCE),
            grad_hidden.split(ROWS_AT_ONCE),
            strict=True,
        ):
            logits = torch.mm(rows, unembedding.T, out=buffer[: len(rows)])
            chosen = torch.arange(len(rows), dtype=torch.int64, device=rows.device), wanted
            likely = logits.softmax(dim=1)
            total -= likely[chosen].clamp_min(TINY).log().sum()
            likely[chosen] -= 1
            torch.mm(likely, unembedding, out=gradient)
            grad_unembedding.addmm_(likely.T, rows)
        ctx.save_for_backward(grad_hidden.div_(n), grad_unembedding.div_(n))
        return (total / n).to(hidden.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        grad_hidden, grad_unembedding = ctx.saved_tensors
        return grad * grad_hidden, grad * grad_unembedding, None


def next_token_loss(model: Any, tokens: Tensor) -> Tensor:
    """tokens [m, L] -> mean negative log-likelihood of each token given those before it, in nats."""
    hidden = model.transformer(tokens, use_cache=False).last_hidden_state[:, :-1].flatten(0, 1)
    loss: Tensor = NextTokenLoss.apply(hidden, model.lm_head.weight, tokens[:, 1:].flatten())
    return loss


@torch.no_grad()
def shuffled(model: nn.Module, seed: int = 0) -> nn.Module:
    """The control of the paper: a copy whose matrices have the same entries in random places, each matrix for itself.
    Vectors (biases, gains of norms) stay."""
    other = copy.deepcopy(model)
    generator = torch.Generator("cpu").manual_seed(seed)
    for parameter in other.parameters():
        if parameter.ndim > 1:
            order = torch.randperm(parameter.numel(), generator=generator, dtype=torch.int64, device="cpu")
            order = order.to(parameter.device)
            parameter.copy_(parameter.flatten()[order].view_as(parameter))
    return other


def _save(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, config: SubjectConfig, step: int
) -> None:
    state = {
        "config": vars(config),
        "step": step,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    write_atomic(path, lambda temporary: torch.save(state, temporary))


def _load(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, config: SubjectConfig) -> int:
    """The step at which training goes on."""
    if not path.exists():
        return 0
    try:
        state = torch.load(path, weights_only=True)
    except Exception as error:  # noqa: BLE001 (pickle, zip and torch have errors of their own)
        raise InputError(f"{path}: expected a checkpoint of a subject, got a damaged file: {error}") from None
    same = state["config"] == vars(config)
    check(same, f"{path}: expected the training of {vars(config)}, got that of {state['config']}")
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])
