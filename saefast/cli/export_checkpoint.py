"""`saefast export-checkpoint`: the SAE of a run that was killed, or that still goes on."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg


@dataclass(frozen=True)
class ExportCheckpoint:
    """Write the SAE of a run's checkpoint: of a run that was killed, or that still goes on.

    It has the same bits as the SAE that the run writes when it is stopped there.
    """

    run_folder: Annotated[Positional[Path], arg(metavar="RUN")]
    """Run folder."""
    out: Path | None = None
    """A new folder for the SAE; default: RUN itself."""

    def run(self) -> None:
        from saefast.train.run.export import (
            export_checkpoint,  # here: it loads torch, and --help answers at once
        )

        folder, step, of = export_checkpoint(self.run_folder, self.out)
        unfinished = "; the run is unfinished, go on with `saefast train ... --resume`" if step < of else ""
        print(f"{folder}: the SAE of step {step} of {of}{unfinished}")
