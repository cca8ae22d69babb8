"""The CPU engine with more and with fewer instructions: what its encoder and its step are worth on other processors.

    .venv-peers/bin/python -m benchmarks.peers.instructions data/acts-bench    writes benchmarks/results/cpu/instructions.json
    python -m benchmarks.peers.instructions --smoke                            toy shapes on random numbers, nothing written

Once for each of the instruction sets in ISAS that this machine has, in a process of its own: the engine is held to it by
SAEFAST_ISA, torch's loops by ATEN_CPU_CAPABILITY, MKL's products by MKL_ENABLE_INSTRUCTIONS (which it heeds on Intel; on AMD
it takes AVX2 anyhow). So everybody has the same instructions; a real processor without the others has another clock and
other caches, too. The allocator keeps its buffers, which the peers gain most from.

Encoders: real activations, centred, and an SAE trained on them for a few steps; the others at the L0 of TopK, which they
must have. Every result is compared with the pre-activations in fp64 before it is timed.
"""

import argparse
import itertools
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks import measuring
from benchmarks.measuring import in_fresh_process, interleaved, ratio, rows_of, spread
from benchmarks.peers import step_ratios
from benchmarks.peers.step_ratios import PRODUCT, compare, step_of
from saefast import SAE, SAEConfig, TrainConfig, Trainer, native
from saefast.instructions import native_isas

ISAS = {  # and what torch and MKL are held to
    "vnni": {},
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
    },
}
ENCODERS = {"smoke": (256, 32, 2048, 4), "B 512": (512, 576, 9216, 32), "B 4096": (4096, 576, 9216, 32)}
STEPS = ("demo", "residual")
STEPPING = ("saefast", "plain PyTorch", "best PyTorch ops", "sparsify Adam")
ROUNDS, TRAINED = 15, 40  # rounds of encoders; steps of the SAE
TOLERANCE = 1e-4  # of the largest pre-activation


def trained(shape: tuple[int, int, int, int], rows: Tensor) -> SAE:
    B, D, F, k = shape
    sae = SAE(SAEConfig(d_in=D, d_sae=F, k=k))
    trainer = Trainer(sae, TrainConfig(total_tokens=10**9, batch_size=B, lr=1e-3, normalize_input=False))
    for x in itertools.islice(measuring.batches(rows, B), TRAINED):
        trainer.step(x)
    return sae


def encoders(shape: tuple[int, int, int, int], folder: str | None) -> dict[str, Any]:
    """Ratios: encode_topk over the product, every other selection over encode_topk."""
    B, _, F, k = shape
    rows = rows_of(folder, shape)
    sae = trained(shape, rows)
    W_enc, b_enc, b_dec = sae.W_enc.data, sae.b_enc.data, sae.b_dec.data
    centred = (rows[:B] - b_dec).contiguous()
    out = torch.empty(B, F, dtype=torch.float32, device="cpu")
    bar = torch.addmm(b_enc, centred, W_enc.T).flatten().kthvalue(B * (F - k)).values
    ways: dict[str, Callable[[Tensor], Any]] = {
        PRODUCT: lambda x: torch.addmm(b_enc, x, W_enc.T, out=out),
        "TopK": lambda x: native.encode_topk(x, W_enc, b_enc, k),
        "BatchTopK": lambda x: native.encode_batch_topk(x, W_enc, b_enc, k),
        "JumpReLU": lambda x: native.encode_threshold(x, W_enc, b_enc, bar.expand(F)),
        "GroupMax": lambda x: native.encode_group_max(x, W_enc, b_enc, k),
    }
    check(ways, centred, W_enc, b_enc, k, bar)
    seconds = interleaved(ways, itertools.repeat(centred), ROUNDS)
    topk = seconds["TopK"]
    found: dict[str, Any] = {name: {"seconds": spread(s, 5)} for name, s in seconds.items()}
    found["TopK"]["over the product"] = ratio(topk, seconds[PRODUCT])
    for name in set(ways) - {PRODUCT, "TopK"}:
        found[name]["over TopK"] = ratio(seconds[name], topk)
    return found


def check(
    ways: dict[str, Callable[[Tensor], Any]],
    centred: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    k: int,
    bar: Tensor,
) -> None:
    """Each code has as many entries as TopK's, with the right pre-activations, and no larger one is left out."""
    exact = torch.addmm(b_enc.double(), centred.double(), W_enc.double().T)
    slack = TOLERANCE * float(exact.abs().max())
    B, F = exact.shape
    bars = {
        "TopK": exact.topk(k, dim=1).values[:, -1:],
        "BatchTopK": bar.double(),
        "JumpReLU": bar.double(),
        "GroupMax": exact.view(B, k, F // k).amax(dim=2).repeat_interleave(F // k, dim=1),
    }
    for name, least in bars.items():
        acts, indices, *offsets = ways[name](centred)
        each = offsets[0].diff().long() if offsets else torch.full((B,), k)
        tokens = torch.arange(B).repeat_interleave(each)
        latents, chosen = indices.flatten().long(), torch.zeros_like(exact, dtype=torch.bool)
        chosen[tokens, latents] = True
        assert abs(int(chosen.sum()) - B * k) <= B * k // 1000, (name, int(chosen.sum()))
        assert (acts.flatten().double() - exact[tokens, latents].relu()).abs().max() <= slack, name
        assert not (chosen & (exact < least - slack)).any(), f"{name}: selected below the bar"
        assert not (~chosen & (exact > least + slack)).any(), f"{name}: left out above the bar"


def steps(name: str, folder: str | None) -> dict[str, Any]:
    shape = step_ratios.SHAPES[name]
    rows = rows_of(folder, shape)
    stream = measuring.batches(rows, shape[0])
    names = [n for n in STEPPING if not step_ratios.missing(n)]
    runs = {n: step_of(n, shape, rows) for n in names}
    compare(runs, stream)
    seconds = interleaved(runs, stream, 2 * step_ratios.ROUNDS[name])
    return {
        n: {"seconds": spread(s, 5), "times ours": ratio(s, seconds["saefast"])} for n, s in seconds.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", help="activations of width 576")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument(
        "--inner", action="store_true", help="(inner) with the instructions that this process has"
    )
    args = parser.parse_args()
    if not args.folder and not args.smoke:
        parser.error("folder: expected a folder of activations (or --smoke)")
    if args.inner:
        encoding = {name: shape for name, shape in ENCODERS.items() if (name == "smoke") == args.smoke}
        stepping = ("smoke",) if args.smoke else STEPS
        found = {
            "encoders": {name: encoders(shape, args.folder) for name, shape in encoding.items()},
            "steps": {name: steps(name, args.folder) for name in stepping},
        }
        print(json.dumps(found))
        return
    again = partial(in_fresh_process, __file__, "--smoke" if args.smoke else args.folder, "--inner")
    keep = {} if args.smoke else {"GLIBC_TUNABLES": measuring.KEEP}
    isas = {isa: env for isa, env in ISAS.items() if isa in (native_isas() or ())}
    results = {isa: again(env=keep | env | {"SAEFAST_ISA": isa}) for isa, env in isas.items()}
    shapes = {**ENCODERS, **{name: step_ratios.SHAPES[name] for name in STEPS}}
    if args.smoke:
        print(json.dumps(results))
        return
    print(measuring.write_result("instructions", {"shapes": shapes, "instructions": results}))


if __name__ == "__main__":
    main()
