"""The two sides of `drop_in.py`: each project's training step, its own and with the one line of `docs/drop-in/` changed."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from queue import Queue
from threading import Semaphore, Thread
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.peers.peers import stand_ins

D_IN, K = 576, 32
B, D_SAE = map(int, os.environ.get("DROP_IN_SHAPE", "4096,9216").split(","))
WARMUP = 50  # steps, of the learning rate and of penalties
Step = Callable[[Tensor], Any]


class Side(NamedTuple):
    """step: one training step on x [B, d_in]. loss: afterwards, of a step that does not return it as a number.
    module, acts: of kinds whose steps cost what is active, the SAE and its dense activations of x."""

    step: Step
    loss: Step | None = None
    module: Any = None
    acts: Step | None = None


Pair = tuple[Side, Side]


def dictionary_learning(kind: str, rows: Tensor) -> Pair:
    """`update`, counted from 1: step 0 finds a geometric median on both sides."""
    with stand_ins("nnsight", "datasets", "zstandard"):
        from dictionary_learning.trainers import (
            batch_top_k,
            gdm,
            jumprelu,
            matryoshka_batch_top_k,
            standard,
            top_k,
        )

        from saefast.adapters import dictionary_learning as ours

    module = {
        "TopK": top_k, "BatchTopK": batch_top_k, "MatryoshkaBatchTopK": matryoshka_batch_top_k, "Standard": standard,
        "JumpRelu": jumprelu, "GatedSAE": gdm,
    }[kind]  # fmt: skip
    options: dict[str, Any] = {"k": K} if "TopK" in kind else {"sparsity_warmup_steps": WARMUP}
    options |= {"Standard": {"l1_penalty": 0.06}, "GatedSAE": {"l1_penalty": 0.2}}.get(kind, {})
    if kind == "JumpRelu":
        options |= {"sparsity_penalty": 1.0, "target_l0": float(K)}
    if kind == "MatryoshkaBatchTopK":
        options["group_fractions"] = [1 / 16, 1 / 16, 1 / 8, 1 / 4, 1 / 2]

    def make(source: Any) -> Side:
        torch.manual_seed(0)  # JumpReluTrainer does not
        trainer = getattr(source, f"{kind}Trainer")(
            steps=10**6, activation_dim=D_IN, dict_size=D_SAE, layer=0, lm_name="none", lr=1e-3, seed=0, device="cpu",
            warmup_steps=WARMUP, **options,
        )  # fmt: skip
        count = iter(range(1, 10**6))

        def reconstruction(x: Tensor) -> float:
            return float((trainer.ae(x[:64]) - x[:64]).detach().square().sum(dim=1).mean())

        ae = trainer.ae
        return Side(lambda x: trainer.update(next(count), x), reconstruction, ae, ae.encode)

    return make(module), make(ours)


def sae_lens(kind: str, rows: Tensor) -> Pair:
    import sae_lens as stock
    from sae_lens.config import LoggingConfig, SAETrainerConfig

    from saefast.adapters.sae_lens import SAETrainer

    def make(cls: Any) -> Side:
        torch.manual_seed(0)
        options: dict[str, Any] = {"d_in": D_IN, "d_sae": D_SAE} | ({"k": K} if "TopK" in kind else {})
        if kind == "MatryoshkaBatchTopK":
            options["matryoshka_widths"] = [D_SAE // n for n in (16, 8, 4, 2, 1)]
        if kind == "Standard":
            options |= {"l1_coefficient": 2.5, "l1_warm_up_steps": WARMUP}
        sae = getattr(stock, f"{kind}TrainingSAE")(getattr(stock, f"{kind}TrainingSAEConfig")(**options))
        logger = LoggingConfig(log_to_wandb=False)
        trainer = cls(SAETrainerConfig(10**12, B, lr=1e-3, lr_end=1e-3, logger=logger), sae, iter(()))

        def step(x: Tensor) -> float:
            loss = trainer.step(x).loss.detach()
            trainer.n_training_steps += 1
            return float(loss)

        return Side(step, None, sae, lambda x: sae.encode(x))

    return make(stock.SAETrainer), make(SAETrainer)


KEPT = ExitStack()


def sparsify(kind: str, rows: Tensor) -> Pair:
    """What its `fit` does after the language model, as in tests/peers."""
    os.environ["SPARSIFY_DISABLE_TRITON"] = "1"
    from saefast.adapters import sparsify as ours
    from tests.peers.sparsify_runs import make as trainer_of
    from tests.peers.sparsify_runs import stock

    def make(cls: Any) -> Side:
        folder = Path(KEPT.enter_context(tempfile.TemporaryDirectory()))
        trainer = trainer_of(
            cls, rows[:B], folder, steps=1000, optimizer=kind, lr=None, num_latents=D_SAE, k=K
        )
        coder = trainer.saes["lookup"]
        coder.b_dec.data = rows.mean(dim=0)
        if cls is ours.Trainer:
            KEPT.enter_context(ours.lent(trainer, "lookup", "auto", "auto"))
            KEPT.enter_context(ours.faster_signum(trainer.optimizers))

        def step(x: Tensor) -> float:
            coder.set_decoder_norm_to_unit_norm()
            variance = (x - x.mean(dim=0)).square().sum()
            out = coder(x, x, dead_mask=None, total_variance=variance)
            out.fvu.backward()
            coder.remove_gradient_parallel_to_decoder_directions()
            for each in (*trainer.optimizers, *trainer.lr_schedulers):
                each.step()
            trainer.optimizers[0].zero_grad()
            return float(out.fvu.detach())

        return Side(step)

    return make(stock.Trainer), make(ours.Trainer)


def pytorch(kind: str, rows: Tensor) -> Pair:
    """The loops of docs/drop-in/pytorch.md."""
    from torch.nn.functional import normalize

    import saefast.autograd
    import saefast.optim

    def make(fast: bool) -> Side:
        torch.manual_seed(0)
        W_dec = torch.nn.Parameter(normalize(torch.randn(D_SAE, D_IN), dim=1))
        W_enc = torch.nn.Parameter(W_dec.detach().clone())
        b_enc, b_dec = torch.nn.Parameter(torch.zeros(D_SAE)), torch.nn.Parameter(rows.mean(dim=0))
        params = [W_enc, b_enc, W_dec, b_dec]
        if fast:
            optimizer: Any = saefast.optim.Adam(params, lr=1e-3, unit_norm=[W_dec], max_grad_norm=1.0)
        else:
            optimizer = torch.optim.Adam(params, lr=1e-3)

        def step(x: Tensor) -> float:
            if fast:
                x_hat, _, _ = saefast.autograd.sae_forward(x, W_enc, b_enc, W_dec, b_dec, K)
            else:
                top = ((x - b_dec) @ W_enc.T + b_enc).topk(K)
                acts = torch.zeros(len(x), D_SAE).scatter(1, top.indices, top.values.relu())
                x_hat = acts @ W_dec + b_dec
            loss = (x_hat - x).square().sum(dim=1).mean()
            loss.backward()
            if not fast:
                assert W_dec.grad is not None
                with torch.no_grad():
                    W_dec.grad -= (W_dec.grad * W_dec).sum(dim=1, keepdim=True) * W_dec
                torch.nn.utils.clip_grad_norm_(params, 1.0)
            optimizer.step()
            if not fast:
                with torch.no_grad():
                    W_dec.div_(W_dec.norm(dim=1, keepdim=True))
            optimizer.zero_grad()
            return loss.item()

        return Side(step)

    return make(False), make(True)


class Feed:
    """The stream of a `fit` in a thread of its own, a batch at a time."""

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


def llamascopium(kind: str, rows: Tensor) -> Pair:
    """Its `fit`, without the metrics that it would compute in every step."""
    os.environ["TQDM_DISABLE"] = "1"
    from llamascopium import InitializerConfig, SAEConfig, TrainerConfig
    from llamascopium.initializer import Initializer
    from llamascopium.trainer import Trainer as Stock

    from saefast.adapters.llamascopium import Trainer as Ours

    def batch(x: Tensor) -> dict[str, Tensor]:
        return {"h": x, "tokens": torch.arange(len(x)), "mask": torch.ones(len(x))}

    def make(cls: Any) -> Side:
        losses = []

        class Recorded(cls):  # type: ignore[misc]
            def _training_step(self, *args: Any) -> Any:
                found = super()._training_step(*args)
                losses.append(float(found["loss"]))
                return found

        torch.manual_seed(0)
        config = SAEConfig(
            hook_point_in="h", hook_point_out="h", d_model=D_IN, expansion_factor=D_SAE / D_IN, act_fn=kind.lower(), top_k=K
        )  # fmt: skip
        sae = Initializer(InitializerConfig()).initialize_sae_from_config(config, [batch(rows[:B])])
        settings = TrainerConfig(
            amp_dtype=torch.float32, k_warmup_steps=0, n_checkpoints=0, skip_metrics_calculation=True,
            total_training_tokens=1000 * B, exp_result_path=KEPT.enter_context(tempfile.TemporaryDirectory()),
        )  # fmt: skip
        feed = Feed()
        Thread(target=Recorded(settings).fit, args=(sae, feed), daemon=True).start()
        feed.asked.acquire()
        feed.give(batch(rows[:B]))  # it looks at a batch before it trains

        def step(x: Tensor) -> float:
            feed.give(batch(x))
            return losses[-1]

        return Side(step)

    return make(Stock), make(Ours)


PROJECTS: dict[str, tuple[Callable[[str, Tensor], Pair], tuple[str, ...]]] = {
    "dictionary_learning": (
        dictionary_learning,
        ("TopK", "BatchTopK", "MatryoshkaBatchTopK", "JumpRelu", "GatedSAE", "Standard"),
    ),
    "sae_lens": (sae_lens, ("TopK", "BatchTopK", "MatryoshkaBatchTopK", "Standard")),
    "sparsify": (sparsify, ("adam", "signum")),
    "llamascopium": (llamascopium, ("TopK", "BatchTopK")),
    "pytorch": (pytorch, ("TopK",)),
}
