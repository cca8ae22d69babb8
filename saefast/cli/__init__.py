"""The command line: `saefast cache | train | sweep | evaluate | look | steer | blind | study | export | convert | info | recipes`.

Flags are generated from dataclasses.

What needs torch is imported when a command runs, so that --help answers at once.
"""

import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tyro.conf import Positional, UseAppendAction, arg

from saefast.cli.blind import Blind
from saefast.cli.explain import Explain
from saefast.cli.export import Export
from saefast.cli.export_checkpoint import ExportCheckpoint
from saefast.cli.flags import LISTS, configs_of, with_flags
from saefast.cli.from_text import FromText, TextFlags
from saefast.cli.info import Info, show
from saefast.cli.look import Look
from saefast.cli.recipes import Recipes
from saefast.cli.steer import Steer
from saefast.cli.study import Study
from saefast.cli.sweep import Sweep
from saefast.cli.train import Train, shape_of, usable_device
from saefast.config.recipes import recipe
from saefast.errors import InputError, check

if TYPE_CHECKING:
    from saefast.interp.places import Cached
    from saefast.sae import SAE

Written = Literal[
    "saefast", "sae_lens", "sparsify", "dictionary_learning", "openai", "gemma_scope", "llamascopium"
]
Format = Literal[Written, "llama_scope", "circuit_tracer", "released"]


@dataclass(frozen=True)
class Cache:
    """Write a language model's activations on some text to a shard folder.

    Give the same command again to go on with an interrupted cache where it stopped.
    """

    model: Annotated[Positional[str], arg(metavar="MODEL")]
    """Hugging Face causal language model: a local folder, or a name on the Hub."""
    text: Annotated[Positional[Path], arg(metavar="TEXT")]
    """Text: a file or a folder; plain, .jsonl, .json, .csv, .tsv (also compressed), .parquet, .arrow."""
    hook: UseAppendAction[tuple[str, ...]]
    """Hook point: a module path for its output (model.layers.12), or path:in for its input. Give it again for each
    further hook point; rows then hold the activations of all of them side by side."""
    out: Path
    """Shard folder to write."""
    tokens: int | None = None
    """Largest number of activations to keep; default: all of the text."""
    skip_tokens: int = 0
    """Tokens at the beginning of the text to leave out, to cache a held-out part."""
    dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    """How activations are stored."""
    device: str = "cpu"
    """Where the language model runs."""
    text_flags: TextFlags = field(default_factory=FromText)

    def run(self) -> None:
        import torch
        from tqdm import tqdm

        from saefast.activations import shards

        check(
            self.tokens is None or self.tokens > 0, f"tokens: expected a positive integer, got {self.tokens}"
        )
        check(self.skip_tokens >= 0, f"skip_tokens: expected 0 or more, got {self.skip_tokens}")
        flags = self.text_flags
        source = flags.open(self.model, self.text, self.hook, usable_device(self.device))
        notes = {"text": str(self.text), "skip_tokens": self.skip_tokens} | source.notes
        dtype = getattr(torch, self.dtype)
        writer = shards.ShardWriter(self.out, source.widths, dtype, self.model, source.hooks, notes)
        batch_tokens = flags.context_length * flags.contexts_per_batch
        first = -(-self.skip_tokens // batch_tokens) + writer.n_contexts // flags.contexts_per_batch
        with tqdm(total=self.tokens, initial=writer.n_tokens, unit="token", desc="cache") as bar:
            for batch in source.model_batches(first):
                room = len(batch.activations) if self.tokens is None else self.tokens - writer.n_tokens
                if room <= 0:
                    break
                rows, where = batch.activations[:room], (batch.context[:room], batch.position[:room])
                writer.append(rows, batch.contexts, *where)
                bar.update(len(rows))
        some = writer.n_tokens > 0
        check(some, f"text: expected at least {batch_tokens} tokens after skip_tokens, got fewer")
        writer.close()
        dropped, limits = source.n_dropped, ", ".join(f"{limit:.4g}" for limit in source.max_norms)
        print(
            f"{writer.n_tokens} activations of width {' + '.join(map(str, source.widths))} in {self.out}; dropped "
            f"{dropped['sink']} attention sinks (norm above {limits}) and {dropped['special']} special tokens"
        )


@dataclass(frozen=True)
class Evaluate:
    """Evaluate a trained SAE on held-out activations, and, if asked, inside its language model."""

    run_folder: Annotated[Positional[Path], arg(metavar="RUN")]
    """Run folder, or any folder with sae.safetensors and config.json."""
    source: Annotated[Positional[Path], arg(metavar="SOURCE")]
    """A shard folder, a .npy or a .safetensors file."""
    json: bool = False
    """Print JSON."""
    in_model: bool = False
    """Also splice the SAE into the model (SOURCE must be a shard folder of `saefast cache`)."""
    contexts: int | None = None
    """Contexts of SOURCE for --in-model. Default: 32."""
    backend: Literal["auto", "reference", "native", "triton"] = "auto"
    """Which implementation of the ops runs."""

    def run(self) -> None:
        show(self.result(), self.json)

    def result(self) -> dict[str, Any]:
        """What is printed, as plain values."""
        import torch

        from saefast.activations.open import open_source
        from saefast.interp.evaluate import evaluate
        from saefast.interp.places import Cached
        from saefast.sae import SAE

        contexts = self.contexts
        check(
            contexts is None or self.in_model, f"contexts: expected none without --in-model, got {contexts}"
        )
        check(contexts is None or contexts > 0, f"contexts: expected a positive integer, got {contexts}")
        sae, source = SAE.from_pretrained(self.run_folder), open_source(self.source)
        at = Cached.of(source, sae.config, "in_model") if self.in_model else None  # before the work
        result = evaluate(sae, source, self.backend)._asdict()
        density = torch.tensor(result.pop("density"), dtype=torch.float32, device="cpu")
        quantiles = (0.1, 0.25, 0.5, 0.75, 0.9, 0.99)
        result["density_quantiles"] = {str(q): float(density.quantile(q)) for q in quantiles}
        if at is not None:
            result["in_model"] = self._in_model(sae, source, at)
        return result

    def _in_model(self, sae: "SAE", source: Any, at: "Cached") -> dict[str, Any]:
        from saefast.activations import lm
        from saefast.interp.splice import evaluate_in_model

        model, _ = lm.load_model(source.index["model"])
        batches = source.shard(0)["contexts"][: self.contexts or 32].long().split(4)
        return evaluate_in_model(sae, model, at.hooks, batches, at.limits, drop_ids=at.drop_ids)._asdict()


@dataclass(frozen=True)
class Convert:
    """Write an SAE in the files of another project. What it computes stays the same."""

    source: Annotated[Positional[str], arg(metavar="SRC")]
    """A run, a folder or file of any of the formats, or organisation/repository/folder on the Hub."""
    destination: Annotated[Positional[Path], arg(metavar="DST")]
    """A new folder."""
    to: Written
    """The format to write."""
    format: Format | None = None
    """The format of SRC; default: recognised from its files."""

    def run(self) -> None:
        from saefast import formats
        from saefast.sae import SAE

        sae = SAE.from_pretrained(self.source, format=self.format)
        notes = formats.save(sae, self.destination, self.to)
        c = sae.config
        active = f"k = {c.k}" if c.k else c.activation
        print(f"{c.d_sae} latents of width {c.d_in}, {active}: {self.destination}, in the format {self.to}")
        for note in notes:
            print(f"folded: {note}")


COMMANDS: dict[str, Callable[..., Any]] = {
    "cache": Cache,
    "train": Train,
    "sweep": Sweep,
    "evaluate": Evaluate,
    "look": Look,
    "steer": Steer,
    "explain": Explain,
    "blind": Blind,
    "study": Study,
    "export": Export,
}
COMMANDS |= {"convert": Convert, "export-checkpoint": ExportCheckpoint, "info": Info, "recipes": Recipes}


def parse(args: list[str] | None) -> Any:
    """The command that `args` (None: those of the process) ask for.

    Where a recipe is asked for, all is parsed once more, with its fields as the defaults of the flags: so the parser alone
    says which flags were given. Those that both times have a recipe's value are the recipe's. Where an SAE is gone on from, its
    shape takes that place, and a flag that says something else is refused.
    """

    def parsed(of_recipe: Mapping[str, Any]) -> Any:
        commands = COMMANDS | {
            "train": with_flags(Train, of_recipe),
            "sweep": with_flags(Sweep, of_recipe, LISTS),
        }
        about = "Train and evaluate sparse autoencoders on language-model activations."
        return tyro.extras.subcommand_cli_from_dict(commands, prog="saefast", description=about, args=args)

    first = parsed({})
    if not isinstance(first, Train | Sweep):
        return first
    of_sae, of_train = ({}, {}) if first.recipe is None else recipe(first.recipe)
    of_start = shape_of(first.start) if isinstance(first, Train) and first.start is not None else {}
    of_recipe, own = of_sae | of_train, of_sae | of_train | of_start
    if not own:
        return first
    again = parsed(own)
    without, found = merged(configs_of(first)), merged(configs_of(again))
    for name, value in of_start.items():
        check(found[name] == value, f"{name}: the SAE in --start has {value!r}, got {found[name]!r}")
    wanted = merged(configs_of(parsed(of_recipe))) if of_start else {}
    for name in (name for name in of_start if name in of_sae):
        agree = wanted[name] == of_start[name]
        by = f"{wanted[name]!r} by the recipe {first.recipe}"
        check(agree, f"{name}: the SAE in --start has {of_start[name]!r}, got {by}")
    return replace(again, of_recipe=tuple(name for name in of_recipe if without[name] != found[name]))


def merged(configs: tuple[dict[str, Any], dict[str, Any]]) -> dict[str, Any]:
    return configs[0] | configs[1]


def main(args: list[str] | None = None) -> None:
    """Entry point. Bad input is one line on stderr and exit status 2."""
    logging.basicConfig(format="saefast: %(message)s")
    try:
        parse(args).run()
        sys.stdout.flush()
    except BrokenPipeError:  # who reads what is printed has seen enough, as in `saefast train --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # for what Python still flushes at its end
        sys.exit(128 + signal.SIGPIPE)
    except (InputError, OSError) as error:
        print(f"saefast: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:  # a second Ctrl-C, or one outside of the steps of a run
        print("saefast: error: interrupted", file=sys.stderr)
        sys.exit(130)
