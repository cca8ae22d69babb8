"""One kind of units, with all that `saefast explain` needs to explain and score them."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from saefast.errors import check

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from saefast.interp.explain import Explainer, Judge
    from saefast.interp.explain.models import LanguageModel
    from saefast.interp.explain.scores.ablation import AblationScorer
    from saefast.interp.explain.scoring import Scoring
    from saefast.interp.records import Records
    from saefast.interp.vocabulary import Vocabulary
    from saefast.sae import SAE

Method = Literal["token-activations", "nine-tokens", "contrastive", "logits", "combined"]
Layout = Literal["openai", "neuronpedia", "delphi"]
ScoreName = Literal[
    "simulation",
    "detection",
    "fuzz",
    "intruder",
    "embedding",
    "examples",
    "surprisal",
    "ablation",
    "saebench",
]


class UnitKind:
    """One kind of units with all that explains and scores them.

    Args:
        kind: "features" or "neurons".
        subject: the model the records are of, for what needs its passes.
        run: the SAE of the features.
    """

    def __init__(
        self, kind: str, records: "Records", vocabulary: "Vocabulary", run: str, subject: str, device: str
    ) -> None:
        self.kind, self.records, self.vocabulary = kind, records, vocabulary
        self.run, self.subject, self.device = run, subject, device

    def sae(self) -> "SAE":
        from saefast.interp.neurons import neurons
        from saefast.sae import SAE

        if self.kind == "neurons":
            return neurons(self.records.d_sae)
        return SAE.from_pretrained(self.run, self.device)

    def activations(self) -> Callable[..., Any]:
        from saefast.activations.lm import load_model
        from saefast.interp.explain.subject import model_activations

        model, _ = load_model(self.subject, self.device)
        return model_activations(model, self.records.index["source"]["hook"], self.sae())

    def ablations(self) -> "AblationScorer":
        from saefast.activations.lm import load_model
        from saefast.interp.explain.scores.ablation import AblationScorer

        model, _ = load_model(self.subject, self.device)
        return AblationScorer(self.records, self.sae(), model, self.records.index["source"]["hook"])

    def near(self) -> Any:
        """`Neighbours` that `saefast look` made, by activations or else by decoder; None: there are none."""
        from saefast.interp.effects import Effects

        effects = Effects.load(self.records.folder)
        return effects.correlated or effects.decoder

    def program(self, name: str, n_rules: int, revise: bool) -> "Explainer":
        """One of `PROGRAMS`."""
        from saefast.interp.explain.programs.exceptions import Exceptions
        from saefast.interp.explain.programs.lookup import LookUp
        from saefast.interp.explain.programs.ngrams import NGrams
        from saefast.interp.explain.programs.rules import Rules
        from saefast.interp.explain.programs.split import ExplainSplit

        split = ExplainSplit(self.records)
        given = self.records, self.vocabulary

        def rules() -> Rules:
            return Rules(*given, n_rules=n_rules, split=split)

        made: Any
        if name == "lookup":
            made = LookUp(*given, split)
        else:
            made = rules() if name == "rules" else NGrams(*given, self.activations(), split=split)
        return _Revised(made, Exceptions(rules()).revise) if revise else made

    def asked(
        self,
        model: "LanguageModel",
        method: Method,
        judge: "Judge",
        temperature: float,
        seed: int,
        revise: bool,
    ) -> "Explainer":
        """One that asks a language model."""
        from saefast.interp.effects import Effects
        from saefast.interp.explain.asked import explainers
        from saefast.interp.explain.asked.combined import Combined
        from saefast.interp.explain.asked.revise import Reviser

        given = self.records, self.vocabulary, model
        options: dict[str, Any] = {"simulator": judge, "temperature": temperature, "seed": seed}
        near = self.near()
        logits = Effects.load(self.records.folder).logits
        makers: dict[str, Callable[[], Any]] = {
            "token-activations": lambda: explainers.TokenActivations(*given, **options),
            "nine-tokens": lambda: explainers.NineTokens(*given, **options),
            "contrastive": lambda: explainers.Contrastive(*given, near=near, **options),
        }
        if logits is not None:
            makers["logits"] = lambda: explainers.FromLogits(*given, logits=logits, **options)
        of = f"method: {method} needs the logit weights that `saefast look` makes, {self.records.folder} has none"
        check(method != "logits" or logits is not None, of)
        made: Any
        if method == "combined":
            made = Combined([make() for make in makers.values()], judge, seed=seed)
        else:
            made = makers[method]()
        if not revise:
            return made
        reviser = Reviser(*given, judge, activations=self.activations(), near=near, seed=seed)
        return _Revised(made, reviser.revise)

    def scoring(
        self,
        judge: "Judge",
        names: Sequence[ScoreName],
        embedder: "Path | None",
        is_model: bool,
        seed: int,
        draws: int,
    ) -> "Scoring":
        from saefast.interp.explain.more import WITHOUT, more_scores
        from saefast.interp.explain.scores.embedders import HashedNgrams, SentenceEmbedder
        from saefast.interp.explain.scoring import Scoring

        embeds = HashedNgrams() if embedder is None else SentenceEmbedder(embedder)
        given = self.records, self.vocabulary, judge, embeds, self.ablations, seed
        near = self.near()
        return Scoring(
            self.records,
            judge,
            names,
            near=None if near is None else near.indices.numpy(),
            more=more_scores(tuple(names), *given),
            without=WITHOUT,
            draws=draws,
            random_only=not is_model,
            scale="simulated_normalized_activations" if is_model else "neuron_activations",
            seed=seed,
        )

    def single_token(self, seed: int) -> Callable[[int], bool]:
        from saefast.interp.trial.single_token import single_token
        from saefast.interp.trial.windows import Places

        places = Places(self.records.text, self.records.config, "score")
        return lambda latent: single_token(places, self.records, latent, seed).is_single

    def latents(self, asked: Sequence[int] | None) -> "np.ndarray":
        """Those that are ever active, or those that were asked for."""
        import numpy as np

        if asked is None:
            counts: np.ndarray = self.records.table(["count"])["count"].to_numpy()
            return np.flatnonzero(counts > 0)
        most, chosen = self.records.d_sae - 1, np.unique(np.asarray(asked, np.int64))
        ok = len(chosen) > 0 and chosen[0] >= 0 and chosen[-1] <= most
        check(ok, f"latents: expected numbers from 0 to {most} of {self.kind}, got {list(asked)}")
        return chosen


class _Revised:
    """An explainer whose explanations are revised."""

    def __init__(self, explainer: Any, revise: Callable[[Any], Any]) -> None:
        self.explainer, self.revise = explainer, revise
        self.name = f"{explainer.name} revised"

    def explain(self, latent: int) -> Any:
        return self.revise(self.explainer.explain(latent))
