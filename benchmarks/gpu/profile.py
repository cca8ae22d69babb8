"""`make gpu`: what the device does in a step, kernel by kernel, as torch's profiler sees the graph replayed.

The stages time ops one by one with a cold L2 cache. Here they follow each other as in training, with the small torch
kernels between them, and what is left of the step's time is gaps.
"""

from collections import Counter
from functools import partial

from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.common import (
    CASES,
    DEVICE,
    Part,
    Report,
    Result,
    batches,
    expect,
    free,
    make_sae,
    step_ms,
    synchronize,
    train_config,
)
from saefast import Trainer

STEPS = 5
SHOWN = 20  # kernels


def profile_of(case: str, report: Report) -> Result:
    shape = CASES[case]
    trainer, (x,) = Trainer(make_sae(shape), train_config(shape)), batches(shape, 1)
    step = step_ms(lambda: trainer.step(x), seconds=0.3)["median_ms"]
    free()
    on_gpu = DEVICE == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as seen:
        for _ in range(STEPS):
            trainer.step(x)
        synchronize()
    us, calls = Counter[str](), Counter[str]()
    for event in seen.events():
        name = event.name[:80]
        us[name] += event.self_device_time_total if on_gpu else event.self_cpu_time_total
        calls[name] += 1
    busy = sum(us.values()) / STEPS / 1e3
    expect(busy > 0, "the profiler saw no kernels")
    return {
        "step_ms": step,
        "busy_ms": round(busy, 4),
        "gaps_ms": round(step - busy, 4),
        "launches": round(sum(calls.values()) / STEPS, 1),
        "kernels": [
            {"us": round(total / STEPS, 2), "calls": round(calls[name] / STEPS, 2), "name": name}
            for name, total in us.most_common(SHOWN)
        ],
    }


PROFILES = Part({case: partial(profile_of, case) for case in CASES}, item_seconds=40)
