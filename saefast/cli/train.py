"""`saefast train`. The flags of the two configs are added to it by `saefast.cli.flags`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Fixed, Positional, Suppress, arg

from saefast.cli.flags import configs_of
from saefast.config.compatible import without_idle
from saefast.config.recipes import RECIPES
from saefast.config.train import SAEConfig, TrainConfig
from saefast.errors import InputError


def usable_device(name: str | None) -> str:
    """The device of this name, by default the GPU if there is one. Raises InputError if it cannot be used."""
    import torch

    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, dtype=torch.float32, device=name)
    except (RuntimeError, AssertionError):  # torch without CUDA raises the latter
        raise InputError(f"device: expected a device of this machine, got {name!r}") from None
    return name


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train a sparse autoencoder on a source of activations."""

    source: Annotated[Positional[Path], arg(metavar="SOURCE")]
    """A shard folder (of `saefast cache`), a .npy or a .safetensors file: a matrix [tokens, d_in]; for a transcoder
    [tokens, d_in + d_out]."""
    out: Path
    """Run folder: config, checkpoint, metrics, the trained SAE, curves."""
    recipe: str | None = None
    """Begin with the settings of a recipe (see `saefast recipes`). Other flags win over it."""
    resume: bool = False
    """Go on from the checkpoint in --out, bit for bit. If there is none, start a new run."""
    device: str | None = None
    """Where to train; default: the GPU if there is one."""
    of_recipe: Fixed[Suppress[tuple[str, ...]]] = ()
    """The fields of the configs whose value is the recipe's, and no flag's."""

    def run(self) -> None:
        import torch

        from saefast.activations.open import open_source
        from saefast.sae import SAE
        from saefast.train.memory import out_of_memory_help
        from saefast.train.trainer import Trainer

        shape, options = configs_of(self)
        left_out = without_idle(shape, options, self.of_recipe)
        config = TrainConfig(**options)
        source = open_source(self.source)
        device = usable_device(self.device)
        weight_dtype = torch.float32 if config.param_dtype == "fp32" else torch.bfloat16
        shape["d_in"] = shape["d_in"] or source.d_in - (shape["d_out"] or 0)
        with out_of_memory_help(sae_config := SAEConfig(**shape), config):
            sae = SAE(sae_config, config.seed, device, weight_dtype)
        trainer = Trainer(sae, config)
        if self.recipe is not None:
            say_recipe(self.recipe, left_out)
        active = f", k = {sae_config.k}," if sae_config.k else f" ({sae_config.activation})"
        print(
            f"training {sae_config.d_sae} latents of width {sae_config.d_in}{active} on {config.total_tokens} tokens; "
            f"backend {trainer.ops.NAME} on {device}, {trainer.precision}"
        )
        if trainer.fit(source, self.out, self.resume):
            print(f"done: {self.out} (`saefast evaluate {self.out} SOURCE` on held-out activations)")


def say_recipe(name: str, left_out: Mapping[str, str] | None = None) -> None:
    """What a recipe is, how it differs from its source, and which of its fields other flags have made idle."""
    print(f"recipe {name}: {RECIPES[name].source}\n  differs: {RECIPES[name].note}")
    for field, why in (left_out or {}).items():
        print(f"  left out: {field}, which has no effect with {why}")
