"""`saefast study monosemanticity`: the stages in their order, each once, and the report.

study = Monosemanticity("runs/monosemanticity", "laptop")
study.run()                  # goes on where it stopped
study.rows()                 # the acceptance table, with its figures
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from saefast.study import control, graphs, measures, pages, people, training
from saefast.study.folder import Folder
from saefast.study.report import write_report
from saefast.study.rows import Row, rows
from saefast.study.scales import scale_of
from saefast.study.world import World


class Monosemanticity:
    """One study.

    Args:
        out: its folder; made if it does not exist.
        scale: "ci", "laptop" or "gpu".
        text: a file or folder of your own text instead of that of the packages.
        model, hook: a Hugging Face causal language model and the place in it to study, in place of the one-layer transformers. There is
            no second subject then, and what compares two is skipped.

    Raises:
        InputError: a folder of another study or scale, too little text, a model without the hook.
    """

    def __init__(
        self,
        out: str | Path,
        scale: str = "laptop",
        *,
        text: str | Path | None = None,
        model: str | None = None,
        hook: str | None = None,
        device: str = "cpu",
    ) -> None:
        sizes = scale_of(scale)
        own = None if text is None else str(Path(text).absolute())
        asked = {"study": "monosemanticity", "scale": scale, "text": own, "model": model, "hook": hook}
        self.world = world = World(Folder(out, asked), sizes, model, hook, device)
        self.stages: dict[str, Callable[[], dict[str, Any]]] = {
            "text": lambda: training.text(world, own),
            "ground_truth": lambda: measures.ground_truth(world),
            "gates": lambda: people.gates(world),
            "subjects": lambda: training.subjects(world),
            "dictionaries": lambda: training.dictionaries(world),
            "exactness": lambda: measures.exactness(world),
            "records": lambda: training.records(world),
            "densities": lambda: measures.densities(world),
            "neurons": lambda: measures.neurons(world),
            "registration": lambda: people.registered(world),
            "trial": lambda: people.scored(world, self.found("gates")),
            "blind": lambda: people.blind(world),
            "contexts": lambda: control.contexts(world),
            "control": lambda: control.control(world, self.found("contexts")),
            "universality": lambda: graphs.similarity(world),
            "splitting": lambda: graphs.split(world),
            "automata": lambda: graphs.states(world),
            "pages": lambda: pages.pages(world),
        }

    def run(self, say: Callable[[str], object] = print) -> Path:
        """All stages that have not run, and the report. Returns its page."""
        for number, (name, make) in enumerate(self.stages.items(), 1):
            known = self.world.folder.result(name) is not None
            say(f"stage {number} of {len(self.stages)}: {name}{', done before' if known else ''}")
            result = self.world.folder.run(name, make)
            if not known:
                say(f"  {name}: {result['seconds']:.0f} s")
        page = write_report(self.world, self.results(), self.rows())
        for row in self.rows():
            say(str(row))
        return page

    def found(self, stage: str) -> dict[str, Any]:
        """What a stage found; empty if it has not run."""
        result = self.world.folder.result(stage)
        return {} if result is None else result["found"]

    def results(self) -> dict[str, dict[str, Any]]:
        """By stage: {"stage", "seconds", "found"}."""
        known = {name: self.world.folder.result(name) for name in self.stages}
        return {name: result for name, result in known.items() if result is not None}

    def rows(self) -> list[Row]:
        return rows({name: result["found"] for name, result in self.results().items()})
