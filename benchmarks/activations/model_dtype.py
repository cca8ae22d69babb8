"""The language model's pass in other formats: its speed, what happens to the activations, and to an SAE trained on them.

    python -m benchmarks.activations.model_dtype            data/ is what `make demo` makes; writes results/cpu/model_dtype.json
    python -m benchmarks.activations.model_dtype --speed    the speed alone; the rest of that file stays
    python -m benchmarks.activations.model_dtype --smoke    toy sizes, a few seconds, nothing written

- "bf16": `--model-dtype bf16`, products in bf16 and the residual stream in fp32.
- "bf16, all of it": model.bfloat16(), as other projects load it.
- "int8": torch's dynamic quantization of the linear layers, a scale for each tensor of activations.

All formats see the same batches in every round, and fp32 first. A row that is an attention sink in fp32 at any hook point is dropped everywhere.
An SAE is trained on the rows of fp32 and one, from the same weights, on those of bf16, and both are evaluated on both. One row of
huge norm can decide a sum over all of them, so figures are given also without the row that changed most.
"""

import argparse
import copy
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.activations import pipeline
from benchmarks.measuring import DEVICE, ratio, read_result, seconds_of, spread, write_result
from saefast import SAE, SAEConfig, TrainConfig, Trainer, evaluate
from saefast.activations.hooks import HookPoint
from saefast.activations.lm import ModelSource
from saefast.activations.model_dtype import time_of_bf16
from saefast.activations.token_rows import TokenRows, norm_of

HOOKS = ["model.layers.12"]
Read = Callable[[Tensor], list[Tensor]]  # token ids [m, L] -> rows [m * L, d_in] of each hook point


class Plan(NamedTuple):
    rounds: int
    batches: int  # of rows, to train on
    held_out: int
    tokens: int  # that an SAE is trained on
    d_sae: int
    k: int = 32
    lr: float = 4e-3


PLAN, TOY = Plan(3, 24, 8, 163_840, 2304), Plan(2, 3, 2, 1024, 64, 4)


def formats(source: ModelSource, hooks: Sequence[str]) -> dict[str, Read]:
    model, first = source.model, next(iter(source.batches))
    half = copy.deepcopy(model).bfloat16()
    readers = {
        "fp32": TokenRows([HookPoint(model, hook) for hook in hooks], first, source.forward_kwargs),
        "bf16": TokenRows([HookPoint(model, hook) for hook in hooks], first, source.forward_kwargs, "bf16"),
        "bf16, all of it": TokenRows([HookPoint(half, hook) for hook in hooks], first, source.forward_kwargs),
    }
    if DEVICE == "cpu":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it is to be replaced by torchao
            eight = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear}, torch.qint8)
        points = [HookPoint(eight, hook) for hook in hooks]
        readers["int8"] = TokenRows(points, first, source.forward_kwargs)
    return {name: partial(_rows, reader) for name, reader in readers.items()}


@torch.no_grad()
def _rows(reader: TokenRows, batch: Tensor) -> list[Tensor]:
    return [part.flatten(0, -2).float().cpu() for part in reader.read(batch).parts]


def speed(source: ModelSource, hook: str, plan: Plan) -> dict[str, Any]:
    """Tokens/s up to one hook point, at the batch of the source and at two of them at once."""
    reads, batches = formats(source, [hook]), list(islice(source.batches, 2))
    found: dict[str, Any] = {}
    for batch in (batches[0], torch.cat(batches)):
        seconds: dict[str, list[float]] = {name: [] for name in reads}
        for i in range(plan.rounds + 1):
            for name, read in reads.items():
                taken = seconds_of(partial(read, batch))
                seconds[name] += [taken] if i else []  # the first warms up
        for name, values in seconds.items():
            found[f"{name}, {len(batch)} contexts"] = {
                "tokens/s": spread([batch.numel() / value for value in values], 0),
                "times fp32": ratio(seconds["fp32"], values),
            }
    return found | {"a product in bf16 over one in fp32": round(time_of_bf16(DEVICE), 3)}


def rows_in(reads: Mapping[str, Read], batches: Iterator[Tensor]) -> dict[str, list[Tensor]]:
    """Rows [n, d_in] of each format at each hook point, without attention sinks."""
    found: dict[str, list[list[Tensor]]] = {name: [] for name in reads}
    for batch in batches:
        parts = {name: read(batch) for name, read in reads.items()}
        norms = [norm_of(part) for part in parts["fp32"]]
        keep = torch.stack([norm < 10 * norm.median() for norm in norms]).all(dim=0)
        for name in reads:
            found[name].append([part[keep] for part in parts[name]])
    return {name: [torch.cat(rows) for rows in zip(*of, strict=True)] for name, of in found.items()}


def errors(rows: Tensor, other: Tensor) -> dict[str, Any]:
    off, norms = (other - rows).norm(dim=1), rows.norm(dim=1)
    variance = (rows - rows.mean(dim=0)).square().sum()
    cosine = torch.cosine_similarity(rows, other)
    shares = [float(x.square().sum() / variance) for x in (off, off.sort().values[:-1])]
    return {
        "relative error": spread((off / norms).tolist(), 5),
        "cosine": spread(cosine.tolist(), 6),
        "squares over variance": float(f"{shares[0]:.3g}"),
        "squares over variance, without the row that changed most": float(f"{shares[1]:.3g}"),
    }


def trained(rows: Tensor, plan: Plan) -> SAE:
    sae = SAE(SAEConfig(d_in=rows.shape[1], d_sae=plan.d_sae, k=plan.k), seed=0, device=DEVICE)
    batch = min(512, len(rows) // 2)
    config = TrainConfig(total_tokens=plan.tokens, batch_size=batch, lr=plan.lr, buffer_tokens=len(rows))
    Trainer(sae, config).fit(rows)
    return sae


def fvus(rows: Mapping[str, Tensor], held_out: Mapping[str, Tensor], plan: Plan) -> dict[str, Any]:
    """FVU of SAEs trained on either and evaluated on either, and the change for evaluating on the other, in percent."""
    changed = (held_out["bf16"] - held_out["fp32"]).norm(dim=1)
    most = torch.arange(len(changed), dtype=torch.int64, device="cpu") != changed.argmax()
    found: dict[str, Any] = {}
    for on, other in (("fp32", "bf16"), ("bf16", "fp32")):
        sae = trained(rows[on], plan)
        for label, keep in (("", slice(None)), (", without the row that changed most", most)):
            same, moved = (evaluate(sae, held_out[name][keep]).fvu for name in (on, other))
            found[f"trained on {on}{label}"] = {
                f"evaluated on {on}": round(same, 6),
                f"evaluated on {other}": round(moved, 6),
                "change, %": round(100 * (moved / same - 1), 4),
            }
    return found


def effect(source: ModelSource, hooks: Sequence[str], plan: Plan) -> dict[str, Any]:
    reads, batches = formats(source, hooks), iter(source.batches)
    held_out = rows_in(reads, islice(batches, plan.held_out))
    rows = rows_in({name: reads[name] for name in ("fp32", "bf16")}, islice(batches, plan.batches))
    found: dict[str, Any] = {}
    for i, hook in enumerate(hooks):
        off = {name: errors(held_out["fp32"][i], x[i]) for name, x in held_out.items() if name != "fp32"}
        here, unseen = ({name: x[i] for name, x in part.items()} for part in (rows, held_out))
        of = fvus(here, unseen, plan)
        found[hook] = {"activations": off, "FVU": of}
        print(hook, off, of, sep="\n", flush=True)
    return found


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--smoke", action="store_true")
    flags.add_argument("--speed", action="store_true")
    args = flags.parse_args(argv)
    if args.smoke:
        with tempfile.TemporaryDirectory() as folder:
            _, source = pipeline.toy(folder)
            return {"speed": speed(source, "1", TOY), "effect": effect(source, ["1"], TOY)}
    _, source = pipeline.real()
    found = {"plan": PLAN._asdict(), "speed": speed(source, HOOKS[0], PLAN)}
    print(found)
    kept = {name: x for name, x in read_result("model_dtype").items() if name == "effect"}
    of = kept if args.speed else {"effect": effect(source, HOOKS, PLAN)}
    print(write_result("model_dtype", found | of))
    return found


if __name__ == "__main__":
    main()
