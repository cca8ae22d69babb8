"""`saefast train`. Its flags are generated from the two configs; a recipe is a set of flags."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from tyro.conf import OmitArgPrefixes, Positional, arg

from saefast.activations.open import open_source
from saefast.config.recipes import recipe
from saefast.config.train import SAEConfig, TrainConfig
from saefast.errors import InputError
from saefast.sae import SAE
from saefast.train.memory import out_of_memory_help
from saefast.train.trainer import Trainer


def usable_device(name: str | None) -> str:
    """The device of this name, by default the GPU if there is one. Raises InputError if it cannot be used."""
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, dtype=torch.float32, device=name)
    except (RuntimeError, AssertionError):  # torch without CUDA raises the latter
        raise InputError(f"device: expected a device of this machine, got {name!r}") from None
    return name


@dataclass(frozen=True, kw_only=True)
class SAEFlags(SAEConfig):
    """What to train."""

    d_in: int | None = None  # type: ignore[assignment]
    """Width of the input; default: that of SOURCE (less d_out)."""

    def __post_init__(self) -> None:
        """Nothing is checked here, for the reason given in `TrainFlags`."""


@dataclass(frozen=True, kw_only=True)
class TrainFlags(TrainConfig):
    """How to train. Sizes are in tokens (activation rows), never in sequences."""

    total_tokens: Annotated[int, arg(name="tokens")]
    """Tokens to train on; the source is read again when it is shorter."""

    def __post_init__(self) -> None:
        """Nothing is checked here: `Train.run` makes the TrainConfig, so that an error is one line, and not tyro's box."""


@dataclass(frozen=True)
class Train:
    """Train a sparse autoencoder on a source of activations."""

    source: Annotated[Positional[Path], arg(metavar="SOURCE")]
    """A shard folder (of `saefast cache`), a .npy or a .safetensors file: a matrix [tokens, d_in]; for a transcoder
    [tokens, d_in + d_out]."""
    out: Path
    """Run folder: config, checkpoint, metrics, the trained SAE, curves."""
    sae: OmitArgPrefixes[SAEFlags]
    train: OmitArgPrefixes[TrainFlags]
    recipe: str | None = None
    """Begin with the settings of a recipe (see `saefast.config.recipes`), which other flags change."""
    resume: bool = False
    """Go on from the checkpoint in --out, bit for bit. If there is none, start a new run."""
    device: str | None = None
    """Where to train; default: the GPU if there is one."""

    def run(self) -> None:
        config = TrainConfig(**asdict(self.train))
        source = open_source(self.source)
        device = usable_device(self.device)
        weight_dtype = torch.float32 if config.param_dtype == "fp32" else torch.bfloat16
        shape = asdict(self.sae)
        shape["d_in"] = shape["d_in"] or source.d_in - (shape["d_out"] or 0)
        with out_of_memory_help(sae_config := SAEConfig(**shape), config):
            sae = SAE(sae_config, config.seed, device, weight_dtype)
        trainer = Trainer(sae, config)
        active = f", k = {sae_config.k}," if sae_config.k else f" ({sae_config.activation})"
        print(
            f"training {sae_config.d_sae} latents of width {sae_config.d_in}{active} on {config.total_tokens} tokens; "
            f"backend {trainer.ops.NAME} on {device}, {trainer.precision}"
        )
        if trainer.fit(source, self.out, self.resume):
            print(f"done: {self.out} (`saefast evaluate {self.out} SOURCE` on held-out activations)")


def with_recipe(args: list[str]) -> list[str]:
    """Put the flags of `--recipe NAME` before the others, so that the others win."""
    if args[:1] != ["train"] or "--recipe" not in args[:-1]:
        return args
    of_sae, of_train = recipe(args[args.index("--recipe") + 1])
    flags = [flag for name, value in (of_sae | of_train).items() for flag in as_flags(name, value)]
    return ["train", *flags, *args[1:]]


def as_flags(name: str, value: Any) -> list[str]:
    """A field of a config as it is written on the command line."""
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    values = value if isinstance(value, tuple) else (value,)
    return [f"--{flag}", *map(str, values)]
