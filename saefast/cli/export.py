"""`saefast export`: what `saefast look` recorded, in the files of other tools."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from saefast.errors import check

Tool = Literal["neuronpedia", "sae_dashboard"]
SOURCE_ID = re.compile(r"(\d+)-([a-z0-9-]+?)(?:__([a-z0-9-]+))?")


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write the records of `saefast look` in the files of another tool."""

    run_folder: Annotated[Positional[Path], arg(metavar="RUN")]
    """Run folder with records."""
    to: Tool
    """neuronpedia: the layout of its bulk import; sae_dashboard: batch-N.json."""
    out: Path
    """Folder to write to; files of an earlier export are replaced."""
    source_id: str
    """What Neuronpedia calls the dictionary: "12-mine", its layer and the name of its set, or "12-mine__32k"."""
    model_id: str | None = None
    """What it calls the language model. Default: the last part of the name of the one that was recorded, in small letters."""
    creator_id: str = "saefast"
    """Neuronpedia's id of the user who imports it."""
    vectors: bool = False
    """Each latent's row of W_dec too."""
    records: Path | None = None
    """Folder of the records. Default: records in RUN."""
    tokenizer: str | None = None
    """Folder or name of the tokenizer. Default: that of the model that was recorded."""

    def run(self) -> None:
        from saefast.interp.effects import Effects
        from saefast.interp.exchange.neuronpedia import export_neuronpedia
        from saefast.interp.exchange.sae_dashboard import export_sae_dashboard
        from saefast.interp.records import Records
        from saefast.interp.vocabulary import tokenizer_of
        from saefast.sae import SAE

        parts = SOURCE_ID.fullmatch(self.source_id)
        check(parts is not None, f'source_id: expected LAYER-NAME, such as "12-mine", got {self.source_id!r}')
        assert parts is not None
        records = Records(self.records or self.run_folder / "records")
        model = self.tokenizer or records.index["source"].get("model")
        vocabulary, _ = tokenizer_of(model)
        vocabulary.check_fits(records.text.contexts[:64].tolist())
        effects = Effects.load(records.folder)
        sae = SAE.from_pretrained(self.run_folder) if self.vectors else None
        model_id = self.model_id or Path(str(records.index["source"].get("model"))).name.lower()
        if self.to == "neuronpedia":
            folder = export_neuronpedia(
                records,
                effects,
                vocabulary,
                self.out,
                model_id=model_id,
                source_id=self.source_id,
                creator_id=self.creator_id,
                sae=sae,
            )
        else:
            layer, name, suffix = parts.groups()
            export_sae_dashboard(
                records,
                effects,
                vocabulary,
                self.out,
                model_id=model_id,
                layer=int(layer),
                sae_set=name,
                sae_id_suffix=suffix,
                sae=sae,
            )
            folder = self.out
        print(f"{records.d_sae} latents in {folder}, for {self.to}")
