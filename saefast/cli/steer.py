"""`saefast steer`: what a model writes with latents set, added or scaled, beside what it writes as it is."""

import sys
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from shutil import get_terminal_size
from textwrap import wrap
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, UseAppendAction, arg

from saefast.cli.train import usable_device
from saefast.errors import check

if TYPE_CHECKING:
    from saefast.interp.steering import Sample
    from saefast.sae import SAE

BETWEEN = " | "
BOLD, COLOUR, PLAIN = "\x1b[1m", "\x1b[36m", "\x1b[0m"


@dataclass(frozen=True, kw_only=True)
class Steer:
    """Let a language model write with latents set, added or scaled, beside what it writes as it is.

    The error of the SAE is kept: only what the latents add is changed, at the hook point, on every token. The same seed writes
    the same texts.
    """

    run_folder: Annotated[Positional[str], arg(metavar="RUN")]
    """Run folder, or an SAE of any format."""
    model: Annotated[Positional[str | None], arg(metavar="MODEL")] = None
    """The language model, a local folder or a name on the Hub. Default: the one that RUN names."""
    latent: UseAppendAction[tuple[str, ...]]
    """What is done to a latent: 17=5x (5 times its largest activation in the records), 4=-2.0 (its activation), 9+3 and 9-3 (add),
    '9*0' (scale). Give it again for each further latent."""
    prompt: UseAppendAction[tuple[str, ...]] = ()
    """What the model goes on from; give it again for more. Default: 1,2,3,4,5,6,7,8,9,10."""
    n: int = 3
    """Samples of each prompt."""
    max_new_tokens: int = 60
    """Tokens of a sample, unless it ends before."""
    temperature: float = 1.0
    """0 takes the most probable token each time."""
    seed: int = 0
    """Seed of the samples."""
    compare: bool = True
    """Beside what the model writes as it is."""
    at: Literal["all", "prompt", "generated"] = "all"
    """The tokens on which the latents are edited."""
    neurons: bool = False
    """Steer neurons (the coordinates of the activations) in place of the latents of RUN."""
    records: Path | None = None
    """Folder of records, for values with x. Default: records in RUN (records-neurons with --neurons)."""
    hook: UseAppendAction[tuple[str, ...]] = ()
    """Hook points, as in `saefast cache`. Default: those that RUN or its records name."""
    batch_size: int = 16
    """Samples at once."""
    device: str | None = None
    """Where it runs; default: the GPU if there is one."""

    def run(self) -> None:
        from saefast.activations.lm import load_model
        from saefast.interp.records import Records
        from saefast.interp.steering import (
            COUNTING,
            described,
            largest_activation,
            parse_edit,
            sample,
            steered,
        )
        from saefast.interp.steering.edits import checked_edits
        from saefast.sae import SAE

        check(bool(self.latent), "latent: expected at least one --latent, got none")
        device = usable_device(self.device)
        sae = SAE.from_pretrained(self.run_folder, device)
        folder = self._records_folder()
        records = None if folder is None else Records(folder)
        source = _described(self.run_folder, records, sae)
        if self.neurons:
            from saefast.interp.neurons import neurons

            sae = neurons(sae.config.d_in).to(device)
        if records is not None:
            want, got = sae.config.d_sae, records.d_sae
            check(want == got, f"records: expected those of {want} latents, {records.folder} has {got}")
        largest = None if records is None else lambda latent: largest_activation(records, latent)
        edits = checked_edits([parse_edit(text, largest, self.at) for text in self.latent], sae.config.d_sae)
        name = self.model or source.get("model")
        check(bool(name), f"model: expected a language model (MODEL), {self.run_folder} names none")
        hooks, place = self._place(source, sae)
        model, tokenizer = load_model(str(name), device)
        prompts = self.prompt or (COUNTING,)
        options = (self.n, self.max_new_tokens, self.temperature, self.seed, self.batch_size)
        with steered(model, sae, hooks, edits, **place):
            texts = [sample(model, tokenizer, prompts, *options)]
        if self.compare:
            texts.insert(0, sample(model, tokenizer, prompts, *options))
        print(f"{name} at {', '.join(hooks)}")
        for edit, written in zip(edits, self.latent, strict=True):
            print(f"{described(edit)} ({written})")
        self._show(prompts, texts)

    def _records_folder(self) -> Path | None:
        from saefast.interp.records import is_records

        if self.records is not None:
            return self.records
        found = Path(self.run_folder) / ("records-neurons" if self.neurons else "records")
        return found if found.is_dir() and is_records(found) else None

    def _place(self, source: dict[str, Any], sae: "SAE") -> tuple[tuple[str, ...], dict[str, Any]]:
        """The hook points, and which rows stay as they are there."""
        from saefast.interp.places import Cached

        if self.hook:
            known = source.get("hook")
            known = tuple(known) if isinstance(known, list) else (known,)
            if known != self.hook:  # limits of other hook points are none of these
                drop_ids = (source.get("notes") or {}).get("dropped_ids") or ()
                return self.hook, {"drop_ids": tuple(drop_ids)}
        named = source.get("hook") is not None
        check(named, f"hook: expected a hook point (--hook), {self.run_folder} names none")
        at = Cached.described(source, sae.config)
        return at.hooks, {"max_norm": at.limits, "drop_ids": at.drop_ids}

    def _show(self, prompts: tuple[str, ...], texts: "list[list[Sample]]") -> None:
        """A column for each way to run the model."""
        is_terminal = sys.stdout.isatty()
        bold, colour, plain = (BOLD, COLOUR, PLAIN) if is_terminal else ("", "", "")
        columns = get_terminal_size((100, 24)).columns
        width = max(20, (columns - len(BETWEEN)) // 2 if self.compare else columns)
        for of_prompt in range(len(prompts)):
            print(f"\n{bold}{_visible(prompts[of_prompt])}{plain}")
            if self.compare:
                print(f"{bold}{'as it is':{width}}{plain}{BETWEEN}{bold}{colour}steered{plain}")
            for number in range(self.n):
                print("-" * (2 * width + len(BETWEEN) if self.compare else width))
                samples = [arm[of_prompt * self.n + number] for arm in texts]
                for row in zip_longest(*(_lines(sample.text, width) for sample in samples), fillvalue=""):
                    left = [f"{cell:{width}}{BETWEEN}" for cell in row[:-1]]
                    print(f"{''.join(left)}{colour}{row[-1]}{plain}")


def _described(run: str, records: Any, sae: "SAE") -> dict[str, Any]:
    """What is known of the activations that the SAE is for: by its records, by its run, or by itself."""
    from saefast.files import read_json_checked

    if records is not None and records.index["source"].get("hook"):
        return dict(records.index["source"])
    description = Path(run) / "run.json"
    if description.exists():
        found = read_json_checked(description)
        source = found.get("source")
        if isinstance(source, dict):
            return source
    named = {"model": sae.metadata.get("model_name"), "hook": sae.metadata.get("hook_name")}
    return {key: value for key, value in named.items() if value}


def _visible(text: str) -> str:
    from saefast.interp.vocabulary import visible

    return visible(text.encode("utf-8", "surrogatepass"))


def _lines(text: str, width: int) -> list[str]:
    """The text in lines of at most so many signs, without signs that act on a terminal."""
    lines = (wrap(_visible(line), width, drop_whitespace=False) or [""] for line in text.split("\n"))
    return [line for part in lines for line in part]
