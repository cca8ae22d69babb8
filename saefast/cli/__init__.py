"""The command line: `saefast cache | train | sweep | evaluate | convert | info`. Flags are generated from the dataclasses below."""

import json
import logging
import math
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from tqdm import tqdm
from tyro.conf import Positional, UseAppendAction, arg

import saefast
from saefast import backend, formats
from saefast.activations import lm, shards
from saefast.activations.contexts import Bos, Separator
from saefast.activations.open import open_source
from saefast.cli.export_checkpoint import ExportCheckpoint
from saefast.cli.sweep import Sweep
from saefast.cli.train import Train, usable_device, with_recipe
from saefast.config.train import TrainConfig
from saefast.errors import InputError, check
from saefast.files import load_tensors
from saefast.interp.evaluate import evaluate
from saefast.interp.places import Cached
from saefast.interp.splice import evaluate_in_model
from saefast.sae import SAE
from saefast.train import run_folder
from saefast.train.loggers import read_lines

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
    context_length: int = 256
    """Tokens per context."""
    contexts_per_batch: int = 4
    """Contexts per forward pass."""
    dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    """How activations are stored."""
    sink_ratio: float | None = 10.0
    """Drop rows whose norm is more than this many times the median norm (attention sinks); None keeps them."""
    text_field: str = "text"
    """The field of JSON objects, or the column of a table, that holds the text."""
    bos: Bos = "auto"
    """Whether each context begins with the token for the beginning of a text; auto: if the tokenizer does so."""
    separator: Separator = "auto"
    """The token after each document; auto: eos if the tokenizer has one."""
    keep_special: bool = False
    """Keep the rows of special tokens (beginning and end of text, ...)."""
    device: str = "cpu"
    """Where the language model runs."""

    def run(self) -> None:
        for name in ("tokens", "context_length", "contexts_per_batch"):
            value = getattr(self, name)
            check(value is None or value > 0, f"{name}: expected a positive integer, got {value}")
        check(bool(self.hook), "hook: expected at least one --hook, got none")
        check(self.skip_tokens >= 0, f"skip_tokens: expected 0 or more, got {self.skip_tokens}")
        usable_device(self.device)
        texts = lm.Texts(self.text, self.text_field)
        next(texts.pieces(), None)  # a missing text is reported before a model is loaded
        model, tokenizer = lm.load_model(self.model, self.device)
        shape = self.context_length, self.contexts_per_batch
        contexts = lm.model_contexts(model, tokenizer, texts, *shape, self.bos, self.separator)
        drop = () if self.keep_special else contexts.special_ids
        source = lm.ModelSource(model, self.hook, contexts, drop, self.sink_ratio, {"use_cache": False})
        notes = {"text": str(self.text), "skip_tokens": self.skip_tokens}
        notes |= {"context_length": self.context_length, "contexts_per_batch": self.contexts_per_batch}
        notes |= {"sink_ratio": self.sink_ratio, "max_norm": source.max_norm if self.sink_ratio else None}
        notes |= {"dropped_ids": sorted(drop)} | contexts.notes
        notes |= {} if self.text_field == "text" else {"text_field": self.text_field}
        dtype = getattr(torch, self.dtype)
        writer = shards.ShardWriter(self.out, source.widths, dtype, self.model, source.hooks, notes)
        batch_tokens = self.context_length * self.contexts_per_batch
        first = -(-self.skip_tokens // batch_tokens) + writer.n_contexts // self.contexts_per_batch
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
    contexts: int = 32
    """Contexts of SOURCE for --in-model."""
    backend: Literal["auto", "reference", "native", "triton"] = "auto"
    """Which implementation of the ops runs."""

    def run(self) -> None:
        show(self.result(), self.json)

    def result(self) -> dict[str, Any]:
        """What is printed, as plain values."""
        check(self.contexts > 0, f"contexts: expected a positive integer, got {self.contexts}")
        sae, source = SAE.from_pretrained(self.run_folder), open_source(self.source)
        if self.in_model:
            Cached.of(source, sae.config, "in_model")  # before the work
        result = evaluate(sae, source, self.backend)._asdict()
        density = torch.tensor(result.pop("density"), dtype=torch.float32, device="cpu")
        quantiles = (0.1, 0.25, 0.5, 0.75, 0.9, 0.99)
        result["density_quantiles"] = {str(q): float(density.quantile(q)) for q in quantiles}
        if self.in_model:
            result["in_model"] = self._in_model(sae, source)
        return result

    def _in_model(self, sae: SAE, source: Any) -> dict[str, Any]:
        at = Cached.of(source, sae.config, "in_model")
        model, _ = lm.load_model(source.index["model"])
        batches = source.shard(0)["contexts"][: self.contexts].long().split(4)
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
        sae = SAE.from_pretrained(self.source, format=self.format)
        notes = formats.save(sae, self.destination, self.to)
        c = sae.config
        active = f"k = {c.k}" if c.k else c.activation
        print(f"{c.d_sae} latents of width {c.d_in}, {active}: {self.destination}, in the format {self.to}")
        for note in notes:
            print(f"folded: {note}")


@dataclass(frozen=True)
class Info:
    """Show what a run, an SAE, a shard folder or an activation file holds; without PATH, what this machine offers."""

    path: Positional[Path | None] = None
    """Run folder, SAE folder, shard folder, .npy or .safetensors file."""
    json: bool = False
    """Print JSON."""

    def run(self) -> None:
        result: dict[str, Any] = {}
        if self.path is not None:
            result = {"path": str(self.path)} | describe(self.path)
        name, reason = backend.choose("cuda" if torch.cuda.is_available() else "cpu")
        unavailable = {n: why for n in backend.MODULES if (why := backend.unavailable(n))}
        result["backend"] = {"auto": name, "why": reason, "instruction_sets": backend.native_isas()}
        result["backend"]["unavailable"] = unavailable
        gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
        result["machine"] = {"gpu": gpu, "torch": torch.__version__, "threads": torch.get_num_threads()}
        result["saefast"] = saefast.__version__
        show(result, self.json)


def describe(path: Path) -> dict[str, Any]:
    """What `path` holds, as plain values."""
    kinds = "a run, an SAE, a shard folder or an activation file"
    check(path.exists(), f"path: expected {kinds}, found nothing at {path}")
    try:
        format = formats.detect(path)
    except InputError as no_sae:
        try:
            source = open_source(path)
        except InputError as error:
            raise InputError(f"{error}; {no_sae}") from None  # which says what there is
        return {"kind": "activations", "d_in": source.d_in} | source.describe()
    found: dict[str, Any] = {"kind": "run" if (path / "run.json").exists() else "sae", "format": format}
    if found["kind"] == "run":
        try:
            found |= run_folder.read(path)
            total = TrainConfig(**found["train"]).total_steps
        except (TypeError, KeyError):
            raise InputError(f"{path / 'run.json'}: expected the description of a run") from None
        found["progress"] = {"step": 0, "of": total}
        if (path / "checkpoint.safetensors").exists():
            _, meta, _ = load_tensors(path / "checkpoint.safetensors")
            found["progress"] = {"step": meta["step"], "of": total}
        lines = read_lines(path / "metrics.jsonl")
        found["last_metrics"] = lines[-1] if lines else None
    if found["kind"] == "sae" or (path / "config.json").exists():
        sae = SAE.from_pretrained(path)
        found["sae"] = asdict(sae.config) | sae.metadata
        found["parameters"] = sum(p.numel() for p in sae.parameters())
    return found


def show(result: dict[str, Any], as_json: bool = False) -> None:
    """Print nested figures as aligned lines, or as JSON."""
    if as_json:
        print(json.dumps(strict(result), indent=2))
        return
    for key, value in result.items():
        if isinstance(value, dict):
            print(f"{key}:")
            for inner, entry in value.items():
                print(f"  {inner:22} {entry:.5g}" if isinstance(entry, float) else f"  {inner:22} {entry}")
        else:
            print(f"{key:24} {value:.5g}" if isinstance(value, float) else f"{key:24} {value}")


def strict(value: Any) -> Any:
    """`value` with None in place of NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: strict(entry) for key, entry in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


COMMANDS: dict[str, Callable[..., Any]] = {"cache": Cache, "train": Train, "sweep": Sweep}
COMMANDS |= {"evaluate": Evaluate, "convert": Convert, "export-checkpoint": ExportCheckpoint, "info": Info}


def main(args: list[str] | None = None) -> None:
    """Entry point. Bad input is one line on stderr and exit status 2."""
    logging.basicConfig(format="saefast: %(message)s")
    try:
        about = "Train and evaluate sparse autoencoders on language-model activations."
        args = with_recipe(sys.argv[1:] if args is None else args)
        tyro.extras.subcommand_cli_from_dict(COMMANDS, prog="saefast", description=about, args=args).run()
    except (InputError, OSError) as error:
        print(f"saefast: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:  # a second Ctrl-C, or one outside of the steps of a run
        print("saefast: error: interrupted", file=sys.stderr)
        sys.exit(130)
