"""`make gpu`: the update in CUDA beside the one in Triton. It becomes the engine's only where it is faster here.

It is an extension, which a lent machine builds beside the measurements: items come late, and are missing without it.
"""

import importlib.util
from dataclasses import replace
from functools import partial

from benchmarks.gpu.common import CASES, REHEARSAL, Part, Report, Result, expect, free, kernel_ms
from benchmarks.gpu.stages import GRADIENT, Chain, gradient_errors
from saefast import triton_kernels as ops
from saefast.triton_kernels import update_cuda

EXTENSION = "saefast.triton_kernels._update_cuda"


def measured(case: str, heavy_tailed: bool, report: Report) -> Result:
    if REHEARSAL:
        return {"said": "tests/kernels/test_update_cuda.py runs these kernels without a GPU"}
    if importlib.util.find_spec(EXTENSION) is None:
        return {"missing": EXTENSION}
    chain = Chain(CASES[case], heavy_tailed=heavy_tailed)
    found: Result = {"triton": kernel_ms(partial(ops.update_, *chain.update))}
    used = update_cuda.config_of(chain.shape.D, chain.centred.device)
    configs = {"default": used, "half the slots": replace(used, stages=max(6, used.stages // 2))}
    configs |= {f"windows of {n}": replace(used, window=n) for n in (64, 128, 256) if n != used.window}
    latents = chain.indices.flatten()[:: max(1, chain.indices.numel() // 32)].unique()
    for name, config in configs.items():
        for matrix in (chain.state.weights.enc, chain.state.weights.dec):
            matrix.exp_avg.zero_()
        run = partial(update_cuda.update_, *chain.update, config=config)
        run()
        of = chain.centred, chain.error, chain.grad_scale, chain.acts, chain.indices
        errors = gradient_errors(chain.state, *of, latents)
        expect(max(errors) < GRADIENT, f"{name}: gradients have relative errors {errors}")
        found[name] = kernel_ms(run)
    found["triton_over_cuda"] = round(found["triton"]["median_ms"] / found["default"]["median_ms"], 3)
    del chain, run
    free()
    return found


ITEMS = {case: partial(measured, case, False) for case in CASES}
ITEMS |= {f"{case} heavy-tailed": partial(measured, case, True) for case in CASES}
UPDATE_CUDA = Part(ITEMS, item_seconds=40)
