"""`saefast look`: record what every latent stands for, and write the pages that show it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import OmitArgPrefixes, Positional, arg

from saefast.cli.from_text import Live, LiveFlags, check_text_flags
from saefast.cli.train import usable_device
from saefast.config.records import RecordsConfig
from saefast.errors import check

if TYPE_CHECKING:
    from saefast.activations.sources import Source
    from saefast.interp.look import Compared
    from saefast.interp.records import Records
    from saefast.interp.vocabulary import Vocabulary
    from saefast.sae import SAE

RecordsFlags = Annotated[RecordsConfig, arg(name="records"), OmitArgPrefixes]


@dataclass(frozen=True, kw_only=True)
class Look:
    """Record every latent of an SAE in one pass over text, and write pages that show them: open OUT/index.html.

    Records that are there already are used again, and an interrupted pass goes on where it stopped.
    """

    run_folder: Annotated[Positional[str], arg(metavar="RUN")]
    """Run folder, or an SAE of any format."""
    source: Annotated[Positional[str], arg(metavar="SOURCE")]
    """A shard folder of `saefast cache`. With TEXT: a language model, a local folder or a name on the Hub."""
    text: Annotated[Positional[Path | None], arg(metavar="TEXT")] = None
    """Text as `saefast cache` takes it: recorded are the activations of the model SOURCE on it, at --hook."""
    neurons: bool = False
    """Look at the neurons (the coordinates of the rows) in place of the latents of RUN."""
    records: Path | None = None
    """Folder of the records. Default: records in RUN (records-neurons with --neurons)."""
    out: Path | None = None
    """Folder of the pages. Default: look in RUN (look-neurons with --neurons)."""
    latents: tuple[int, ...] | None = None
    """The latents that get a page. Default: all. (All are recorded.)"""
    tokens: int | None = None
    """Rows to record. Default: all."""
    model: str | None = None
    """The language model, for logit weights, ablation and its tokenizer. Default: the one that made SOURCE."""
    ablate: int = 0
    """Measure what the model loses on the top examples of so many latents, those of the largest energy, without them."""
    map: bool = True
    """A map of the dictionary, by UMAP of W_dec."""
    compare: Path | None = None
    """Another RUN with records of the same text, shown beside."""
    title: str | None = None
    """Of the pages. Default: the name of RUN."""
    device: str | None = None
    """Where it runs; default: the GPU if there is one."""
    backend: Literal["auto", "reference", "native", "triton"] = "auto"
    """Which implementation of the ops runs."""
    wanted: RecordsFlags = field(default_factory=RecordsConfig)
    live: LiveFlags = field(default_factory=Live)

    def run(self) -> None:
        from saefast.interp.records.batches import check_has_text
        from saefast.interp.vocabulary import tokenizer_of
        from saefast.sae import SAE

        check_text_flags(self.text, self.live)
        for name in ("tokens", "ablate"):
            value = getattr(self, name)
            check(
                value is None or value >= (name == "tokens"),
                f"{name}: expected a positive integer, got {value}",
            )
        device = usable_device(self.device)
        sae = SAE.from_pretrained(self.run_folder, device)
        source = self._open_source(device)
        check_has_text(source)
        if self.neurons:
            from saefast.interp.neurons import neurons

            sae = neurons(source.d_in)
        lm = self.model or source.describe().get("model")
        vocabulary, eos = tokenizer_of(lm)
        separator = source.describe().get("notes", {}).get("separator", eos)
        records = self._record(sae, source, [] if separator is None else [separator])
        records.check()
        vocabulary.check_fits(records.text.contexts[:64].tolist())
        coordinates, clusters = self._map(sae, records)
        self._effects(sae, source, records, str(lm), len(vocabulary), device)
        page = self._write(sae, records, vocabulary, coordinates, clusters)
        print(f"open {page}")

    def _folder(self, given: Path | None, name: str) -> Path:
        """`given`, or the folder of that name in RUN."""
        if given is not None:
            return given
        run = Path(self.run_folder)
        check(run.is_dir(), f"{name}: expected a folder (--{name}) for an SAE that is no folder, got none")
        return run / (f"{name}-neurons" if self.neurons else name)

    def _open_source(self, device: str) -> "Source":
        from saefast.activations.open import open_source

        if self.text is None:
            return open_source(self.source)
        lm_device = usable_device(self.live.lm_device or device)
        return self.live.open(self.source, self.text, self.live.hooks, lm_device)

    def _record(self, sae: "SAE", source: "Source", separators: list[int]) -> "Records":
        from tqdm import tqdm

        from saefast.interp.records import plan, record

        folder = self._folder(self.records, "records")
        print(f"records: {plan(sae, source, self.wanted, self.tokens)}")
        with tqdm(total=self.tokens or _rows_of(source), unit="token", desc="record") as bar:
            return record(
                sae,
                source,
                folder,
                self.wanted,
                separators=separators,
                tokens=self.tokens,
                backend=self.backend,
                progress=bar.update,
            )

    def _map(self, sae: "SAE", records: "Records") -> tuple[Any, Any]:
        """Places of the latents in the plane, and their clusters; made once."""
        from saefast.interp.atlas import Atlas, atlas

        if not self.map:
            return None, None
        found = Atlas.load(records.folder)
        if found is None:
            found = atlas(sae, alive=records.table(["count"])["count"].to_numpy() > 0)
            found.save(records.folder)
        return found.coordinates.numpy(), found.clusters.numpy()

    def _effects(
        self, sae: "SAE", source: "Source", records: "Records", name: str, n_tokens: int, device: str
    ) -> None:
        """What the latents do to the output, into the folder of the records; made once."""
        from saefast.activations.lm import load_model
        from saefast.interp.effects import Effects, ablation_effects, effects_of
        from saefast.interp.strongest import strongest

        made = Effects.load(records.folder) != Effects()
        if made and not self.ablate:
            return
        model, _ = load_model(name, device)
        hooks = source.describe()["hook"]
        if not made:
            effects_of(records, sae, model, source, hook=hooks, n_vocab=n_tokens)
        if self.ablate:
            latents = [latent.latent for latent in strongest(records, self.ablate, max_density=1.0)]
            ablation_effects(records, sae, model, hooks, latents)

    def _write(
        self, sae: "SAE", records: "Records", vocabulary: "Vocabulary", coordinates: Any, clusters: Any
    ) -> Path:
        from tqdm import tqdm

        from saefast.interp.effects import Effects
        from saefast.interp.look import write_site

        shown = records.d_sae if self.latents is None else len(set(self.latents))
        with tqdm(total=shown, unit="latent", desc="pages") as bar:
            return write_site(
                records,
                self._folder(self.out, "look"),
                vocabulary,
                Effects.load(records.folder),
                title=self.title or Path(self.run_folder).name,
                latents=self.latents,
                compare=self._compared(sae, records),
                coordinates=coordinates,
                clusters=clusters,
                progress=bar.update,
            )

    def _compared(self, sae: "SAE", records: "Records") -> "Compared | None":
        from saefast.interp.compare import compare
        from saefast.interp.look import Compared
        from saefast.interp.records import Records
        from saefast.sae import SAE

        if self.compare is None:
            return None
        other = Records(self.compare / "records")
        found = compare(records, other, sae, SAE.from_pretrained(self.compare))
        return Compared(other, found.decoder, found.activation, self.compare.name)


def _rows_of(source: "Source") -> int | None:
    return len(source) if hasattr(source, "__len__") else None
