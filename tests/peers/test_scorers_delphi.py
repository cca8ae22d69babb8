"""Detection, fuzzing, intruder, embedding and surprisal beside the real package of delphi, on the same windows and predictions.

Where its scores are defined otherwise, both are asserted.
"""

import asyncio
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from saefast.interp.explain.examples import Tiles
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
from saefast.interp.explain.scores.surprisal import of_gains
from tests.helpers.peer_scorers import delphi_scorers
from tests.helpers.scored_units import Said, records_of, true_of

LATENT = 3


@pytest.fixture(scope="module")
def delphi():
    return delphi_scorers()


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
    module = delphi.latents
    record = module.LatentRecord(module.Latent("layer", LATENT))
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
