"""`saefast study monosemanticity`: the whole of "Towards Monosemanticity", from text to report."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from saefast.cli.train import usable_device


@dataclass(frozen=True)
class Study:
    """Repeat "Towards Monosemanticity": 512 neurons into 4096 features, blind, with controls.

    Stage by stage, each of which is kept: give the same command again to go on with an interrupted study where it stopped. It
    ends with OUT/report.html, and a line for each condition that was to be met.
    """

    name: Annotated[Positional[Literal["monosemanticity"]], arg(metavar="STUDY")]
    """monosemanticity."""
    scale: Literal["ci", "laptop", "gpu"] = "laptop"
    """ci: minutes, to see that all of it runs. laptop: an hour and a half on two cores. gpu: the paper's 8 billion activations."""
    out: Path = Path("runs/monosemanticity")
    """Folder of the study."""
    text: Path | None = None
    """Your own text, as `saefast cache` takes it. Default: that of about 40 packages, which are downloaded into the folder
    `packages` beside OUT."""
    model: str | None = None
    """A Hugging Face causal language model to study, in place of two one-layer transformers that are trained first."""
    hook: str | None = None
    """With --model: where its activations are taken, such as model.layers.12.mlp.down_proj:in."""

    device: str | None = None
    """Where it runs; default: the GPU if there is one."""

    def run(self) -> None:
        from saefast.study.run import Monosemanticity

        device = usable_device(self.device)
        study = Monosemanticity(
            self.out, self.scale, text=self.text, model=self.model, hook=self.hook, device=device
        )
        page = study.run()
        counts = [sum(row.passed is verdict for row in study.rows()) for verdict in (True, False, None)]
        print("{} conditions passed, {} failed, {} skipped".format(*counts))
        print(f"open {page}")
