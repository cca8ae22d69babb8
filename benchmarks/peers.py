"""The other libraries' TopK training steps: their own modules and optimizers, stepped as their own trainers do.

Each function takes the SAE to start from and returns the step: x [B, D] -> the loss that their trainer reports. They
cannot all be installed beside each other without help; this works (torch first, so that it stays the CPU's):

    pip install torch==2.13.0 && pip install eai-sparsify==1.3.3 torch==2.13.0
    pip install sae-lens==6.54.12 dictionary-learning==0.1.0 torch==2.13.0 && pip uninstall -y torchvision
"""

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType

import torch
from torch import Tensor

from saefast import SAE

LR, BETAS, EPS = 1e-3, (0.9, 0.999), 6.25e-10
Step = Callable[[Tensor], float]
PACKAGES = {"sparsify": "sparsify", "dictionary_learning": "dictionary_learning", "SAELens": "sae_lens"}
# their loss is the squared error of a token, not divided by the variance
PER_TOKEN = ("dictionary_learning", "SAELens")


def missing(contender: str) -> str | None:
    package = PACKAGES.get(contender.split()[0])
    return "not installed" if package and not importlib.util.find_spec(package) else None


def sparsify(optimizer: str, sae: SAE) -> Step:
    if not torch.cuda.is_available():  # where triton is installed it would launch kernels all the same
        os.environ["SPARSIFY_DISABLE_TRITON"] = "1"
    from schedulefree import ScheduleFreeWrapper
    from sparsify.config import SparseCoderConfig
    from sparsify.sign_sgd import SignSGD
    from sparsify.sparse_coder import SparseCoder

    config = sae.config
    coder = SparseCoder(config.d_in, SparseCoderConfig(num_latents=config.d_sae, k=config.k))
    start(sae, coder.encoder.weight, coder.encoder.bias, coder.W_dec, coder.b_dec)
    if optimizer == "signum":
        opt = ScheduleFreeWrapper(SignSGD([{"params": list(coder.parameters()), "lr": LR}]), momentum=0.95)
        opt.train()
    else:
        opt = torch.optim.Adam(coder.parameters(), lr=LR, betas=BETAS, eps=EPS)

    def step(x: Tensor) -> float:
        coder.set_decoder_norm_to_unit_norm()
        fvu = coder(x=x, y=x).fvu
        fvu.backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        opt.step()
        opt.zero_grad()
        return float(fvu.detach())

    return step


def dictionary_learning(sae: SAE) -> Step:
    """Its trainer's `update`, counted from step 1: step 0 would spend a geometric median on b_dec."""
    # needed for language models only, and nnsight changes torch.autocast for everybody
    with stand_ins("nnsight", "datasets", "zstandard"):
        from dictionary_learning.trainers.top_k import TopKTrainer

    trainer = TopKTrainer(
        steps=10**9, activation_dim=sae.config.d_in, dict_size=sae.config.d_sae, k=sae.config.k, layer=0, lm_name="none",
        lr=LR, warmup_steps=0, device="cpu",
    )  # fmt: skip
    ae = trainer.ae
    start(sae, ae.encoder.weight, ae.encoder.bias, ae.decoder.weight, ae.b_dec)
    count = iter(range(1, 10**9))
    return lambda x: trainer.update(next(count), x)


def sae_lens(sparse: bool, sae: SAE) -> Step:
    """Its trainer's `step`. sparse: its setting for activations as COO tensors, faster on the CPU, which works only
    without rescaling by the decoder's norms, its default."""
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer

    theirs = TopKTrainingSAE(
        TopKTrainingSAEConfig(
            d_in=sae.config.d_in, d_sae=sae.config.d_sae, k=sae.config.k, use_sparse_activations=sparse,
            rescale_acts_by_decoder_norm=not sparse,
        )
    )  # fmt: skip
    start(sae, theirs.W_enc, theirs.b_enc, theirs.W_dec, theirs.b_dec)
    config = SAETrainerConfig(10**12, 4096, lr=LR, lr_end=LR, adam_beta1=BETAS[0], adam_beta2=BETAS[1])
    trainer = SAETrainer(config, theirs, data_provider=iter(()))

    def step(x: Tensor) -> float:
        out = trainer.step(x)
        trainer.n_training_steps += 1
        return float(out.loss.detach())

    return step


def start(sae: SAE, *theirs: Tensor) -> None:
    """Copy our parameters into theirs, which may keep a matrix the other way round."""
    for param, value in zip(theirs, sae.params, strict=True):
        param.data.copy_(value if param.shape == value.shape else value.T)


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
