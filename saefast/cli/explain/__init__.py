"""`saefast explain`: every latent and neuron in words, and how well the words predict it."""

import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from saefast.cli.explain.units import Layout, Method, ScoreName, UnitKind
from saefast.cli.train import usable_device
from saefast.errors import check

if TYPE_CHECKING:
    import numpy as np

    from saefast.cli.explain.models import Models
    from saefast.interp.explain.every import Units
    from saefast.interp.records import Records

KINDS = {"features": "records", "neurons": "records-neurons"}  # folders in RUN
TRUST, MODELS = "trust.json", "models"
TRIED = 8  # units whose questions are counted before a model is asked


@dataclass(frozen=True, kw_only=True)
class Explain:
    """Explain every latent (and neuron) in words, predict its activations from the words, and score the prediction.

    It needs the records of `saefast look`. Explanations come from documents that no score is made on. The same command again goes on
    where it stopped; what a language model answered is kept, and not asked or paid for again.
    """

    run_folder: Annotated[Positional[str], arg(metavar="RUN")]
    """Run folder, or an SAE of any format (then with --records)."""
    with_: Annotated[str, arg(name="with")] = "lookup"
    """Who explains: lookup, rules or ngrams, which need no language model; a language model, a local folder or a name on the Hub; or
    the URL of a server that speaks OpenAI's protocol and the model there, as in http://localhost:8000/v1#NAME. Its key is read from
    SAEFAST_API_KEY or OPENAI_API_KEY. given: explanations that are beside the records already, for --judge to score."""
    method: Method = "token-activations"
    """How a language model is asked."""
    revise: bool = False
    """Try the explanation on text that speaks against it, and have it corrected."""
    judge: str | None = None
    """A language model that predicts from the words; default: the one that explains, and for lookup, rules and ngrams the program."""
    score: tuple[ScoreName, ...] = ("simulation", "detection", "fuzz")
    """What is scored."""
    import_from: Path | None = None
    """A folder with explanations of the features, which are put beside the records first: explanations/LAYER/NUMBER.jsonl of OpenAI,
    MODEL/SOURCE of a Neuronpedia export, results/NAME of delphi."""
    layout: Layout = "openai"
    """Whose files --import-from has."""
    untrusted: bool = False
    """Score with a judge that does not know true explanations from false ones; the report says so, and the pages do not show it."""
    records: Path | None = None
    """Folder of the records of the latents. Default: records in RUN, if it is there."""
    neurons: Path | None = None
    """Folder of the records of the neurons. Default: records-neurons in RUN, if it is there."""
    latents: tuple[int, ...] | None = None
    """Numbers of the units. Default: all that are ever active."""
    units: int | None = None
    """So many of them, drawn at random."""
    controls: int = 200
    """Units of each kind on which another unit's explanation is scored, too."""
    out: Path | None = None
    """Folder of the results. Default: explained/NAME in RUN."""
    pages: bool = True
    """Write the pages of the units with their explanations, which can be searched, into OUT."""
    simulations: bool = True
    """Keep what was predicted of each token, for OpenAI's files: about 2 kB a unit."""
    model: str | None = None
    """The language model that the records are of, for its tokenizer. Default: the one they name."""
    n_rules: int = 2
    """Rules of an explanation, at most."""
    temperature: float = 0.0
    """Of a language model that explains."""
    embedder: Path | None = None
    """A sentence encoder for the scores embedding, examples and intruder. Default: n-grams of characters."""
    budget: float | None = None
    """US dollars that may be spent, over all runs with this OUT; needs --price."""
    budget_tokens: int | None = None
    """Tokens of prompts and answers that may be spent."""
    price: tuple[float, float] = (0.0, 0.0)
    """US dollars for a million tokens of prompts, and of answers."""
    concurrency: int = 8
    """Requests to a server at once."""
    dry_run: bool = False
    """Only say what would be asked of a language model, and what it would cost."""
    sheet: int = 0
    """Also write OUT/sheet.html, on which people say which of so many explanations hold."""
    checked: Path | None = None
    """What a person saved from that sheet: its failure rate is put beside the scores."""
    draws: int = 1000
    """Of the bootstrap for the interval of each unit; 0: none are made, which is faster."""
    seed: int = 0
    """Of everything that is random."""
    device: str | None = None
    """Where models run; default: the GPU if there is one."""

    def run(self) -> None:
        from saefast.cli.explain import after
        from saefast.cli.explain.models import Asked, opened
        from saefast.files import write_json
        from saefast.interp.exchange.import_explanations import import_explanations
        from saefast.interp.explain.every import RESULTS, explain_every
        from saefast.interp.explain.models.budget import Budget
        from saefast.interp.explain.report import lines_of, write_report
        from saefast.interp.explain.summary import Summary
        from saefast.interp.vocabulary import tokenizer_of

        check(self.units is None or self.units > 0, f"units: expected at least 1, got {self.units}")
        for name in ("controls", "draws", "sheet"):
            check(getattr(self, name) >= 0, f"{name}: expected 0 or more, got {getattr(self, name)}")
        device, kinds, out = usable_device(self.device), self._kinds(), self._out()
        subject = self._subject(kinds)
        vocabulary, _ = tokenizer_of(subject)
        if self.import_from is not None:
            check(
                "features" in kinds, "import_from: expected records of features, whose explanations these are"
            )
            to, strings = kinds["features"].folder, vocabulary.strings
            said = import_explanations(to, self.import_from, self.layout, strings=strings)
            print(
                f"{self.import_from}: {said.explanations:,} explanations, {said.simulated:,} with simulations"
            )
        units = [
            UnitKind(kind, one, vocabulary, self.run_folder, subject, device) for kind, one in kinds.items()
        ]
        budget = Budget(self.budget, self.budget_tokens, *self.price, folder=out / MODELS)
        asked = Asked(self.with_, self.method, self.n_rules, self.revise, self.temperature, self.seed)
        models = opened(asked, self.judge, out / MODELS, budget, self.concurrency, device)
        if models.all:
            self._estimate(units, models)
        if self.dry_run:
            return
        trusted = models.trusted(self.score)
        if trusted is not None:
            write_json(out / TRUST, trusted.report())
        usable = [name for name in self.score if may(trusted, name)]
        scores = list(self.score) if self.untrusted else usable
        no = "judge: expected one that puts true explanations before false ones in 80 % of the bank"
        check(
            bool(scores),
            f"{no}, got {trusted and trusted.judge}: {out / TRUST}; --untrusted has it score all the same",
        )
        sets = [self._units(one, models, scores) for one in units]
        method, model = sets[0].explainer.name, None if models.explains is None else models.explains.name
        settings = models.words() | {"scores": scores, "draws": self.draws, "embedder": str(self.embedder)}
        with ExitStack() as stack:
            explain_every(
                sets,
                out,
                settings | {"units": {one.kind: digest_of(one) for one in sets}},
                limit=self.units,
                controls=self.controls,
                seed=self.seed,
                at_once=models.at_once,
                keep=self._keep(sets, method, model, stack),
                progress=self._bar(sets, stack),
            )
        after.add_to_records(out, sets, method, model, usable)
        title = Path(self.run_folder).name
        pages = after.pages_of(out, kinds, vocabulary, title) if self.pages else {}
        notes = [*after.trust_notes(trusted, scores, usable), *models.notes()]
        if self.sheet or self.checked is not None:
            notes += after.sheet_notes(out, kinds, vocabulary, self.sheet, self.checked, self.seed)

        def link(kind: str, latent: int) -> str | None:
            return f"{pages[kind]}#latent/{latent}" if kind in pages else None

        page = write_report(out, f"{title} in words", notes, link)
        print("\n".join(lines_of(Summary(out / RESULTS))))
        print(f"open {page}")

    def _kinds(self) -> "dict[str, Records]":
        """Records by kind: those that were given, or those in RUN."""
        from saefast.interp.records import Records

        given, run = {"features": self.records, "neurons": self.neurons}, Path(self.run_folder)
        found = {kind: folder for kind, folder in given.items() if folder is not None}
        if not found:
            found = {kind: run / name for kind, name in KINDS.items() if (run / name).exists()}
        want = f"records: expected {' or '.join(KINDS.values())} in {run}, or --records; `saefast look` makes them"
        check(bool(found), want)
        return {kind: Records(folder) for kind, folder in found.items()}

    def _subject(self, kinds: "dict[str, Records]") -> str:
        named = {self.model or one.index["source"].get("model") for one in kinds.values()}
        want = "model: expected one language model that all records name, or --model"
        check(len(named) == 1 and None not in named, f"{want}, got {', '.join(sorted(map(str, named)))}")
        return str(named.pop())

    def _out(self) -> Path:
        if self.out is not None:
            return self.out.absolute()
        from saefast.cli.explain.models import PROGRAMS

        run = Path(self.run_folder).absolute()
        check(run.is_dir(), "out: expected a folder (--out) for an SAE that is no folder, got none")
        parts = [self.with_, *([self.method] if self.with_ not in PROGRAMS else [])]
        parts += ["revised"] * self.revise + ([f"judged by {self.judge}"] if self.judge else [])
        return run / "explained" / re.sub(r"[^\w.-]+", "-", " ".join(parts)).strip("-")

    def _units(self, one: UnitKind, models: "Models", scores: Sequence[ScoreName]) -> "Units":
        import numpy as np

        from saefast.interp.explain.asked.given import Given
        from saefast.interp.explain.every import Units

        judge, is_model = models.judge_of(one), models.judges is not None
        scoring = one.scoring(judge, scores, self.embedder, is_model, self.seed, self.draws)
        explainer = models.explainer_of(one, judge)
        latents = one.latents(self.latents)
        if isinstance(explainer, Given):
            latents = np.intersect1d(latents, explainer.latents)
        return Units(one.kind, one.records, latents, explainer, scoring, one.single_token(self.seed))

    def _estimate(self, units: Sequence[UnitKind], models: "Models") -> None:
        """Say what will be asked: of the bank, and of a few units, by models that only count."""
        from saefast.interp.explain.every import tried

        bank = models.dry()
        bank.trusted(self.score)

        def of_unit(controls: int) -> "np.ndarray":
            dry = models.dry()
            n_tried = tried([self._units(one, dry, self.score) for one in units], TRIED, controls, self.seed)
            return dry.counted / max(n_tried, 1)

        total = sum(len(one.latents(self.latents)) for one in units)
        n = min(total, self.units or total)
        alone, n_controls = of_unit(0), min(n, self.controls * len(units))
        of_controls = (of_unit(TRIED) - alone) * n_controls if n_controls else 0.0
        n_asked, tokens, dollars = (bank.counted + alone * n + of_controls).tolist()
        price = f", ${dollars:.2f}" if any(self.price) else ""
        print(
            f"about {n_asked:,.0f} questions, {tokens:,.0f} tokens{price} for {n:,} units, less what is kept already"
        )

    def _keep(
        self, sets: "Sequence[Units]", method: str, model: str | None, stack: ExitStack
    ) -> "Callable[[Units, int, list[dict[str, Any]]], object]":
        from saefast.interp.explain.asked.given import Given
        from saefast.interp.simulations import Simulations

        files = {
            one.kind: stack.enter_context(closing(Simulations(one.records.folder)))
            for one in sets
            if self.simulations
        }

        def keep(units: "Units", latent: int, simulations: list[dict[str, Any]]) -> None:
            explainer = units.explainer
            of, by = explainer.who(latent) if isinstance(explainer, Given) else (method, model)
            if units.kind in files:  # none take earlier ones away, which are of another explanation
                files[units.kind].append(latent, of, by, simulations)

        return keep

    def _bar(self, sets: "Sequence[Units]", stack: ExitStack) -> Callable[[int], object]:
        from tqdm import tqdm

        total = sum(len(one.latents) for one in sets)
        return stack.enter_context(
            tqdm(total=min(total, self.units or total), unit="unit", desc="explain")
        ).update


def may(trusted: Any, score: str) -> bool:
    """Whether the judge's numbers of this score may be shown."""
    from saefast.cli.explain.models import WAYS

    return trusted is None or score not in WAYS or trusted.ways[WAYS[score]].usable


def digest_of(units: "Units") -> str:
    """What results of these units depend on besides who explains and judges: all of the records, and explanations that were given."""
    from saefast.files import json_checksum
    from saefast.interp.explain.asked.given import Given

    given = units.explainer.said if isinstance(units.explainer, Given) else None
    return json_checksum({"records": units.records.index, "given": given})
