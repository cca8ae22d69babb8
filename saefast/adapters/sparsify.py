"""Drop-in for EleutherAI's sparsify (eai-sparsify 1.3.3): its trainer with the engine's step, or its model on the
engine's operators. See docs/drop-in/sparsify.md.

    from saefast.adapters.sparsify import Trainer      in place of      from sparsify import Trainer

    with patched():                                    around anything with a SparseCoder
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any

import sparsify.sparse_coder
import sparsify.trainer
import torch
import torch.distributed as dist

from saefast.adapters import sparsify_ops
from saefast.adapters.linked import during, replace
from saefast.adapters.sparsify_engine import lent
from saefast.adapters.sparsify_signum import is_signum, signum_step

__all__ = ["SaeTrainer", "Trainer", "patch", "patched"]
log = logging.getLogger("saefast")


class Trainer(sparsify.trainer.Trainer):
    """sparsify's `Trainer` whose `fit` trains the sparse coders with the engine. All else is sparsify's own: the loop,
    the language model, schedules, logging, `save`, `load_state`.

    What the engine does not do (see `not_ours`) runs as sparsify does it, inside `patched()`, after a warning.

    Args:
        cfg, dataset, model: sparsify's.
        backend, compute_dtype: see `saefast.TrainConfig`. By default products are in bf16 on a GPU, as sparsify's.

    Raises:
        InputError: in `fit`: a k that does not fit the dictionary; NaN or Inf in the activations.
    """

    def __init__(
        self, cfg: Any, dataset: Any, model: Any, *, backend: str = "auto", compute_dtype: str = "auto"
    ) -> None:
        super().__init__(cfg, dataset, model)
        self.backend, self.compute_dtype = backend, compute_dtype

    def fit(self) -> None:
        if reason := not_ours(self):
            log.warning(f"sparsify: {reason}: sparsify's own step, with the encoder and decoder of saefast")
            with patched():
                return super().fit()
        with self.on_the_engine():
            super().fit()

    @contextmanager
    def on_the_engine(self) -> Iterator[None]:
        """Until the end of the block, steps of the sparse coders and of signum are those of saefast."""
        with ExitStack() as stack:
            for name in self.saes:
                stack.enter_context(lent(self, name, self.backend, self.compute_dtype))
            for optimizer in filter(is_signum, self.optimizers):
                stack.enter_context(during(partial(replace, optimizer, step=partial(signum_step, optimizer))))
            yield


SaeTrainer = Trainer  # sparsify's other name for it


def not_ours(trainer: Any) -> str | None:
    """Why the engine cannot do this trainer's step, or None if it can."""
    cfg, sae = trainer.cfg, trainer.cfg.sae
    if cfg.loss_fn != "fvu":
        return f"loss_fn = {cfg.loss_fn!r} trains through the language model"
    if dist.is_initialized():
        return "torch.distributed is in use"
    if sae.multi_topk and sae.activation != "topk":
        return f"multi_topk with activation = {sae.activation!r}"
    if sae.skip_connection and not sae.transcode:
        return "skip_connection without transcode"
    dtypes = {param.dtype for coder in trainer.saes.values() for param in coder.parameters()}
    if dtypes != {torch.float32}:
        return f"parameters of {', '.join(sorted(map(str, dtypes)))}, not torch.float32"
    return None


def patch() -> Callable[[], None]:
    """Let every `SparseCoder` encode (TopK) and decode with saefast's operators, forward and backward, in training and
    inference, until the function that is returned is called."""
    ours = {name: getattr(sparsify_ops, name) for name in ("fused_encoder", "decoder_impl")}
    return replace(sparsify.sparse_coder, **ours)


def patched() -> AbstractContextManager[None]:
    """`patch` for the length of a `with` block."""
    return during(patch)


def main() -> None:
    """`python -m saefast.adapters.sparsify MODEL DATASET ...`: sparsify's command line with this trainer."""
    import sparsify.__main__ as cli

    cli.Trainer = Trainer
    cli.run()


if __name__ == "__main__":
    main()
