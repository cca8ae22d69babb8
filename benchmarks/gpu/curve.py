"""`make gpu`: does it learn what the reference learns? 500 steps, step by step beside it on the GPU.

`triton` is the engine as users get it: bf16 products, one CUDA graph. `reference` is fp32 PyTorch on the same batches, and
`control` the same with W_enc one unit in the last place larger: a selection that flips on a rounding error is amplified by
training, and the control shows by how much. Activations are those of data/acts-corpus where that folder is (`make demo`
makes it), or some of them that flight.sh brings along, else sparse mixtures of random directions.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.gpu.common import DEVICE, REHEARSAL, ROOT, Item, Part, Report, Result, exact_loss, rng
from saefast import SAE, SAEConfig, TrainConfig, Trainer, open_source

STEPS, B, F, K, HELDOUT = (4, 8, 24, 4, 32) if REHEARSAL else (500, 1024, 4608, 32, 16_384)
D = 24 if REHEARSAL else 576  # d_in of the mixtures
DEAD_AFTER = 2 * B if REHEARSAL else 20 * B
CORPORA = [ROOT / folder / "acts-corpus" for folder in ("data", "runs")]  # runs: what flight.sh takes along
ENGINES = {"backend": "reference", "compute_dtype": "fp32"}, {"backend": "triton", "compute_dtype": "bf16"}
LARGEST = 0.01  # relative difference of the held-out FVU, besides what the control differs by


def mixtures() -> Iterator[Tensor]:
    """[B, D]: a mean, 16 of 4 F directions each with an exponential coefficient, the first ones often, and noise."""
    directions = torch.randn(4 * F, D, device=DEVICE, generator=rng(1)).mul_(D**-0.5)
    mean = torch.randn(D, device=DEVICE, generator=rng(2))
    generator = rng(3)
    while True:
        u = torch.rand(B, 16, device=DEVICE, generator=generator)
        strength = -torch.rand(B, 16, device=DEVICE, generator=generator).clamp_min(1e-6).log()
        parts = directions[(u**4 * len(directions)).long()] * strength[:, :, None]
        yield mean + parts.sum(dim=1) + 0.02 * torch.randn(B, D, device=DEVICE, generator=generator)


def corpus(folder: Path) -> tuple[list[Tensor], Tensor]:
    """Batches, each row once before any comes again, and held-out rows, an eighth of all at most."""
    rows = torch.cat(list(open_source(folder).rows()))
    shuffle = torch.Generator().manual_seed(0)
    rows = rows[torch.randperm(len(rows), generator=shuffle)].float().to(DEVICE)
    n_heldout = min(HELDOUT, len(rows) // 8)
    heldout, rest = rows[:n_heldout], rows[n_heldout:]
    order = torch.cat(
        [torch.randperm(len(rest), generator=shuffle) for _ in range(1 + STEPS * B // len(rest))]
    )
    return [rest[part.to(DEVICE)] for part in order.split(B)[:STEPS]], heldout


def train(name: str, batches: list[Tensor], heldout: Tensor) -> tuple[Result, list[list[float]]]:
    d_in = batches[0].shape[1]
    config = TrainConfig(
        total_tokens=STEPS * B,
        batch_size=B,
        lr=4e-3,
        betas=(0.9, 0.99),
        decay_fraction=0.95,
        dead_feature_threshold=DEAD_AFTER,
        k_aux=K,
        **ENGINES[name == "triton"],
    )
    sae = SAE(SAEConfig(d_in=d_in, d_sae=F, k=K)).to(DEVICE)
    trainer = Trainer(sae, config)
    trainer.initialize(torch.cat(batches[:8]))  # what fit does before its first step
    if name == "control":
        weight = sae.W_enc.data
        weight.copy_(torch.nextafter(weight, torch.full_like(weight, torch.inf)))
        trainer.state.refresh()
    before = exact_loss(sae.params, heldout, K)
    metrics = [trainer.step(x) for x in batches]
    curves = torch.stack([torch.stack([m.fvu, m.auxk_loss, m.dead_frac]).float() for m in metrics]).tolist()
    after = exact_loss(sae.params, heldout, K)
    return {"heldout_fvu": after, "heldout_before": before, "dead_frac": curves[-1][2]}, curves


def curve(report: Report) -> Result:
    folder = next((folder for folder in CORPORA if folder.exists() and not REHEARSAL), None)
    if folder:
        batches, heldout = corpus(folder)
    else:
        made = mixtures()
        batches = [next(made) for _ in range(STEPS)]
        heldout = torch.cat([next(made) for _ in range(-(-HELDOUT // B))])
    result: Result = {"data": str(folder.relative_to(ROOT)) if folder else "mixtures", "steps": STEPS}
    curves: dict[str, list[list[float]]] = {}
    for name in ("triton", "reference", "control"):
        result[name], curves[name] = train(name, batches, heldout)
    fvu = {name: torch.tensor(values)[:, 0] for name, values in curves.items()}
    for name in ("triton", "control"):
        difference = (fvu[name] / fvu["reference"] - 1).abs()
        result[name] |= {f"first {n}": float(difference[:n].max()) for n in (1, 10, 100, STEPS)}
        apart = result[name]["heldout_fvu"] / result["reference"]["heldout_fvu"] - 1
        result[name]["heldout_to_reference"] = round(apart, 6)
    result["fvu_every_10_steps"] = {
        name: [round(v, 5) for v in values[::10].tolist()] for name, values in fvu.items()
    }
    result["steps_with_auxk"] = sum(values[1] > 0 for values in curves["triton"])
    bound = LARGEST + 3 * abs(result["control"]["heldout_to_reference"])
    if not result["triton"]["heldout_to_reference"] <= bound:
        result["error"] = (
            f"the held-out FVU is {result['triton']['heldout_to_reference']:.2%} above the reference's"
        )
    if not result["triton"]["heldout_fvu"] < result["triton"]["heldout_before"]:
        result["error"] = "it did not learn"
    return result


ITEMS: dict[str, Item] = {"curve": curve}
CURVE = Part(ITEMS, item_seconds=70)
