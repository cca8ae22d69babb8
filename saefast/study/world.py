"""What the stages of the study work on: subjects, dictionaries and records by their names, opened when they are first asked for.

OUT/text/            train.jsonl, heldout.jsonl, corpus.json
OUT/subjects/NAME/   A, B, and A with its matrices shuffled, as Hugging Face has models; or a model that was given, as A
OUT/dictionaries/    a run folder each: A0, A1, A2 (the ladder), A0k, A1k, A2k (BatchTopK of the same L0), B1, S1 (shuffled)
OUT/records/         of each dictionary, and of the neurons of each subject, on the same held-out text
"""

from functools import cache, cached_property
from pathlib import Path
from typing import Any

from saefast.activations.lm import load_model
from saefast.activations.text_source import TextSource
from saefast.errors import check
from saefast.interp.blocks import file_of
from saefast.interp.neurons import neurons
from saefast.interp.records import Records
from saefast.interp.vocabulary import Vocabulary, tokenizer_of
from saefast.sae import SAE
from saefast.study.folder import Folder
from saefast.study.scales import Scale, cut
from saefast.study.subject import HOOK, SubjectConfig

CONTEXTS_PER_BATCH = 16


class World:
    """
    Args:
        folder: of the study.
        scale: its numbers.
        model: a language model to study in place of the one-layer transformers; None trains these.
        hook: where its activations are taken.
        device: where models and dictionaries run.
    """

    def __init__(
        self,
        folder: Folder,
        scale: Scale,
        model: str | None = None,
        hook: str | None = None,
        device: str = "cpu",
    ) -> None:
        check((model is None) == (hook is None), f"hook: expected with --model, and only then, got {hook!r}")
        self.folder, self.scale, self.given, self.device = folder, scale, model, device
        self.hook = hook or HOOK

    @property
    def path(self) -> Path:
        return self.folder.path

    @property
    def subject_config(self) -> SubjectConfig:
        return SubjectConfig(tokens=self.scale.subject_tokens, batch=self.scale.subject_batch)

    @property
    def has_twin(self) -> bool:
        """Whether there is a second subject."""
        return self.given is None

    @cached_property
    def sizes(self) -> Scale:
        """The scale, with fewer tokens where the subjects turned out to be trained more slowly than it says; asked for after them."""
        subjects = self.folder.result("subjects")
        return cut(self.scale, 1.0 if subjects is None else subjects["found"].get("share", 1.0))

    def text(self, part: str) -> Path:
        """part: "train" or "heldout"."""
        return self.path / "text" / f"{part}.jsonl"

    def subject(self, name: str) -> Path | str:
        """Folder (or name on the Hub) of the subject "A", "B" or "shuffled"."""
        return self.given if self.given is not None and name == "A" else self.path / "subjects" / name

    @cached_property
    def tokenizer(self) -> Any:
        return load_model(str(self.subject("A")))[1]

    @cached_property
    def vocabulary(self) -> Vocabulary:
        return tokenizer_of(str(self.subject("A")))[0]

    @cache  # noqa: B019 (one world in a process)
    def model(self, name: str = "A") -> Any:
        return load_model(str(self.subject(name)), self.device)[0].eval()

    def source(self, subject: str = "A", part: str = "train") -> TextSource:
        """All rows: a ReLU MLP has no attention sinks; only those of the token between documents are left out."""
        return TextSource(
            str(self.subject(subject)),
            self.text(part),
            self.hook,
            contexts_per_batch=CONTEXTS_PER_BATCH,
            sink_ratio=None if self.given is None else 10.0,
            device=self.device,
        )

    def picture(self, name: str) -> Path:
        path = self.path / file_of(name)
        path.parent.mkdir(exist_ok=True)
        return path

    def dictionary(self, name: str) -> Path:
        return self.path / "dictionaries" / name

    @cache  # noqa: B019
    def sae(self, name: str) -> SAE:
        """A dictionary by its name, or "neurons-A", "neurons-B", "neurons-shuffled"."""
        if name.startswith("neurons-"):
            return neurons(self.sae("A1").config.d_in).to(self.device)
        return SAE.from_pretrained(self.dictionary(name), self.device)

    def records_folder(self, name: str) -> Path:
        return self.path / "records" / name

    @cache  # noqa: B019
    def records(self, name: str) -> Records:
        return Records(self.records_folder(name))


def subject_of(dictionary: str) -> str:
    """Of which subject a dictionary, or "neurons-NAME", is."""
    if dictionary.startswith("neurons-"):
        return dictionary.removeprefix("neurons-")
    return {"A": "A", "B": "B", "S": "shuffled"}[dictionary[0]]
