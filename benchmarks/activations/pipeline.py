"""Training end to end, from disk shards and from a language model: each stage alone, then together.

    python -m benchmarks.activations.pipeline            data/ is what `make demo` makes; writes results/cpu/pipeline.json
    python -m benchmarks.activations.pipeline --smoke    toy sizes on random numbers, a few seconds, nothing written

A fit is the loop of `saefast.train.run.run`: the next batch of a shuffle buffer, then a step. What passes inside
`next` is waiting, the rest training; on a GPU each of the two ends with a synchronisation. In each round all
fits run a few steps, in an order drawn anew, after some that do not count: the threads of a buffer have to
read ahead again. Files are in the page cache. If stages share the cores, a token takes the sum of their
times, and on a GPU that of the slowest: the "expected" rate.

Our fits see the same batches and must have the same FVU in every step, bit for bit; the plain PyTorch loop,
within 1e-4 in its first two. The buffers' batches are compared, and our loop must end in the weights of
`Trainer.fit`.

SAELens' store and sparsify's hooks run language models of their own, so no peer takes part. On a CPU the
model takes so much longer than the SAE that the larger shape is not fed by it.
"""

import argparse
import importlib.util
import random
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.activations.pipeline_fits import Fit, Rates, check_is_fit, ours, plain, results
from benchmarks.measuring import DEVICE, seconds_of, write_result
from benchmarks.shapes import Shape
from saefast import open_source
from saefast.activations import lm
from saefast.activations.buffer import ShuffleBuffer
from saefast.activations.live_source import Background
from saefast.activations.native_buffer import NativeBuffer
from saefast.activations.open import open_buffer
from saefast.activations.shards import ShardWriter
from saefast.activations.sources import Source

SHAPES = {"demo": Shape(512, 576, 4608, 32), "residual": Shape(4096, 576, 9216, 32)}
HOOK = "model.layers.12"


class Plan(NamedTuple):
    """How much of everything. Batches are those of the shape."""

    rounds: int
    steps: int  # that a fit counts in a round
    live_rounds: int
    live_steps: int
    forwards: int  # passes of the language model alone, in a round
    capacity: int = 131_072  # rows of the buffer, from shards
    warm: int = 3  # steps before the counted ones, from shards


PLANS = {"demo": Plan(5, 20, 3, 5, 2), "residual": Plan(3, 3, 3 if DEVICE == "cuda" else 0, 3, 2)}
TOY, TOY_PLAN = Shape(64, 32, 128, 4), Plan(2, 3, 2, 2, 2, capacity=512)


def drain(batches: Iterator[Any], n: int) -> int:
    """How many rows n of them have."""
    return sum(len(x) for x in islice(batches, n))


def note(rates: Rates, stages: Mapping[str, Callable[[], int]]) -> None:
    """Run each stage, which returns its tokens, once."""
    for name, stage in stages.items():
        tokens: list[int] = []
        seconds = seconds_of(lambda stage=stage, tokens=tokens: tokens.append(stage()))  # type: ignore[misc]
        rates.setdefault(name, []).append(tokens[0] / seconds)


def shuffled(fits: Mapping[str, Fit], i: int) -> list[str]:
    """What ran before a fit (and left memory, or threads) differs from round to round."""
    return random.Random(i).sample(list(fits), len(fits))


def from_shards(source: Source, shape: Shape, plan: Plan) -> dict[str, Any]:
    check_is_fit(source, shape)
    B, n = shape.B, plan.rounds * (plan.steps + plan.warm)
    new = partial(open_buffer, source, B, plan.capacity, dtype=torch.float32, device=DEVICE)
    in_pytorch = partial(ShuffleBuffer, source, B, plan.capacity)
    memory = [x.to(DEVICE, torch.float32) for x in islice(in_pytorch(), n)]
    same = map(lambda x, y: torch.equal(x, y.to(x)), memory, new())
    assert all(same), "the two buffers give other batches"

    fits = {
        "in memory": Fit(iter(memory), ours(shape, memory[0])),
        "from shards": Fit(iter(new()), ours(shape, memory[0])),
        "from shards, 1 reader and 1 mixer": Fit(iter(new(readers=1, mixers=1)), ours(shape, memory[0])),
        "from shards, buffer in PyTorch": Fit(iter(in_pytorch()), ours(shape, memory[0])),
        "plain PyTorch loop from shards": Fit(iter(in_pytorch()), plain(shape, memory[0])),
    }
    feeds = {"from shards": "batches", "from shards, buffer in PyTorch": "batches, buffer in PyTorch"}
    rates: Rates = {}
    streams = {feeds[name]: iter(make()) for name, make in zip(feeds, (new, in_pytorch), strict=True)}
    for stream in streams.values():
        drain(stream, plan.warm)
    for i in range(plan.rounds):
        for name in shuffled(fits, i):
            slow = "plain" in name
            fits[name].run(max(1, plan.steps // 5) if slow else plan.steps, 1 if slow else plan.warm)
        if importlib.util.find_spec("saefast._C"):
            read = NativeBuffer(source, B, plan.capacity)._native.read_through
            note(rates, {"reading shards, with checksums": read, "reading shards again": read})
        many = max(10, plan.steps)  # more than wait ready
        note(rates, {name: partial(drain, stream, many) for name, stream in streams.items()})
    return results(shape, fits, rates, feeds)


def write(batches: Iterator[lm.ModelBatch], d_in: int) -> int:
    """What `saefast cache` does with them."""
    with tempfile.TemporaryDirectory() as folder:
        writer = ShardWriter(folder, d_in)
        for batch in batches:
            writer.append(*batch)
        writer.close()
        return writer.n_tokens


def from_model(source: lm.ModelSource, shards: Source, shape: Shape, plan: Plan) -> dict[str, Any]:
    """Every round begins with the same text, so that all fits see the same batches."""
    B, n, capacity = shape.B, plan.live_steps + 1, 2 * shape.B
    memory = list(islice(ShuffleBuffer(source, B, capacity), n))
    for x, rounded in zip(memory, ShuffleBuffer(shards, B, capacity), strict=False):
        off = float((x.cpu() - rounded.float()).norm() / x.norm())
        assert off < 2e-3, f"the shards hold other rows than the model gives: {off}"

    sources: dict[str, Callable[[], Iterator[Tensor]]] = {
        "in memory": lambda: iter(memory),
        "from the model, in turn": lambda: iter(ShuffleBuffer(source, B, capacity)),
        "from the model, meanwhile": lambda: iter(ShuffleBuffer(Background(source), B, capacity)),
    }
    fits = {name: Fit(iter(()), ours(shape, memory[0])) for name in sources}
    ready, rates = list(islice(source.model_batches(), plan.forwards)), Rates()
    for i in range(plan.live_rounds):
        for name in shuffled(fits, i):
            fits[name].batches = sources[name]()
            fits[name].run(plan.live_steps, warm=1)
            fits[name].batches = iter(())  # the model's thread ends with the last reference
        stages: dict[str, Callable[[], int]] = {
            "language model": lambda: drain(source.rows(), plan.forwards),
            "language model and writing shards": lambda: write(
                islice(source.model_batches(), plan.forwards), source.d_in
            ),
            "writing shards": lambda: write(iter(8 * ready), source.d_in),
        }
        note(rates, stages)
    return results(shape, fits, rates, dict.fromkeys(list(fits)[1:], "language model"))


def show(shape: Shape, source: str, found: Mapping[str, Any]) -> None:
    print(f"B {shape.B}, d_in {shape.D}, d_sae {shape.F}, k {shape.K}; from {source}:")
    for name, values in found["stages, tokens/s"].items():
        print(f"  {name:36}{values[0]:>9.0f} ({values[1]:.0f} to {values[2]:.0f}) tokens/s")
    for name, fit in found["fits"].items():
        middle, (low, high) = {key: values[0] for key, values in fit.items()}, fit["over in memory"][1:]
        print(
            f"  {name:36}{middle['tokens/s']:>9.0f} tokens/s: {middle['waiting, ms']:.1f} ms waiting "
            f"({middle['share waiting']:.1%}) + {middle['training, ms']:.1f} training, "
            f"{middle['processor, ms']:.1f} of processors; {middle['over in memory']:.2f} "
            f"({low:.2f} to {high:.2f}) times as long as in memory"
            + (f"; {middle['over expected']:.2f} of the expected rate" if "over expected" in fit else ""),
            flush=True,
        )


def measure(shape: Shape, plan: Plan, shards: Source, source: lm.ModelSource) -> dict[str, Any]:
    found = {"shards": from_shards(shards, shape, plan)}
    show(shape, "shards", found["shards"])
    if plan.live_rounds:
        found["model"] = from_model(source, shards, shape, plan)
        show(shape, "the model", found["model"])
    return {"shape": shape._asdict(), "plan": plan._asdict()} | found


def real() -> tuple[Source, lm.ModelSource]:
    """The demo's shards, and the model and text that they come from."""
    model, tokenizer = lm.load_model("data/smollm2-135m", DEVICE)
    contexts = lm.PackedContexts(lm.Texts("data/corpus.jsonl"), tokenizer)
    source = lm.ModelSource(
        model, HOOK, contexts, tokenizer.all_special_ids, forward_kwargs={"use_cache": False}
    )
    return open_source("data/acts-corpus"), source


def toy(folder: str) -> tuple[Source, lm.ModelSource]:
    """The same of a model of two layers and random text."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(64, 32), nn.Linear(32, 32)).to(DEVICE)
    source = lm.ModelSource(model, "1", torch.randint(64, (16, 2, 64)))
    writer = ShardWriter(folder, source.d_in)
    for batch in source.model_batches():
        writer.append(*batch)
    writer.close()
    return open_source(folder), source


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--smoke", action="store_true")
    args = flags.parse_args(argv)
    if args.smoke:
        with tempfile.TemporaryDirectory() as folder:
            return measure(TOY, TOY_PLAN, *toy(folder))
    sources = real()
    found = {name: measure(SHAPES[name], PLANS[name], *sources) for name in SHAPES}
    print(write_result("pipeline", found))
    return found


if __name__ == "__main__":
    main()
