"""Scores beside the real packages on the same predictions: automated-interpretability (OpenAI's) and delphi.

Where theirs are defined otherwise, both are asserted.
"""

import asyncio
import importlib
import re
import sys
from importlib.util import find_spec
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from saefast.interp.explain.examples import Tiles
from saefast.interp.explain.scores.calibration import linear, percentiles
from saefast.interp.explain.scores.classification import (
    classification_score,
    detection,
    detection_examples,
    fuzzing_marks,
)
from saefast.interp.explain.scores.embedders import HashedNgrams
from saefast.interp.explain.scores.embedding import Windows, embedding_score, example_embedding_score
from saefast.interp.explain.scores.intruder import IntruderTrial, intruder_score
from saefast.interp.explain.scores.program import ProgramJudge
from saefast.interp.explain.scores.simulation import simulation_score
from saefast.interp.explain.scores.surprisal import of_gains
from tests.helpers.scored_units import Said, records_of, true_of

# What only their explainers and their searches by embeddings use
HEAVY = ("faiss", "sentence_transformers", "tiktoken", "vllm", "vllm.distributed")
HEAVY += ("vllm.distributed.parallel_state", "vllm.inputs")
LATENT = 3
CASES = ["sparse", "dense", "either sign", "small", "one token", "one window"]


@pytest.fixture(scope="module")
def openai():
    """Its modules under their last names."""
    if find_spec("neuron_explainer") is None:
        pytest.skip("automated-interpretability is not installed")
    return _imported(
        "neuron_explainer",
        (
            "activations.activations",
            "explanations.explanations",
            "explanations.calibrated_simulator",
            "explanations.scoring",
        ),
    )


@pytest.fixture(scope="module")
def delphi():
    if find_spec("delphi") is None or find_spec("delphi.latents") is None:
        pytest.skip("eai-delphi is not installed")
    importlib.import_module("sparsify")  # datasets, below it, must not find the faiss that stands in
    modules = ("latents", "clients.client", "scorers", "log.result_analysis")
    modules += ("scorers.simulator.simulation", "scorers.embedding.example_embedding")
    return _imported("delphi", modules)


def _imported(package, modules):
    with pytest.MonkeyPatch.context() as patch:
        for name in HEAVY:
            if name not in sys.modules:
                patch.setitem(sys.modules, name, MagicMock(__spec__=None))
        return SimpleNamespace(
            **{name.split(".")[-1]: importlib.import_module(f"{package}.{name}") for name in modules}
        )


def simulated(case, seed=0):
    """Activations and predictions [n, L]."""
    rng = np.random.default_rng(seed)
    shape = {"one token": (8, 1), "one window": (1, 64)}.get(case, (10, 64))
    true = rng.exponential(size=shape) * (case == "dense" or rng.random(shape) < 0.1)
    if case == "either sign":  # neurons of GELU
        true = rng.normal(size=shape)
    predicted = np.floor(10 * np.clip(true + rng.normal(0, 0.3, shape), 0, 1))
    return (true * 1e-6 if case == "small" else true), predicted


class Simulator:
    """Of either package: says what was predicted of a sequence, whose only token is its number."""

    def __init__(self, sequence, predicted):
        self.sequence, self.predicted = sequence, predicted

    async def simulate(self, tokens):
        return self.sequence(list(tokens), self.predicted[int(tokens[0])].tolist())


def of_openai(openai, true, predicted, calibrated=None):
    def sequence(tokens, values):
        scale = openai.explanations.ActivationScale.SIMULATED_NORMALIZED_ACTIVATIONS
        return openai.explanations.SequenceSimulation(tokens, values, scale, [], [])

    simulator = Simulator(sequence, predicted)
    records = [
        openai.activations.ActivationRecord([str(i)] * true.shape[1], row.tolist())
        for i, row in enumerate(true)
    ]
    if calibrated is not None:
        kind, fit = calibrated
        simulator = kind(simulator)
        simulator.calibrate_from_simulations(
            [openai.activations.ActivationRecord([""], row.tolist()) for row in fit[0]],
            [sequence([""], row.tolist()) for row in fit[1]],
        )
    return asyncio.run(openai.scoring.simulate_and_score(simulator, records))


def or_0(value):
    """What they leave undefined is 0 here."""
    return value if value is not None and np.isfinite(value) else 0.0


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # theirs divide by 0
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", range(5))
def test_simulation_is_openais(openai, case, seed):
    true, predicted = simulated(case, seed)
    theirs, ours = of_openai(openai, true, predicted), simulation_score(true, predicted, draws=0)
    for name in ("ev_correlation_score", "rsquared_score", "absolute_dev_explained_score"):
        assert getattr(ours, name) == pytest.approx(or_0(getattr(theirs, name)), rel=1e-9, abs=1e-6)
        of_windows = [or_0(getattr(one, name)) for one in theirs.scored_sequence_simulations]
        assert getattr(ours.windows, name) == pytest.approx(of_windows, rel=1e-9, abs=1e-6)
    assert ours.defined == np.isfinite(theirs.ev_correlation_score) and (ours.defined or case == "one token")


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_what_openai_leaves_undefined_is_0(openai):
    true, predicted = simulated("sparse")
    for real, said in ((true, np.ones_like(true)), (np.zeros_like(true), predicted)):
        theirs, ours = of_openai(openai, real, said), simulation_score(real, said)
        assert np.isnan(theirs.ev_correlation_score) and ours.ev_correlation_score == 0 and not ours.defined
    assert theirs.rsquared_score == theirs.absolute_dev_explained_score == -np.inf
    assert ours.rsquared_score == ours.absolute_dev_explained_score == 0


@pytest.mark.parametrize("case", ["sparse", "dense", "either sign", "small"])
def test_calibration_is_openais(openai, case):
    fit, (true, predicted) = simulated(case, 1), simulated(case, 2)
    module = openai.calibrated_simulator
    for kind, ours in (
        (module.LinearCalibratedNeuronSimulator, linear),
        (module.PercentileMatchingCalibratedNeuronSimulator, percentiles),
    ):
        theirs = of_openai(openai, true, predicted, (kind, fit))
        mine = ours(fit[0].ravel(), fit[1].ravel())(predicted)
        said = [one.simulation.expected_activations for one in theirs.scored_sequence_simulations]
        assert np.allclose(mine, said, rtol=1e-9, atol=1e-9 * np.abs(true).max())
        found = simulation_score(true, mine, draws=0)
        assert found.rsquared_score == pytest.approx(theirs.rsquared_score, abs=1e-6)
        assert found.ev_correlation_score == pytest.approx(theirs.ev_correlation_score, abs=1e-6)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_simulation_is_delphis(delphi):
    """Theirs has a score of each quantile, "distance" 1 and on, and one of all windows, 0; two of three scores are always 0."""
    module = delphi.simulation
    record, scoring = (
        importlib.import_module(f"{module.__name__}.{name}") for name in ("data_models", "scoring")
    )
    true, predicted = simulated("sparse")
    true = np.ceil(10 * true / true.max())
    true[4:] = 0  # those it is not active in

    def records(rows, quantiles):
        pairs = zip(rows, quantiles, strict=True)
        return [record.ActivationRecord([str(i)] * 64, true[i].tolist(), quantile) for i, quantile in pairs]

    simulator = Simulator(lambda tokens, values: values, predicted)
    active, quiet = records(range(4), [0, 0, 1, 1]), records(range(4, 10), [-1] * 6)
    found = {one.distance: one for one in asyncio.run(scoring.simulate_and_score(simulator, active, quiet))}
    for distance, rows in ((0, slice(10)), (1, slice(2)), (2, slice(2, 4))):
        ours = simulation_score(true[rows], predicted[rows], draws=0)
        assert ours.ev_correlation_score == pytest.approx(found[distance].ev_correlation_score, abs=1e-9)
        of_windows = [one.ev_correlation_score for one in found[distance].scored_sequence_simulations]
        theirs = [0.0 if one == "nan" else one for one in of_windows]
        assert ours.windows.ev_correlation_score == pytest.approx(theirs, abs=1e-9)
        assert found[distance].rsquared_score == 0 != pytest.approx(ours.rsquared_score, abs=0.01)
    assert "nan" in of_windows or found[0].scored_sequence_simulations[-1].ev_correlation_score == "nan"


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return records_of(tmp_path_factory.getbasetemp() / "scored_units")


@pytest.fixture(scope="module")
def examples(records):
    return detection_examples(Tiles(records, "score", 32), LATENT)


@pytest.fixture(scope="module")
def judge(records):
    return ProgramJudge(Tiles(records, "explain", 32))


def half_right():
    """Of the unit's two tokens it knows one, and takes a strange one for the other: some windows are wrong."""
    table = true_of(LATENT).table.copy()
    table[2 * LATENT + 2], table[50] = 0, 2.5
    return Said(LATENT, table)


def record_of(delphi, examples):
    """Our windows as theirs; each token is written as its number."""

    def parts(kind, rows, **other):
        for i in rows:
            acts, tokens = torch.from_numpy(examples.acts[i]), torch.from_numpy(examples.tokens[i])
            yield kind(
                tokens=tokens, activations=acts, str_tokens=[f" w{t}" for t in tokens.tolist()], **other
            )

    active = examples.active.nonzero()[0]
    record = delphi.latents.LatentRecord(delphi.latents.Latent("layer", LATENT))
    module = importlib.import_module("delphi.latents.latents")
    record.test = list(parts(module.ActivatingExample, active))
    for one, part in zip(record.test, examples.part[active].tolist(), strict=True):
        one.quantile = part
    record.not_active = list(
        parts(module.NonActivatingExample, (~examples.active).nonzero()[0], distance=-1.0)
    )
    record.explanation = "not read here"
    return record


def read(text):
    """The windows in a prompt: tokens [n, L], and which are marked [n, L]."""
    tokens, marked = [], []
    for line in re.findall(r"^Example \d+: ?(.*w\d.*)$", text, re.MULTILINE):
        inside, ids, marks = False, [], []
        for part in re.findall(r"<<|>>|w\d+", line):
            inside = part == "<<" if part in ("<<", ">>") else inside
            if part.startswith("w"):
                ids.append(int(part[1:]))
                marks.append(inside)
        tokens.append(ids)
        marked.append(marks)
    return np.array(tokens), np.array(marked)


def client_of(delphi, answer):
    """A client whose answer to windows is their probabilities, as a list of 0 and 1 with the probability of each digit."""

    class Client(delphi.client.Client):
        async def generate(self, prompt, **options):
            p = answer(*read(prompt[-1]["content"]))
            digits = [str(int(one > 0.5)) for one in p]
            with np.errstate(divide="ignore"):
                logs = [
                    SimpleNamespace(
                        token=digit,
                        top_logprobs=[
                            SimpleNamespace(token=name, logprob=float(np.log(share)))
                            for name, share in (("1", one), ("0", 1 - one))
                        ],
                    )
                    for digit, one in zip(digits, p.tolist(), strict=True)
                ]
            return delphi.client.Response(f"[{', '.join(digits)}]", logs)

    return Client("none")


def frame_of(outputs):
    import pandas

    names = ("activating", "prediction", "probability")
    return pandas.DataFrame([{name: getattr(one, name) for name in names} for one in outputs])


def check_metrics(delphi, frame, ours):
    log = delphi.result_analysis
    theirs = log.compute_classification_metrics(log.compute_confusion(frame))
    assert ours.balanced_accuracy.value == pytest.approx(theirs["accuracy"], abs=1e-12)  # so they call it
    assert ours.precision == pytest.approx(theirs["precision"], abs=1e-12)
    assert ours.recall == pytest.approx(theirs["recall"], abs=1e-12)
    assert ours.f1 == pytest.approx(theirs["f1_score"], abs=1e-12)
    assert ours.auc.value == pytest.approx(log.compute_auc(frame), abs=1e-9)
    assert (ours.n_positive, ours.n_negative) == (theirs["total_positives"], theirs["total_negatives"])


@pytest.mark.parametrize(
    "said", [half_right(), true_of(LATENT), true_of(LATENT + 1)], ids=["half", "true", "other"]
)
def test_detection_is_delphis(delphi, examples, judge, said):
    """The same windows, judged by the same program, asked in its way."""
    client = client_of(delphi, lambda tokens, marked: judge.detect(said, tokens))
    scorer = delphi.scorers.DetectionScorer(client, n_examples_shown=5, log_prob=True)
    outputs = asyncio.run(scorer(record_of(delphi, examples))).score
    assert len(outputs) == 100 and all(one.prediction is not None for one in outputs)
    ours = detection(judge, said, examples)
    check_metrics(delphi, frame_of(outputs), ours)
    assert (0.55 < ours.balanced_accuracy.value < 0.95) == (said.latent == LATENT and said.table[50] > 0)


def test_fuzzing_is_delphis(delphi, examples, judge):
    """On its marks. True ones are the same as ours, and so is the number of wrong ones; but in each of its windows without the unit one of
    them is the same place (its own comment says that this is wrong), and ours are anywhere."""
    seen, said = [], half_right()

    def answer(tokens, marked):
        seen.append((tokens, marked))
        return judge.fuzz(said, tokens, marked)

    scorer = delphi.scorers.FuzzingScorer(client_of(delphi, answer), n_examples_shown=5, log_prob=True)
    outputs = asyncio.run(scorer(record_of(delphi, examples))).score
    tokens, marked = (np.concatenate(part) for part in zip(*seen, strict=True))
    labels = np.array([one.activating for one in outputs])
    check_metrics(delphi, frame_of(outputs), classification_score(labels, judge.fuzz(said, tokens, marked)))
    ours, by_tokens = (
        fuzzing_marks(examples),
        {row.tobytes(): i for i, row in enumerate(examples.tokens.astype(int))},
    )
    rows = [by_tokens[row.tobytes()] for row in tokens.astype(int)]
    assert (examples.active[rows] == labels).all()
    assert (ours[rows][labels] == marked[labels]).all()
    assert (ours[rows][~labels].sum(axis=1) == marked[~labels].sum(axis=1)).all()
    assert marked[~labels][:, 24].all() and ours[~examples.active][:, 24].mean() < 0.5


@pytest.mark.parametrize("label", [True, False])
def test_without_one_label_delphi_says_half_of_the_other_and_we_nothing(delphi, label):
    frame = frame_of(
        SimpleNamespace(activating=label, prediction=i < 6, probability=i / 9) for i in range(10)
    )
    log = delphi.result_analysis
    theirs = log.compute_classification_metrics(log.compute_confusion(frame))["accuracy"]
    assert theirs == pytest.approx(0.3 if label else 0.2)
    ours = classification_score(np.full(10, label), frame.prediction.to_numpy(float))
    assert ours.balanced_accuracy == ours.auc == (0.5, 0, 1)


def test_a_probability_of_a_half_is_yes_in_delphi_and_half_a_yes_here(delphi):
    frame = frame_of(SimpleNamespace(activating=i < 4, prediction=0.5, probability=0.5) for i in range(10))
    log = delphi.result_analysis
    theirs = log.compute_classification_metrics(log.compute_confusion(frame))
    ours = classification_score(frame.activating.to_numpy(bool), frame.probability.to_numpy())
    assert (theirs["recall"], ours.recall) == (1, 0.5) and theirs[
        "accuracy"
    ] == ours.balanced_accuracy.value == 0.5
    assert ours.auc.value == log.compute_auc(frame) == 0.5


def test_intruders_are_delphis(delphi, examples, judge):
    """Its trials as ours, answered by a program: the intruder is where the marked tokens are the weakest."""
    trials, answers, said = [], [], half_right()

    class Client(delphi.client.Client):
        async def generate(self, prompt, **options):
            tokens, marked = read(prompt[-1]["content"])
            answers.append(int(np.argmin(judge.fuzz(said, tokens, marked))))
            trials.append((tokens, marked))
            return delphi.client.Response(f"[RESPONSE]: {answers[-1]}")

    scorer = delphi.scorers.IntruderScorer(Client("none"), n_examples_shown=5)
    results = asyncio.run(scorer(record_of(delphi, examples))).score
    assert len(results) == 50 and [one.prediction for one in results] == answers
    ours = [
        IntruderTrial(tokens, marked, one.correct_index, one.sample.chosen_quantile)
        for (tokens, marked), one in zip(trials, results, strict=True)
    ]
    assert all(not np.isin(one.tokens[one.intruder], [7, 8]).any() for one in ours)
    found = intruder_score(ours, answers)
    assert found.share.value == np.mean([one.correct for one in results]) and 0.2 < found.share.value < 1
    assert found.chance == 1 / len(ours[0].tokens)


class Encoder:
    """A sentence encoder as delphi calls one: ours, which does not see delphi's instruction before the explanation."""

    embedder = HashedNgrams(512)

    def encode(self, text):
        rows = [text] if isinstance(text, str) else text
        found = self.embedder.embed([one.split("Query:")[-1] for one in rows])
        return found[0] if isinstance(text, str) else found

    def similarity(self, one, other):
        return torch.as_tensor(np.atleast_2d(one)) @ torch.as_tensor(np.atleast_2d(other)).T


def test_embedding_is_delphis(delphi, examples):
    """It gives the similarities; what it would make of them, an AUC, is ours."""
    record = record_of(delphi, examples)
    record.explanation = " w7 w8 w50"
    outputs = asyncio.run(delphi.scorers.EmbeddingScorer(Encoder())(record)).score
    texts = ["".join(f" w{token}" for token in row) for row in examples.tokens.tolist()]
    vectors = Encoder.embedder.embed(texts).astype(np.float64)
    windows = Windows(vectors, examples.active, examples.part, LATENT)
    found = embedding_score(Encoder.embedder, SimpleNamespace(sentence=record.explanation), windows)
    similarity = {one.text: one.similarity for one in outputs}
    theirs = np.array([similarity[text] for text in texts])
    assert len(similarity) == len(texts) == 100
    assert found.active == pytest.approx(theirs[examples.active].mean(), abs=1e-6)
    assert found.inactive == pytest.approx(theirs[~examples.active].mean(), abs=1e-6)
    assert found.auc.value == pytest.approx(roc_auc_score(examples.active, theirs.round(6)), abs=1e-3)
    assert found.auc.value != pytest.approx(0.5, abs=0.01)


def test_example_embedding_is_delphis(delphi):
    """Of two windows of either kind: one asks, the other is what it is compared with, for active and inactive ones."""
    module, texts = delphi.example_embedding, ["one two three", "one two four", "five six", "seven nine six"]
    found = []
    for i in (0, 1):
        for j in (2, 3):
            batch = module.Batch([texts[5 - j]], [texts[1 - i]], texts[i], texts[j], 0, -1.0)
            found.append(delphi.scorers.ExampleEmbeddingScorer(Encoder()).compute_batch_deltas(batch))
    active = np.array([True, True, False, False])
    windows = Windows(Encoder.embedder.embed(texts).astype(np.float64), active, np.where(active, 0, -1), 0)
    seen = set()
    for seed in range(20):
        ours = example_embedding_score(windows, n_trials=1, seed=seed)
        near = [np.allclose((ours.active.value, ours.inactive.value), one, atol=1e-6) for one in found]
        assert any(near)
        seen.add(near.index(True))
    assert len(seen) == 4


def test_surprisal_is_delphis(delphi, examples, monkeypatch):
    """It gives the losses of each window after either text; the score is ours: by how much their means per token differ."""
    rng, explained = np.random.default_rng(0), []
    scorer = delphi.scorers.SurprisalScorer(None, False, 10)

    def losses(self, prompt, samples, batch_size):
        explained.append("about a unit" in prompt)
        helps = [0.5 * (max(one.activations) > 0) * explained[-1] for one in samples]
        return [(rng.normal(4, 0.3, 31) - helped).tolist() for helped in helps]

    monkeypatch.setattr(type(scorer), "compute_loss_with_kv_cache", losses)
    record = record_of(delphi, examples)
    record.extra_examples, record.explanation = record.not_active, "about a unit"
    outputs = asyncio.run(scorer(record)).score
    assert explained == [False, True] and len(outputs) == 100
    active = np.array([max(one.activations) > 0 for one in outputs])
    gains = np.array([np.mean(one.no_explanation) - np.mean(one.explanation) for one in outputs])
    found = of_gains(active, gains)
    assert found.auc.value == pytest.approx(roc_auc_score(active, gains)) and found.auc.value > 0.95
    assert found.difference.value == pytest.approx(gains[active].mean() - gains[~active].mean())
