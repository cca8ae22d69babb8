"""`saefast export`: what `saefast look` recorded, in the files of other tools."""

import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from saefast.errors import check

if TYPE_CHECKING:
    from saefast.interp.records import Records

Tool = Literal["neuronpedia", "sae_dashboard", "delphi", "openai", "circuit_tracer"]
SOURCE_ID = re.compile(r"(\d+)-([a-z0-9-]+?)(?:__([a-z0-9-]+))?")
FOR = {  # which tools a flag is for
    "source_id": ("neuronpedia", "sae_dashboard"),
    "model_id": ("neuronpedia", "sae_dashboard"),
    "creator_id": ("neuronpedia",),
    "vectors": ("neuronpedia", "sae_dashboard"),
    "layer": ("openai", "circuit_tracer"),
    "scan": ("circuit_tracer",),
    "hookpoint": ("delphi",),
    "splits": ("delphi",),
}


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write the records of `saefast look` in the files of another tool."""

    run_folder: Annotated[Positional[Path], arg(metavar="RUN")]
    """Run folder with records."""
    to: Tool
    """neuronpedia: the layout of its bulk import; sae_dashboard: batch-N.json; delphi: its latent cache; openai:
    neuron-explainer records; circuit_tracer: feature files."""
    out: Path
    """Folder to write to (delphi: its results/NAME); files of an earlier export are replaced."""
    source_id: str | None = None
    """neuronpedia, sae_dashboard: what Neuronpedia calls the dictionary, "12-mine" (its layer and the name of its set) or
    "12-mine__32k"."""
    model_id: str | None = None
    """neuronpedia, sae_dashboard: what it calls the language model. Default: the last part of the name of the one that was
    recorded, in small letters."""
    creator_id: str = "saefast"
    """neuronpedia: id of the user who imports it."""
    vectors: bool = False
    """neuronpedia, sae_dashboard: each latent's row of W_dec too."""
    layer: int | None = None
    """openai, circuit_tracer: of the language model, from 0 on. Default: the number in the recorded hook point."""
    scan: str | None = None
    """circuit_tracer: what a graph calls the set of transcoders. Default: the name of RUN."""
    hookpoint: str | None = None
    """delphi: its name of the module. Default: the recorded hook point without the base model's name."""
    splits: int = 5
    """delphi: files of the cache."""
    records: Path | None = None
    """Folder of the records. Default: records in RUN."""
    tokenizer: str | None = None
    """Folder or name of the tokenizer. Default: that of the model that was recorded."""

    def run(self) -> None:
        from saefast.interp.records import Records

        defaults = {field.name: field.default for field in fields(self)}
        for name, tools in FOR.items():
            given = getattr(self, name)
            wanted = f"{name}: expected only with --to {' or '.join(tools)}, got {given!r} with {self.to}"
            check(self.to in tools or given == defaults[name], wanted)
        if self.to in FOR["source_id"]:
            ok = SOURCE_ID.fullmatch(self.source_id or "") is not None
            check(ok, f'source_id: expected LAYER-NAME, such as "12-mine", got {self.source_id!r}')
        records = Records(self.records or self.run_folder / "records")
        records.check()
        folder = self._to_delphi(records) if self.to == "delphi" else self._to_pages(records)
        print(f"{records.d_sae} latents in {folder}, for {self.to}")

    def _to_delphi(self, records: "Records") -> Path:
        from saefast.interp.exchange.delphi import delphi_hookpoint, export_delphi
        from saefast.interp.exchange.delphi_explanations import export_delphi_explanations
        from saefast.interp.explanations import read_explanations

        hookpoint = delphi_hookpoint(_hook_of(records), self.hookpoint)
        made = export_delphi(
            records, self.out, hookpoint=hookpoint, n_splits=self.splits, model_name=self.tokenizer
        )
        export_delphi_explanations(read_explanations(records.folder), self.out, hookpoint=hookpoint)
        if made.n_small or made.n_large:
            print(f"{made.n_small} activations of at most 1e-5 left out, {made.n_large} beyond float16 cut")
        return made.folder

    def _to_pages(self, records: "Records") -> Path:
        """For the tools that show latents: with their tokens and effects."""
        from saefast.interp.effects import Effects
        from saefast.interp.exchange.circuit_tracer import export_circuit_tracer
        from saefast.interp.exchange.neuronpedia import export_neuronpedia
        from saefast.interp.exchange.openai import export_openai
        from saefast.interp.exchange.sae_dashboard import export_sae_dashboard
        from saefast.interp.vocabulary import tokenizer_of
        from saefast.sae import SAE

        model = self.tokenizer or records.index["source"].get("model")
        vocabulary, _ = tokenizer_of(model)
        vocabulary.check_fits(records.text.contexts[:64].tolist())
        given: Any = (records, Effects.load(records.folder), vocabulary, self.out)
        if self.to == "openai":
            return export_openai(*given, layer=self._layer(records))
        if self.to == "circuit_tracer":
            scan = self.scan or self.run_folder.resolve().name
            return export_circuit_tracer(*given, layer=self._layer(records), scan=scan)
        sae = SAE.from_pretrained(self.run_folder) if self.vectors else None
        model_id = self.model_id or Path(str(records.index["source"].get("model"))).name.lower()
        if self.to == "neuronpedia":
            source_id, creator_id = str(self.source_id), self.creator_id
            return export_neuronpedia(
                *given, model_id=model_id, source_id=source_id, creator_id=creator_id, sae=sae
            )
        parts = SOURCE_ID.fullmatch(str(self.source_id))
        assert parts is not None
        names: Any = {"layer": int(parts[1]), "sae_set": parts[2], "sae_id_suffix": parts[3]}
        export_sae_dashboard(*given, model_id=model_id, sae=sae, **names)
        return self.out

    def _layer(self, records: "Records") -> int:
        if self.layer is not None:
            return self.layer
        hook = _hook_of(records)
        numbers = re.findall(r"(?<=\.)\d+(?=\.|:|$)", hook or "")
        check(
            len(numbers) == 1, f"layer: expected the number of a layer (--layer), the hook point is {hook!r}"
        )
        return int(numbers[0])


def _hook_of(records: "Records") -> str | None:
    """Where in the model the records are from, if that is one place."""
    index = records.index
    hook = index["sae"].get("hook_name") or index["source"].get("hook")
    return hook if isinstance(hook, str) else None
