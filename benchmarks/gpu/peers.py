"""`make gpu`, prediction 10: the step of other projects on this GPU, those that can be imported here.

Each is its own public step with its own optimizer at the width, k and batch of A and B, under bf16 autocast, without AuxK.
They compute different losses, so nothing is compared but whether the loss falls. A folder of packages can be put on
PYTHONPATH; what is not there is listed as not installed.
"""

import importlib.util
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.gpu.common import (
    CASES,
    DEVICE,
    REHEARSAL,
    Item,
    Part,
    Report,
    Result,
    autocast,
    batches,
    expect,
    free,
    peak_gb,
    step_ms,
)
from benchmarks.peers.peers import stand_ins
from benchmarks.shapes import Shape

Step = Callable[[Tensor], Tensor]
LR = 1e-4
PREDICTED_MS = {"A": 2.7, "B": 15.0}  # of openai's and sparsify's kernels, to 40%


def absent(*names: str) -> list[str]:
    """Of packages and their modules, those that are not here."""
    return [name for name in names if importlib.util.find_spec(name.partition(".")[0]) is None]


def sparsify(optimizer: str, shape: Shape, x: Tensor) -> Step:
    """The lines of `sparsify.Trainer.fit` around its module, with fused Adam or its own choice."""
    from sparsify.config import SparseCoderConfig
    from sparsify.sparse_coder import SparseCoder

    coder = SparseCoder(shape.D, SparseCoderConfig(num_latents=shape.F, k=shape.K), device=DEVICE)
    coder.b_dec.data = x.mean(dim=0)
    if optimizer == "signum":
        from schedulefree import ScheduleFreeWrapper
        from sparsify.sign_sgd import SignSGD

        opt = ScheduleFreeWrapper(SignSGD(coder.parameters(), lr=LR), momentum=0.95)
        opt.train()
    else:
        opt = torch.optim.Adam(coder.parameters(), lr=LR, fused=True)

    def step(x: Tensor) -> Tensor:
        coder.set_decoder_norm_to_unit_norm()
        out = coder(x=x, y=x)
        out.fvu.backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        opt.step()
        opt.zero_grad()
        return out.fvu.detach()

    return step


def dictionary_learning(shape: Shape, x: Tensor) -> Step:
    # for language models only
    with stand_ins("nnsight", "datasets", "zstandard"):
        from dictionary_learning.trainers.top_k import TopKTrainer

    trainer = TopKTrainer(
        steps=10**6, activation_dim=shape.D, dict_size=shape.F, k=shape.K, layer=0, lm_name="none", lr=LR,
        warmup_steps=1, seed=0, device=DEVICE,
    )  # fmt: skip
    trainer.ae.b_dec.data.copy_(x.mean(dim=0))  # step 0 would look for a geometric median
    return lambda x: torch.as_tensor(trainer.update(1, x))


def sae_lens(shape: Shape, x: Tensor) -> Step:
    with stand_ins(*absent("wandb")):
        from sae_lens.config import SAETrainerConfig
        from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
        from sae_lens.training.sae_trainer import SAETrainer

    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=shape.D, d_sae=shape.F, k=shape.K, device=DEVICE))
    config = SAETrainerConfig(
        total_training_samples=10**9, train_batch_size_samples=shape.B, lr=LR, lr_end=LR, device=DEVICE
    )
    sae.b_dec.data.copy_(x.mean(dim=0))
    trainer = SAETrainer(cfg=config, sae=sae, data_provider=iter(()))
    return lambda x: trainer.step(x).loss.detach()


def openai(shape: Shape, x: Tensor) -> Step:
    """The lines of `sparse_autoencoder/train.py` around its module; as published it does not run in one process."""
    with stand_ins(*absent("wandb", "blobfile")):
        from sparse_autoencoder import train

    topk = train.sharded_topk
    train.sharded_topk = lambda x, k, sh_comm, capacity_factor=None: topk(x, k, sh_comm)
    coder = train.FastAutoencoder(shape.F, shape.D, shape.K, auxk=None, dead_steps_threshold=10**9).to(DEVICE)
    coder.pre_bias.data = x.mean(dim=0)
    adam = torch.optim.Adam(coder.parameters(), lr=LR, eps=6.25e-10, fused=True)

    def step(x: Tensor) -> Tensor:
        recons, _ = coder(x)
        loss = (recons - x).square().mean() / x.square().mean()
        loss.backward()
        train.unit_norm_decoder_(coder)
        train.unit_norm_decoder_grad_adjustment_(coder)
        adam.step()
        adam.zero_grad()
        return loss.detach()

    return step


PEERS: dict[str, tuple[str, Callable[[Shape, Tensor], Step]]] = {
    "sparsify": ("sparsify", partial(sparsify, "adam")),
    "sparsify-signum": ("sparsify", partial(sparsify, "signum")),
    "openai": ("sparse_autoencoder", openai),
    "dictionary_learning": ("dictionary_learning", dictionary_learning),
    "sae_lens": ("sae_lens", sae_lens),
}


def peer(name: str, case: str, report: Report) -> Result:
    package, make = PEERS[name]
    if importlib.util.find_spec(package) is None:
        return {"missing": package}
    if REHEARSAL and name == "openai":
        return {"said": "its kernels do not run in the interpreter"}
    shape = CASES[case]
    (x,) = batches(shape, 1)  # what ours trains on, too
    run = make(shape, x)
    free()

    def step() -> Tensor:
        with autocast():
            return run(x)

    losses = [float(step()) for _ in range(4)]
    expect(losses[-1] < losses[0], f"the loss does not fall: {losses}")
    found = step_ms(step) | peak_gb() | {"losses": losses}
    found["tokens_per_s"] = round(1e3 * shape.B / found["median_ms"])
    if name in ("sparsify", "openai"):
        found["prediction_for_h200_ms"] = [round(PREDICTED_MS[case] * factor, 2) for factor in (0.6, 1.4)]
    ours = report.get("step", {}).get(f"{case} triton", {}).get("triton")
    if ours:
        found["triton_is_faster_by"] = round(found["median_ms"] / ours["median_ms"], 2)
    return found


ITEMS: dict[str, Item] = {
    f"{name} {case}": partial(peer, name, case) for case in CASES if case in PREDICTED_MS for name in PEERS
}
PEER = Part(ITEMS, seconds=100, item_seconds=40)
