"""The other libraries' TopK training steps: their own modules, optimizers and schedules, stepped by their own trainers.

Each function takes the SAE to start from and a recipe, and returns the run. `make peers` makes an environment with all.
"""

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saefast import SAE

os.environ["TQDM_DISABLE"] = "1"  # read on import, as is the next
if not torch.cuda.is_available():  # where triton is installed sparsify would launch kernels all the same
    os.environ["SPARSIFY_DISABLE_TRITON"] = "1"
BETAS, EPS = (0.9, 0.999), 6.25e-10
WARMUP = 0.05  # of the steps of a run


class Recipe(NamedTuple):
    """How a run is made. Batch size is what `step` gets."""

    lr: float = 1e-3
    steps: int | None = None  # the rate rises over WARMUP of them and falls linearly to 0; None: constant
    batch_size: int = 4096
    sample: Tensor | None = (
        None  # [n, D] to begin as the library does; None: with the weights of the SAE given
    )

    @property
    def warmup(self) -> int:
        return int(WARMUP * (self.steps or 0))

    def rate(self, step: int) -> float:
        """What lr is multiplied by in a step, counted from 0."""
        if self.steps is None:
            return 1.0
        return min((step + 1) / max(1, self.warmup), (self.steps - step) / (self.steps - self.warmup))


class Run(NamedTuple):
    """step: x [B, D] -> the loss that the trainer reports. sae: what is trained, in our layout, judged by one code."""

    step: Callable[[Tensor], float]
    sae: Callable[[], SAE]


def device(sae: SAE) -> str:
    return sae.W_enc.device.type


def start(sae: SAE, recipe: Recipe, *theirs: Tensor) -> None:
    """Our parameters (or b_dec only) into theirs, which may keep a matrix the other way round."""
    for name, param, value in zip(("W_enc", "b_enc", "W_dec", "b_dec"), theirs, sae.params, strict=True):
        if name == "b_dec" or recipe.sample is None:
            param.data.copy_(value if param.shape == value.shape else value.T)


def as_sae(sae: SAE, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, b_dec: Tensor, fold: bool = False) -> SAE:
    """Their parameters as an SAE of ours. fold: they choose by activation times the norm of the decoder row."""
    found = SAE(sae.config).to(sae.W_enc.device)
    for param, value in zip(found.params, (W_enc, b_enc, W_dec, b_dec), strict=True):
        param.copy_(value.detach() if param.shape == value.shape else value.detach().T)
    if fold:
        norms = found.W_dec.data.norm(dim=1)
        found.W_enc.data *= norms[:, None]
        found.W_dec.data /= norms[:, None]
        found.b_enc.data *= norms
    return found


def sparsify(optimizer: str, sae: SAE, recipe: Recipe) -> Run:
    """The lines of `Trainer.fit` after the language model."""
    from schedulefree import ScheduleFreeWrapper
    from sparsify.config import SparseCoderConfig
    from sparsify.sign_sgd import SignSGD
    from sparsify.sparse_coder import SparseCoder

    config = sae.config
    coder = SparseCoder(
        config.d_in, SparseCoderConfig(num_latents=config.d_sae, k=config.k), device=device(sae)
    )
    start(sae, recipe, coder.encoder.weight, coder.encoder.bias, coder.W_dec, coder.b_dec)
    schedule: Any = None
    if optimizer == "signum":  # needs no schedule: its weights are averages
        opt: Any = ScheduleFreeWrapper(
            SignSGD([{"params": list(coder.parameters()), "lr": recipe.lr}]), momentum=0.95
        )
        opt.train()
    else:
        opt = torch.optim.Adam(coder.parameters(), lr=recipe.lr, betas=BETAS, eps=EPS)
        schedule = torch.optim.lr_scheduler.LambdaLR(opt, recipe.rate)

    def step(x: Tensor) -> float:
        coder.set_decoder_norm_to_unit_norm()
        fvu = coder(x=x, y=x).fvu
        fvu.backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        opt.step()
        opt.zero_grad()
        if schedule:
            schedule.step()
        return float(fvu.detach())

    def trained() -> SAE:
        if optimizer == "signum":
            opt.eval()
        coder.set_decoder_norm_to_unit_norm()
        found = as_sae(sae, coder.encoder.weight, coder.encoder.bias, coder.W_dec, coder.b_dec)
        if optimizer == "signum":
            opt.train()
        return found

    return Run(step, trained)


def dictionary_learning(sae: SAE, recipe: Recipe) -> Run:
    """Its trainer's `update`, counted from step 1: step 0 would spend a geometric median on b_dec."""
    # needed for language models only, and nnsight changes torch.autocast for everybody
    with stand_ins("nnsight", "datasets", "zstandard"):
        from dictionary_learning.trainers.top_k import TopKTrainer

    config, steps = sae.config, recipe.steps
    trainer = TopKTrainer(
        steps=(steps or 10**9) + 1, activation_dim=config.d_in, dict_size=config.d_sae, k=config.k, layer=0, lm_name="none",
        lr=recipe.lr, warmup_steps=recipe.warmup, decay_start=recipe.warmup + 1 if steps else None, device=device(sae),
    )  # fmt: skip
    ae = trainer.ae
    theirs = ae.encoder.weight, ae.encoder.bias, ae.decoder.weight, ae.b_dec
    start(sae, recipe, *theirs)
    count = iter(range(1, 10**9))
    return Run(lambda x: trainer.update(next(count), x), lambda: as_sae(sae, *theirs))


def sae_lens(sparse: bool, sae: SAE, recipe: Recipe) -> Run:
    """Its trainer's `step`. sparse: its setting for activations as COO tensors, faster on the CPU, which works only
    without rescaling by the decoder's norms, its default."""
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer

    theirs = TopKTrainingSAE(
        TopKTrainingSAEConfig(
            d_in=sae.config.d_in, d_sae=sae.config.d_sae, k=sae.config.k, use_sparse_activations=sparse,
            rescale_acts_by_decoder_norm=not sparse, device=device(sae),
        )
    )  # fmt: skip
    params = theirs.W_enc, theirs.b_enc, theirs.W_dec, theirs.b_dec
    start(sae, recipe, *params)
    B, lr = recipe.batch_size, recipe.lr
    decay = {"lr_warm_up_steps": recipe.warmup, "lr_decay_steps": (recipe.steps or 0) - recipe.warmup - 1}
    trainer = SAETrainer(
        SAETrainerConfig(
            B * (recipe.steps or 10**9), B, lr=lr, lr_end=lr, adam_beta1=BETAS[0], adam_beta2=BETAS[1],
            device=device(sae), **(decay if recipe.steps else {}),
        ),
        theirs, data_provider=iter(()),
    )  # fmt: skip

    def step(x: Tensor) -> float:
        out = trainer.step(x)
        trainer.n_training_steps += 1
        return float(out.loss.detach())

    return Run(step, lambda: as_sae(sae, *params, fold=not sparse))


def overcomplete(sae: SAE, recipe: Recipe) -> Run:
    """`train_sae` on a batch at a time. It has no b_dec: it gets x less the mean."""
    with stand_ins(
        "overcomplete.models", "overcomplete.visualization"
    ):  # vision models, and an older matplotlib
        from overcomplete.sae import TopKSAE
        from overcomplete.sae.train import train_sae

    model = TopKSAE(sae.config.d_in, nb_concepts=sae.config.d_sae, top_k=sae.config.k, device=device(sae))
    linear, mean = model.encoder.final_block[0], sae.b_dec.data.clone()
    theirs = linear.weight, linear.bias, model.dictionary._weights, mean
    start(sae, recipe, *theirs)
    adam = torch.optim.Adam(model.parameters(), lr=recipe.lr, betas=BETAS, eps=EPS)
    schedule = torch.optim.lr_scheduler.LambdaLR(adam, recipe.rate)
    losses: list[Tensor] = []

    def criterion(x: Tensor, x_hat: Tensor, *_: object) -> Tensor:
        losses[:] = [(x - x_hat).square().mean()]
        return losses[0]

    def step(x: Tensor) -> float:
        train_sae(
            model, [x - mean], criterion, adam, schedule, nb_epochs=1, monitoring=0, device=device(sae)
        )  # fmt: skip
        return float(losses[0].detach())

    return Run(step, lambda: as_sae(sae, *theirs[:2], model.get_dictionary(), mean))


def llamascopium(sae: SAE, recipe: Recipe) -> Run:
    """The lines of `Trainer.fit` (a fit in a thread of its own would bring a second pool of OpenMP threads), without the
    metrics that it would compute in every step. It encodes x, not x - b_dec."""
    from llamascopium import InitializerConfig, SAEConfig, TrainerConfig
    from llamascopium.initializer import Initializer
    from llamascopium.optim import clip_grad_norm
    from llamascopium.trainer import Trainer

    config = sae.config

    def batch(x: Tensor) -> dict[str, Tensor]:
        return {"h": x, "tokens": torch.arange(len(x), device=x.device), "mask": x.new_ones(len(x))}

    their_config = SAEConfig(
        hook_point_in="h", hook_point_out="h", d_model=config.d_in, expansion_factor=config.d_sae / config.d_in,
        act_fn="topk", top_k=config.k, norm_activation="inference", device=device(sae),
    )  # fmt: skip
    own = recipe.sample is not None  # as its examples begin, with a search for the decoder's norm
    how = InitializerConfig(
        grid_search_init_norm=own, init_encoder_bias_with_mean_hidden_pre=own,
        bias_init_method="geometric_median" if own else "all_zero",
    )  # fmt: skip
    first = batch(sae.b_dec.data[None] if recipe.sample is None else recipe.sample)
    theirs = Initializer(how).initialize_sae_from_config(their_config, [first])
    params = theirs.W_E, theirs.b_E, theirs.W_D, theirs.b_D
    start(sae, recipe, *params)
    if not own:
        theirs.b_E.data -= sae.b_dec.data @ theirs.W_E.data
    trainer = Trainer(
        TrainerConfig(
            amp_dtype=torch.float32, k_warmup_steps=0, n_checkpoints=0, skip_metrics_calculation=True, lr=recipe.lr,
            betas=BETAS, total_training_tokens=(recipe.steps or 10**6) * recipe.batch_size,
            lr_warm_up_steps=recipe.warmup, lr_scheduler_name="linearwarmupdecay" if recipe.steps else "constant",
            exp_result_path=tempfile.mkdtemp(),
        )
    )  # fmt: skip
    trainer._initialize_trainer(theirs, [batch(sae.b_dec.data.expand(recipe.batch_size, -1))])
    trainer._initialize_optimizer(theirs)

    def step(x: Tensor) -> float:
        rows = theirs.normalize_activations(batch(x))
        theirs.train()
        with torch.autocast(device(sae), dtype=torch.float32, enabled=device(sae) != "cpu"):
            loss = trainer._training_step(theirs, rows)["loss"]
        shown = float(loss.detach())
        loss.backward()
        clip_grad_norm([p for p in theirs.parameters() if p.grad is not None], max_norm=float("inf"))
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
        trainer.scheduler.step()
        trainer.cur_step += 1
        return shown

    def trained() -> SAE:
        W_E, b_E, W_D, b_D = (param.detach() for param in params)
        return as_sae(sae, W_E, b_E + b_D @ W_E, W_D, b_D, fold=True)

    return Run(step, trained)


@contextmanager
def stand_ins(*names: str) -> Iterator[None]:
    """While importing: modules of these names that have everything and do nothing."""

    class StandIn(ModuleType):
        def __getattr__(self, name: str) -> type:
            if name.startswith("__"):
                raise AttributeError(name)
            return type(name, (), {})

    kept = {name: sys.modules.get(name) for name in names}
    sys.modules.update({name: StandIn(name) for name in names})
    try:
        yield
    finally:
        for name, module in kept.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
