"""`saefast train`. The flags of the two configs are added to it by `saefast.cli.flags`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Fixed, Positional, Suppress, arg

from saefast.cli.flags import configs_of
from saefast.cli.from_text import Live, LiveFlags, check_text_flags, open_rows
from saefast.cli.param_dtype import kept_by, param_dtype_of
from saefast.config.compatible import without_idle
from saefast.config.recipes import RECIPES, recipe
from saefast.config.train import SAEConfig, TrainConfig
from saefast.errors import InputError, check

if TYPE_CHECKING:
    from saefast.activations.sources import Source
    from saefast.sae import SAE


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

    source: Annotated[Positional[str], arg(metavar="SOURCE")]
    """A shard folder (of `saefast cache`), a .npy or a .safetensors file: a matrix [tokens, d_in]; for a transcoder
    [tokens, d_in + d_out]. With TEXT: a language model, a local folder or a name on the Hub."""
    text: Annotated[Positional[Path | None], arg(metavar="TEXT")] = None
    """Text as `saefast cache` takes it: the SAE is trained on the activations of the model SOURCE on it, at --hook. The
    text is read again when it ends before --tokens. Default: none; SOURCE holds activations."""
    out: Path
    """Run folder: config, checkpoint, metrics, the trained SAE, curves."""
    recipe: str | None = None
    """Begin with the settings of a recipe (see `saefast recipes`). Other flags win over it."""
    start: str | None = None
    """Go on from this SAE: a run, or a folder or file of another project. It decides --d-sae, --k and the like."""
    resume: bool = False
    """Go on from the checkpoint in --out, bit for bit. If there is none, start a new run."""
    device: str | None = None
    """Where to train; default: the GPU if there is one."""
    live: LiveFlags = field(default_factory=Live)
    of_recipe: Fixed[Suppress[tuple[str, ...]]] = ()
    """The fields of the configs whose value is the recipe's, and no flag's."""

    def run(self) -> None:
        from saefast.train.trainer import Trainer

        shape, options = configs_of(self)
        left_out = without_idle(shape, options, self.of_recipe)
        given = shape["d_sae"] is not None
        check(given, "d_sae: expected a number of latents (--d-sae), or --start SAE, got none")
        asked, found = options["lr"], None
        if asked == "auto":
            options["lr"] = recipe(self.recipe)[1].get("lr") if self.recipe else None
            found = self._earlier_search()
        device = usable_device(self.device)
        earlier = kept_by([self.out]) if self.resume and options["param_dtype"] is None else None
        options["param_dtype"] = param_dtype_of(options, device, earlier)
        config = TrainConfig(**options)
        check_text_flags(self.text, self.live)
        lm_device = usable_device(self.live.lm_device or device)
        source = open_rows(self.source, self.text, self.live, lm_device, config.batch_size)
        shape["d_in"] = shape["d_in"] or source.d_in - (shape["d_out"] or 0)
        make = partial(self._make, SAEConfig(**shape), config, device)
        if self.recipe is not None:
            say_recipe(self.recipe, left_out)
        if asked == "auto":
            found = found or self._search(make, config, source)
            if found is None:
                print(f"stopped in the search for lr; nothing is in {self.out} yet")
                return
            config = replace(config, lr=found["lr"])
        trainer = Trainer(sae := make(), config)
        trainer.notes = {"start": self.start} if self.start else {}
        trainer.notes |= {"lr_search": found} if found else {}
        active = f", k = {sae.config.k}," if sae.config.k else f" ({sae.config.activation})"
        print(
            f"training {sae.config.d_sae} latents of width {sae.config.d_in}{active} on {config.total_tokens} tokens; "
            f"backend {trainer.ops.NAME} on {device}, {trainer.precision}"
        )
        if trainer.fit(source, self.out, self.resume):
            held_out = f"on held-out activations{self._held_out()}"
            print(f"done: {self.out} (`saefast evaluate {self.out} SOURCE` {held_out})")

    def _make(self, shape: SAEConfig, config: TrainConfig, device: str) -> "SAE":
        """The SAE before its first step."""
        from saefast.sae import SAE
        from saefast.train.memory import first_dtype, out_of_memory_help

        with out_of_memory_help(shape, config):
            if self.start is None:
                return SAE(shape, config.seed, device, first_dtype(config))
            return SAE.from_pretrained(self.start, device)

    def _earlier_search(self) -> dict[str, Any] | None:
        """What the run in --out found, if it is to go on, with the rate that it has now."""
        from saefast.train.run import checkpoint, run_folder

        if not (self.resume and (self.out / checkpoint.CHECKPOINT).exists()):
            return None
        fields = run_folder.read(self.out)
        search, lr = fields.get("lr_search") or {}, fields["train"].get("lr")
        check(bool(search), f"lr: the run in {self.out} was started with {lr!r}, got 'auto'")
        return {**search, "lr": lr}

    def _search(
        self, make: Callable[[], "SAE"], config: TrainConfig, source: "Source"
    ) -> dict[str, Any] | None:
        from saefast.sweep.auto_lr import auto_lr
        from saefast.train.run.checkpoint import check_new

        check_new(self.out, self.resume)
        found = auto_lr(make, config, source)
        if found is None:
            return None
        print("\n".join(found.lines()))
        return found.described()

    def _held_out(self) -> str:
        """How to get them, where there is no cache."""
        hooks = " ".join(f"--hook {hook}" for hook in self.live.hooks)
        return f", of `saefast cache {self.source} OTHER_TEXT {hooks} --out SOURCE`" if self.text else ""


def shape_of(start: str) -> dict[str, Any]:
    """The fields of SAEConfig of the SAE of --start."""
    from saefast.sae import SAE

    return dict(vars(SAE.from_pretrained(start).config))


def say_recipe(name: str, left_out: Mapping[str, str] | None = None) -> None:
    """What a recipe is, how it differs from its source, and which of its fields other flags have made idle."""
    print(f"recipe {name}: {RECIPES[name].source}\n  differs: {RECIPES[name].note}")
    for option, why in (left_out or {}).items():
        print(f"  left out: {option}, which has no effect with {why}")
