"""`make gpu`: whole steps against plain PyTorch, the same with other formats, and the largest dictionary that fits.

Every contender starts from the same weights and trains on the same batches. Its first loss is compared with the one that
fp32 PyTorch computes, and the following ones with those of the contenders before it, before the clock runs. Only
"heavy-tailed" starts from other weights: ours, where some latents are active in every token and most in few.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.common import (
    CASES,
    DEVICE,
    DTYPE,
    LOSS,
    REHEARSAL,
    SHAPES,
    Item,
    Part,
    Report,
    Result,
    autocast,
    batches,
    close,
    exact_loss,
    expect,
    floors,
    free,
    heavy_tailed_,
    make_sae,
    peak_gb,
    step_ms,
    train_config,
)
from benchmarks.peers.pytorch import PlainStep
from benchmarks.shapes import PUBLISHED, Shape
from saefast import Trainer
from saefast.config.train import SAEConfig
from saefast.reference import Params
from saefast.train.memory import training_bytes
from saefast.triton_kernels.pre_acts import encode_route

LATER_LOSSES = 10 * LOSS
N_LOSSES = 2 if REHEARSAL else 4
FORMATS = [("fp32", "fp32"), ("split", "fp32"), ("split", "int8"), ("split24", "int8")]
FORMATS += [("fp32", "bf16"), ("bf16", "int8")]
Step = Callable[[Tensor], Tensor]  # x -> the loss before the update


def trainer_step(trainer: Trainer) -> Step:
    return lambda x: trainer.step(x).loss


def plain_step(shape: Shape, params: Params, compiled: bool) -> Step:
    """fp32 masters, bf16 autocast, fused Adam; what `torch.compile` makes of the same code."""
    config = train_config(shape)
    assert config.lr is not None
    plain = PlainStep(params, shape.K, config.lr, config.betas, config.eps)
    backend = "eager" if REHEARSAL else "inductor"
    torch._dynamo.reset()  # else what it knows of the last shape makes it compile for any shape
    run = torch.compile(plain.__call__, backend=backend, dynamic=False) if compiled else plain

    def step(x: Tensor) -> Tensor:
        with autocast():
            return run(x)

    return step


def contender(name: str, shape: Shape, **formats: str) -> tuple[Step, float, Result]:
    """-> a step, the exact first loss, what is known before anything ran. formats: of weights and moments."""
    sae, (x,) = make_sae(shape), batches(shape, 1)
    if name == "heavy-tailed":
        heavy_tailed_(sae)
    exact = exact_loss(sae.params, x, shape.K)
    if name in ("plain", "compiled"):
        return plain_step(shape, sae.params, name == "compiled"), exact, {}
    if name == "split":
        formats = {"param_dtype": "split"}
    config = train_config(shape, cuda_graph=name != "eager", **formats)
    known = {"predicted_gb": round(sum(training_bytes(sae.config, config, DTYPE.itemsize).values()) / 1e9, 3)}
    return trainer_step(Trainer(sae, config)), exact, known


def timed(run: Step, shape: Shape, exact: float, seconds: float = 2.0) -> Result:
    """The first losses, and then the pace and the memory."""
    data = batches(shape, N_LOSSES)
    losses = [float(run(x)) for x in data]
    close("first loss", losses[0], exact, LOSS)
    found = step_ms(lambda: run(data[0]), seconds) | peak_gb() | {"losses": losses}
    return found | {"tokens_per_s": round(1e3 * shape.B / found["median_ms"])}


def measure(case: str, name: str, report: Report) -> Result:
    shape, earlier = SHAPES[case], report.get("step", {})
    run, exact, known = contender(name, shape)
    free()
    found = timed(run, shape, exact) | known | {"exact_first_loss": exact}
    rows = {
        other: row[other]
        for other in NAMES
        if "heavy-tailed" not in (name, other)
        and other != name
        and (row := earlier.get(f"{case} {other}"))
        and "losses" in row.get(other, {})
    }
    for other, row in rows.items():
        for step, (got, want) in enumerate(zip(found["losses"], row["losses"], strict=True)):
            close(f"loss {step} against {other}", got, want, LATER_LOSSES)
    found["compared_with"] = ["fp32 first loss", *rows]
    if name == "triton":
        capability = torch.cuda.get_device_capability() if DEVICE == "cuda" else (9, 0)
        route = encode_route(*shape[:3], DTYPE, capability)
        found["floor_ms"] = round(floors(report, shape, route=route)[2], 4)
        found["share_of_floor"] = round(found["floor_ms"] / found["median_ms"], 3)
        if published := PUBLISHED.get(case):
            faster = found["tokens_per_s"] / published.rows_per_s
            found["published"] = published._asdict() | {"times_published": round(faster, 2)}
    elif "triton" in rows:
        found["triton_is_faster_by"] = round(found["median_ms"] / rows["triton"]["median_ms"], 2)
    return {"shape": list(shape), name: found}


def of_format(param_dtype: str, state_dtype: str, report: Report) -> Result:
    """Case B with weights and moments in these formats: pace and memory."""
    shape, formats = SHAPES.get("B", SHAPES["A"]), {"param_dtype": param_dtype, "state_dtype": state_dtype}
    run, exact, known = contender("triton", shape, **formats)
    free()
    found = timed(run, shape, exact, seconds=1) | known
    floor = floors(report, shape, **formats)[2]
    return found | {"share_of_floor": round(floor / found["median_ms"], 3)}


def largest(param_dtype: str, sizes: list[int], report: Report) -> Result:
    """The widest dictionary of `sizes` that fits at d_in = 4096, weights in `param_dtype`, moments in int8: three steps.

    Its weights are bf16 from the start: those of an fp32 SAE would leave no room for anything else.
    """
    formats, tried = {"param_dtype": param_dtype, "state_dtype": "int8"}, {}
    available = 0.95 * torch.cuda.mem_get_info()[0] if DEVICE == "cuda" else 2**17
    D, K = (32, 4) if REHEARSAL else (4096, 64)
    for d_sae in sizes:
        shape = Shape(SHAPES["A"].B, D, d_sae, K)
        config = train_config(shape, **formats)
        needed = sum(training_bytes(SAEConfig(D, d_sae, k=K), config, DTYPE.itemsize).values())
        if needed <= available:
            outcome = try_largest(shape, formats)
            if "tokens_per_s" in outcome:
                return {"d_sae": d_sae, "predicted_gb": round(needed / 1e9, 3)} | outcome | {"tried": tried}
            tried[str(d_sae)] = outcome["error"]
            free()
        else:
            tried[str(d_sae)] = f"needs {needed / 1e9:.1f} GB of {available / 1e9:.1f}"
    return {"error": "nothing fits", "tried": tried}


def try_largest(shape: Shape, formats: dict[str, Any]) -> Result:
    from saefast import InputError

    free()
    try:
        trainer = Trainer(make_sae(shape, DTYPE), train_config(shape, **formats))
        x = batches(shape, 1)[0]
        losses = [float(trainer.step(x).loss) for _ in range(3)]
        timing = step_ms(lambda: trainer.step(x), seconds=1)
    except (InputError, torch.OutOfMemoryError) as error:
        return {"error": str(error)[:300]}
    expect(losses[2] < losses[0], f"the loss does not fall: {losses}")
    return timing | peak_gb() | {"losses": losses, "tokens_per_s": round(1e3 * shape.B / timing["median_ms"])}


NAMES = ("triton", "plain", "split", "eager", "compiled")
ORDER = [
    *((case, name) for case in SHAPES for name in ("triton", "plain")),
    *((case, name) for case in CASES for name in ("split", "heavy-tailed")),
    *((case, "eager") for case in SHAPES if case not in PUBLISHED),
]
ITEMS: dict[str, Item] = {f"{case} {name}": partial(measure, case, name) for case, name in ORDER}
COMPILED_ITEMS = {
    f"{case} compiled": partial(measure, case, "compiled") for case in SHAPES if case in ("small", "A", "B")
}
# 4 bytes per parameter: 2 or 3 times a power of two; 5 bytes: three million, which is neither, and what fits if they do not
WIDEST = [size for n in range(5 if REHEARSAL else 22, 3, -1) for size in (2**n, 3 * 2 ** (n - 2))]
FORMAT_ITEMS: dict[str, Item] = {"largest": partial(largest, "bf16", WIDEST)}
FORMAT_ITEMS["largest, 24 bits"] = partial(largest, "split24", [30] if REHEARSAL else [3_000_000, 2**21])
FORMAT_ITEMS |= {"-".join(formats): partial(of_format, *formats) for formats in FORMATS}
STEP = Part(ITEMS, item_seconds=60)
COMPILED = Part(COMPILED_ITEMS, item_seconds=100)
FORMAT = Part(FORMAT_ITEMS, item_seconds=60)
