"""SAELens: the `step` of its trainer."""

from typing import Any

import torch
from torch import Tensor

from benchmarks.peers.runs import (
    BETAS,
    Pair,
    Recipe,
    Run,
    Side,
    Step,
    as_sae,
    device_of,
    not_installed,
    stand_ins,
    start,
)
from benchmarks.shapes import Shape
from saefast import SAE

# the trainers that the drop-in is measured for
KINDS = ("TopK", "BatchTopK", "MatryoshkaBatchTopK", "Standard")
WARMUP = 50  # steps, of the penalty in a drop-in


def steps(trainer: Any) -> Step:
    def step(x: Tensor) -> Tensor:
        loss: Tensor = trainer.step(x).loss.detach()
        trainer.n_training_steps += 1  # as its `fit` does
        return loss

    return step


def topk(sparse: bool, sae: SAE, recipe: Recipe) -> Run:
    """sparse: its setting for activations as COO tensors, which is faster on a CPU and works only without its default,
    the rescaling by the norms of the decoder's rows."""
    with stand_ins(*not_installed("wandb")):
        from sae_lens.config import SAETrainerConfig
        from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
        from sae_lens.training.sae_trainer import SAETrainer

    config = TopKTrainingSAEConfig(
        d_in=sae.config.d_in,
        d_sae=sae.config.d_sae,
        k=sae.config.k,
        use_sparse_activations=sparse,
        rescale_acts_by_decoder_norm=not sparse,
        device=device_of(sae),
    )
    theirs = TopKTrainingSAE(config)
    params = theirs.W_enc, theirs.b_enc, theirs.W_dec, theirs.b_dec
    start(sae, recipe, *params)
    schedule: dict[str, int] = {}
    if recipe.steps:
        schedule["lr_warm_up_steps"] = recipe.warmup
        schedule["lr_decay_steps"] = recipe.steps - recipe.warmup - 1
    settings = SAETrainerConfig(
        total_training_samples=recipe.batch_size * (recipe.steps or 10**9),
        train_batch_size_samples=recipe.batch_size,
        lr=recipe.lr,
        lr_end=recipe.lr,
        adam_beta1=BETAS[0],
        adam_beta2=BETAS[1],
        device=device_of(sae),
        **schedule,
    )
    trainer = SAETrainer(settings, theirs, data_provider=iter(()))
    return Run(steps(trainer), lambda: as_sae(sae, *params, fold=not sparse))


def pair(kind: str, shape: Shape, rows: Tensor) -> Pair:
    import sae_lens
    from sae_lens.config import LoggingConfig, SAETrainerConfig

    from saefast.adapters.sae_lens import SAETrainer

    options: dict[str, Any] = {"d_in": shape.D, "d_sae": shape.F} | ({"k": shape.K} if "TopK" in kind else {})
    if kind == "MatryoshkaBatchTopK":
        options["matryoshka_widths"] = [shape.F // n for n in (16, 8, 4, 2, 1)]
    if kind == "Standard":
        options |= {"l1_coefficient": 2.5, "l1_warm_up_steps": WARMUP}
    logger = LoggingConfig(log_to_wandb=False)

    def side(cls: Any) -> Side:
        torch.manual_seed(0)
        config = getattr(sae_lens, f"{kind}TrainingSAEConfig")(**options)
        sae = getattr(sae_lens, f"{kind}TrainingSAE")(config)
        settings = SAETrainerConfig(10**12, shape.B, lr=1e-3, lr_end=1e-3, logger=logger)
        return Side(steps(cls(settings, sae, iter(()))), None, sae, lambda x: sae.encode(x))

    return side(sae_lens.SAETrainer), side(SAETrainer)
