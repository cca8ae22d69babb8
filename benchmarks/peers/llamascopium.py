"""llamascopium: the lines of its `Trainer.fit` as a contender, and the `fit` itself as a drop-in."""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from queue import Queue
from threading import Semaphore, Thread
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers.runs import BETAS, Pair, Recipe, Run, Side, as_sae, device_of, start
from benchmarks.shapes import Shape
from saefast import SAE

KINDS = ("TopK", "BatchTopK")  # the trainers that the drop-in is measured for
KEPT = ExitStack()  # holds until the process ends


def batch_of(x: Tensor) -> dict[str, Tensor]:
    return {"h": x, "tokens": torch.arange(len(x), device=x.device), "mask": x.new_ones(len(x))}


def new_sae(d_in: int, d_sae: int, k: int, sample: Tensor, how: dict[str, Any], **options: Any) -> Any:
    """how: settings of its initializer, which looks at the sample [n, d_in]."""
    from llamascopium import InitializerConfig, SAEConfig
    from llamascopium.initializer import Initializer

    config = SAEConfig(
        hook_point_in="h",
        hook_point_out="h",
        d_model=d_in,
        expansion_factor=d_sae / d_in,
        top_k=k,
        **options,
    )
    return Initializer(InitializerConfig(**how)).initialize_sae_from_config(config, [batch_of(sample)])


def settings(tokens: int, **options: Any) -> Any:
    """Settings of its trainer, without the metrics that it would compute in every step."""
    from llamascopium import TrainerConfig

    return TrainerConfig(
        amp_dtype=torch.float32,
        k_warmup_steps=0,
        n_checkpoints=0,
        skip_metrics_calculation=True,
        total_training_tokens=tokens,
        exp_result_path=KEPT.enter_context(tempfile.TemporaryDirectory()),
        **options,
    )


def topk(sae: SAE, recipe: Recipe) -> Run:
    """A `fit` in a thread of its own would bring a second pool of OpenMP threads. It encodes x, not x - b_dec."""
    from llamascopium.optim import clip_grad_norm
    from llamascopium.trainer import Trainer

    config, device, own = sae.config, device_of(sae), recipe.sample is not None
    how = {  # as its examples begin, with a search for the norm of the decoder
        "grid_search_init_norm": own,
        "init_encoder_bias_with_mean_hidden_pre": own,
        "bias_init_method": "geometric_median" if own else "all_zero",
    }
    sample = sae.b_dec.data[None] if recipe.sample is None else recipe.sample
    options = {"act_fn": "topk", "norm_activation": "inference", "device": device}
    theirs = new_sae(config.d_in, config.d_sae, config.k, sample, how, **options)
    params = theirs.W_E, theirs.b_E, theirs.W_D, theirs.b_D
    start(sae, recipe, *params)
    if not own:
        theirs.b_E.data -= sae.b_dec.data @ theirs.W_E.data
    schedule = {
        "lr_warm_up_steps": recipe.warmup,
        "lr_scheduler_name": "linearwarmupdecay" if recipe.steps else "constant",
    }
    tokens = (recipe.steps or 10**6) * recipe.batch_size
    trainer = Trainer(settings(tokens, lr=recipe.lr, betas=BETAS, **schedule))
    trainer._initialize_trainer(theirs, [batch_of(sae.b_dec.data.expand(recipe.batch_size, -1))])
    trainer._initialize_optimizer(theirs)

    def step(x: Tensor) -> Tensor:
        rows = theirs.normalize_activations(batch_of(x))
        theirs.train()
        with torch.autocast(device, dtype=torch.float32, enabled=device != "cpu"):
            loss: Tensor = trainer._training_step(theirs, rows)["loss"]
        loss.backward()
        clip_grad_norm([p for p in theirs.parameters() if p.grad is not None], max_norm=float("inf"))
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
        trainer.scheduler.step()
        trainer.cur_step += 1
        return loss.detach()

    def trained() -> SAE:
        W_E, b_E, W_D, b_D = (param.detach() for param in params)
        return as_sae(sae, W_E, b_E + b_D @ W_E, W_D, b_D, fold=True)

    return Run(step, trained)


class Feed:
    """The stream of a `fit` in a thread of its own, one batch at a time."""

    def __init__(self) -> None:
        self.inbox: Queue[Any] = Queue()
        self.asked = Semaphore(0)

    def __iter__(self) -> Iterator[Any]:
        while True:
            self.asked.release()
            yield self.inbox.get()

    def give(self, batch: Any) -> None:
        """Returns when the next one is asked for."""
        self.inbox.put(batch)
        assert self.asked.acquire(timeout=600), "the thread that trains asked for nothing for ten minutes"


def pair(kind: str, shape: Shape, rows: Tensor) -> Pair:
    from llamascopium.trainer import Trainer

    from saefast.adapters.llamascopium import Trainer as Ours

    def side(cls: Any) -> Side:
        losses = []

        class Recorded(cls):  # type: ignore[misc]
            def _training_step(self, *args: Any) -> Any:
                found = super()._training_step(*args)
                losses.append(float(found["loss"]))
                return found

        torch.manual_seed(0)
        sae = new_sae(shape.D, shape.F, shape.K, rows[: shape.B], {}, act_fn=kind.lower())
        trainer, feed = Recorded(settings(1000 * shape.B)), Feed()
        Thread(target=trainer.fit, args=(sae, feed), daemon=True).start()
        feed.asked.acquire()
        feed.give(batch_of(rows[: shape.B]))  # it looks at a batch before it trains

        def step(x: Tensor) -> float:
            feed.give(batch_of(x))
            return losses[-1]

        return Side(step)

    return side(Trainer), side(Ours)
