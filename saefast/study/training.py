"""The stages that make things: text, subjects, dictionaries, records."""

import json
import time
from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from statistics import harmonic_mean
from typing import Any

from torch import Tensor

from saefast.activations.contexts import PackedContexts
from saefast.activations.lm import load_model
from saefast.activations.texts import Texts
from saefast.errors import InputError, check
from saefast.interp.evaluate import evaluate
from saefast.interp.neurons import neurons
from saefast.interp.records import record
from saefast.interp.splice import evaluate_in_model
from saefast.study.baselines import Bigrams
from saefast.study.dictionaries import Wanted, train
from saefast.study.progress import bar
from saefast.study.subject import save_subject, shuffled, train_subject, train_tokenizer
from saefast.study.text import prepare
from saefast.study.world import World, subject_of

TRAINED = {"A": 0, "B": 1}  # subjects and their seeds


def text(world: World, own: str | None) -> dict[str, Any]:
    """The text that everything is made from. own: a file or folder of the user's instead of the packages'."""
    folder = prepare(world.path / "text", world.scale.name, own, cache=world.path.parent / "packages")
    report = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
    parts = {
        kind: {part: of[part] for part in ("train", "heldout") if part in of}
        for kind, of in report["kinds"].items()
    }
    return {"kinds": parts, "absent": report["absent"], "skipped": report["skipped"]}


def subjects(world: World) -> dict[str, Any]:
    """Train both subjects, or take the one that was given; and the control. The loss of each, beside n-grams and without its MLP."""
    found: dict[str, Any] = {}
    if world.given is None:
        rates = {name: _train(world, name, seed) for name, seed in TRAINED.items()}
        found["tokens_per_second"], found["share"] = rates, share_of(rates.values(), world.scale.pace)
    control = world.path / "subjects" / "shuffled"
    if not control.exists():
        model, tokenizer = load_model(str(world.subject("A")))
        save_subject(shuffled(model), tokenizer, control)
    held_out = held_out_contexts(world, 4 * world.scale.contexts)
    names = [*TRAINED, "shuffled"] if world.has_twin else ["A", "shuffled"]
    for name in names:
        source = world.source(name, "heldout")
        loss = evaluate_in_model(
            neurons(source.d_in).to(world.device), world.model(name), world.hook, held_out
        )
        found[name] = {"loss": loss.ce, "without_mlp": loss.ce_zero}
    if world.given is None:
        counts = Bigrams(world.subject_config.n_vocab)
        for contexts in islice(_contexts(world, "train"), world.subject_config.steps):
            counts.add(contexts)
        found["unigrams"], found["bigrams"] = counts.losses(held_out)
        found["tokens"] = world.subject_config.tokens
    return found


def share_of(rates: Iterable[float | None], pace: int) -> float:
    """How much of the tokens dictionaries and records have, by tokens/s of the subjects; None: it was trained before."""
    return min([1.0, *(round(rate / pace, 2) for rate in rates if rate and pace)])


def held_out_contexts(world: World, n: int) -> list[Tensor]:
    """Of the held-out text, batches of the first n contexts."""
    source = world.source("A", "heldout")
    batches = list(islice(iter(source.contexts), -(-n // source.contexts.shape[0])))
    check(bool(batches), "text: expected held-out text of at least one batch of contexts, got less")
    return batches


def _contexts(world: World, part: str) -> PackedContexts:
    config = world.subject_config
    return PackedContexts(Texts(world.text(part)), world.tokenizer, config.context_length, config.batch)


def _train(world: World, name: str, seed: int) -> float | None:
    """Tokens per second; None if it was there already."""
    folder, config = world.path / "subjects" / name, world.subject_config
    if folder.exists():
        return None
    texts, tokens = Texts(world.text("train")), world.path / "subjects" / "tokenizer"
    if (tokens / "tokenizer.json").exists():
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(tokens)
    else:
        tokenizer = train_tokenizer(texts, tokens, config.n_vocab)
    with bar(config.tokens, "token", f"subject {name}") as progress:
        of_seed = config.__class__(**(vars(config) | {"seed": seed}))
        return train_subject(texts, tokenizer, folder, of_seed, progress, device=world.device)


def ladder(world: World) -> list[Wanted]:
    """A/0, A/1, A/2 by the recipe of 2023."""
    scale = world.sizes
    sizes = zip(scale.ladder, scale.dictionary_tokens, strict=True)
    return [Wanted(f"A{i}", "A", d_sae, tokens, scale.schedule) for i, (d_sae, tokens) in enumerate(sizes)]


def others(world: World) -> list[Wanted]:
    """A/1 of the second subject and of the control, and the pair that shows resampling."""
    scale, d_sae = world.sizes, world.scale.ladder[1]
    of = scale.schedule
    found = [Wanted("B1", "B", d_sae, scale.other_tokens, of)] if world.has_twin else []
    found.append(Wanted("S1", "shuffled", d_sae, scale.other_tokens, of))
    pair = {"A1-resampled": True, "A1-not-resampled": False}
    return found + [
        Wanted(name, "A", d_sae, scale.resample_tokens, of, resample=resample)
        for name, resample in pair.items()
    ]


def dictionaries(world: World) -> dict[str, Any]:
    """Train all; BatchTopK with the L0 that the recipe of 2023 gave at the same size."""
    found = {wanted.name: _fit(world, wanted) for wanted in [*ladder(world), *others(world)]}
    for wanted, tokens in zip(ladder(world), world.sizes.today_tokens, strict=True):
        k = max(1, round(found[wanted.name]["l0"]))
        name = f"{wanted.name}k"
        found[name] = _fit(world, replace(wanted, name=name, tokens=tokens, kind="batch_topk", k=k))
    return found


def _fit(world: World, wanted: Wanted) -> dict[str, Any]:
    folder = world.dictionary(wanted.name)
    if not train(wanted, world.source(wanted.subject), folder, world.device):
        raise KeyboardInterrupt
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    trained = lines[-1]["tokens"]
    check(trained >= wanted.tokens, f"text: expected {wanted.tokens} activations of it, got {trained}")
    rate = harmonic_mean(line["tokens_per_second"] for line in lines)  # of all sessions
    world.sae.cache_clear()
    loss = evaluate_in_model(
        world.sae(wanted.name),
        world.model(wanted.subject),
        world.hook,
        held_out_contexts(world, world.scale.contexts),
    )
    source = world.source(wanted.subject, "heldout")
    rows = evaluate(world.sae(wanted.name), list(islice(source.rows(), world.scale.contexts // 4)))
    return {
        "d_sae": wanted.d_sae,
        "kind": wanted.kind,
        "k": wanted.k,
        "tokens": wanted.tokens,
        "seconds": round(wanted.tokens / rate, 1),
        "tokens_per_second": round(rate, 1),
        "l0": rows.l0,
        "fvu": rows.fvu,
        "dead": rows.dead_frac,
        "rows": rows.n_tokens,
        "recovered": loss.loss_recovered,
        "recovered_of_mean": loss.loss_recovered_mean,
        "loss": {"model": loss.ce, "with_sae": loss.ce_sae, "zero": loss.ce_zero, "mean": loss.ce_mean},
    }


def recorded(world: World) -> list[str]:
    """The names of what is recorded."""
    found = ["A0", "A1", "A2", "A0k", "A1k", *(["B1"] if world.has_twin else []), "S1"]
    return found + [f"neurons-{name}" for name in ("A", "B", "shuffled") if world.has_twin or name != "B"]


def records(world: World) -> dict[str, Any]:
    """What every latent and neuron did on the same held-out text."""
    found = {}
    for name in recorded(world):
        source = world.source(subject_of(name), "heldout")
        separator = source.contexts.separator
        start = time.perf_counter()
        with bar(world.sizes.record_tokens, "token", f"records {name}") as progress:
            made = record(
                world.sae(name),
                source,
                world.records_folder(name),
                separators=[] if separator is None else [separator],
                tokens=world.sizes.record_tokens,
                progress=progress,
            )
        seconds = time.perf_counter() - start
        if made.n_rows == 0:
            raise InputError(f"text: expected held-out text, got none for the records of {name}")
        found[name] = {"tokens": made.n_rows, "tokens_per_second": round(made.n_rows / max(seconds, 1e-9), 1)}
    return found
